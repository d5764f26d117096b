"""``DecoderSpec``: the description of a decoder that exporters and engines work from.

Canonical weight names (N out, M in; every matrix is stored as (N, M), as in Hugging Face):
``embed`` (V, C) · ``layers.{i}.attn_norm`` (C,) · ``layers.{i}.q|k|v|o`` · ``layers.{i}.ffn_norm``
(C,) · ``layers.{i}.gate|up|down`` · ``final_norm`` (C,) · ``lm_head`` (V, C), absent when tied.
A bias of matrix ``X`` is ``X.bias``. Norms of queries and keys are ``q_norm`` and ``k_norm``;
norms of what a block adds to the residual are ``attn_post_norm`` and ``ffn_post_norm``.
RoPE is the rotate-half form of Hugging Face.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final

from edgekit.families.rope_spec import RopeSpec
from edgekit.typed_values import WrongValuesError, from_plain

MAX_LAYERS: Final = 1024
MAX_WIDTH: Final = 1 << 24
MAX_HEAD_WIDTH: Final = 1 << 16
_MAX_POSITIONS: Final = 1 << 31
_MAX_SCALE: Final = 3e38  # float32
_SMALLEST: Final = 1e-9
_MAX_THETA: Final = 1e15
# Upper limits of counts, so that sizes derived from them fit into memory and 64 bits.
_COUNTS: Final[Mapping[str, int]] = {
    "n_layers": MAX_LAYERS,
    "hidden_width": MAX_WIDTH,
    "n_heads": MAX_WIDTH,
    "n_kv_heads": MAX_WIDTH,
    "head_width": MAX_HEAD_WIDTH,
    "ffn_width": MAX_WIDTH,
    "vocab_size": MAX_WIDTH,
    "context_length": _MAX_POSITIONS,
}
_SCALES: Final = ("norm_eps", "embed_scale", "residual_scale", "logits_scale", "score_scale")
_SOFTCAPS: Final = ("scores_softcap", "logits_softcap")
_FLAGS: Final = ("is_tied", "has_qkv_bias", "has_o_bias", "has_mlp_bias")


class NormPlacement(StrEnum):
    """Where a block has norms: before it, after it, or both."""

    BEFORE = "before"
    AFTER = "after"
    BOTH = "both"


class QkNorm(StrEnum):
    """What the norms of queries and keys cover, before RoPE unless said otherwise."""

    NONE = "none"
    HEAD = "head"  # each head by itself, weight (D,)
    HEAD_AFTER_ROPE = "head_after_rope"
    FULL = "full"  # all heads together, weight (H * D,) and (K * D,)


class Activation(StrEnum):
    """The activation function of the feed-forward block's gate."""

    SILU = "silu"
    GELU_TANH = "gelu_tanh"


@dataclass(frozen=True, slots=True)
class QueryScaling:
    """Query factor at position p: 1 + beta * ln(1 + floor(p / original_context_length))."""

    beta: float
    original_context_length: int


