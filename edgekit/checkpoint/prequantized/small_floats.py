"""Values of 4-bit and 6-bit floats, and the scales of their groups.

Source: OCP Microscaling Formats (MX) Specification 1.0, sections 5.3.2 (E2M3) and 5.3.3 (E2M1).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from edgekit.checkpoint.prequantized.tensor import by_group, unpack_words
from edgekit.dtypes import DType, F32Array, U8Array
from edgekit.formats.floats import to_float32
from edgekit.formats.packing import unpack_codes
from edgekit.formats.safetensors import SafetensorsTensor

_MAGNITUDES: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_E2M1: Final = np.array([*_MAGNITUDES, *(-value for value in _MAGNITUDES)], np.float32)

_E2M3_MAGNITUDES: Final = np.array(
    [n / 8 for n in range(8)] + [(1 + n / 8) * 2**e for e in range(3) for n in range(8)], np.float32
)
_E2M3: Final = np.concatenate([_E2M3_MAGNITUDES, -_E2M3_MAGNITUDES])


def e2m1_values(packed: U8Array) -> F32Array:
    """Give the values of E2M1 codes, two to a byte, low half first: (n, B) to (n, 2 B)."""
    return _E2M1[unpack_codes(packed, 4)]


def e2m3_values(packed: U8Array) -> F32Array:
    """Give the values of E2M3 codes, four to three bytes, low bits first: (n, 3 B) to (n, 4 B)."""
    return _E2M3[unpack_words(packed, 6)]


def read_scales(tensor: SafetensorsTensor, start: int, stop: int) -> F32Array:
    """Read rows of scales as float32; bytes are exponents (E8M0): ``2**(byte - 127)``."""
    stored = tensor.raw_rows(start, stop)
    dtype = tensor.info.dtype
    return to_float32(stored, DType.FP8_E8M0 if dtype is DType.UINT8 else dtype)


def scale_groups(values: F32Array, scales: F32Array, group: int) -> F32Array:
    """Multiply groups of ``group`` columns by their scales, in place."""
    by_group(values, scales, np.multiply, group)
    return values
