"""Claims about how numbers are written for a person."""

from __future__ import annotations

import pytest

from edgekit.units import format_bytes, format_pct, format_rate, format_seconds


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (5 * 1024**2, "5.0 MiB"),
        (3 * 1024**3, "3.00 GiB"),
        (2048 * 1024**3, "2048.00 GiB"),
        (-1536, "-1.5 KiB"),
    ],
)
def test_bytes_use_binary_units(n_bytes, text):
    assert format_bytes(n_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 µs"),
        (0.000_25, "250 µs"),
        (0.001, "1.0 ms"),
        (0.0125, "12.5 ms"),
        (1, "1.00 s"),
        (119.5, "119.50 s"),
        (120, "2.0 min"),
    ],
)
def test_seconds_use_the_unit_a_person_would_pick(seconds, text):
    assert format_seconds(seconds) == text


def test_rates_and_shares():
    assert format_rate(9.94) == "9.9 tok/s"
    assert format_rate(12345.6) == "12,346 tok/s"
    assert format_pct(0.125) == "12.5 %"
    assert format_pct(0.98765, digits=2) == "98.77 %"