@dataclass(frozen=True, slots=True)
class LayerAttention:
    """Attention of one layer: ``rope`` None is no rotation, ``window`` None is full attention."""

    rope: RopeSpec | None
    window: int | None


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """A decoder-only transformer with RMSNorm, RoPE, GQA and a gated feed-forward block.

    Attributes:
        context_length: Number of positions.
        sliding_window: Keys that a query sees, itself included, in sliding-window layers.
        sliding_layers: The sliding-window layers; None means all of them.
        local_rope: RoPE of the sliding-window layers; None means ``rope``.
        no_rope_layers: Layers without position encoding.
        norm_placement: Where a block has norms.
        norm_offset: Added to every norm weight before use.
        qk_norm: What the norms of queries and keys cover.
        activation: Activation function of the gate.
        attention_scale: Factor of the scores; None means head_width ** -0.5.
        scores_softcap: Scores s become cap * tanh(s / cap) before the mask; None leaves them.
        query_scaling: Attention temperature: a factor of queries that grows with position, or None.
        embed_scale: Factor of the embedding's output.
        residual_scale: Factor of what each block adds to the residual.
        logits_scale: Factor of the logits.
        logits_softcap: Scaled logits z become cap * tanh(z / cap); None leaves them.
    """

    model_type: str
    n_layers: int
    hidden_width: int
    n_heads: int
    n_kv_heads: int
    head_width: int
    ffn_width: int
    vocab_size: int
    context_length: int
    norm_eps: float
    rope: RopeSpec
    is_tied: bool
    sliding_window: int | None = None
    sliding_layers: tuple[int, ...] | None = None
    local_rope: RopeSpec | None = None
    no_rope_layers: tuple[int, ...] = ()
    has_qkv_bias: bool = False
    has_o_bias: bool = False
    has_mlp_bias: bool = False
    norm_placement: NormPlacement = NormPlacement.BEFORE
    norm_offset: float = 0.0
    qk_norm: QkNorm = QkNorm.NONE
    activation: Activation = Activation.SILU
    attention_scale: float | None = None
    scores_softcap: float | None = None
    query_scaling: QueryScaling | None = None
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    logits_scale: float = 1.0
    logits_softcap: float | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None

    @property
    def q_width(self) -> int:
        """Width of the query projection."""
        return self.n_heads * self.head_width

    @property
    def kv_width(self) -> int:
        """Width of the key and of the value projection."""
        return self.n_kv_heads * self.head_width

    @property
    def score_scale(self) -> float:
        """Factor of the attention scores."""
        return self.head_width**-0.5 if self.attention_scale is None else self.attention_scale

    @property
    def ropes(self) -> tuple[RopeSpec, ...]:
        """Every position encoding in use, each once, in order of first use."""
        used = (self.attention(layer).rope for layer in range(self.n_layers))
        return tuple(dict.fromkeys(rope for rope in used if rope is not None))

    def attention(self, layer: int) -> LayerAttention:
        """Give the attention of a layer."""
        is_sliding = self.sliding_window is not None and (
            self.sliding_layers is None or layer in self.sliding_layers
        )
        rope = self.local_rope if is_sliding and self.local_rope is not None else self.rope
        return LayerAttention(
            rope=None if layer in self.no_rope_layers else rope,
            window=self.sliding_window if is_sliding else None,
        )

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Give every canonical weight name with its shape, in file order."""
        width, ffn = self.hidden_width, self.ffn_width
        has_before = self.norm_placement is not NormPlacement.AFTER
        has_after = self.norm_placement is not NormPlacement.BEFORE
        per_head = self.qk_norm is not QkNorm.FULL
        shapes: dict[str, tuple[int, ...]] = {"embed": (self.vocab_size, width)}
        for i in range(self.n_layers):
            at = f"layers.{i}."
            if has_before:
                shapes[at + "attn_norm"] = (width,)
            for part, n_out in (("q", self.q_width), ("k", self.kv_width), ("v", self.kv_width)):
                shapes[at + part] = (n_out, width)
                if self.has_qkv_bias:
                    shapes[f"{at}{part}.bias"] = (n_out,)
            if self.qk_norm is not QkNorm.NONE:
                shapes[at + "q_norm"] = (self.head_width if per_head else self.q_width,)
                shapes[at + "k_norm"] = (self.head_width if per_head else self.kv_width,)
            shapes[at + "o"] = (width, self.q_width)
            if self.has_o_bias:
                shapes[at + "o.bias"] = (width,)
            if has_after:
                shapes[at + "attn_post_norm"] = (width,)
            if has_before:
                shapes[at + "ffn_norm"] = (width,)
            for part, n_out, n_in in (
                ("gate", ffn, width),
                ("up", ffn, width),
                ("down", width, ffn),
            ):
                shapes[at + part] = (n_out, n_in)
                if self.has_mlp_bias:
                    shapes[f"{at}{part}.bias"] = (n_out,)
            if has_after:
                shapes[at + "ffn_post_norm"] = (width,)
        shapes["final_norm"] = (width,)
        if not self.is_tied:
            shapes["lm_head"] = (self.vocab_size, width)
        return shapes

    def as_dict(self) -> dict[str, Any]:
        """Give the JSON form, as kept in a manifest."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DecoderSpec:
        """Read the JSON form, which is untrusted; the inverse of ``as_dict``.

        Raises:
            ValueError: Fields are absent, unknown or of another type, or sizes are impossible; the
                caller knows the file and names it.
        """
        try:
            spec = from_plain(cls, data)
        except WrongValuesError as error:
            raise ValueError(f"decoder: {error}") from error
        fault = find_fault(spec)
        if fault:
            raise ValueError(f"decoder: {fault}")
        return spec


