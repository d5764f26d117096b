"""A report as one long CSV table.

One row per number: candidate, metric, value, kind of number, interval and every raw sample.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Final

from edgekit.records import Kind, Metric, ReportData, VerifyRecord

COLUMNS: Final = (
    "candidate",
    "group",
    "metric",
    "value",
    "kind",
    "low",
    "high",
    "n",
    "formula",
    "samples",
    "note",
)


def render_csv(data: ReportData) -> str:
    """Write every number of the report as CSV with a header line."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in _rows(data):
        writer.writerow([_safe(value) for value in row])
    return stream.getvalue()


def _safe(value: object) -> object:
    """Keep a spreadsheet from running text as a formula, and a line end from splitting a row."""
    if not isinstance(value, str):
        return "" if value is None else value
    text = value.replace("\r\n", "\n").replace("\r", "\n")
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\n") else text


def _rows(data: ReportData) -> Iterator[tuple[object, ...]]:
    for profile in data.profiles:
        yield (
            profile.candidate,
            "size",
            "artifact_bytes",
            profile.artifact_bytes,
            Kind.MEASURED.value,
            None,
            None,
            1,
            "",
            "",
            "",
        )
        for metric in profile.metrics:
            yield _metric_row(profile.candidate, "profile", metric)
    for quality in data.qualities:
        if quality.divergence is not None:
            d = quality.divergence
            rows = (
                ("kl_mean", d.kl_mean, d.kl_low, d.kl_high),
                ("kl_median", d.kl_median, None, None),
                ("kl_p99", d.kl_p99, None, None),
                ("kl_max", d.kl_max, None, None),
                ("kl_bound", d.kl_bound, None, None),
                ("top1_agreement", d.top1_agreement, d.top1_low, d.top1_high),
                ("perplexity", d.perplexity, d.perplexity_low, d.perplexity_high),
                ("reference_perplexity", d.reference_perplexity, None, None),
            )
            for name, value, low, high in rows:
                yield (
                    quality.candidate,
                    "fidelity",
                    name,
                    value,
                    Kind.MEASURED.value,
                    low,
                    high,
                    d.n_tokens,
                    "",
                    "",
                    "",
                )
        for suite in quality.suites:
            yield (
                quality.candidate,
                "suite",
                suite.suite,
                suite.rate,
                Kind.MEASURED.value,
                suite.low,
                suite.high,
                suite.n_items,
                "wilson",
                "",
                "",
            )
    for comparison in data.comparisons:
        for metric in comparison.metrics:
            yield _metric_row(comparison.candidate, "server", metric)
        for pair in comparison.pairs:
            yield (
                comparison.candidate,
                "paired difference",
                pair.suite,
                pair.difference,
                Kind.MEASURED.value,
                pair.low,
                pair.high,
                pair.n_items,
                "newcombe-10",
                "",
                f"McNemar p = {pair.p_value:.4g}",
            )
    for record in data.verifications:
        for name, value, n_values, limit, note in _verify_values(record):
            yield (
                record.artifact,
                "verify",
                name,
                value,
                Kind.MEASURED.value,
                None,
                None,
                n_values,
                "",
                "",
                f"{note}, at most {limit:.3g}" if note else "",
            )


def _verify_values(
    record: VerifyRecord,
) -> Iterator[tuple[str, float, int | None, float, str]]:
    """Give name, value, number of samples, limit, and the name of the limit."""
    weights, logits, run = record.weights, record.logits, record.run
    yield "codes_differing", weights.n_codes_differing, weights.n_codes, 0, ""
    yield "scales_differing", weights.n_scales_differing, None, 0, ""
    if logits is not None:
        yield "max_logit_error", logits.max_error, logits.n_tokens, logits.limit, logits.tolerance
    if run is not None:
        n_tokens = run.n_read + run.n_written
        yield "run_kl_mean_nats", run.kl_mean, n_tokens, run.limit, run.tolerance
        yield "run_top1_agreement", run.top1_agreement, n_tokens, 0, ""


def _metric_row(candidate: str, group: str, metric: Metric) -> tuple[object, ...]:
    samples = " ".join(repr(sample) for sample in metric.samples)
    return (
        candidate,
        group,
        metric.name,
        metric.value,
        metric.kind.value,
        metric.low,
        metric.high,
        len(metric.samples),
        metric.formula,
        samples,
        metric.note or metric.source,
    )
