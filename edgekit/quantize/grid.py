"""The integer grid that every format holds exactly.

A weight is ``(code - zero_point) * scale`` with the zero point in the middle (8 or 128). The
scale has at most 8 significant bits and is within fp16's range, so the scale and
``-zero_point * scale`` (MLX's bias) are exact in fp16, bf16 and fp32, and a 4-bit weight is
exactly an fp16 number.

A 4-bit scale may be negative: the codes reach one step further down than up, so the sign is
chosen to put the largest weight on the long side, as GGUF Q4_0 does. An 8-bit scale is
positive: one step of 127 is not worth a sign.

Encodings with a zero point for each block (``uint4``, ``uint8``) have positive scales. A scale of
at most 7 significant bits, ``m * 2**e``, is allowed for a zero point if ``m`` times the odd part
of the zero point is at most 255: then ``-zero_point * scale`` has 8 significant bits and is exact
in bf16, too. An 8-bit zero point is a multiple of 16, so that its odd part is at most 15, as that
of a 4-bit one: an odd part of 255 would leave only powers of two as scales.
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
SUBNORMAL_BELOW: Final = SCALE_STEP * 2 ** (N_SIGNIFICANT_BITS - 1)
_N_SIGNIFICANT_BITS_BESIDE_ZERO_POINTS: Final = 7
N_PLACES: Final = 1024  # at which the allowed significands are tabulated
N_ZEROS: Final = 16  # zero points of a block: 0 .. 15, times 16 for 8-bit codes
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
    rounded = np.where(exact < np.float32(SUBNORMAL_BELOW), subnormal, rounded)
    return np.where(np.asarray(scales) < 0, -rounded, rounded).astype(np.float32, copy=False)


def zero_point_step(bits: Bits) -> int:
    """Give what zero points of blocks are multiples of: 1 for 4-bit codes, 16 for 8-bit ones."""
    return 1 << (bits - 4)


def round_scales_beside(
    scales: NDArray[np.floating], zero_points: NDArray[np.floating], bits: Bits
) -> F32Array:
    """Round positive scales to ones that every format holds exactly beside these zero points.

    To the nearest for 4-bit codes, and up for 8-bit ones: those lose more by clipping.

    Args:
        scales: Finite, any shape; below ``SCALE_STEP`` counts as that.
        zero_points: Same shape: multiples of ``zero_point_step(bits)`` within the codes.
        bits: 4 or 8.

    Returns:
        float32, same shape: the scale and ``zero_point * scale`` are exact in fp16 and bf16, and
        no weight is beyond fp16's range. Of scales whose distance differs by
        less than 2**-10, and of subnormal ones, it may be the other neighbour.
    """
    zeros = zero_points.astype(np.intp) >> (bits - 4)
    exact = np.clip(np.asarray(scales, dtype=np.float32), np.float32(SCALE_STEP), None)
    # Subnormal scales are whole multiples of SCALE_STEP, and so are the allowed ones next to them.
    whole = np.rint(exact * np.float32(1 / SCALE_STEP)) * np.float32(SCALE_STEP)
    exact = np.where(exact < np.float32(SUBNORMAL_BELOW), whole, exact)
    significand, exponent = np.frexp(exact)  # 0.5 <= significand < 1
    place = np.rint(significand * np.float32(2 * N_PLACES)).astype(np.intp) - N_PLACES
    rounded = np.ldexp(SIGNIFICANDS[bits][zeros, place], exponent - 8)
    capped: F32Array = np.minimum(rounded, LARGEST_BESIDE[bits][zeros])
    return capped.astype(np.float32, copy=False)


def _odd_part(number: int) -> int:
    return number // (number & -number) if number else 1


def _allowed_significands(zero: int) -> list[int]:
    """List the numbers 128 .. 256 whose odd part is small enough beside a 4-bit zero point."""
    largest = min(
        2**_N_SIGNIFICANT_BITS_BESIDE_ZERO_POINTS - 1,
        (2**N_SIGNIFICANT_BITS - 1) // _odd_part(zero),
    )
    return [n for n in range(128, 257) if _odd_part(n) <= largest]


def _rounded_significands(bits: Bits) -> F32Array:
    """Tabulate, for each zero point, what each place from 128 to 256 is rounded to."""
    table = np.empty((N_ZEROS, N_PLACES + 1), dtype=np.float32)
    places = np.linspace(128, 256, N_PLACES + 1)
    for zero in range(N_ZEROS):
        allowed = np.array(_allowed_significands(zero))
        if bits == 8:
            table[zero] = allowed[np.searchsorted(allowed, places)]
        else:
            nearest = np.abs(places[:, None] - allowed).argmin(axis=1)  # of two, the smaller
            table[zero] = allowed[nearest]
    return table


def _largest_beside(bits: Bits) -> F32Array:
    """Give, for each zero point, the largest allowed scale that keeps all weights within fp16."""
    largest = np.empty(N_ZEROS, dtype=np.float32)
    for zero in range(N_ZEROS):
        zero_at = zero * zero_point_step(bits)
        steps = max(zero_at, 2**bits - 1 - zero_at)
        allowed = [n * 2.0**e for n in _allowed_significands(zero) for e in range(-8, 8)]
        largest[zero] = max(s for s in allowed if s * steps <= LARGEST_WEIGHT)
    return largest


SIGNIFICANDS: Final[dict[Bits, F32Array]] = {
    4: _rounded_significands(4),
    8: _rounded_significands(8),
}
LARGEST_BESIDE: Final[dict[Bits, F32Array]] = {4: _largest_beside(4), 8: _largest_beside(8)}
