"""Formatting of bytes, seconds and rates for people.

Records keep plain bytes and seconds; only tables, pages and messages use these functions.
"""

from __future__ import annotations

from typing import Final

MIB: Final = 1024**2


def format_bytes(n_bytes: float) -> str:
    """Write a byte count with a binary unit and three significant digits."""
    value = float(n_bytes)
    for unit in ("B", "KiB", "MiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"


def format_seconds(seconds: float) -> str:
    """Write a duration in the unit a person would pick (us, ms, s, min)."""
    if abs(seconds) < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    if abs(seconds) < 1:
        return f"{seconds * 1e3:.1f} ms"
    if abs(seconds) < 120:
        return f"{seconds:.2f} s"
    return f"{seconds / 60:.1f} min"


def format_rate(tok_per_s: float) -> str:
    """Write tokens per second with a sensible number of digits."""
    return f"{tok_per_s:,.0f} tok/s" if abs(tok_per_s) >= 100 else f"{tok_per_s:.1f} tok/s"


def format_pct(fraction: float, digits: int = 1) -> str:
    """Write a fraction (0..1) as a percentage."""
    return f"{100 * fraction:.{digits}f} %"