def find_fault(spec: DecoderSpec) -> str | None:
    """Name the first field with an impossible value, or None."""
    for name, at_most in _COUNTS.items():
        if not _is_count(getattr(spec, name), at_most):
            return _quote(name, getattr(spec, name))
    for name in _SCALES:
        if not _is_number(getattr(spec, name)) or not 0 < getattr(spec, name) < _MAX_SCALE:
            return _quote(name, getattr(spec, name))
    for name in _SOFTCAPS:
        cap = getattr(spec, name)
        if cap is not None and (not _is_divisor(cap) or cap >= _MAX_SCALE):
            return _quote(name, cap)
    for name in _FLAGS:
        if type(getattr(spec, name)) is not bool:
            return _quote(name, getattr(spec, name))
    if spec.n_heads % spec.n_kv_heads:
        return f"{spec.n_heads} heads over {spec.n_kv_heads}"
    if spec.sliding_window is not None and not _is_count(spec.sliding_window, 1 << 53):
        return _quote("sliding_window", spec.sliding_window)
    if not isinstance(spec.model_type, str) or not _is_number(spec.norm_offset):
        return "model_type or norm_offset"
    layers = (*(spec.sliding_layers or ()), *spec.no_rope_layers)
    if not all(type(layer) is int and 0 <= layer < spec.n_layers for layer in layers):
        return "layers that do not exist"
    ids = (spec.bos_token_id, spec.pad_token_id, *spec.eos_token_ids)
    if not all(i is None or (type(i) is int and 0 <= i < _MAX_POSITIONS) for i in ids):
        return "token ids"
    temperature = spec.query_scaling
    if temperature is not None and not (
        _is_number(temperature.beta)
        and _is_count(temperature.original_context_length, _MAX_POSITIONS)
    ):
        return "query_scaling"
    ropes = (spec.rope, spec.local_rope)
    faults = (find_rope_fault(rope, spec.head_width) for rope in ropes if rope is not None)
    return next(filter(None, faults), None)


def find_rope_fault(rope: RopeSpec, head_width: int) -> str | None:
    """Name what is wrong with a position encoding for heads of that width, or None."""
    if not _is_number(rope.theta) or not 1 < rope.theta < _MAX_THETA:
        return _quote("rope.theta", rope.theta)
    if not _is_divisor(rope.linear_factor):
        return _quote("rope.linear_factor", rope.linear_factor)
    width = head_width if rope.rotary_width is None else rope.rotary_width
    if not _is_count(width, head_width) or width % 2:
        return _quote("rope.rotary_width", width)
    if rope.scaling is None:
        return None
    for field in dataclasses.fields(rope.scaling):
        value = getattr(rope.scaling, field.name)
        if isinstance(value, tuple):
            is_sound = len(value) == width // 2 and all(map(_is_divisor, value))
        elif field.name == "original_context_length":
            is_sound = _is_count(value, _MAX_POSITIONS)
        elif field.name in ("kind", "is_truncated"):
            is_sound = isinstance(value, str | bool)
        elif field.name == "attention_factor":
            is_sound = _is_number(value)
        else:
            is_sound = _is_divisor(value)
        if not is_sound:
            return _quote(f"rope.scaling.{field.name}", value)
    return None


def _is_count(value: Any, at_most: int) -> bool:
    return type(value) is int and 1 <= value <= at_most


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < _MAX_SCALE and math.isfinite(value)


def _is_divisor(value: Any) -> bool:
    """Tell whether a positive number is far enough from 0 to divide by it."""
    return _is_number(value) and value > _SMALLEST


def _quote(name: str, value: Any) -> str:
    return f"{name} {str(value)[:40]}"
