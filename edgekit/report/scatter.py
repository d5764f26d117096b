"""A scatter chart as a file of its own: points with intervals, and the front that none beats.

The horizontal axis is linear, the vertical one logarithmic; towards the lower left is better. Like
the charts of a report (svg.py) it uses no script and no external font, and says in its description
what it shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10
from typing import Final

_WIDTH: Final = 760
_HEIGHT: Final = 460
_LEFT: Final = 76
_RIGHT: Final = 24
_TOP: Final = 44
_BOTTOM: Final = 56
_RADIUS: Final = 5.0
_CHAR: Final = 7.0  # width of a letter at 13 px, roughly
_LINE: Final = 15.0
_SMALLEST: Final = 1e-7
"""A logarithmic axis has no zero: smaller values are drawn here."""
_N_TICKS: Final = 6
_STYLE: Final = (
    ":root{--ink:#1b1f24;--soft:#57606a;--line:#d0d7de;--page:#fff;--a:#0b5cad}"
    "@media (prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9da7b3;--line:#3d444d;"
    "--page:#0d1117;--a:#58a6ff}}"
    "text{fill:var(--ink);font:13px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;"
    "stroke:var(--page);stroke-width:4px;paint-order:stroke}"
    ".title{font-size:15px;font-weight:600}.soft{fill:var(--soft);font-size:12px}"
    ".page{fill:var(--page)}.grid{stroke:var(--line)}"
    ".front{stroke:var(--a);stroke-width:1.6;stroke-dasharray:6 4;fill:none}"
    ".whisker{stroke:var(--soft);stroke-width:1.4}"
    ".point{stroke:var(--a);stroke-width:1.8;fill:var(--page)}.best{fill:var(--a)}"
)


@dataclass(frozen=True, slots=True)
class Dot:
    """One point with the interval of its vertical value.

    Attributes:
        label: Its name.
        x, y: Where it is; ``low`` and ``high`` belong to ``y``.
        text: Both values in words, for screen readers.
        is_best: Whether it is on the front.
    """

    label: str
    x: float
    y: float
    low: float
    high: float
    text: str
    is_best: bool


@dataclass(frozen=True, slots=True)
class Scatter:
    """A chart; the axes' titles say the units."""

    title: str
    message: str
    x_title: str
    y_title: str
    dots: tuple[Dot, ...]


