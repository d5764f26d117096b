"""Statistics of rates, differences, means and raw samples, with their 95 % intervals.

Closed forms where they exist; a seeded bootstrap where tokens are correlated, or where samples are
few and skewed. The same samples give the same interval on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Final

import numpy as np

from edgekit.errors import MeasureError

Z95: Final = 1.959963984540054
_N_RESAMPLES: Final = 2000
_SEED: Final = 20260101
MIN_FOR_INTERVAL: Final = 5
"""With fewer samples a bootstrap interval of the median says nothing."""


def wilson_interval(n_correct: int, n_items: int) -> tuple[float, float]:
    """Give the Wilson score interval of a rate; (0, 1) when there are no items.

    Source:
        Wilson 1927; without continuity correction.
    """
    if n_items == 0:
        return (0.0, 1.0)
    rate = n_correct / n_items
    centre = rate + Z95**2 / (2 * n_items)
    spread = Z95 * sqrt(rate * (1 - rate) / n_items + Z95**2 / (4 * n_items**2))
    scale = 1 + Z95**2 / n_items
    low = 0.0 if n_correct == 0 else max(0.0, (centre - spread) / scale)
    high = 1.0 if n_correct == n_items else min(1.0, (centre + spread) / scale)
    return (low, high)


def mcnemar_p_value(n_only_first: int, n_only_second: int) -> float:
    """Give the two-sided exact McNemar p-value from the discordant pairs."""
    n_discordant = n_only_first + n_only_second
    if n_discordant == 0:
        return 1.0
    tail = ways = 1
    for k in range(min(n_only_first, n_only_second)):
        ways = ways * (n_discordant - k) // (k + 1)  # n over k + 1
        tail += ways
    # Integers divide exactly at any size; as floats they would overflow beyond 1023 pairs.
    return min(1.0, 2 * tail / (1 << n_discordant))


def paired_difference_interval(
    n_both: int, n_only_first: int, n_only_second: int, n_neither: int
) -> tuple[float, float]:
    """Give the interval of (first rate - second rate) on the same items.

    Source:
        Newcombe 1998 (Statistics in Medicine 17, 2635), method 10: Wilson limits of both rates
        joined with the phi correlation of the pairs.
    """
    n_items = n_both + n_only_first + n_only_second + n_neither
    if n_items == 0:
        return (-1.0, 1.0)
    n_first, n_second = n_both + n_only_first, n_both + n_only_second
    first, second = n_first / n_items, n_second / n_items
    low_1, high_1 = wilson_interval(n_first, n_items)
    low_2, high_2 = wilson_interval(n_second, n_items)
    phi = _phi(n_both, n_only_first, n_only_second, n_neither)
    down_1, up_1 = first - low_1, high_1 - first
    down_2, up_2 = second - low_2, high_2 - second
    low_spread = max(0.0, down_1**2 - 2 * phi * down_1 * up_2 + up_2**2)
    high_spread = max(0.0, up_1**2 - 2 * phi * up_1 * down_2 + down_2**2)
    difference = first - second
    return (max(-1.0, difference - sqrt(low_spread)), min(1.0, difference + sqrt(high_spread)))


def _phi(n_both: int, n_only_first: int, n_only_second: int, n_neither: int) -> float:
    margins = (
        (n_both + n_only_first)
        * (n_only_second + n_neither)
        * (n_both + n_only_second)
        * (n_only_first + n_neither)
    )
    if margins == 0:
        return 0.0
    n_items = n_both + n_only_first + n_only_second + n_neither
    product = float(n_both * n_neither - n_only_first * n_only_second)
    if product > 0:
        product = max(product - n_items / 2, 0.0)  # Newcombe's continuity correction of phi
    return product / sqrt(margins)


def block_bootstrap_mean(sums: Sequence[float], counts: Sequence[int]) -> tuple[float, float]:
    """Give the interval of a mean over tokens, resampling whole documents.

    Args:
        sums: Sum of the value over each document's tokens.
        counts: Number of tokens of each document.
    """
    total = np.asarray(sums, dtype=np.float64)
    sizes = np.asarray(counts, dtype=np.float64)
    if len(total) < 2:
        mean = float(total.sum() / max(1.0, sizes.sum()))
        return (mean, mean)
    picks = np.random.default_rng(_SEED).integers(0, len(total), (_N_RESAMPLES, len(total)))
    means = total[picks].sum(axis=1) / sizes[picks].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return (float(low), float(high))


def quantile(samples: Sequence[float], fraction: float) -> float:
    """Give a quantile by linear interpolation between order statistics.

    Args:
        samples: At least one finite value, in any order.
        fraction: 0..1.

    Raises:
        MeasureError: No sample, or one that is not finite.
    Source:
        Hyndman and Fan 1996, definition 7; numpy's default.
    """
    return float(np.quantile(_finite(samples), fraction))


def median(samples: Sequence[float]) -> float:
    """Give the middle value; of an even count the mean of the two middle ones.

    Raises:
        MeasureError: No sample, or one that is not finite.
    """
    return float(np.median(_finite(samples)))


def mad(samples: Sequence[float]) -> float:
    """Give the median absolute deviation from the median, unscaled.

    Raises:
        MeasureError: No sample, or one that is not finite.
    """
    values = _finite(samples)
    return float(np.median(np.abs(values - np.median(values))))


def bootstrap_interval(samples: Sequence[float], *, seed: int = 0) -> tuple[float, float] | None:
    """Give the 95 % percentile-bootstrap interval of the median.

    Returns:
        ``(low, high)``, or None with fewer than ``MIN_FOR_INTERVAL`` samples.

    Raises:
        MeasureError: A sample is not finite.
    Source:
        Efron and Tibshirani 1993, chapter 13 (percentile method).
    """
    if len(samples) < MIN_FOR_INTERVAL:
        return None
    values = _finite(samples)
    picks = np.random.default_rng(seed).integers(0, len(values), (_N_RESAMPLES, len(values)))
    medians = np.median(values[picks], axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return float(low), float(high)


def _finite(samples: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    values = np.asarray(samples, dtype=np.float64)
    if values.size == 0:
        raise MeasureError("no samples", got=0, wanted="at least 1")
    if not np.isfinite(values).all():
        raise MeasureError("a sample is not a finite number", got=list(samples))
    return values
