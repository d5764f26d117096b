"""Claims: every scale and 4-bit weight of the grid is exact in every format."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgekit.quantize.grid import SCALE_STEP, largest_scale, round_scales

BITS = st.sampled_from([4, 8])
SCALES = hnp.arrays(
    np.float32,
    st.integers(1, 64),
    elements=st.floats(-1e6, 1e6, width=32) | st.floats(-(2.0**-13), 2.0**-13, width=32),
)


def all_scales(bits: int) -> np.ndarray:
    """Enumerate the grid from its definition: positive fp16, at most 8 significant bits, capped."""
    positive = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    significand, _ = np.frexp(positive)
    has_8_bits = significand * 256 == np.rint(significand * 256)
    return positive[has_8_bits & (positive <= largest_scale(bits))]


def is_exact(values: np.ndarray, dtype: type) -> bool:
    return bool((values.astype(dtype).astype(np.float64) == values).all())


@given(SCALES, BITS)
def test_scale_and_bias_are_exact_in_fp16_and_bf16(raw, bits):
    scales = round_scales(raw, bits).astype(np.float64)
    for values in (scales, -(2 ** (bits - 1)) * scales):
        assert is_exact(values, np.float16)
        assert is_exact(values, ml_dtypes.bfloat16)


@given(SCALES)
def test_each_4_bit_weight_is_exactly_an_fp16(raw):
    scales = round_scales(raw, 4).astype(np.float64)
    assert is_exact(scales[:, None] * np.arange(-8, 8), np.float16)


@given(SCALES, BITS)
def test_rounding_gives_the_nearest_scale_of_the_grid(raw, bits):
    grid = all_scales(bits)
    rounded = round_scales(raw, bits).astype(np.float64)
    magnitude = np.abs(rounded)
    assert np.isin(magnitude, grid).all()
    best = np.abs(grid[None, :] - np.abs(raw.astype(np.float64))[:, None]).min(axis=1)
    np.testing.assert_array_equal(np.abs(magnitude - np.abs(raw.astype(np.float64))), best)
    np.testing.assert_array_equal(rounded < 0, raw < 0)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_whole_grid_is_left_as_it_is(bits):
    grid = all_scales(bits).astype(np.float32)
    assert len(grid) > 2500
    np.testing.assert_array_equal(round_scales(grid, bits), grid)
    np.testing.assert_array_equal(round_scales(-grid, bits), -grid)


def test_scales_worked_by_hand():
    # 1/3 = 1.0101 0101|0101..b * 2**-2: the 8 bits kept round up to 171/512.
    given_scales = np.array([1 / 3, -1 / 3, 0.0, 1e9, -1e9, 3 * SCALE_STEP], np.float32)
    expected = np.array(
        [171 / 512, -171 / 512, SCALE_STEP, 8160, -8160, 3 * SCALE_STEP], np.float32
    )
    np.testing.assert_array_equal(round_scales(given_scales, 4), expected)
    assert round_scales(np.array([1e9]), 8) == 510
    # Halfway between 128/128 and 129/128, and between 129/128 and 130/128: to the even one.
    ties = np.array([257 / 256, 259 / 256], np.float32)
    np.testing.assert_array_equal(round_scales(ties, 4), np.array([1, 130 / 128], np.float32))
