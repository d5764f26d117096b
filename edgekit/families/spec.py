"""Answer one question: what must an exporter know of a decoder, whatever its family?

Canonical weight names (N out, M in; every matrix is stored as (N, M), as in Hugging Face):
``embed`` (V, C) · ``layers.{i}.attn_norm`` (C,) · ``layers.{i}.q|k|v|o`` · ``layers.{i}.ffn_norm``
(C,) · ``layers.{i}.gate|up|down`` · ``final_norm`` (C,) · ``lm_head`` (V, C), absent when tied.
A bias of matrix ``X`` is ``X.bias``. RoPE is the rotate-half form of Hugging Face.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """RoPE frequency scaling of Llama 3.1 (``rope_type: llama3``)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context_length: int


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary position embedding: base frequency and optional scaling."""

    theta: float
    scaling: Llama3Scaling | None = None
    linear_factor: float = 1.0


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """A decoder-only transformer with pre-norm RMSNorm, RoPE, GQA and SwiGLU.

    ``context_length`` is the number of positions; ``sliding_window`` the number of keys a
    query sees (itself included), or None.
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
    has_qkv_bias: bool = False
    has_o_bias: bool = False
    has_mlp_bias: bool = False
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

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Give every canonical weight name with its shape, in file order."""
        width, ffn = self.hidden_width, self.ffn_width
        shapes: dict[str, tuple[int, ...]] = {"embed": (self.vocab_size, width)}
        for i in range(self.n_layers):
            at = f"layers.{i}."
            shapes[at + "attn_norm"] = (width,)
            for part, n_out in (("q", self.q_width), ("k", self.kv_width), ("v", self.kv_width)):
                shapes[at + part] = (n_out, width)
                if self.has_qkv_bias:
                    shapes[f"{at}{part}.bias"] = (n_out,)
            shapes[at + "o"] = (width, self.q_width)
            if self.has_o_bias:
                shapes[at + "o.bias"] = (width,)
            shapes[at + "ffn_norm"] = (width,)
            for part, n_out, n_in in (
                ("gate", ffn, width),
                ("up", ffn, width),
                ("down", width, ffn),
            ):
                shapes[at + part] = (n_out, n_in)
                if self.has_mlp_bias:
                    shapes[f"{at}{part}.bias"] = (n_out,)
        shapes["final_norm"] = (width,)
        if not self.is_tied:
            shapes["lm_head"] = (self.vocab_size, width)
        return shapes

    def as_dict(self) -> dict[str, Any]:
        """Give the JSON form, as kept in a manifest."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DecoderSpec:
        """Read the JSON form; the inverse of ``as_dict``."""
        rope = dict(data["rope"])
        scaling = rope.pop("scaling", None)
        return cls(
            **{
                **data,
                "rope": RopeSpec(
                    **rope, scaling=None if scaling is None else Llama3Scaling(**scaling)
                ),
                "eos_token_ids": tuple(data["eos_token_ids"]),
            }
        )
