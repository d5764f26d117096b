"""Claims about intervals and tests: hand-worked, published, or counted out one by one."""

from __future__ import annotations

from itertools import product
from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.statistics import (
    Z95,
    block_bootstrap_mean,
    mcnemar_p_value,
    paired_difference_interval,
    wilson_interval,
)

COUNT = st.integers(0, 40)


def test_wilson_of_eight_in_ten():
    # centre (0.8 + z2/20) / (1 + z2/10), spread z * sqrt(0.016 + z2/400) / (1 + z2/10)
    z2 = 1.959963984540054**2
    centre, scale = (0.8 + z2 / 20) / (1 + z2 / 10), 1 + z2 / 10
    spread = 1.959963984540054 * sqrt(0.016 + z2 / 400) / scale
    assert wilson_interval(8, 10) == pytest.approx((centre - spread, centre + spread), abs=1e-15)
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=5e-5)


def test_wilson_at_the_ends_is_exact_at_the_end():
    z2 = Z95**2
    assert wilson_interval(0, 10) == (0.0, pytest.approx(z2 / (10 + z2)))
    assert wilson_interval(10, 10) == (pytest.approx(10 / (10 + z2)), 1.0)
    assert wilson_interval(0, 0) == (0.0, 1.0)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_rate_and_mirrors(counts):
    n_correct, n_items = counts
    low, high = wilson_interval(n_correct, n_items)
    assert 0 <= low <= n_correct / n_items <= high <= 1
    mirrored = wilson_interval(n_items - n_correct, n_items)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (5, 1), (4, 4), (0, 8), (7, 5)])
def test_mcnemar_is_the_share_of_coin_rows_at_least_as_lopsided(first, second):
    n = first + second
    rows = [abs(2 * sum(row) - n) for row in product((0, 1), repeat=n)]
    lopsided = sum(row >= abs(first - second) for row in rows)
    assert mcnemar_p_value(first, second) == pytest.approx(lopsided / len(rows), abs=1e-12)


def test_mcnemar_by_hand():
    assert mcnemar_p_value(5, 1) == 2 * (1 + 6) / 64
    assert mcnemar_p_value(3000, 3000) == 1.0
    assert 0 < mcnemar_p_value(10, 300) < 1e-60


def test_newcombe_of_a_published_example():
    # Airway reactivity of 21 children, 1/1/7/12: Fagerland, Lydersen and Laake 2014
    # (Statistics in Medicine 33, 2850) give -0.507 to -0.026 for Newcombe's interval.
    found = paired_difference_interval(1, 1, 7, 12)
    assert [round(limit, 3) for limit in found] == [-0.507, -0.026]


def test_newcombe_without_a_correlation_joins_the_wilson_limits():
    # One side all right: the phi of the pairs is 0, so the spreads add in squares.
    low_2, high_2 = wilson_interval(36, 50)
    low_1, _ = wilson_interval(50, 50)
    wanted = (0.28 - sqrt((1 - low_1) ** 2 + (high_2 - 0.72) ** 2), 0.28 + (0.72 - low_2))
    assert paired_difference_interval(36, 14, 0, 0) == pytest.approx(wanted, abs=1e-12)


@given(COUNT, COUNT, COUNT, COUNT)
def test_a_paired_interval_holds_the_difference_and_mirrors(both, first, second, neither):
    low, high = paired_difference_interval(both, first, second, neither)
    n = both + first + second + neither
    assert -1 <= low <= high <= 1
    if n:
        assert low - 1e-9 <= (first - second) / n <= high + 1e-9
    mirrored = paired_difference_interval(both, second, first, neither)
    assert mirrored == pytest.approx((-high, -low), abs=1e-12)


def test_more_pairs_narrow_the_interval():
    widths = []
    for k in (1, 4, 16):
        low, high = paired_difference_interval(8 * k, k, k, 2 * k)
        widths.append(high - low)
    assert widths[0] > widths[1] > widths[2]


def test_the_bootstrap_of_equal_documents_is_a_point():
    assert block_bootstrap_mean([6.0, 6.0, 6.0], [3, 3, 3]) == (2.0, 2.0)
    assert block_bootstrap_mean([6.0], [3]) == (2.0, 2.0)


def test_the_bootstrap_weighs_documents_by_their_tokens():
    # Two documents: a draw is (a,a), (a,b), (b,a) or (b,b), so the 95 % interval is the two ends.
    assert block_bootstrap_mean([10.0, 0.0], [1, 9]) == (0.0, 10.0)


def test_the_bootstrap_repeats_itself_and_covers_a_known_mean():
    rng = np.random.default_rng(5)
    sums, counts = rng.normal(50, 10, 200).tolist(), [10] * 200
    low, high = block_bootstrap_mean(sums, counts)
    assert (low, high) == block_bootstrap_mean(sums, counts)
    spread = np.std(sums) / 10 / sqrt(200)
    middle = sum(sums) / 2000
    assert (low, high) == pytest.approx((middle - Z95 * spread, middle + Z95 * spread), abs=0.02)