@dataclass(frozen=True, slots=True)
class _Box:
    """A rectangle that a text or a point takes."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: _Box) -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )


def draw_scatter(chart: Scatter) -> str:
    """Draw a chart as a whole SVG file."""
    dots = sorted(chart.dots, key=lambda dot: (dot.x, dot.y))
    first_x, last_x = _padded(min(d.x for d in dots), max(d.x for d in dots))
    first_y = floor(10 * min(_log(d.low) for d in dots)) / 10 - 0.05
    last_y = ceil(10 * max(_log(d.high) for d in dots)) / 10 + 0.05
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def at_x(value: float) -> float:
        return _LEFT + (right - _LEFT) * (value - first_x) / (last_x - first_x)

    def at_y(value: float) -> float:
        return bottom - (bottom - _TOP) * (_log(value) - first_y) / (last_y - first_y)

    spoken = f"{chart.message} " + "; ".join(f"{d.label}: {d.text}" for d in dots)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-labelledby="t d" width="{_WIDTH}" height="{_HEIGHT}">',
        f'<title id="t">{_text(chart.title)}</title><desc id="d">{_text(spoken)}</desc>',
        f"<style>{_STYLE}</style>",
        f'<rect class="page" width="{_WIDTH}" height="{_HEIGHT}"/>',
        f'<text class="title" x="{_LEFT}" y="24">{_text(chart.title)}</text>',
        *_axes(chart, (first_x, last_x), (first_y, last_y), at_x, at_y),
        *_front([d for d in dots if d.is_best], at_x, at_y),
    ]
    for dot in dots:
        x, y = at_x(dot.x), at_y(dot.y)
        style = "point best" if dot.is_best else "point"
        parts.append(
            f'<line class="whisker" x1="{x:.1f}" y1="{at_y(dot.low):.1f}" x2="{x:.1f}" '
            f'y2="{at_y(dot.high):.1f}"/><circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" '
            f'r="{_RADIUS}"><title>{_text(f"{dot.label}: {dot.text}")}</title></circle>'
        )
    parts += _labels(dots, at_x, at_y)
    parts.append("</svg>\n")
    return "\n".join(parts)


def ticks(first: float, last: float) -> list[float]:
    """Give up to about six round numbers between two numbers."""
    rough = (last - first) / _N_TICKS
    unit: float = 10.0 ** floor(log10(rough))
    step = next(unit * n for n in (1, 2, 5, 10) if unit * n >= rough)
    return [step * n for n in range(ceil(first / step), floor(last / step) + 1)]


def log_ticks(first: float, last: float) -> list[float]:
    """Give powers of ten between two exponents, and 2 and 5 times them where there are few."""
    factors = (1, 2, 5) if last - first < 3 else (1,)
    found = [n * 10.0**e for e in range(floor(first), ceil(last) + 1) for n in factors]
    return [value for value in found if first <= log10(value) <= last]


def _axes(
    chart: Scatter,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    at_x: Callable[[float], float],
    at_y: Callable[[float], float],
) -> Iterator[str]:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    for value in log_ticks(*y_range):
        y = at_y(value)
        yield (
            f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>'
            f'<text class="soft" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
        )
    for value in ticks(*x_range):
        x = at_x(value)
        yield (
            f'<line class="grid" x1="{x:.1f}" y1="{bottom}" x2="{x:.1f}" y2="{bottom + 5}"/>'
            f'<text class="soft" x="{x:.1f}" y="{bottom + 20}" text-anchor="middle">'
            f"{value:g}</text>"
        )
    yield f'<line class="grid" x1="{_LEFT}" y1="{bottom}" x2="{right}" y2="{bottom}"/>'
    middle = (_TOP + bottom) / 2
    yield (
        f'<text class="soft" x="{(_LEFT + right) / 2:.0f}" y="{_HEIGHT - 14}" '
        f'text-anchor="middle">{_text(chart.x_title)}</text>'
        f'<text class="soft" x="18" y="{middle:.0f}" text-anchor="middle" '
        f'transform="rotate(-90 18 {middle:.0f})">{_text(chart.y_title)}</text>'
    )


def _front(
    best: Sequence[Dot], at_x: Callable[[float], float], at_y: Callable[[float], float]
) -> Iterator[str]:
    """Draw steps: at each size, the best value that so few bytes have reached."""
    if not best:
        return
    steps = "".join(f"H{at_x(dot.x):.1f}V{at_y(dot.y):.1f}" for dot in best[1:])
    start = f"M{at_x(best[0].x):.1f} {_TOP}V{at_y(best[0].y):.1f}"
    yield f'<path class="front" d="{start}{steps}H{_WIDTH - _RIGHT}"/>'


def _labels(
    dots: Sequence[Dot], at_x: Callable[[float], float], at_y: Callable[[float], float]
) -> Iterator[str]:
    """Write each name beside its point, where nothing else is if there is such a place."""
    gap = _RADIUS + 4
    taken = [
        _Box(x - _RADIUS, y - _RADIUS, x + _RADIUS, y + _RADIUS)
        for x, y in ((at_x(dot.x), at_y(dot.y)) for dot in dots)
    ]
    for dot in dots:
        x, y = at_x(dot.x), at_y(dot.y)
        width = _CHAR * len(dot.label)
        sides = (x + gap, x - gap - width)
        places = [(left, y + line) for line in (4.0, -6.0, _LINE) for left in sides]
        places += [(x - width / 2, y - gap - 4), (x - width / 2, y + gap + _LINE)]
        # Among many near points, farther up or down.
        places += [
            (left, y + 6 + way * n * _LINE)
            for n in range(2, 2 + len(dots))
            for way in (-1, 1)
            for left in sides
        ]
        boxes = [
            _Box(left, base - _LINE + 3, left + width, base + 3)
            for left, base in places
            if left >= _LEFT and left + width <= _WIDTH - 2 and _LINE < base < _HEIGHT - _BOTTOM
        ]
        free = [box for box in boxes if not any(box.overlaps(other) for other in taken)]
        box = (free or boxes or [_Box(x + gap, y - _LINE - 1, x + gap + width, y - 1)])[0]
        taken.append(box)
        yield f'<text x="{box.left:.1f}" y="{box.bottom - 3:.1f}">{_text(dot.label)}</text>'


def _text(words: str) -> str:
    """Escape words for XML, which has no form for control characters."""
    return escape("".join(c if c.isprintable() else " " for c in words))


def _padded(first: float, last: float) -> tuple[float, float]:
    room = 0.08 * (last - first) or 0.05 * abs(last) or 1.0
    return first - room, last + room


def _log(value: float) -> float:
    return log10(max(value, _SMALLEST))
