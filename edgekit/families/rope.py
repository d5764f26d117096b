"""Angles of rotary position encoding (RoPE): how far each position rotates each pair of channels.

One computation for every exporter and engine, in float64, rounded to float32 at the end.
"""

from __future__ import annotations

import math

import numpy as np

from edgekit.dtypes import F32Array, F64Array
from edgekit.families.rope_spec import Llama3Scaling, LongRopeScaling, RopeSpec, YarnScaling
from edgekit.families.spec import QueryScaling


def rope_inv_freq(rope: RopeSpec, head_width: int, *, is_long: bool = False) -> F64Array:
    """Give the angle per position of each pair of channels.

    Args:
        rope: The position encoding.
        head_width: D, channels of a head.
        is_long: Which of LongRoPE's two sets; without effect on the others.

    Returns:
        float64, shape (R // 2,) with R channels rotated, radians per position, highest first.

    Source:
        RoFormer (Su et al. 2021), section 3.2.2; linear scaling: Chen et al. 2023
        (arXiv 2306.15595); llama3: Meta's llama-models, ``apply_scaling`` of Llama 3.1;
        YaRN: Peng et al. 2023 (arXiv 2309.00071), section 3.2, with the ramp over channels of its
        code; LongRoPE: Ding et al. 2024 (arXiv 2402.13753).
    """
    width = rope.rotary_width or head_width
    inv_freq: F64Array = rope.theta ** (-np.arange(0, width, 2, dtype=np.float64) / width)
    inv_freq /= rope.linear_factor
    match rope.scaling:
        case Llama3Scaling():
            return _scale_llama3(inv_freq, rope.scaling)
        case YarnScaling():
            return _scale_yarn(inv_freq, rope.scaling, rope.theta)
        case LongRopeScaling():
            factors = rope.scaling.long_factors if is_long else rope.scaling.short_factors
            inv_freq /= np.array(factors, dtype=np.float64)
    return inv_freq


def rope_tables(
    rope: RopeSpec, head_width: int, n_positions: int, *, is_long: bool = False
) -> tuple[F32Array, F32Array]:
    """Give cosine and sine of every position's angles, times the scaling's attention factor.

    Returns:
        (cos, sin), each float32, shape (T, R // 2) with T = ``n_positions`` and R channels rotated.
    """
    inv_freq = rope_inv_freq(rope, head_width, is_long=is_long)
    angles = np.outer(np.arange(n_positions, dtype=np.float64), inv_freq)
    factor = 1.0
    if isinstance(rope.scaling, YarnScaling | LongRopeScaling):
        factor = rope.scaling.attention_factor
    cos, sin = factor * np.cos(angles), factor * np.sin(angles)
    return cos.astype(np.float32), sin.astype(np.float32)


def attention_temperatures(scaling: QueryScaling, n_positions: int) -> F32Array:
    """Give the factor of the queries at every position, float32, shape (T,).

    Source: Llama 4's attention temperature, as Ministral 3 uses it.
    """
    steps = np.arange(n_positions) // scaling.original_context_length
    factors: F32Array = (1 + scaling.beta * np.log1p(steps)).astype(np.float32)
    return factors


def _scale_llama3(inv_freq: F64Array, scaling: Llama3Scaling) -> F64Array:
    """Slow long waves by ``factor``, keep short ones, and blend between the two."""
    n_rotations = scaling.original_context_length * inv_freq / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = np.clip((n_rotations - low) / (high - low), 0.0, 1.0)
    scaled: F64Array = keep * inv_freq + (1 - keep) * inv_freq / scaling.factor
    return scaled


def _scale_yarn(inv_freq: F64Array, scaling: YarnScaling, theta: float) -> F64Array:
    """Slow channels that hardly rotate, by ``factor``; keep the fast ones; ramp between."""
    width = 2 * len(inv_freq)

    def channel_of(n_rotations: float) -> float:
        ratio = scaling.original_context_length / (n_rotations * 2 * math.pi)
        return width * math.log(ratio) / (2 * math.log(theta))

    first, last = channel_of(scaling.beta_fast), channel_of(scaling.beta_slow)
    if scaling.is_truncated:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    if first == last:
        last += 0.001  # as the published code does, against a division by zero
    slow = np.clip((np.arange(width // 2) - first) / (last - first), 0.0, 1.0)
    scaled: F64Array = slow * inv_freq / scaling.factor + (1 - slow) * inv_freq
    return scaled
