"""The tables of a report, in order.

The verdict comes first; a table without rows is left out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from edgekit.records import (
    ComparisonRecord,
    Divergence,
    Kind,
    Metric,
    ProfileRecord,
    QualityRecord,
    ReportData,
    SuiteRecord,
)
from edgekit.report.table import Cell, Table, make_table
from edgekit.report.verification import verification_tables
from edgekit.units import format_bytes, format_pct, format_rate, format_seconds

SUB_KINDS: Final = ("n_context_tokens", "n_steps", "kind")
NOT_THESE_NUMBERS: Final = (
    "Not a measurement of a device, unless the device column names the machine that ran it; "
    "emulated and projected numbers are labelled in their cell.",
    "Not comparable across sessions: machines are shared, so compare rows of one report only.",
    "Not a benchmark of a model class: rates are on generated items of the named suites.",
    "MLX on a CPU and the Core ML interpreter prove that an artifact is right; their speed says "
    "nothing about Apple hardware.",
)


def build_tables(data: ReportData) -> tuple[Table, ...]:
    """Give every table of a report that has rows."""
    return tuple(table for table in _all_tables(data) if table.rows)


def _all_tables(data: ReportData) -> Iterator[Table]:
    for comparison in data.comparisons:
        yield criteria_table(comparison)
    yield from verification_tables(data.verifications)
    yield speed_table(data.profiles)
    yield itl_table(data.profiles)
    yield memory_table(data.profiles)
    yield divergence_table(data.qualities)
    yield suite_table(data.qualities)
    yield sub_kind_table(data.qualities)
    yield failure_table(data.qualities)
    for comparison in data.comparisons:
        yield paired_table(comparison)
    yield _environment_table(data)


def metric_cell(metric: Metric | None) -> Cell:
    """Format a metric by the unit at the end of its name."""
    if metric is None:
        return Cell("-")
    if metric.value is None:
        return Cell(f"not measured: {metric.note}" if metric.note else "not measured")
    return Cell(format_metric(metric.name, metric.value), metric.kind)


def format_metric(name: str, value: float) -> str:
    """Write a value by its name's unit."""
    if name.endswith("_tok_per_s"):
        return format_rate(value)
    if name.endswith("_bytes"):
        return format_bytes(value)
    if name.endswith("_s"):
        return format_seconds(value)
    if name.endswith("_pct"):
        return f"{value:.1f} %"
    return f"{value:.4g}"


def criteria_table(comparison: ComparisonRecord) -> Table:
    """Show the decision, criterion by criterion."""
    rows = [
        (
            criterion.name,
            Cell(criterion.device, criterion.kind),
            criterion.server,
            criterion.threshold,
            Cell("", is_met=criterion.is_met, has_mark=True),
            criterion.note,
        )
        for criterion in comparison.verdict.criteria
    ]
    return make_table(
        f"decision-{comparison.candidate}",
        f"Decision: {comparison.candidate} or {comparison.server.model} on the server",
        ("criterion", "device", "server", "threshold", "result", "basis"),
        rows,
        caption=comparison.verdict.sentence,
        notes=(f"Rule: {comparison.verdict.rule}.", *comparison.notes),
    )


def speed_table(profiles: Sequence[ProfileRecord]) -> Table:
    """Show load, first token, prefill and decode of each candidate."""
    names = ("load_cold_s", "load_warm_s", "ttft_s", "prefill_tok_per_s", "decode_tok_per_s")
    rows: list[Sequence[Cell | str]] = []
    for profile in profiles:
        if profile.failure:
            rows.append((profile.candidate, profile.engine.engine, f"failed: {profile.failure}"))
        else:
            cells = [metric_cell(profile.metric(name)) for name in names]
            rows.append((profile.candidate, profile.engine.engine, *cells))
    return make_table(
        "speed",
        "Speed",
        ("candidate", "engine", "load cold", "load warm", "first token", "prefill", "decode"),
        rows,
        caption=_workload_caption(profiles),
        notes=tuple(dict.fromkeys(note for profile in profiles for note in profile.notes)),
    )


