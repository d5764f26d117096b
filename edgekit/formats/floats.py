"""Conversion of stored float types to float32, and of float32 to bf16.

Types of at most 32 bits convert exactly; float64 is rounded to the nearest float32.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgekit.dtypes import DTYPES, DType, F32Array, U8Array
from edgekit.errors import FormatError


def to_float32(raw: NDArray[Any], dtype: DType) -> F32Array:
    """Convert stored floats to float32, as a new array.

    Args:
        raw: Bits as held by ``DTYPES[dtype].numpy``, any shape.
        dtype: What the bits mean.

    Returns:
        float32 of the same shape.

    Raises:
        FormatError: The type holds integers.

    Exact except for float64: every value, signed zeros and infinities included; NaN stays NaN. A
    float64 beyond the range of float32 becomes infinite.
    """
    if dtype is DType.FP64:
        with np.errstate(over="ignore"):
            return raw.astype(np.float32)
    if dtype in (DType.FP32, DType.FP16):
        return raw.astype(np.float32)
    if dtype is DType.BF16:
        # A bf16 is the upper half of a float32, the second word where the low byte comes first;
        # one strided store is twice as fast as widening and shifting.
        wide: NDArray[np.uint16] = np.zeros((*raw.shape, 2), dtype="<u2")
        wide[..., 1] = raw
        return wide.view(np.float32).reshape(raw.shape)
    if dtype is DType.FP8_E4M3:
        return np.take(_E4M3, raw).reshape(raw.shape)
    if dtype is DType.FP8_E5M2:
        # The upper byte of a float16.
        return (raw.astype("<u2") << np.uint16(8)).view("<f2").astype(np.float32)
    if dtype is DType.FP8_E8M0:
        return np.take(_E8M0, raw).reshape(raw.shape)
    raise FormatError("the tensor holds no floats", got=DTYPES[dtype].safetensors, wanted="a float")


def to_bf16(values: F32Array) -> NDArray[np.uint16]:
    """Round finite float32 to the bits of bf16, ties to even, any shape."""
    words = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    # Adding 0x7FFF plus the last kept bit carries exactly when the cut half rounds up.
    bits: NDArray[np.uint16] = ((words + 0x7FFF + ((words >> 16) & 1)) >> 16).astype("<u2")
    return bits


def _e4m3_values() -> F32Array:
    """Give the value of each of the 256 codes (E4M3FN: no infinity, 0x7F and 0xFF are NaN).

    Source:
        FP8 Formats for Deep Learning (Micikevicius et al. 2022), table 1.
    """
    codes: U8Array = np.arange(256, dtype=np.uint8)
    exponent = (codes >> 3 & 15).astype(np.int32)
    mantissa = (codes & 7).astype(np.float32)
    is_subnormal = exponent == 0
    magnitude = np.where(
        is_subnormal,
        np.ldexp(mantissa, -9),
        np.ldexp(np.float32(8) + mantissa, exponent - 10),
    ).astype(np.float32)
    magnitude[codes & 127 == 127] = np.nan
    values: F32Array = np.where(codes < 128, magnitude, -magnitude)
    return values


def _e8m0_values() -> F32Array:
    """Give the value of each of the 256 codes: 2**(code - 127), and NaN for 255.

    Source:
        OCP Microscaling Formats (MX) Specification 1.0, section 5.4.1.
    """
    values: F32Array = np.full(256, np.nan, np.float32)
    values[:255] = np.ldexp(np.float32(1), np.arange(255) - 127)
    return values


_E4M3: Final = _e4m3_values()
_E8M0: Final = _e8m0_values()
