"""Horizontal bar and interval charts as inline SVG.

They use no script and no external font. Colours come from CSS variables of the page, so that print
and dark mode work; patterns and text repeat what the colours say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Final

_WIDTH: Final = 760
_LABEL: Final = 250
_RIGHT: Final = 130
_ROW: Final = 30
_TOP: Final = 26


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a bar; ``style`` is a CSS class a, b, c or d."""

    value: float
    style: str
    name: str


@dataclass(frozen=True, slots=True)
class Bar:
    """One row: stacked segments, or a point with an interval when ``low``/``high`` are set."""

    label: str
    text: str
    segments: tuple[Segment, ...]
    low: float | None = None
    high: float | None = None
    is_hatched: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """A horizontal chart; ``limit`` draws a dashed line with its label."""

    key: str
    title: str
    message: str
    bars: tuple[Bar, ...]
    start: float = 0.0
    stop: float | None = None
    limit: float | None = None
    limit_label: str = ""
    legend: tuple[tuple[str, str], ...] = ()


def draw(chart: Chart) -> str:
    """Draw a chart as an SVG element with title and description for screen readers."""
    stop = chart.stop if chart.stop is not None else 1.02 * _largest(chart)
    span = (stop - chart.start) or 1.0
    plot = _WIDTH - _LABEL - _RIGHT
    height = _TOP + _ROW * len(chart.bars) + (24 if chart.legend else 6)

    def x(value: float) -> float:
        return _LABEL + plot * min(1.0, max(0.0, (value - chart.start) / span))

    bottom = _TOP + _ROW * len(chart.bars)
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-labelledby="{chart.key}-t {chart.key}-d">',
        f'<title id="{chart.key}-t">{escape(chart.title)}</title>',
        f'<desc id="{chart.key}-d">{escape(_describe(chart))}</desc>',
        f'<line class="axis" x1="{_LABEL}" y1="{_TOP - 6}" x2="{_LABEL}" y2="{bottom}"/>',
    ]
    for index, bar in enumerate(chart.bars):
        parts.extend(_draw_bar(bar, _TOP + _ROW * index, x))
    if chart.limit is not None:
        at = x(chart.limit)
        parts.append(
            f'<line class="limit" x1="{at:.1f}" y1="{_TOP - 8}" x2="{at:.1f}" y2="{bottom}"/>'
            f'<text class="limit-text" x="{at:.1f}" y="{_TOP - 12}" text-anchor="middle">'
            f"{escape(chart.limit_label)}</text>"
        )
    left = float(_LABEL)
    for style, name in chart.legend:
        parts.append(
            f'<rect class="bar {style}" x="{left:.0f}" y="{height - 16}" width="12" height="12"/>'
            f'<text class="small" x="{left + 17:.0f}" y="{height - 6}">{escape(name)}</text>'
        )
        left += 40 + 7 * len(name)
    parts.append("</svg>")
    return "".join(parts)


def _draw_bar(bar: Bar, top: int, x: Callable[[float], float]) -> list[str]:
    middle = top + _ROW / 2
    parts = [
        f'<text class="label" x="{_LABEL - 8}" y="{middle + 4:.0f}" text-anchor="end">'
        f"{escape(_short(bar.label))}</text>"
    ]
    at = 0.0  # stacked from zero; an axis that starts later clips the first segment
    for segment in bar.segments:
        left, right = x(at), x(at + segment.value)
        hatched = " hatched" if bar.is_hatched else ""
        parts.append(
            f'<rect class="bar {segment.style}{hatched}" x="{left:.1f}" y="{top + 5}" '
            f'width="{max(1.0, right - left):.1f}" height="{_ROW - 12}">'
            f"<title>{escape(segment.name)}</title></rect>"
        )
        at += segment.value
    end = x(at)
    if bar.low is not None and bar.high is not None:
        low, high = x(bar.low), x(bar.high)
        parts.append(
            f'<path class="whisker" d="M{low:.1f} {middle:.0f}H{high:.1f}'
            f'M{low:.1f} {middle - 5:.0f}v10M{high:.1f} {middle - 5:.0f}v10"/>'
        )
        end = max(end, high)
    parts.append(
        f'<text class="value" x="{end + 8:.1f}" y="{middle + 4:.0f}">{escape(bar.text)}</text>'
    )
    return parts


def _largest(chart: Chart) -> float:
    values = [sum(s.value for s in bar.segments) for bar in chart.bars]
    values += [bar.high for bar in chart.bars if bar.high is not None]
    if chart.limit is not None:
        values.append(chart.limit)
    return max(values, default=1.0) or 1.0


def _describe(chart: Chart) -> str:
    return f"{chart.message} " + "; ".join(f"{bar.label}: {bar.text}" for bar in chart.bars)


def _short(label: str) -> str:
    return label if len(label) <= 36 else label[:35] + "…"
