"""The charts of a report, each with a sentence that states what it shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgekit.records import Kind, ProfileRecord, QualityRecord, ReportData
from edgekit.report.svg import Bar, Chart, Segment
from edgekit.units import format_bytes, format_pct, format_rate, format_seconds


def build_charts(data: ReportData) -> tuple[Chart, ...]:
    """Give every chart for which a report has data."""
    return tuple(chart for chart in _all_charts(data) if chart.bars)


def _all_charts(data: ReportData) -> Iterator[Chart]:
    profiles = [profile for profile in data.profiles if not profile.failure]
    yield from _quality_charts(data.qualities)
    yield _memory_chart(profiles, _memory_limit(data))
    yield _speed_chart(profiles)
    yield _latency_chart(profiles)
    yield _size_chart(profiles)


def _quality_charts(qualities: Sequence[QualityRecord]) -> Iterator[Chart]:
    suites = list(dict.fromkeys(s.suite for q in qualities for s in q.suites))
    for number, suite in enumerate(suites, start=1):
        bars = tuple(
            Bar(
                quality.candidate,
                format_pct(record.rate),
                (Segment(record.rate, "a", f"{record.n_correct} of {record.n_items}"),),
                low=record.low,
                high=record.high,
            )
            for quality in qualities
            for record in quality.suites
            if record.suite == suite
        )
        title = suite.replace("_", " ")
        yield Chart(
            f"chart-suite-{number}", f"Quality: {title}", _extremes(title, bars), bars, stop=1.0
        )


def _extremes(title: str, bars: Sequence[Bar]) -> str:
    if len(bars) < 2:
        return f"Share of {title} items answered right, with 95 % interval."
    best = max(bars, key=lambda bar: bar.segments[0].value)
    worst = min(bars, key=lambda bar: bar.segments[0].value)
    if best.segments[0].value == worst.segments[0].value:
        return f"Every candidate answers {best.text} right; whiskers are 95 % intervals."
    overlap = worst.high is not None and best.low is not None and worst.high >= best.low
    end = "their intervals overlap." if overlap else "their intervals do not overlap."
    return f"Best {best.label} ({best.text}), lowest {worst.label} ({worst.text}); {end}"


def _memory_limit(data: ReportData) -> tuple[float, str] | None:
    for comparison in data.comparisons:
        for metric in comparison.metrics:
            if metric.name == "memory_limit_bytes" and metric.value is not None:
                return metric.value, f"limit {format_bytes(metric.value)}"
    return None


def _memory_chart(profiles: Sequence[ProfileRecord], limit: tuple[float, str] | None) -> Chart:
    bars = []
    for profile in profiles:
        anon, file = profile.metric("peak_anon_bytes"), profile.metric("peak_file_bytes")
        if anon is None or anon.value is None:
            continue
        file_bytes = 0.0 if file is None or file.value is None else file.value
        bars.append(
            Bar(
                profile.candidate,
                format_bytes(anon.value),
                (
                    Segment(anon.value, "a", f"anonymous {format_bytes(anon.value)}"),
                    Segment(file_bytes, "b", f"file-backed {format_bytes(file_bytes)}"),
                ),
            )
        )
    largest = max((sum(s.value for s in bar.segments) for bar in bars), default=0.0)
    # A limit far beyond the bars would make them too short to read; the text still names it.
    is_drawn = limit is not None and limit[0] <= 4 * largest
    note = "" if limit is None else f" The app's {limit[1]}."
    return Chart(
        "chart-memory",
        "Peak memory",
        f"Labels give the anonymous part, which is what a limit counts.{note}",
        tuple(bars),
        limit=limit[0] if limit and is_drawn else None,
        limit_label=limit[1] if limit else "",
        legend=(("a", "anonymous"), ("b", "file-backed")),
    )


def _is_device_speed(profile: ProfileRecord) -> bool:
    metric = profile.metric("decode_tok_per_s")
    return metric is not None and metric.value is not None and metric.kind is Kind.MEASURED


def _speed_chart(profiles: Sequence[ProfileRecord]) -> Chart:
    bars = []
    for profile in profiles:
        metric = profile.metric("decode_tok_per_s")
        if metric is None or metric.value is None:
            continue
        label = "" if metric.kind is Kind.MEASURED else f" {metric.kind.value}"
        bars.append(
            Bar(
                profile.candidate,
                format_rate(metric.value) + label,
                (Segment(metric.value, "a", metric.kind.value),),
                low=metric.low,
                high=metric.high,
                is_hatched=metric.kind is not Kind.MEASURED,
            )
        )
    return Chart(
        "chart-speed",
        "Decode speed",
        "Median with 95 % interval; hatched bars are emulated and say nothing about a device.",
        tuple(bars),
    )


def _latency_chart(profiles: Sequence[ProfileRecord]) -> Chart:
    bars = []
    for profile in filter(_is_device_speed, profiles):
        values = {name: profile.metric(name) for name in ("load_warm_s", "ttft_s", "tpot_s")}
        if any(metric is None or metric.value is None for metric in values.values()):
            continue
        load, ttft, tpot = (
            float(m.value) for m in values.values() if m is not None and m.value is not None
        )
        decode = tpot * max(0, profile.workload.n_new_tokens - 1)
        bars.append(
            Bar(
                profile.candidate,
                format_seconds(load + ttft + decode),
                (
                    Segment(load, "b", f"load {format_seconds(load)}"),
                    Segment(ttft, "c", f"first token {format_seconds(ttft)}"),
                    Segment(decode, "a", f"decode {format_seconds(decode)}"),
                ),
            )
        )
    return Chart(
        "chart-latency",
        "From start to last token",
        "Loading happens once; the first token and decoding in every request.",
        tuple(bars),
        legend=(("b", "load"), ("c", "first token"), ("a", "decode")),
    )


def _size_chart(profiles: Sequence[ProfileRecord]) -> Chart:
    bars = tuple(
        Bar(
            profile.candidate,
            format_bytes(profile.artifact_bytes),
            (Segment(float(profile.artifact_bytes), "a", "all files of the artifact"),),
        )
        for profile in profiles
    )
    return Chart(
        "chart-size", "Size on disk", "All files of the artifact, tokenizer included.", bars
    )
