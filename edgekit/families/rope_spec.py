"""``RopeSpec``: the rotary position encoding (RoPE) of a decoder, as values.

rope.py computes the angles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """RoPE frequency scaling of Llama 3.1 (``rope_type: llama3``)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context_length: int
    kind: Literal["llama3"] = "llama3"


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """YaRN (``rope_type: yarn``): interpolate slow channels, keep fast ones, a ramp between.

    Attributes:
        factor: How much longer the context became.
        beta_fast: Rotations over the original context above which a channel stays.
        beta_slow: Rotations below which a channel is slowed by ``factor``.
        original_context_length: Positions that the model was first trained on.
        attention_factor: Multiplies cosine and sine.
        is_truncated: Whether the ends of the ramp are rounded to whole channels.
    """

    factor: float
    beta_fast: float
    beta_slow: float
    original_context_length: int
    attention_factor: float
    is_truncated: bool = True
    kind: Literal["yarn"] = "yarn"


@dataclass(frozen=True, slots=True)
class LongRopeScaling:
    """LongRoPE (``rope_type: longrope``): two sets of divisors, one per channel.

    The long set applies as soon as a position at or beyond ``original_context_length`` is in use,
    to all positions that are computed from then on.

    Attributes:
        short_factors: Divisors up to ``original_context_length`` positions, one per channel pair.
        long_factors: Divisors beyond it.
        original_context_length: Positions that the model was first trained on.
        attention_factor: Multiplies cosine and sine, in both cases.
    """

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_context_length: int
    attention_factor: float
    kind: Literal["longrope"] = "longrope"


Scaling: TypeAlias = Llama3Scaling | YarnScaling | LongRopeScaling


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary position embedding: base frequency and optional scaling.

    Attributes:
        theta: Base of the frequencies.
        scaling: How they were stretched to a longer context, or None.
        linear_factor: Divides every frequency.
        rotary_width: Channels of a head that are rotated, from the first on; None means all.
    """

    theta: float
    scaling: Scaling | None = None
    linear_factor: float = 1.0
    rotary_width: int | None = None
