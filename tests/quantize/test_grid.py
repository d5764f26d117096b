"""Claims: every scale and 4-bit weight of the grid is exact in every format."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgekit.quantize.grid import (
    LARGEST_WEIGHT,
    SCALE_STEP,
    largest_scale,
    round_scales,
    round_scales_beside,
    zero_point_step,
)

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


def all_scales_beside(zero: int, bits: int) -> np.ndarray:
    """Enumerate what may stand beside a zero point, from the definition of exactness."""
    positive = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    significand, _ = np.frexp(positive)
    has_7_bits = significand * 128 == np.rint(significand * 128)
    steps = max(zero, 2**bits - 1 - zero)
    candidates = positive[has_7_bits & (positive * steps <= LARGEST_WEIGHT)]
    offsets = candidates * zero
    is_held = (offsets.astype(np.float16) == offsets) & (
        offsets.astype(ml_dtypes.bfloat16).astype(np.float64) == offsets
    )
    return candidates[is_held]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("number", range(16))
def test_scales_beside_a_zero_point_are_those_that_every_format_holds(bits, number):
    zero = number * zero_point_step(bits)
    grid = all_scales_beside(zero, bits)
    rng = np.random.default_rng(number)
    raw = np.exp2(rng.uniform(-26, 14, 4000)).astype(np.float32)
    raw[:3] = [0, 1e-30, 1e30]
    given_zeros = np.full(raw.shape, zero, np.float32)
    rounded = round_scales_beside(raw, given_zeros, bits).astype(np.float64)
    assert np.isin(rounded, grid).all()
    # Significands are looked up at 1024 places of an octave; subnormals become whole steps first.
    slack = np.where(raw < 2.0**-17, SCALE_STEP, raw * 2.0**-10)
    nearest = grid[np.abs(grid[None, :] - raw.astype(np.float64)[:, None]).argmin(axis=1)]
    if bits == 8:
        higher = grid[np.minimum(np.searchsorted(grid, raw + slack), len(grid) - 1)]
        assert (np.minimum(raw, grid[-1]) - slack <= rounded).all()
        assert (rounded <= higher + (raw < 2.0**-17) * SCALE_STEP).all()
    else:
        assert (np.abs(rounded - raw) <= np.abs(nearest - raw) + slack).all()
    np.testing.assert_array_equal(round_scales_beside(grid, np.full(grid.shape, zero), bits), grid)


def test_each_weight_beside_a_zero_point_is_exactly_an_fp16():
    rng = np.random.default_rng(0)
    zeros = rng.integers(0, 16, 3000)
    raw = np.exp2(rng.uniform(-25, 13, 3000)).astype(np.float32)
    scales = round_scales_beside(raw, zeros.astype(np.float32), 4).astype(np.float64)
    weights = scales[:, None] * (np.arange(16)[None, :] - zeros[:, None])
    assert is_exact(weights, np.float16)
    assert is_exact(-zeros * scales, np.float16)  # MLX's bias, GGUF's minimum
    assert is_exact(-zeros * scales, ml_dtypes.bfloat16)


def test_scales_beside_zero_points_worked_by_hand():
    # Beside 15 a scale has a significand of at most 17: 9 .. 17 and their doubles.
    raw = np.array([17.4, 18.9, 19.1, 35.1, 1.0, 127.4, 129.2], np.float32)
    expected = np.array([17.0, 18.0, 20.0, 36.0, 1.0, 128.0, 128.0], np.float32)
    zeros = np.full(raw.shape, 15, np.float32)
    np.testing.assert_array_equal(round_scales_beside(raw, zeros, 4), expected)
    # Beside 8 = 1 * 2**3 only the 7 bits count.
    expected = np.array([17.5, 19.0, 19.0, 35.0, 1.0, 127.0, 130.0], np.float32)
    zeros = np.full(raw.shape, 8, np.float32)
    np.testing.assert_array_equal(round_scales_beside(raw, zeros, 4), expected)