def itl_table(profiles: Sequence[ProfileRecord]) -> Table:
    """Show the time between tokens, including its slowest values."""
    names = ("itl_p50_s", "itl_p95_s", "itl_p99_s")
    rows: list[Sequence[Cell | str]] = [
        (profile.candidate, *[metric_cell(profile.metric(name)) for name in names])
        for profile in profiles
        if not profile.failure
    ]
    return make_table("gaps", "Time between tokens", ("candidate", "p50", "p95", "p99"), rows)


def _workload_caption(profiles: Sequence[ProfileRecord]) -> str:
    if not profiles:
        return ""
    load, info = profiles[0].workload, profiles[0].engine
    threads = f", {info.n_threads} threads" if info.n_threads else ""
    return (
        f"Medians of {load.n_repeats} runs after {load.n_warmup} discarded, prompt of "
        f"{load.n_prompt_tokens} tokens and {load.n_new_tokens} new ones{threads}; every raw "
        "sample is in report.json."
    )


def memory_table(profiles: Sequence[ProfileRecord]) -> Table:
    """Show size on disk and both kinds of memory."""
    rows = [
        (
            profile.candidate,
            format_bytes(profile.artifact_bytes),
            metric_cell(profile.metric("peak_anon_bytes")),
            metric_cell(profile.metric("peak_file_bytes")),
        )
        for profile in profiles
        if not profile.failure
    ]
    return make_table(
        "memory",
        "Size and memory",
        ("candidate", "files on disk", "peak anonymous", "peak file-backed"),
        rows,
        caption="Anonymous memory cannot be dropped by the system; file-backed pages can.",
    )


def divergence_table(qualities: Sequence[QualityRecord]) -> Table:
    """Show the distance from the float model."""
    found = [(q.candidate, q.divergence) for q in qualities if q.divergence is not None]
    rows = [
        (
            candidate,
            f"{d.kl_mean:.5f} ±{(d.kl_high - d.kl_low) / 2:.2g}",
            f"{d.kl_p99:.4f}",
            format_pct(d.top1_agreement, 2),
            f"{d.perplexity:.3f}",
            f"{d.perplexity / d.reference_perplexity:.4f}" if d.reference_perplexity else "-",
        )
        for candidate, d in found
    ]
    kept = sorted({d.top_k for _, d in found if d.top_k is not None})
    return make_table(
        "fidelity",
        "Fidelity to the float model",
        ("candidate", "KL, 95 %", "KL p99", "top-1", "perplexity", "ratio"),
        rows,
        caption=f"{_token_counts(found)} KL: nats per token from the float model, with half of the "
        "95 % interval over documents. top-1: same likeliest token. ratio: perplexity to the "
        "float model's.",
        notes=[
            f"KL is estimated from the {k} likeliest tokens and a sample of the others "
            "(docs/quality.md)."
            for k in kept
        ],
    )


def _token_counts(found: Sequence[tuple[str, Divergence]]) -> str:
    """Say on how many tokens each was compared; slow engines get fewer."""
    names: dict[int, list[str]] = {}
    for candidate, d in found:
        names.setdefault(d.n_tokens, []).append(candidate)
    if len(names) == 1:
        return f"On {next(iter(names)):,} tokens."
    counts = (f"{n:,} tokens of {', '.join(given)}" for n, given in names.items())
    return f"On {'; '.join(counts)}."


def suite_table(qualities: Sequence[QualityRecord]) -> Table:
    """Show the rate of every suite."""
    suites = list(dict.fromkeys(s.suite for q in qualities for s in q.suites))
    rows: list[Sequence[Cell | str]] = []
    for quality in qualities:
        by_name = {suite.suite: suite for suite in quality.suites}
        if by_name:
            rows.append((quality.candidate, *[_rate_cell(by_name.get(name)) for name in suites]))
    return make_table(
        "suites",
        "Task suites",
        ("candidate", *[name.replace("_", " ") for name in suites]),
        rows,
        caption="Share of items answered right, with 95 % Wilson interval.",
        notes=tuple(f"{q.candidate}: {note}" for q in qualities for note in q.notes),
    )


def _rate_cell(suite: SuiteRecord | None) -> str:
    if suite is None:
        return "-"
    interval = f"{100 * suite.low:.1f} to {100 * suite.high:.1f}"
    return f"{format_pct(suite.rate)} ({interval}, n={suite.n_items})"


