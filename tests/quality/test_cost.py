"""Claims about the Pareto front, worked by hand."""

from __future__ import annotations

import pytest

from edgekit.quality.cost import pareto_front
from edgekit.records import CostPoint, EngineInfo
from tests.report.example import example_divergence


def point(name: str, n_bytes: int, kl: float) -> CostPoint:
    engine = EngineInfo("table", "1", name)
    return CostPoint(name, name, engine, n_bytes, 4.5, 4.5, example_divergence(kl))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("", ""),
        ("a 10 .1", "a"),
        # b is larger and farther than a; c is larger and nearer; d is smaller and farther.
        ("a 10 .1, b 11 .2, c 20 .01, d 5 .5", "d a c"),
        # As small and as near in one value, worse in the other.
        ("a 10 .1, b 10 .2", "a"),
        ("b 10 .2, a 10 .1", "a"),
        ("a 10 .1, b 11 .1", "a"),
        ("b 11 .1, a 10 .1", "a"),
        # Equal in both: the first stands for both.
        ("a 10 .1, b 10 .1", "a"),
        # A point that beats all others.
        ("a 10 .1, b 9 .05, c 12 .07", "b"),
        # In a row: every one is on the front, whatever the order.
        ("c 3 .1, a 1 .3, b 2 .2", "a b c"),
    ],
)
def test_the_front_is_what_no_other_beats(given, wanted):
    lines = [part.split() for part in given.split(",") if part.strip()]
    points = [point(name, int(size), float(kl)) for name, size, kl in lines]
    assert [p.name for p in pareto_front(points)] == wanted.split()
