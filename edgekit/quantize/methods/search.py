"""Search: the scale of each block, among those nearby, with the smallest squared error.

Tried are scales that clip the largest weights more or less, and least-squares fits: for fixed codes
the error is a parabola in the scale (and in the lowest weight, where a block has its own zero
point). Rounding to nearest is among what is tried, so no block gets worse by a search. 8-bit codes
are always rounded to nearest: their error is 1/16 of the 4-bit one, and a search would lower it by
8 % (measured).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from edgekit.dtypes import Bits, F32Array
from edgekit.encoding import Encoding
from edgekit.quantize.methods.blocks import (
    BlockScales,
    RowCodes,
    encode_rows,
    squared_error,
    sum_rows,
    to_steps,
)
from edgekit.quantize.methods.rtn import (
    beside_zero_points,
    nearest_scales,
    symmetric,
    symmetric_anchors,
    zero_range,
)

# Steps of the largest weight. Less than 8 leaves the end of the codes unused, more clips.
# Unweighted, wider or finer sets gain under 0.2 % RMS (measured). Weighted, large weights may
# matter little and the sign of the scale much; twice as many gain under 1 % (measured).
CLIP_LEVELS: Final = (7.0, 7.25, 7.5, 7.75, 8.25, 8.5, 8.75)
WEIGHTED_CLIP_LEVELS: Final = tuple(
    sign * level for level in (5.5, 6.5, 7.25, 8.0, 8.75) for sign in (1, -1)
)
# Shares of the low and of the high end of a block that the codes span.
_SHARES: Final = (1.0, 0.9, 0.8, 0.7)
SPANS: Final = tuple((low, high) for low in _SHARES for high in _SHARES)[1:]
# Each fit is made with the codes of the best scale so far.
N_SCALE_FITS: Final = 1
N_WEIGHTED_SCALE_FITS: Final = 3


def search_scales(
    weights: F32Array, encoding: Encoding, importance: F32Array | None = None
) -> BlockScales:
    """Choose, for each block, the scale with the smallest squared error.

    Args:
        weights: float32 (G, n).
        encoding: Codes of block G.
        importance: Factor of each squared error, at least 0: (G, 1) or (G, n); None for ones.
    """
    nearest = nearest_scales(weights, encoding)
    bits = encoding.code_bits
    if bits == 8:
        return nearest
    best = _Best(weights, nearest, bits, importance)
    if encoding.has_zero_points:
        low, high = zero_range(weights)
        for low_share, high_share in SPANS:
            new_low = low * np.float32(low_share)
            best.offer(beside_zero_points(new_low, high * np.float32(high_share) - new_low, bits))
        best.offer(_fit_line(weights, best.chosen, bits, importance))
        return best.chosen
    anchors = symmetric_anchors(weights, bits)
    for level in CLIP_LEVELS if importance is None else WEIGHTED_CLIP_LEVELS:
        best.offer(symmetric(anchors / np.float32(level), bits))
    for _ in range(N_SCALE_FITS if importance is None else N_WEIGHTED_SCALE_FITS):
        best.offer(_fit_scale(weights, best.chosen, bits, importance))
    return best.chosen


def search_rows(rows: F32Array, encoding: Encoding, importance: F32Array | None = None) -> RowCodes:
    """Quantize rows with the smallest squared error in each block.

    Args:
        rows: float32 (N, M), checked.
        encoding: Codes with a block that divides M.
        importance: Factor of the squared error of each column, (M,), at least 0; None for ones.
    """
    return encode_rows(
        rows, encoding, lambda weights, share: search_scales(weights, encoding, share), importance
    )


class _Best:
    """The best scales so far, block by block."""

    def __init__(
        self, weights: F32Array, first: BlockScales, bits: Bits, importance: F32Array | None
    ) -> None:
        self._weights = weights
        self._bits = bits
        self._importance = importance
        self._errors = squared_error(weights, first, bits, importance)
        self.chosen = first

    def offer(self, candidate: BlockScales) -> None:
        """Take the candidate's scale and zero point where its error is smaller."""
        errors = squared_error(self._weights, candidate, self._bits, self._importance)
        is_better = errors < self._errors
        np.copyto(self._errors, errors, where=is_better)
        np.copyto(self.chosen.scales, candidate.scales, where=is_better)
        np.copyto(self.chosen.zeros, candidate.zeros, where=is_better)


def _fit_scale(
    weights: F32Array, chosen: BlockScales, bits: Bits, importance: F32Array | None
) -> BlockScales:
    """Fit the scale to the codes that a scale gave: weights ~ scale * steps."""
    steps = to_steps(weights, chosen, bits)
    counted = steps if importance is None else steps * importance
    overlap, power = sum_rows(counted * weights), sum_rows(counted * steps)
    has_power = power > 0
    fitted = np.divide(overlap, power, out=chosen.scales.copy(), where=has_power)
    return symmetric(fitted, bits)


def _fit_line(
    weights: F32Array, chosen: BlockScales, bits: Bits, importance: F32Array | None
) -> BlockScales:
    """Fit scale and zero point to the codes that they gave: weights ~ scale * steps + shift."""
    steps = to_steps(weights, chosen, bits)
    shape = weights.shape
    share = np.broadcast_to(np.float32(1) if importance is None else importance, shape)
    total = sum_rows(share.copy())
    mean_step = sum_rows(share * steps)
    mean_weight = sum_rows(share * weights)
    is_counted = total > 0
    for sums in (mean_step, mean_weight):
        np.divide(sums, total, out=sums, where=is_counted)
    steps -= mean_step
    power = sum_rows(share * np.square(steps))
    overlap = sum_rows(share * steps * (weights - mean_weight))
    is_fit = (power > 0) & (overlap > 0)
    scales = np.divide(overlap, power, out=chosen.scales.copy(), where=is_fit)
    shift = mean_weight - scales * mean_step
    # The lowest code stands for -zero * scale of the old codes, moved by the shift.
    low = np.minimum(shift - chosen.zeros * scales, np.float32(0))
    width = scales * np.float32(2**bits - 1)
    return beside_zero_points(low, width, bits)
