"""Rounding to nearest: the range of a block decides its scale, and each weight is rounded alone.

Symmetric codes put the weight of largest magnitude on an end of the codes; with a zero point for
each block the codes span the range of the block, which always takes in zero.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from edgekit.dtypes import Bits, F32Array, zero_point
from edgekit.encoding import Encoding
from edgekit.quantize.grid import round_scales, round_scales_beside, zero_point_step
from edgekit.quantize.methods.blocks import BlockScales, RowCodes, encode_rows

# The step of the largest weight, counted from zero: codes reach 8 steps down and 7 up; 8 bits have
# no sign to choose.
_CLIP_LEVEL: Final[dict[Bits, float]] = {4: 8.0, 8: 127.0}
_N_ZEROS: Final = 16


def nearest_scales(weights: F32Array, encoding: Encoding) -> BlockScales:
    """Choose scales by the range of each block alone.

    Args:
        weights: float32 (G, n).
        encoding: Codes of block G.
    """
    bits = encoding.code_bits
    if encoding.has_zero_points:
        low, high = zero_range(weights)
        return beside_zero_points(low, high - low, bits)
    anchors = symmetric_anchors(weights, bits)
    chosen = symmetric(anchors / np.float32(_CLIP_LEVEL[bits]), bits)
    chosen.scales[anchors == 0] = 1
    return chosen


def nearest_rows(rows: F32Array, encoding: Encoding) -> RowCodes:
    """Quantize rows by the range of each block alone.

    Args:
        rows: float32 (N, M), checked.
        encoding: Codes with a block that divides M.
    """
    return encode_rows(rows, encoding, lambda weights, _: nearest_scales(weights, encoding))


def symmetric_anchors(weights: F32Array, bits: Bits) -> F32Array:
    """Give what is divided by a number of steps to be a scale, (n,).

    4-bit codes reach one step further down, so the sign puts the largest weight there.
    """
    high, low = weights.max(axis=0), weights.min(axis=0)
    extreme = np.where(high > -low, high, low)
    anchors: F32Array = -extreme if bits == 4 else np.abs(extreme)
    return anchors


def symmetric(scales: F32Array, bits: Bits) -> BlockScales:
    """Round scales to the grid, the zero point in the middle."""
    zeros = np.full(scales.shape, zero_point(bits), dtype=np.float32)
    return BlockScales(round_scales(scales, bits), zeros)


def zero_range(weights: F32Array) -> tuple[F32Array, F32Array]:
    """Give the lowest and the highest of each block's weights and zero, (n,) each."""
    zero = np.float32(0)
    return np.minimum(weights.min(axis=0), zero), np.maximum(weights.max(axis=0), zero)


def beside_zero_points(low: F32Array, width: F32Array, bits: Bits) -> BlockScales:
    """Let the codes span ``low .. low + width``: a zero point, and a scale beside it.

    The zero point is the nearest for 4-bit codes. 8-bit ones have but every sixteenth code as zero
    point, so theirs is the next higher one, and the scale is such that nothing is clipped.

    Args:
        low: At most 0, (n,).
        width: At least 0, (n,).
        bits: 4 or 8.
    """
    highest, unit = np.float32(2**bits - 1), np.float32(zero_point_step(bits))
    wide = np.where(width > 0, width, highest)
    if bits == 4:
        zeros = np.clip(np.rint(-low / wide * highest), 0, highest)
        wanted = wide / highest
    else:
        zeros = np.minimum(np.ceil(-low / wide * (highest / unit)), _N_ZEROS - 1) * unit
        below = np.divide(-low, zeros, out=np.zeros_like(wide), where=zeros > 0)
        wanted = np.maximum(below, (low + wide) / (highest - zeros))
    scales = round_scales_beside(wanted, zeros, bits)
    return BlockScales(np.where(width > 0, scales, np.float32(1)), zeros)
