"""Claims about pairing: the same items on both sides, counted one by one."""

from __future__ import annotations

import pytest

from edgekit.errors import MeasureError
from edgekit.quality.pairing import pair_suite, pair_suites
from edgekit.records import ItemOutcome, SuiteRecord
from edgekit.statistics import mcnemar_p_value, paired_difference_interval


def run_of(marks: str, suite: str = "s", first: int = 0) -> SuiteRecord:
    """A run from a row of ``+`` and ``-``."""
    outcomes = tuple(
        ItemOutcome(f"{suite}/{i}", mark == "+", "", "") for i, mark in enumerate(marks, first)
    )
    n_correct = marks.count("+")
    rate = n_correct / len(marks) if marks else 0.0
    return SuiteRecord(suite, len(marks), n_correct, rate, 0, 1, outcomes)


def test_pairs_are_counted_item_by_item():
    pair = pair_suite(run_of("+++--+"), run_of("++-+-+"))
    assert (pair.suite, pair.n_items) == ("s", 6)
    assert (pair.n_only_device, pair.n_only_server) == (1, 1)
    assert (pair.device_rate, pair.server_rate, pair.difference) == (4 / 6, 4 / 6, 0.0)
    assert (pair.low, pair.high) == paired_difference_interval(3, 1, 1, 1)
    assert pair.p_value == 1.0


def test_the_difference_is_device_minus_server():
    pair = pair_suite(run_of("+---"), run_of("++++"))
    assert pair.difference == -0.75
    assert (pair.n_only_device, pair.n_only_server) == (0, 3)
    assert pair.p_value == mcnemar_p_value(0, 3)
    assert pair.low < -0.75 < pair.high


def test_the_order_of_answers_does_not_matter():
    device, server = run_of("+-+-"), run_of("++--")
    turned = SuiteRecord("s", 4, 2, 0.5, 0, 1, server.outcomes[::-1])
    assert pair_suite(device, turned) == pair_suite(device, server)


@pytest.mark.parametrize(
    ("server", "n_common"), [(run_of("++"), 2), (run_of("++++", first=1), 3), (run_of(""), 0)]
)
def test_other_items_are_refused_with_what_to_do(server, n_common):
    with pytest.raises(MeasureError, match=f"got {n_common} in common.*same --items and --seed"):
        pair_suite(run_of("++++"), server)
    with pytest.raises(MeasureError):
        pair_suite(run_of(""), run_of(""))


def test_suites_are_paired_by_name():
    device = (run_of("+-", "a"), run_of("++", "b"))
    server = (run_of("++", "b"), run_of("--", "a"))
    assert [(p.suite, p.difference) for p in pair_suites(device, server)] == [("a", 0.5), ("b", 0)]
    with pytest.raises(MeasureError, match="no server run of a"):
        pair_suites(device, server[:1])
