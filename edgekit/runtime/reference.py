"""The reference decoder: right logits from plain numpy, the measure for every engine.

It is written to be read next to the papers and checked by hand. It shares no code with any engine;
it is not fast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgekit.dtypes import F32Array
from edgekit.errors import EngineCrashError, UsageError
from edgekit.families.base import SourceModel
from edgekit.families.rope import attention_temperatures, rope_tables
from edgekit.families.rope_spec import LongRopeScaling, RopeSpec
from edgekit.families.spec import Activation, DecoderSpec, QkNorm
from edgekit.quantize.model import QuantizedModel, QuantizedTensor
from edgekit.records import EngineInfo
from edgekit.runtime.base import check_forward

FloatArray: TypeAlias = NDArray[np.floating[Any]]
FloatType: TypeAlias = type[np.float32] | type[np.float64]
_CHUNK_TOKENS: Final = 128  # bounds the score matrices of long prompts
_FIRST_CAPACITY: Final = 128


@dataclass(slots=True, eq=False)
class _LayerCache:
    """Keys and values of one layer, each (K, capacity, D)."""

    keys: FloatArray
    values: FloatArray


class ReferenceDecoder:
    """A ``Decoder`` in plain numpy.

    Args:
        spec: The decoder.
        weights: Canonical name to float32 array.
        dtype: Number type of all arithmetic, np.float32 or np.float64.
        model: Name shown in records.
        context_length: Most positions; None takes the model's own.
        keeps_weights: Ask for each weight once and keep it, or anew at each use.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        weights: Callable[[str], F32Array],
        *,
        dtype: FloatType = np.float32,
        model: str = "model",
        context_length: int | None = None,
        keeps_weights: bool = True,
    ) -> None:
        if context_length is not None and not 1 <= context_length <= spec.context_length:
            raise UsageError(
                "context_length", got=context_length, wanted=f"1 .. {spec.context_length}"
            )
        self._spec = spec
        self._shapes = spec.weight_shapes()
        self._read = weights
        self._dtype = dtype
        self._model = model
        self._context_length = context_length or spec.context_length
        self._keeps_weights = keeps_weights
        self._weights: dict[str, FloatArray] = {}
        self._cache = [self._empty_cache() for _ in range(spec.n_layers)]
        self._capacity = 0
        self._tables: dict[tuple[RopeSpec, bool], tuple[FloatArray, FloatArray]] = {}
        self._n_cached = 0
        self._is_closed = False

    @classmethod
    def from_quantized(cls, model: QuantizedModel, dtype: FloatType = np.float32) -> Self:
        """Run exactly the weights that an artifact holds."""

        def read(name: str) -> F32Array:
            tensor = model.get(name)
            return tensor.dequantize() if isinstance(tensor, QuantizedTensor) else tensor.values

        return cls(model.spec, read, dtype=dtype, model=f"{model.source.name} {model.scheme}")

    @classmethod
    def from_source(cls, source: SourceModel, dtype: FloatType = np.float32) -> Self:
        """Run the weights of the checkpoint, widened to ``dtype``."""

        def read(name: str) -> F32Array:
            return source.tensor(name).read()

        return cls(source.spec, read, dtype=dtype, model=source.checkpoint.name)

    @property
    def info(self) -> EngineInfo:
        """What goes into records."""
        settings = {"dtype": np.dtype(self._dtype).name}
        return EngineInfo("reference", np.__version__, self._model, settings=settings)

    @property
    def vocab_size(self) -> int:
        """V."""
        return self._spec.vocab_size

    @property
    def context_length(self) -> int:
        """Most positions the cache holds."""
        return self._context_length

    def forward(self, token_ids: Sequence[int], *, n_past: int, n_logits: int = 1) -> F32Array:
        """Run ``token_ids`` after ``n_past`` cached positions; see ``Decoder.forward``.

        Raises:
            UsageError: See ``Decoder.forward``.
            EngineCrashError: The decoder is closed.
        """
        if self._is_closed:
            raise EngineCrashError("reference engine: the model is closed", do="Open it again.")
        check_forward(
            token_ids,
            n_past,
            n_logits,
            n_cached=self._n_cached,
            vocab_size=self.vocab_size,
            context_length=self._context_length,
        )
        ids = np.asarray(token_ids, dtype=np.int64)
        self._reserve(n_past + len(ids))
        # LongRoPE looks at the whole call, so that chunks of it do not change the answer.
        is_long = self._is_long(n_past + len(ids))
        hidden = [
            self._run_chunk(ids[start : start + _CHUNK_TOKENS], n_past + start, is_long)
            for start in range(0, len(ids), _CHUNK_TOKENS)
        ]
        self._n_cached = n_past + len(ids)
        last = np.concatenate(hidden)[-n_logits:]
        head = self._weight("embed" if self._spec.is_tied else "lm_head")
        logits = self._scaled(last @ head.T, self._spec.logits_scale)
        capped: F32Array = self._capped(logits, self._spec.logits_softcap).astype(np.float32)
        return capped

    def close(self) -> None:
        """Let go of weights and cache; safe to call twice."""
        self._is_closed = True
        self._weights.clear()
        self._cache.clear()

    def _run_chunk(self, ids: NDArray[np.int64], n_past: int, is_long: bool) -> FloatArray:
        """Give the final hidden states of T tokens, (T, C), and extend the cache."""
        spec = self._spec
        residual = self._scaled(self._weight("embed")[ids], spec.embed_scale)
        for layer in range(spec.n_layers):
            at = f"layers.{layer}."
            inner = self._maybe_norm(residual, at + "attn_norm")
            output = self._attend(layer, inner, n_past, is_long)
            output = self._maybe_norm(output, at + "attn_post_norm")
            residual = residual + self._scaled(output, spec.residual_scale)
            inner = self._maybe_norm(residual, at + "ffn_norm")
            output = self._maybe_norm(self._feed_forward(inner, at), at + "ffn_post_norm")
            residual = residual + self._scaled(output, spec.residual_scale)
        return self._norm(residual, "final_norm")

    def _feed_forward(self, inner: FloatArray, at: str) -> FloatArray:
        activate: Callable[[FloatArray], FloatArray] = (
            _silu if self._spec.activation is Activation.SILU else _gelu_tanh
        )
        gated = activate(self._linear(inner, at + "gate")) * self._linear(inner, at + "up")
        return self._linear(gated, at + "down")

    def _attend(self, layer: int, inner: FloatArray, n_past: int, is_long: bool) -> FloatArray:
        """Attend from T new positions to all the cache holds; (T, C) to (T, C)."""
        spec, at, attention = self._spec, f"layers.{layer}.", self._spec.attention(layer)
        n_tokens, n_total = len(inner), n_past + len(inner)
        queries = self._heads(self._normed_linear(inner, at + "q"), spec.n_heads)  # (H, T, D)
        keys = self._heads(self._normed_linear(inner, at + "k"), spec.n_kv_heads)
        if attention.rope is not None:
            queries = self._rotate(queries, n_past, attention.rope, is_long)
            keys = self._rotate(keys, n_past, attention.rope, is_long)
        if spec.qk_norm is QkNorm.HEAD_AFTER_ROPE:
            queries, keys = self._norm(queries, at + "q_norm"), self._norm(keys, at + "k_norm")
        if spec.query_scaling is not None:
            temperatures = attention_temperatures(spec.query_scaling, n_total)
            factors: FloatArray = np.asarray(temperatures, dtype=self._dtype)
            queries *= factors[n_past:, None]
        cache = self._cache[layer]
        new = slice(n_past, n_total)
        cache.keys[:, new] = keys
        cache.values[:, new] = self._heads(self._linear(inner, at + "v"), spec.n_kv_heads)
        keys, values = cache.keys[:, :n_total], cache.values[:, :n_total]
        # Query head h reads kv head h // (H / K): consecutive query heads share one.
        grouped = queries.reshape(spec.n_kv_heads, -1, n_tokens, spec.head_width)
        scores = grouped @ keys[:, None].swapaxes(-1, -2) * self._dtype(spec.score_scale)
        capped = self._capped(scores, spec.scores_softcap)
        scores = np.where(_is_seen(n_past, n_total, attention.window), capped, -np.inf)
        mixed = _softmax(scores) @ values[:, None]  # (K, H // K, T, D)
        joined = mixed.reshape(spec.n_heads, n_tokens, -1).swapaxes(0, 1).reshape(n_tokens, -1)
        return self._linear(joined, at + "o")

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

    def _rotate(self, heads: FloatArray, n_past: int, rope: RopeSpec, is_long: bool) -> FloatArray:
        """Apply RoPE in the rotate-half form to the first channels; (heads, T, D)."""
        part = slice(n_past, n_past + heads.shape[1])
        cos, sin = (table[part] for table in self._rope(rope, is_long))
        half = cos.shape[1]
        first, second, rest = np.split(heads, [half, 2 * half], axis=-1)
        rotated = [first * cos - second * sin, second * cos + first * sin, rest]
        return np.concatenate(rotated, axis=-1)

    def _is_long(self, n_total: int) -> bool:
        scalings = (rope.scaling for rope in self._spec.ropes)
        return any(
            isinstance(s, LongRopeScaling) and n_total > s.original_context_length for s in scalings
        )

    def _linear(self, inner: FloatArray, name: str) -> FloatArray:
        spec, part = self._spec, name.rpartition(".")[2]
        has_bias = {
            "q": spec.has_qkv_bias,
            "k": spec.has_qkv_bias,
            "v": spec.has_qkv_bias,
            "o": spec.has_o_bias,
        }.get(part, spec.has_mlp_bias)
        product: FloatArray = inner @ self._weight(name).T
        return product + self._weight(f"{name}.bias") if has_bias else product

    def _norm(self, x: FloatArray, name: str) -> FloatArray:
        mean_square = np.mean(np.square(x), axis=-1, keepdims=True)
        scaled: FloatArray = x / np.sqrt(mean_square + self._dtype(self._spec.norm_eps))
        return scaled * (self._weight(name) + self._dtype(self._spec.norm_offset))

    def _maybe_norm(self, x: FloatArray, name: str) -> FloatArray:
        """Norm where the decoder has this norm."""
        return self._norm(x, name) if name in self._shapes else x

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

    def _empty_cache(self, capacity: int = 0) -> _LayerCache:
        shape = (self._spec.n_kv_heads, capacity, self._spec.head_width)
        return _LayerCache(np.zeros(shape, self._dtype), np.zeros(shape, self._dtype))

    def _rope(self, rope: RopeSpec, is_long: bool) -> tuple[FloatArray, FloatArray]:
        key = (rope, is_long)
        if key not in self._tables:
            width, n_positions = self._spec.head_width, self._capacity
            cos, sin = rope_tables(rope, width, n_positions, is_long=is_long)
            self._tables[key] = cos.astype(self._dtype), sin.astype(self._dtype)
        return self._tables[key]

    def _reserve(self, n_positions: int) -> None:
        """Make room for ``n_positions``, keeping what is cached."""
        if n_positions <= self._capacity:
            return
        capacity = min(max(_FIRST_CAPACITY, 2 * self._capacity, n_positions), self._context_length)
        self._capacity = capacity
        self._tables.clear()
        for layer, old in enumerate(self._cache):
            grown = self._empty_cache(capacity)
            grown.keys[:, : self._n_cached] = old.keys[:, : self._n_cached]
            grown.values[:, : self._n_cached] = old.values[:, : self._n_cached]
            self._cache[layer] = grown


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
