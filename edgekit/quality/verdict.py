"""The verdict: ship on the device or on the server, by a rule stated before the run.

Records go in, a verdict comes out. A criterion is met, not met, or cannot be judged. One that is
not met sends the model to the server; one that cannot be judged leaves the question open. Numbers
from an emulator decide nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from edgekit.records import Choice, Criterion, Kind, Metric, PairedRecord, ProfileRecord, Verdict
from edgekit.units import format_bytes, format_pct, format_rate, format_seconds


@dataclass(frozen=True, slots=True)
class Rule:
    """Thresholds of the decision.

    Attributes:
        margin: How much lower (fraction) a suite's rate may be on the device. A suite passes
            when the whole 95 % interval of the paired difference is above -margin.
        max_ttft_s: Longest acceptable time to the first token.
        min_decode_tok_per_s: Slowest acceptable decoding.
        memory_limit_bytes: Most anonymous memory the app may use; None when unknown.
    """

    margin: float = 0.05
    max_ttft_s: float = 1.0
    min_decode_tok_per_s: float = 10.0
    memory_limit_bytes: int | None = None

    def __str__(self) -> str:
        memory = (
            "unknown" if self.memory_limit_bytes is None else format_bytes(self.memory_limit_bytes)
        )
        return (
            f"ship on the device if memory stays within {memory}, the first token comes within "
            f"{format_seconds(self.max_ttft_s)}, decoding reaches "
            f"{format_rate(self.min_decode_tok_per_s)}, "
            f"and every suite is non-inferior to the server within {100 * self.margin:g} points "
            "(95 % interval of the paired difference); on the server if any of these fails; "
            "otherwise measure more"
        )


def decide(
    profile: ProfileRecord,
    pairs: Sequence[PairedRecord],
    server_metrics: Sequence[Metric],
    rule: Rule,
) -> Verdict:
    """Apply the rule to one candidate."""
    server = {metric.name: metric for metric in server_metrics}
    criteria = (
        *_run(profile),
        _memory(profile, rule),
        _ttft(profile, server.get("ttft_s"), rule),
        _decode(profile, server.get("decode_tok_per_s"), rule),
        *([_quality(pair, rule) for pair in pairs] or [_NO_QUALITY]),
    )
    failed = [criterion for criterion in criteria if criterion.is_met is False]
    open_ones = [criterion for criterion in criteria if criterion.is_met is None]
    choice = Choice.SERVER if failed else Choice.UNDECIDED if open_ones else Choice.DEVICE
    return Verdict(
        choice=choice,
        candidate=profile.candidate,
        sentence=_sentence(choice, profile.candidate, criteria, failed or open_ones),
        rule=str(rule),
        criteria=criteria,
    )


def _sentence(
    choice: Choice, candidate: str, criteria: Sequence[Criterion], causes: Sequence[Criterion]
) -> str:
    if choice is Choice.DEVICE:
        return f"Ship {candidate} on the device: all {len(criteria)} criteria are met."
    if choice is Choice.SERVER:
        listed = "; ".join(f"{c.name}: {c.device}, wanted {c.threshold}" for c in causes)
        return (
            f"Ship on the server: {candidate} fails {len(causes)} of {len(criteria)} criteria "
            f"({listed})."
        )
    names = ", ".join(c.name for c in causes)
    return (
        f"Cannot tell yet for {candidate}: {len(criteria) - len(causes)} of {len(criteria)} "
        f"criteria are met; open: {names}. More items, a known limit or a run on the device "
        "would answer it."
    )


def _is_met(metric: Metric | None, test: Callable[[float], bool]) -> bool | None:
    """Judge a number; None when there is no number, or an emulator gave it."""
    if metric is None or metric.value is None or metric.kind is Kind.EMULATED:
        return None
    return test(metric.value)


def _run(profile: ProfileRecord) -> tuple[Criterion, ...]:
    """Add a criterion when the measured run itself failed."""
    if not profile.failure:
        return ()
    return (
        Criterion(
            name="runs on the device",
            device=profile.failure,
            server="runs",
            threshold="a run that finishes",
            is_met=False,
            kind=Kind.MEASURED,
        ),
    )


_NO_QUALITY: Final = Criterion(
    name="quality",
    device="not measured",
    server="not measured",
    threshold="at least one suite on both sides",
    is_met=None,
    kind=Kind.MEASURED,
)


def _memory(profile: ProfileRecord, rule: Rule) -> Criterion:
    peak = profile.metric("peak_anon_bytes")
    limit = rule.memory_limit_bytes
    value = None if peak is None else peak.value
    return Criterion(
        name="memory",
        device="unknown" if value is None else format_bytes(value),
        server="not on the device",
        threshold="limit unknown" if limit is None else f"at most {format_bytes(limit)}",
        is_met=None if limit is None else _is_met(peak, lambda peak_bytes: peak_bytes <= limit),
        kind=Kind.MEASURED if peak is None else peak.kind,
        note="peak anonymous memory of the measured process",
    )


def _ttft(profile: ProfileRecord, server: Metric | None, rule: Rule) -> Criterion:
    ours = profile.metric("ttft_s")
    return Criterion(
        name="time to first token",
        device=_seconds(ours),
        server=_seconds(server),
        threshold=f"at most {format_seconds(rule.max_ttft_s)}",
        is_met=_is_met(ours, lambda ttft_s: ttft_s <= rule.max_ttft_s),
        kind=Kind.MEASURED if ours is None else ours.kind,
        note=f"prompt of {profile.workload.n_prompt_tokens} tokens on the device",
    )


def _decode(profile: ProfileRecord, server: Metric | None, rule: Rule) -> Criterion:
    ours = profile.metric("decode_tok_per_s")
    return Criterion(
        name="decode speed",
        device=_rate(ours),
        server=_rate(server),
        threshold=f"at least {format_rate(rule.min_decode_tok_per_s)}",
        is_met=_is_met(ours, lambda tok_per_s: tok_per_s >= rule.min_decode_tok_per_s),
        kind=Kind.MEASURED if ours is None else ours.kind,
    )


def _quality(pair: PairedRecord, rule: Rule) -> Criterion:
    is_met = True if pair.low >= -rule.margin else False if pair.high < -rule.margin else None
    return Criterion(
        name=pair.suite.replace("_", " "),
        device=f"{format_pct(pair.device_rate)} ({100 * pair.difference:+.1f} points, "
        f"{100 * pair.low:+.1f} to {100 * pair.high:+.1f})",
        server=format_pct(pair.server_rate),
        threshold=f"not more than {100 * rule.margin:g} points lower",
        is_met=is_met,
        kind=Kind.MEASURED,
        note=f"{pair.n_items} paired items; exact McNemar p = {pair.p_value:.3g}",
    )


def _seconds(metric: Metric | None) -> str:
    return "unknown" if metric is None or metric.value is None else format_seconds(metric.value)


def _rate(metric: Metric | None) -> str:
    return "unknown" if metric is None or metric.value is None else format_rate(metric.value)
