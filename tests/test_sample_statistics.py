"""Statistics against values worked out by hand and against numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import MeasureError
from edgekit.statistics import bootstrap_interval, mad, median, quantile

samples = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=40)


def test_hand_worked_values():
    times = [5.0, 1.0, 4.0, 2.0, 10.0]
    assert median(times) == 4.0
    assert median([1.0, 2.0, 3.0, 10.0]) == 2.5
    # Deviations from 4: 1 3 0 2 6, their middle is 2.
    assert mad(times) == 2.0
    # Sorted 1 2 4 5 10: position 0.95 * 4 = 3.8, so 5 + 0.8 * (10 - 5).
    assert quantile(times, 0.95) == pytest.approx(9.0, abs=1e-12)
    assert quantile(times, 0.5) == 4.0
    assert quantile(times, 0.0) == 1.0
    assert quantile(times, 1.0) == 10.0


@settings(deadline=None, max_examples=40)
@given(samples, st.floats(0, 1))
def test_quantile_is_the_linear_one_and_numpys(values, fraction):
    ordered = sorted(values)
    at = fraction * (len(ordered) - 1)
    below, above = ordered[math.floor(at)], ordered[math.ceil(at)]
    wanted = below + (at - math.floor(at)) * (above - below)
    assert quantile(values, fraction) == pytest.approx(wanted, rel=1e-9)
    assert quantile(values, fraction) == pytest.approx(np.percentile(values, 100 * fraction))


@settings(deadline=None, max_examples=40)
@given(samples)
def test_order_does_not_matter(values):
    assert median(values) == median(values[::-1]) == pytest.approx(quantile(values, 0.5))
    assert mad(values) == mad(values[::-1])


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(1e-3, 1e3), min_size=5, max_size=20))
def test_the_interval_holds_the_median_and_stays_inside_the_samples(values):
    low, high = bootstrap_interval(values)
    assert min(values) <= low <= median(values) <= high <= max(values)
    assert bootstrap_interval(values) == (low, high)


def test_the_interval_of_five_equal_steps_is_the_exact_bootstrap_one():
    # P(median of a resample is 1) = P(Binomial(5, 1/5) >= 3) = 0.058 > 2.5 %, so the 2.5 % point
    # of the resampled medians of 1 2 3 4 5 is 1 and by symmetry the upper one is 5.
    assert bootstrap_interval([3.0, 1.0, 5.0, 2.0, 4.0]) == (1.0, 5.0)
    assert bootstrap_interval([7.0] * 5) == (7.0, 7.0)


def test_the_interval_shrinks_with_more_samples():
    few = bootstrap_interval([float(i % 5) for i in range(5)])
    many = bootstrap_interval([float(i % 5) for i in range(500)])
    assert many[1] - many[0] < few[1] - few[0]


def test_fewer_than_five_samples_have_no_interval():
    assert bootstrap_interval([1.0, 2.0, 3.0, 4.0]) is None


@pytest.mark.parametrize("function", [median, mad, lambda v: quantile(v, 0.5)])
@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf"), 1.0]])
def test_meaningless_samples_are_refused(function, values):
    with pytest.raises(MeasureError):
        function(values)
