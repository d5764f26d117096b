"""Answer one question: by which angles does rope turn each position?

One computation for every exporter and engine, in float64, rounded to float32 at the end.
"""

from __future__ import annotations

import math

import numpy as np

from edgekit.dtypes import F32Array, F64Array
from edgekit.families.spec import DecoderSpec, Llama3Scaling


def rope_inv_freq(spec: DecoderSpec) -> F64Array:
    """Give the angle per position of each pair of lanes.

    Returns:
        float64, shape (D // 2,), radians per position, highest first.

    Source:
        RoFormer (Su et al. 2021), section 3.2.2; linear scaling: Chen et al. 2023
        (arXiv 2306.15595); llama3: Meta's llama-models, ``apply_scaling`` of Llama 3.1.
    """
    lanes = np.arange(0, spec.head_width, 2, dtype=np.float64)
    inv_freq: F64Array = spec.rope.theta ** (-lanes / spec.head_width)
    inv_freq /= spec.rope.linear_factor
    if spec.rope.scaling is not None:
        return _scale_llama3(inv_freq, spec.rope.scaling)
    return inv_freq


def rope_tables(spec: DecoderSpec, n_positions: int) -> tuple[F32Array, F32Array]:
    """Give cosine and sine of every position's angles.

    Returns:
        (cos, sin), each float32, shape (T, D // 2) with T = ``n_positions``.
    """
    angles = np.outer(np.arange(n_positions, dtype=np.float64), rope_inv_freq(spec))
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _scale_llama3(inv_freq: F64Array, scaling: Llama3Scaling) -> F64Array:
    """Slow long waves by ``factor``, keep short ones, and blend between the two."""
    n_turns = scaling.original_context_length * inv_freq / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = np.clip((n_turns - low) / (high - low), 0.0, 1.0)
    scaled: F64Array = keep * inv_freq + (1 - keep) * inv_freq / scaling.factor
    return scaled
