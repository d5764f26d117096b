from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.families.rope import rope_inv_freq, rope_tables
from edgekit.families.spec import DecoderSpec, Llama3Scaling, RopeSpec

# float64 formulas written in another order; a few units in the last place.
TIGHT = 1e-13
# A float32 holds a cosine to half a unit in the last place of 1.0.
FP32_HALF_ULP = 2.0**-25


def spec(rope, head_width=4):
    return DecoderSpec(
        model_type="llama", n_layers=1, hidden_width=8, n_heads=2, n_kv_heads=1,
        head_width=head_width, ffn_width=8, vocab_size=8, context_length=64, norm_eps=1e-5,
        rope=rope, is_tied=True,
    )  # fmt: skip


def test_worked_frequencies():
    # D = 4, theta = 10000: 10000**0 and 10000**(-2/4).
    assert rope_inv_freq(spec(RopeSpec(10000.0))).tolist() == [1.0, 0.01]


def test_worked_linear_scaling():
    assert rope_inv_freq(spec(RopeSpec(10000.0, linear_factor=4.0))).tolist() == [0.25, 0.0025]


def test_worked_llama3_scaling():
    # Over 628.3 original positions a wave of 2 pi turns 100 times (kept), one of 200 pi turns
    # once (fully slowed by 8 at low_freq_factor 1).
    original = round(200 * math.pi)
    scaling = Llama3Scaling(8.0, 1.0, 4.0, original)
    high, low = rope_inv_freq(spec(RopeSpec(10000.0, scaling)))
    assert high == 1.0
    assert low == pytest.approx(0.01 / 8, rel=1e-3)
    # 2.5 turns lie half way between 1 and 4: the mean of kept and slowed.
    middle = Llama3Scaling(8.0, 1.0, 4.0, round(2.5 * 200 * math.pi))
    assert rope_inv_freq(spec(RopeSpec(10000.0, middle)))[1] == pytest.approx(
        (0.01 + 0.01 / 8) / 2, rel=1e-3
    )


def llama3_by_wavelength(inv_freq, scaling):
    """Compute the same by wavelengths, one lane at a time, as the model's authors describe it."""
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
    plain = rope_inv_freq(spec(RopeSpec(theta), d))
    got = rope_inv_freq(spec(RopeSpec(theta, scaling), d))
    np.testing.assert_allclose(got, llama3_by_wavelength(plain, scaling), rtol=TIGHT)


@given(st.sampled_from([2, 32, 128]), st.floats(100, 1e7), st.integers(1, 50))
def test_tables_are_the_cosine_and_sine_of_position_times_frequency(d, theta, n_positions):
    cos, sin = rope_tables(spec(RopeSpec(theta), d), n_positions)
    assert cos.shape == sin.shape == (n_positions, d // 2)
    assert cos.dtype == sin.dtype == np.float32
    for t in {0, n_positions // 2, n_positions - 1}:
        for lane in {0, d // 4, d // 2 - 1}:
            angle = t * theta ** (-2 * lane / d)
            assert abs(float(cos[t, lane]) - math.cos(angle)) <= FP32_HALF_ULP + TIGHT * t
            assert abs(float(sin[t, lane]) - math.sin(angle)) <= FP32_HALF_ULP + TIGHT * t
