from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from edgekit.dtypes import DType
from edgekit.errors import FormatError
from edgekit.formats.floats import to_float32

_ALL_16 = np.arange(1 << 16, dtype=np.uint16)
_ALL_8 = np.arange(1 << 8, dtype=np.uint8)


def test_worked_bf16_values():
    # sign 1, exponent 8, mantissa 7 bits: 1.0, -2.5, smallest subnormal, infinity.
    raw = np.array([0x3F80, 0xC020, 0x0001, 0x7F80], dtype=np.uint16)
    assert to_float32(raw, DType.BF16).tolist() == [1.0, -2.5, 2.0**-133, np.inf]


def test_worked_fp8_values():
    # E4M3: 1.0, the largest (448), the smallest subnormal (2**-9), its negative, zero.
    raw = np.array([0x38, 0x7E, 0x01, 0x81, 0x00], dtype=np.uint8)
    assert to_float32(raw, DType.FP8_E4M3).tolist() == [1.0, 448.0, 2.0**-9, -(2.0**-9), 0.0]


@pytest.mark.parametrize(
    ("dtype", "raw", "reference"),
    [
        (DType.BF16, _ALL_16, ml_dtypes.bfloat16),
        (DType.FP8_E4M3, _ALL_8, ml_dtypes.float8_e4m3fn),
        (DType.FP8_E5M2, _ALL_8, ml_dtypes.float8_e5m2),
        (DType.FP8_E8M0, _ALL_8, ml_dtypes.float8_e8m0fnu),
    ],
)
def test_every_code_widens_as_in_ml_dtypes_bit_for_bit(dtype, raw, reference):
    wanted = raw.view(reference).astype(np.float32)
    got = to_float32(raw, dtype)
    is_nan = np.isnan(wanted)
    np.testing.assert_array_equal(np.isnan(got), is_nan)
    np.testing.assert_array_equal(got[~is_nan].view(np.uint32), wanted[~is_nan].view(np.uint32))


def test_every_fp16_code_survives_widening_and_narrowing():
    halves = _ALL_16.view(np.float16)
    finite = halves[np.isfinite(halves)]
    np.testing.assert_array_equal(
        to_float32(finite, DType.FP16).astype(np.float16).view(np.uint16), finite.view(np.uint16)
    )


def test_float64_is_rounded_to_the_nearest_float32():
    values = np.array([1 / 3, -1e-60, 1e300, -np.inf, np.nan], dtype="<f8")
    got = to_float32(values, DType.FP64)
    np.testing.assert_array_equal(got, np.float32([1 / 3, -0.0, np.inf, -np.inf, np.nan]))


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2), (2, 3, 4)])
@pytest.mark.parametrize(
    ("dtype", "numpy"),
    [
        (DType.BF16, "<u2"),
        (DType.FP16, "<f2"),
        (DType.FP32, "<f4"),
        (DType.FP8_E4M3, "u1"),
        (DType.FP64, "<f8"),
        (DType.FP8_E5M2, "u1"),
        (DType.FP8_E8M0, "u1"),
    ],
)
def test_shape_is_kept_and_the_result_is_fresh(dtype, numpy, shape):
    raw = np.zeros(shape, dtype=numpy)
    values = to_float32(raw, dtype)
    assert values.shape == shape
    assert values.dtype == np.float32
    assert not np.shares_memory(values, raw)


def test_a_strided_source_is_read_in_order():
    raw = np.array([[0x3F80, 0], [0x4000, 0]], dtype=np.uint16)[:, 0]
    assert to_float32(raw, DType.BF16).tolist() == [1.0, 2.0]


@pytest.mark.parametrize("dtype", [DType.INT8, DType.UINT32, DType.BOOL, DType.INT64])
def test_integers_are_refused(dtype):
    with pytest.raises(FormatError, match="holds no floats"):
        to_float32(np.zeros(2, dtype=np.int8), dtype)
