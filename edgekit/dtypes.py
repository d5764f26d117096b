"""Number types of stored tensors, and what each format calls them."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

F32Array: TypeAlias = NDArray[np.float32]
F64Array: TypeAlias = NDArray[np.float64]
U8Array: TypeAlias = NDArray[np.uint8]
I64Array: TypeAlias = NDArray[np.int64]
Bits: TypeAlias = Literal[4, 8]


def zero_point(bits: Bits) -> int:
    """Give the code in the middle, which stands for 0.0: 8 of 16, 128 of 256."""
    return 1 << (bits - 1)


class DType(enum.Enum):
    """A number type of a checkpoint or artifact tensor."""

    FP64 = "fp64"
    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    FP8_E4M3 = "fp8_e4m3"
    FP8_E5M2 = "fp8_e5m2"
    FP8_E8M0 = "fp8_e8m0"
    UINT64 = "uint64"
    INT64 = "int64"
    INT32 = "int32"
    INT16 = "int16"
    INT8 = "int8"
    UINT32 = "uint32"
    UINT16 = "uint16"
    UINT8 = "uint8"
    BOOL = "bool"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class DTypeInfo:
    """What edgekit knows about one number type.

    ``numpy`` is the dtype that holds the raw bits. bf16 and fp8 have no numpy type and are held as
    unsigned integers of their width. ``OTHER`` stands for every type whose values edgekit does not
    read (4- and 6-bit floats, complex numbers, future types): such a tensor is only bytes.
    """

    n_bytes: int
    numpy: str
    safetensors: str
    is_float: bool


DTYPES: Final[dict[DType, DTypeInfo]] = {
    DType.FP64: DTypeInfo(8, "<f8", "F64", is_float=True),
    DType.FP32: DTypeInfo(4, "<f4", "F32", is_float=True),
    DType.FP16: DTypeInfo(2, "<f2", "F16", is_float=True),
    DType.BF16: DTypeInfo(2, "<u2", "BF16", is_float=True),
    DType.FP8_E4M3: DTypeInfo(1, "u1", "F8_E4M3", is_float=True),
    DType.FP8_E5M2: DTypeInfo(1, "u1", "F8_E5M2", is_float=True),
    DType.FP8_E8M0: DTypeInfo(1, "u1", "F8_E8M0", is_float=True),
    DType.UINT64: DTypeInfo(8, "<u8", "U64", is_float=False),
    DType.INT64: DTypeInfo(8, "<i8", "I64", is_float=False),
    DType.INT32: DTypeInfo(4, "<i4", "I32", is_float=False),
    DType.INT16: DTypeInfo(2, "<i2", "I16", is_float=False),
    DType.INT8: DTypeInfo(1, "i1", "I8", is_float=False),
    DType.UINT32: DTypeInfo(4, "<u4", "U32", is_float=False),
    DType.UINT16: DTypeInfo(2, "<u2", "U16", is_float=False),
    DType.UINT8: DTypeInfo(1, "u1", "U8", is_float=False),
    DType.BOOL: DTypeInfo(1, "?", "BOOL", is_float=False),
    DType.OTHER: DTypeInfo(1, "u1", "", is_float=False),
}
BY_SAFETENSORS: Final[dict[str, DType]] = {
    info.safetensors: dtype for dtype, info in DTYPES.items() if dtype is not DType.OTHER
}
