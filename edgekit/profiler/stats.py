"""Answer one question: what do a few raw samples say, and how sure is it?

Timings are skewed and few, so the headline is the median and its interval comes from a seeded
bootstrap: the same samples give the same interval on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from edgekit.errors import MeasureError

LEVEL: Final = 0.95
N_RESAMPLES: Final = 2000
MIN_FOR_INTERVAL: Final = 5
"""With fewer samples a bootstrap interval of the median says nothing."""


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
    picks = np.random.default_rng(seed).integers(0, len(values), (N_RESAMPLES, len(values)))
    medians = np.median(values[picks], axis=1)
    tail = (1 - LEVEL) / 2
    return float(np.quantile(medians, tail)), float(np.quantile(medians, 1 - tail))


def _finite(samples: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    values = np.asarray(samples, dtype=np.float64)
    if values.size == 0:
        raise MeasureError("no samples", got=0, wanted="at least 1")
    if not np.isfinite(values).all():
        raise MeasureError("a sample is not a finite number", got=list(samples))
    return values
