"""The integer grid that every format holds exactly.

A weight is ``(code - zero_point) * scale`` with the zero point in the middle (8 or 128). The
scale has at most 8 significant bits and is within fp16's range, so the scale and
``-zero_point * scale`` (MLX's bias) are exact in fp16, bf16 and fp32, and a 4-bit weight is
exactly an fp16 number.

A 4-bit scale may be negative: the codes reach one step further down than up, so the sign is
chosen to put the largest weight on the long side, as GGUF Q4_0 does. An 8-bit scale is
positive: one step of 127 is not worth a sign.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgekit.dtypes import Bits, DType, F32Array, zero_point
from edgekit.formats.floats import to_bf16, to_float32

N_SIGNIFICANT_BITS: Final = 8
SCALE_STEP: Final = 2.0**-24  # fp16's smallest subnormal: no scale lies between its multiples
LARGEST_WEIGHT: Final = 65280.0  # 255 * 2**8, the largest fp16 number of 8 significant bits
# Below this a spacing of 8 significant bits would be finer than fp16's subnormal spacing.
_SUBNORMAL_BELOW: Final = SCALE_STEP * 2 ** (N_SIGNIFICANT_BITS - 1)
# 1.5 * 2**23: adding it rounds a small float32 to the nearest integer in its low mantissa bits.
ROUNDER: Final = np.float32(12582912.0)


def largest_scale(bits: Bits) -> float:
    """Give the scale at which ``zero_point * scale`` reaches the largest weight: 8160 or 510."""
    return LARGEST_WEIGHT / zero_point(bits)


def round_scales(scales: NDArray[np.floating], bits: Bits) -> F32Array:
    """Round scales to the nearest ones that every format holds exactly.

    Signs are kept; a magnitude is moved into ``SCALE_STEP .. largest_scale(bits)``, so the
    result is never zero. A zero counts as positive.

    Args:
        scales: Finite, any shape.
        bits: 4 or 8.

    Returns:
        float32, same shape; each with at most 8 significant bits (ties to even), exact in
        fp16 and bf16.
    """
    exact = np.abs(scales).astype(np.float32)
    np.clip(exact, np.float32(SCALE_STEP), np.float32(largest_scale(bits)), out=exact)
    rounded = to_float32(to_bf16(exact), DType.BF16)
    subnormal = np.rint(exact * np.float32(1 / SCALE_STEP)) * np.float32(SCALE_STEP)
    rounded = np.where(exact < np.float32(_SUBNORMAL_BELOW), subnormal, rounded)
    return np.where(np.asarray(scales) < 0, -rounded, rounded).astype(np.float32, copy=False)
