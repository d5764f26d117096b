"""Formatting of bytes, seconds and rates for people.

Records keep plain bytes and seconds; only tables, pages and messages use these functions.
"""

from __future__ import annotations

import re
from fractions import Fraction
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


_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)


def parse_bytes(text: str) -> int:
    """Read a size such as ``900MB`` (millions of bytes), ``1.5GiB`` (binary) or ``123456``.

    Raises:
        ValueError: It is none, or not positive.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or (match[3] and not match[2]):
        raise ValueError(f"not a size: {text!r}")
    base = 1024 if match[3] else 1000
    unit: int = base ** " kmgt".index(match[2].lower() or " ")
    n_bytes = round(Fraction(match[1]) * unit)
    if n_bytes < 1:
        raise ValueError(f"not a positive size: {text!r}")
    return n_bytes


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
