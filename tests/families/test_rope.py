from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.families.rope import attention_temperatures, rope_inv_freq, rope_tables
from edgekit.families.rope_spec import Llama3Scaling, LongRopeScaling, RopeSpec, YarnScaling
from edgekit.families.spec import QueryScaling

# float64 formulas written in another order; a few units in the last place.
TIGHT = 1e-13
# A float32 holds a cosine to half a unit in the last place of 1.0.
FP32_HALF_ULP = 2.0**-25


def test_worked_frequencies():
    # D = 4, theta = 10000: 10000**0 and 10000**(-2/4).
    assert rope_inv_freq(RopeSpec(10000.0), 4).tolist() == [1.0, 0.01]


def test_worked_linear_scaling():
    assert rope_inv_freq(RopeSpec(10000.0, linear_factor=4.0), 4).tolist() == [0.25, 0.0025]


def test_worked_llama3_scaling():
    # Over 628.3 original positions a wave of 2 pi rotates 100 times (kept), one of 200 pi rotates
    # once (fully slowed by 8 at low_freq_factor 1).
    original = round(200 * math.pi)
    scaling = Llama3Scaling(8.0, 1.0, 4.0, original)
    high, low = rope_inv_freq(RopeSpec(10000.0, scaling), 4)
    assert high == 1.0
    assert low == pytest.approx(0.01 / 8, rel=1e-3)
    # 2.5 rotations lie half way between 1 and 4: the mean of kept and slowed.
    middle = Llama3Scaling(8.0, 1.0, 4.0, round(2.5 * 200 * math.pi))
    assert rope_inv_freq(RopeSpec(10000.0, middle), 4)[1] == pytest.approx(
        (0.01 + 0.01 / 8) / 2, rel=1e-3
    )


def llama3_by_wavelength(inv_freq, scaling):
    """Compute the same by wavelengths, a channel at a time, as the model's authors describe it."""
    result = []
    for freq in inv_freq:
        wavelength = 2 * math.pi / freq
        if wavelength < scaling.original_context_length / scaling.high_freq_factor:
            result.append(freq)
        elif wavelength > scaling.original_context_length / scaling.low_freq_factor:
            result.append(freq / scaling.factor)
        else:
            smooth = scaling.original_context_length / wavelength - scaling.low_freq_factor
            smooth /= scaling.high_freq_factor - scaling.low_freq_factor
            result.append((1 - smooth) * freq / scaling.factor + smooth * freq)
    return result


@given(
    st.sampled_from([16, 64, 128]),
    st.floats(100, 1e7),
    st.floats(1, 64),
    st.floats(0.25, 4),
    st.floats(0.5, 16),
    st.integers(16, 1 << 17),
)
def test_llama3_scaling_agrees_with_the_formula_by_wavelength(
    d, theta, factor, low, span, original
):
    scaling = Llama3Scaling(factor, low, low + span, original)
    plain = rope_inv_freq(RopeSpec(theta), d)
    got = rope_inv_freq(RopeSpec(theta, scaling), d)
    np.testing.assert_allclose(got, llama3_by_wavelength(plain, scaling), rtol=TIGHT)


@given(st.sampled_from([2, 32, 128]), st.floats(100, 1e7), st.integers(1, 50))
def test_tables_are_the_cosine_and_sine_of_position_times_frequency(d, theta, n_positions):
    cos, sin = rope_tables(RopeSpec(theta), d, n_positions)
    assert cos.shape == sin.shape == (n_positions, d // 2)
    assert cos.dtype == sin.dtype == np.float32
    for t in {0, n_positions // 2, n_positions - 1}:
        for channel in {0, d // 4, d // 2 - 1}:
            angle = t * theta ** (-2 * channel / d)
            assert abs(float(cos[t, channel]) - math.cos(angle)) <= FP32_HALF_ULP + TIGHT * t
            assert abs(float(sin[t, channel]) - math.sin(angle)) <= FP32_HALF_ULP + TIGHT * t


def test_worked_partial_rotary():
    # Two of four channels rotate: one pair, whose frequency is theta**0.
    rope = RopeSpec(10000.0, rotary_width=2)
    assert rope_inv_freq(rope, 4).tolist() == [1.0]
    cos, _ = rope_tables(rope, 4, 3)
    assert cos.shape == (3, 1)


def test_worked_yarn():
    # D = 8, theta = 10000: channels rotate 1, 0.1, 0.01, 0.001 radians per position. Over 2000 pi
    # positions they make 1000, 100, 10 and 1 rotations, so with beta_fast 1000 and beta_slow 1 the
    # ramp runs from channel 0 to channel 3.
    scaling = YarnScaling(4.0, 1000.0, 1.0, round(2000 * math.pi), 1.5, is_truncated=False)
    rope = RopeSpec(10000.0, scaling)
    slow = np.array([0, 1, 2, 3]) / 3
    wanted = np.array([1, 0.1, 0.01, 0.001]) * (slow / 4 + (1 - slow))
    np.testing.assert_allclose(rope_inv_freq(rope, 8), wanted, rtol=1e-4)
    # Both tables carry the attention factor.
    cos, sin = rope_tables(rope, 8, 2)
    assert cos[0].tolist() == [1.5] * 4
    assert sin[1, 0] == pytest.approx(1.5 * math.sin(1.0), rel=1e-6)


def test_yarn_rounds_the_ends_of_its_ramp_outwards():
    # 316 and 3.16 rotations lie half way between channels: 0.5 and 2.5 become 0 and 3.
    original = round(2000 * math.pi)
    cut = YarnScaling(4.0, 1000 / 10**0.5, 10**0.5, original, 1.0)
    whole = YarnScaling(4.0, 1000.0, 1.0, original, 1.0, is_truncated=False)
    got = rope_inv_freq(RopeSpec(1e4, cut), 8)
    np.testing.assert_allclose(got, rope_inv_freq(RopeSpec(1e4, whole), 8), rtol=1e-4)


def test_worked_longrope():
    scaling = LongRopeScaling((1.0, 2.0), (4.0, 8.0), 64, 1.25)
    rope = RopeSpec(10000.0, scaling)
    assert rope_inv_freq(rope, 4).tolist() == [1.0, 0.005]
    assert rope_inv_freq(rope, 4, is_long=True).tolist() == [0.25, 0.00125]
    for is_long in (False, True):
        assert rope_tables(rope, 4, 1, is_long=is_long)[0].tolist() == [[1.25, 1.25]]


def test_worked_attention_temperatures():
    factors = attention_temperatures(QueryScaling(0.5, 3), 10)
    wanted = [1.0] * 3 + [1 + 0.5 * math.log(2)] * 3 + [1 + 0.5 * math.log(3)] * 3
    np.testing.assert_allclose(factors[:9], wanted, rtol=1e-7)
    assert factors[9] == np.float32(1 + 0.5 * math.log(4))
