"""A decoder in plain numpy: the right logits, written to be read next to the papers.

Every engine's logits are compared with it, so it shares no code with any of them; it is not fast.
It holds no cache of its own and asks for each weight when it needs it, so that a model can be run
a layer at a time (quantize/calibration.py) or be kept whole (runtime/reference.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgekit.dtypes import F32Array
from edgekit.families.rope import attention_temperatures, rope_tables
from edgekit.families.rope_spec import LongRopeScaling, RopeSpec
from edgekit.families.spec import Activation, DecoderSpec, QkNorm

FloatArray: TypeAlias = NDArray[np.floating[Any]]
FloatType: TypeAlias = type[np.float32] | type[np.float64]


@dataclass(slots=True, eq=False)
class LayerCache:
    """Keys and values of one layer, each (K, capacity, D)."""

    keys: FloatArray
    values: FloatArray


class Forward:
    """The arithmetic of a decoder, layer by layer.

    Args:
        spec: The decoder.
        weights: Canonical name to float32 array.
        dtype: Number type of all arithmetic, np.float32 or np.float64.
        keeps_weights: Ask for each weight once and keep it, or anew at each use.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        weights: Callable[[str], F32Array],
        dtype: FloatType = np.float32,
        *,
        keeps_weights: bool = True,
    ) -> None:
        self._spec = spec
        self._shapes = spec.weight_shapes()
        self._read = weights
        self._dtype = dtype
        self._keeps_weights = keeps_weights
        self._weights: dict[str, FloatArray] = {}
        self._tables: dict[tuple[RopeSpec, bool], tuple[FloatArray, FloatArray]] = {}
        self._n_positions = 0

    def reserve(self, n_positions: int) -> None:
        """Compute the angles of that many positions when they are next needed."""
        self._n_positions = n_positions
        self._tables.clear()

    def empty_cache(self, capacity: int) -> LayerCache:
        """Give room for the keys and values of one layer."""
        shape = (self._spec.n_kv_heads, capacity, self._spec.head_width)
        return LayerCache(np.zeros(shape, self._dtype), np.zeros(shape, self._dtype))

    def close(self) -> None:
        """Let go of the weights."""
        self._weights.clear()

    def embed(self, ids: NDArray[np.int64]) -> FloatArray:
        """Give what T tokens bring into the first layer, (T, C)."""
        return self._scaled(self._embedding_rows(ids), self._spec.embed_scale)

    def run_layer(
        self, layer: int, residual: FloatArray, cache: LayerCache, n_past: int, *, is_long: bool
    ) -> FloatArray:
        """Run T tokens through one layer, (T, C) to (T, C), and extend its cache."""
        inner = self.attention_input(layer, residual)
        mixed = self.mix(layer, inner, cache, n_past, is_long=is_long)
        residual = self.add_attention(layer, residual, mixed)
        gated = self.gate(layer, self.feed_forward_input(layer, residual))
        return self.add_feed_forward(layer, residual, gated)

    def attention_input(self, layer: int, residual: FloatArray) -> FloatArray:
        """Give what q, k and v read, (T, C)."""
        return self._maybe_norm(residual, f"layers.{layer}.attn_norm")

    def mix(
        self, layer: int, inner: FloatArray, cache: LayerCache, n_past: int, *, is_long: bool
    ) -> FloatArray:
        """Attend from T new positions to all the cache holds; give what o reads, (T, H * D)."""
        n_total = n_past + len(inner)
        positions = np.arange(n_past, n_total)
        queries, keys, values = self._project(layer, inner, positions, is_long)
        cache.keys[:, n_past:n_total], cache.values[:, n_past:n_total] = keys, values
        return self._attend(layer, queries, cache, n_past)

    def _project(
        self, layer: int, inner: FloatArray, positions: NDArray[np.int64], is_long: bool
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Give queries (H, T, D), keys and values (K, T, D) of tokens at these positions, (T,)."""
        spec, at, rope = self._spec, f"layers.{layer}.", self._spec.attention(layer).rope
        queries = self._heads(self._normed_linear(inner, at + "q"), spec.n_heads)
        keys = self._heads(self._normed_linear(inner, at + "k"), spec.n_kv_heads)
        if rope is not None:
            queries = self._rotate(queries, positions, rope, is_long)
            keys = self._rotate(keys, positions, rope, is_long)
        if spec.qk_norm is QkNorm.HEAD_AFTER_ROPE:
            queries, keys = self._norm(queries, at + "q_norm"), self._norm(keys, at + "k_norm")
        if spec.query_scaling is not None:
            temperatures = attention_temperatures(spec.query_scaling, int(positions.max()) + 1)
            factors: FloatArray = np.asarray(temperatures, dtype=self._dtype)
            queries *= factors[positions, None]
        return queries, keys, self._heads(self._linear(inner, at + "v"), spec.n_kv_heads)

    def _attend(
        self, layer: int, queries: FloatArray, cache: LayerCache, n_past: int
    ) -> FloatArray:
        """Mix the values of what the cache holds; queries (H, T, D) to (T, H * D)."""
        spec, n_tokens = self._spec, queries.shape[1]
        n_total = n_past + n_tokens
        keys, values = cache.keys[:, :n_total], cache.values[:, :n_total]
        # Query head h reads kv head h // (H / K): consecutive query heads share one.
        grouped = queries.reshape(spec.n_kv_heads, -1, n_tokens, spec.head_width)
        scores = grouped @ keys[:, None].swapaxes(-1, -2) * self._dtype(spec.score_scale)
        capped = self._capped(scores, spec.scores_softcap)
        window = spec.attention(layer).window
        scores = np.where(_is_seen(n_past, n_total, window), capped, -np.inf)
        mixed = _softmax(scores) @ values[:, None]  # (K, H // K, T, D)
        heads: FloatArray = mixed.reshape(spec.n_heads, n_tokens, -1)
        return heads.swapaxes(0, 1).reshape(n_tokens, -1)

    def add_attention(self, layer: int, residual: FloatArray, mixed: FloatArray) -> FloatArray:
        """Add what o makes of the attention's mix, (T, C)."""
        at = f"layers.{layer}."
        output = self._maybe_norm(self._linear(mixed, at + "o"), at + "attn_post_norm")
        return residual + self._scaled(output, self._spec.residual_scale)

    def feed_forward_input(self, layer: int, residual: FloatArray) -> FloatArray:
        """Give what gate and up read, (T, C)."""
        return self._maybe_norm(residual, f"layers.{layer}.ffn_norm")

    def gate(self, layer: int, inner: FloatArray) -> FloatArray:
        """Give what down reads: the product of up with the activated gate, (T, F)."""
        activate: Callable[[FloatArray], FloatArray] = (
            _silu if self._spec.activation is Activation.SILU else _gelu_tanh
        )
        at = f"layers.{layer}."
        return activate(self._linear(inner, at + "gate")) * self._linear(inner, at + "up")

    def add_feed_forward(self, layer: int, residual: FloatArray, gated: FloatArray) -> FloatArray:
        """Add what down makes of its input, (T, C)."""
        at = f"layers.{layer}."
        output = self._maybe_norm(self._linear(gated, at + "down"), at + "ffn_post_norm")
        return residual + self._scaled(output, self._spec.residual_scale)

    def finish(self, residual: FloatArray) -> FloatArray:
        """Norm what the last layer gives, (T, C)."""
        return self._norm(residual, "final_norm")

    def head(self, finished: FloatArray) -> FloatArray:
        """Give the logits of finished states, (T, C) to (T, V)."""
        name = "embed" if self._spec.is_tied else "lm_head"
        logits = self._scaled(self._matmul(finished, name), self._spec.logits_scale)
        return self._capped(logits, self._spec.logits_softcap)

    def is_long(self, n_total: int) -> bool:
        """Say whether LongRoPE's long angles hold for a call of that many positions."""
        scalings = (rope.scaling for rope in self._spec.ropes)
        return any(
            isinstance(s, LongRopeScaling) and n_total > s.original_context_length for s in scalings
        )

    def _normed_linear(self, inner: FloatArray, name: str) -> FloatArray:
        """Project to queries or keys and norm them if before rope, (T, C) to (T, heads * D)."""
        projected = self._linear(inner, name)
        match self._spec.qk_norm:
            case QkNorm.NONE | QkNorm.HEAD_AFTER_ROPE:
                return projected
            case QkNorm.FULL:
                return self._norm(projected, f"{name}_norm")
            case QkNorm.HEAD:
                heads = projected.reshape(len(inner), -1, self._spec.head_width)
                return self._norm(heads, f"{name}_norm").reshape(projected.shape)

    def _heads(self, projected: FloatArray, n_heads: int) -> FloatArray:
        """Split: (T, heads * D) to (heads, T, D)."""
        return projected.reshape(len(projected), n_heads, self._spec.head_width).swapaxes(0, 1)

    def _rotate(
        self, heads: FloatArray, positions: NDArray[np.int64], rope: RopeSpec, is_long: bool
    ) -> FloatArray:
        """Apply RoPE in the rotate-half form to the first channels; (heads, T, D)."""
        cos, sin = (table[positions] for table in self._rope(rope, is_long))
        half = cos.shape[1]
        first, second, rest = np.split(heads, [half, 2 * half], axis=-1)
        rotated = [first * cos - second * sin, second * cos + first * sin, rest]
        return np.concatenate(rotated, axis=-1)

    def _linear(self, inner: FloatArray, name: str) -> FloatArray:
        spec, part = self._spec, name.rpartition(".")[2]
        has_bias = {
            "q": spec.has_qkv_bias,
            "k": spec.has_qkv_bias,
            "v": spec.has_qkv_bias,
            "o": spec.has_o_bias,
        }.get(part, spec.has_mlp_bias)
        product = self._matmul(inner, name)
        return product + self._weight(f"{name}.bias") if has_bias else product

    def _matmul(self, inner: FloatArray, name: str) -> FloatArray:
        """Multiply (T, M) by a matrix (N, M); give (T, N)."""
        product: FloatArray = inner @ self._weight(name).T
        return product

    def _embedding_rows(self, ids: NDArray[np.int64]) -> FloatArray:
        return self._weight("embed")[ids]

    def _norm(self, residual: FloatArray, name: str) -> FloatArray:
        mean_square = np.mean(np.square(residual), axis=-1, keepdims=True)
        scaled: FloatArray = residual / np.sqrt(mean_square + self._dtype(self._spec.norm_eps))
        return scaled * (self._weight(name) + self._dtype(self._spec.norm_offset))

    def _maybe_norm(self, residual: FloatArray, name: str) -> FloatArray:
        """Norm where the decoder has this norm."""
        return self._norm(residual, name) if name in self._shapes else residual

    def _scaled(self, values: FloatArray, factor: float) -> FloatArray:
        return values if factor == 1.0 else values * self._dtype(factor)

    def _capped(self, values: FloatArray, cap: float | None) -> FloatArray:
        """Keep values within -cap .. cap, smoothly."""
        if cap is None:
            return values
        capped: FloatArray = np.tanh(values / self._dtype(cap)) * self._dtype(cap)
        return capped

    def _weight(self, name: str) -> FloatArray:
        kept = self._weights.get(name)
        if kept is None:
            kept = np.asarray(self._read(name), dtype=self._dtype)
            if self._keeps_weights:
                self._weights[name] = kept
        return kept

    def _rope(self, rope: RopeSpec, is_long: bool) -> tuple[FloatArray, FloatArray]:
        key = (rope, is_long)
        if key not in self._tables:
            width, n_positions = self._spec.head_width, self._n_positions
            cos, sin = rope_tables(rope, width, n_positions, is_long=is_long)
            self._tables[key] = cos.astype(self._dtype), sin.astype(self._dtype)
        return self._tables[key]


def _is_seen(n_past: int, n_total: int, window: int | None) -> NDArray[np.bool_]:
    """Say which keys a query sees: itself and what came before, within the window; (T, S)."""
    query = np.arange(n_past, n_total)[:, None]
    key = np.arange(n_total)[None, :]
    is_seen: NDArray[np.bool_] = key <= query
    if window is not None:
        is_seen &= key > query - window
    return is_seen


def _softmax(scores: FloatArray) -> FloatArray:
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares: FloatArray = weights / weights.sum(axis=-1, keepdims=True)
    return shares


def _silu(values: FloatArray) -> FloatArray:
    # x * sigmoid(x) through tanh, which cannot overflow.
    half = values * values.dtype.type(0.5)
    activated: FloatArray = half * (1 + np.tanh(half))
    return activated


def _gelu_tanh(values: FloatArray) -> FloatArray:
    # Hendrycks and Gimpel 2016, the tanh form: sqrt(2 / pi) (x + 0.044715 x^3).
    inner = values.dtype.type(0.7978845608028654) * (
        values + values.dtype.type(0.044715) * values**3
    )
    activated: FloatArray = values.dtype.type(0.5) * values * (1 + np.tanh(inner))
    return activated