def sub_kind_table(qualities: Sequence[QualityRecord]) -> Table:
    """Show rates by context length, number of steps or kind."""
    rows = []
    for quality in qualities:
        for suite in quality.suites:
            counts: dict[str, list[bool]] = {}
            for outcome in suite.outcomes:
                for key in SUB_KINDS:
                    if key in outcome.meta:
                        counts.setdefault(f"{key} {outcome.meta[key]}", []).append(
                            outcome.is_correct
                        )
                        break
            if len(counts) < 2:
                continue
            for label, results in sorted(counts.items(), key=lambda pair: _natural(pair[0])):
                rows.append(
                    (
                        quality.candidate,
                        suite.suite.replace("_", " "),
                        _readable(label),
                        f"{sum(results)} of {len(results)}",
                        format_pct(sum(results) / len(results)),
                    )
                )
    return make_table(
        "breakdown",
        "Right answers by length, steps or kind",
        ("candidate", "suite", "case", "right", "rate"),
        rows,
        caption="The same items by context length, number of steps, or kind of request.",
    )


def _natural(label: str) -> tuple[str, float, str]:
    name, _, value = label.partition(" ")
    is_number = re.fullmatch(r"[0-9]{1,15}(\.[0-9]{1,15})?", value) is not None
    return (name, float(value), "") if is_number else (name, 0.0, value)


def _readable(label: str) -> str:
    name, _, value = label.partition(" ")
    if name == "n_context_tokens":
        return f"{value} tokens of context"
    if name == "n_steps":
        return f"{value} step" if value == "1" else f"{value} steps"
    return value.replace("_", " ")


def failure_table(qualities: Sequence[QualityRecord]) -> Table:
    """Show wrong answers by reason."""
    rows = []
    for quality in qualities:
        for suite in quality.suites:
            reasons = Counter(o.reason for o in suite.outcomes if not o.is_correct)
            if reasons:
                listed = ", ".join(
                    f"{reason.replace('_', ' ')} {n}" for reason, n in reasons.most_common(5)
                )
                rows.append((quality.candidate, suite.suite.replace("_", " "), listed))
    return make_table(
        "failures",
        "Wrong answers by reason",
        ("candidate", "suite", "wrong answers by reason"),
        rows,
    )


def paired_table(comparison: ComparisonRecord) -> Table:
    """Show the paired differences of one comparison."""
    rows = [
        (
            pair.suite.replace("_", " "),
            format_pct(pair.device_rate),
            format_pct(pair.server_rate),
            f"{100 * pair.difference:+.1f} ({100 * pair.low:+.1f} to {100 * pair.high:+.1f})",
            f"{pair.n_only_device} / {pair.n_only_server}",
            f"{pair.p_value:.3g}",
            str(pair.n_items),
        )
        for pair in comparison.pairs
    ]
    return make_table(
        f"paired-{comparison.candidate}",
        f"Paired: {comparison.candidate} against {comparison.server.model}",
        (
            "suite",
            "device",
            "server",
            "difference, points (95 %)",
            "only device / only server right",
            "McNemar p",
            "items",
        ),
        rows,
        caption="The same items on both sides; positive means the device is better.",
    )


def _environment_table(data: ReportData) -> Table:
    host = data.host
    engines = ", ".join(f"{name} {version}" for name, version in sorted(host.engines.items()))
    formulas = sorted({m.formula for p in data.profiles for m in p.metrics if m.formula})
    rows = [
        ("machine", f"{host.cpu}, {host.n_cores} cores, {format_bytes(host.memory_bytes)}"),
        ("system", f"{host.os} {host.os_version} {host.arch}, Python {host.python}"),
        ("engines", engines or "none"),
        ("edgekit", data.edgekit_version),
        ("made", data.created),
        ("formulas", ", ".join(formulas) or "none"),
    ]
    return make_table("environment", "Environment", ("what", "value"), rows, notes=data.notes)


def label_kinds() -> tuple[tuple[str, str], ...]:
    """Say what each kind of number means."""
    return (
        (Kind.MEASURED.value, "measured on this machine in this run"),
        (
            Kind.EMULATED.value,
            "measured here on an emulator: results are right, times are not the device's",
        ),
        (Kind.PROJECTED.value, "computed by a formula, with its expected error"),
        (Kind.PUBLISHED.value, "published by others, with its source"),
    )
