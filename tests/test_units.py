"""Claims about how numbers are written for a person."""

from __future__ import annotations

import pytest

from edgekit.units import format_bytes, format_pct, format_rate, format_seconds, parse_bytes


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


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("900MB", 900_000_000),
        ("1.5 GiB", 3 * 2**29),
        ("0.1kb", 100),
        ("12", 12),
        ("12B", 12),
        ("2m", 2_000_000),
        ("1TiB", 2**40),
        ("0.3MB", 300_000),
    ],
)
def test_sizes_are_read(text, n_bytes):
    assert parse_bytes(text) == n_bytes


@pytest.mark.parametrize(
    "text", ["", "MB", "-1MB", "1e3", "0", "0MB", "5iB", "1 XB", "nan", "1,5GB"]
)
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="size"):
        parse_bytes(text)
