"""Answer one question: what must an exporter know of a decoder, whatever its family?

Canonical weight names (N out, M in; every matrix is stored as (N, M), as in Hugging Face):
``embed`` (V, C) · ``layers.{i}.attn_norm`` (C,) · ``layers.{i}.q|k|v|o`` · ``layers.{i}.ffn_norm``
(C,) · ``layers.{i}.gate|up|down`` · ``final_norm`` (C,) · ``lm_head`` (V, C), absent when tied.
A bias of matrix ``X`` is ``X.bias``. Norms of queries and keys are ``q_norm`` and ``k_norm``;
norms of what a block adds to the stream are ``attn_post_norm`` and ``ffn_post_norm``.
RoPE is the rotate-half form of Hugging Face.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from edgekit.families.rope_spec import RopeSpec
from edgekit.families.spec_faults import find_fault


class NormPlacement(StrEnum):
    """Where the norms of a block stand: before it, after it, or both."""

    BEFORE = "before"
    AFTER = "after"
    BOTH = "both"


class QkNorm(StrEnum):
    """Over what queries and keys are normed before RoPE."""

    NONE = "none"
    HEAD = "head"  # each head by itself, weight (D,)
    FULL = "full"  # all heads together, weight (H * D,) and (K * D,)


class Activation(StrEnum):
    """What the gate of the feed-forward block goes through."""

    SILU = "silu"
    GELU_TANH = "gelu_tanh"


@dataclass(frozen=True, slots=True)
class QueryScaling:
    """Queries grow with position p: 1 + beta * ln(1 + floor(p / original_context_length))."""

    beta: float
    original_context_length: int


@dataclass(frozen=True, slots=True)
class LayerAttention:
    """How one layer attends: ``rope`` None turns nothing, ``window`` None sees everything."""

    rope: RopeSpec | None
    window: int | None


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """A decoder-only transformer with RMSNorm, RoPE, GQA and a gated feed-forward block.

    Attributes:
        context_length: Number of positions.
        sliding_window: Keys that a query sees, itself included, in the layers that slide.
        sliding_layers: The layers that slide; None means all of them.
        local_rope: RoPE of the layers that slide; None means ``rope``.
        no_rope_layers: Layers without position encoding.
        norm_placement: Where the norms of a block stand.
        norm_offset: Added to every norm weight before use.
        qk_norm: Over what queries and keys are normed.
        activation: What the gate goes through.
        attention_scale: Factor of the scores; None means head_width ** -0.5.
        query_scaling: Growth of queries with position, or None.
        embed_scale: Factor of the embedding's output.
        residual_scale: Factor of what each block adds to the stream.
        logits_scale: Factor of the logits.
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
    query_scaling: QueryScaling | None = None
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    logits_scale: float = 1.0
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
        """Say how a layer attends."""
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
        per_head = self.qk_norm is QkNorm.HEAD
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
        """Read the JSON form, which nobody vouches for; the inverse of ``as_dict``.

        Raises:
            ValueError: Fields are absent, unknown or of another type, or sizes without sense; the
                caller knows the file and says so.
        """
        try:
            spec = cls._from_dict(data)
            fault = find_fault(spec)
        except (TypeError, LookupError, AttributeError) as error:
            raise ValueError(f"decoder: {type(error).__name__}: {error}") from error
        if fault:
            raise ValueError(f"decoder: {fault}")
        return spec

    @classmethod
    def _from_dict(cls, data: Mapping[str, Any]) -> DecoderSpec:
        local, sliding = data.get("local_rope"), data.get("sliding_layers")
        growth = data.get("query_scaling")
        return cls(
            **{
                **data,
                "rope": RopeSpec.from_dict(data["rope"]),
                "local_rope": None if local is None else RopeSpec.from_dict(local),
                "sliding_layers": None if sliding is None else tuple(sliding),
                "no_rope_layers": tuple(data.get("no_rope_layers", ())),
                "eos_token_ids": tuple(data["eos_token_ids"]),
                "query_scaling": None if growth is None else QueryScaling(**growth),
                "norm_placement": NormPlacement(data.get("norm_placement", "before")),
                "qk_norm": QkNorm(data.get("qk_norm", "none")),
                "activation": Activation(data.get("activation", "silu")),
            }
        )
