"""Claims: the time left follows from the pieces of a phase; each phase counts from its start."""

from __future__ import annotations

import pytest

from edgekit.progress import TimeLeft, format_left


def test_pieces_still_to_do_take_as_long_as_those_done():
    left = TimeLeft()
    reports = [(100, 1), (104, 2), (112, 4), (130, 10)]
    # Of 10: after the first report 1 piece takes 4 s; then 3 pieces take 12 s.
    assert [left.report(now, done, 10) for now, done in reports] == [None, 32.0, 24.0, 0.0]


def test_another_phase_starts_anew():
    left = TimeLeft()
    left.report(0, 1, 4)
    assert left.report(10, 2, 4) == 20.0
    assert left.report(11, 1, 4) is None  # the count fell
    assert left.report(13, 2, 4) == 4.0
    assert left.report(14, 3, 100) is None  # another total
    assert left.report(15, 4, 100) == 96.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (1.9, ""),
        (2, "2 s left"),
        (99.1, "100 s left"),
        (100, "2 min left"),
        (121, "3 min left"),
        (6000, "1 h 40 min left"),
    ],
)
def test_it_is_rounded_up_and_in_words(seconds, text):
    assert format_left(seconds) == text
