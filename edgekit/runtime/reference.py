"""The reference engine: the plain numpy forward (edgekit/reference) as a ``Decoder``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from edgekit.dtypes import F32Array
from edgekit.errors import EngineCrashError, UsageError
from edgekit.families.base import SourceModel
from edgekit.families.spec import DecoderSpec
from edgekit.quantize.model import EncodedTensor, QuantizedModel
from edgekit.records import EngineInfo
from edgekit.reference.forward import FloatArray, FloatType, Forward
from edgekit.runtime.base import check_forward

_CHUNK_TOKENS: Final = 128  # bounds the score matrices of long prompts
_FIRST_CAPACITY: Final = 128
KEPT_BYTES: Final = 2 << 30
"""Float weights are kept when all of them take no more, else made at each use."""


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
        self._dtype = dtype
        self._model = model
        self._context_length = context_length or spec.context_length
        self._forward = Forward(spec, weights, dtype, keeps_weights=keeps_weights)
        self._cache = [self._forward.empty_cache(0) for _ in range(spec.n_layers)]
        self._capacity = 0
        self._n_cached = 0
        self._is_closed = False

    @classmethod
    def from_quantized(cls, model: QuantizedModel, dtype: FloatType = np.float32) -> Self:
        """Run exactly the weights that an artifact holds."""

        def read(name: str) -> F32Array:
            tensor = model.get(name)
            return tensor.dequantize() if isinstance(tensor, EncodedTensor) else tensor.values

        return cls(model.spec, read, dtype=dtype, model=f"{model.source.name} {model.scheme}")

    @classmethod
    def from_source(cls, source: SourceModel, dtype: FloatType = np.float32) -> Self:
        """Run the weights of the checkpoint, widened to ``dtype``.

        They are kept if all of them take ``KEPT_BYTES`` at most, else read anew at each use.
        """

        def read(name: str) -> F32Array:
            return source.tensor(name).read()

        is_kept = np.dtype(dtype).itemsize * source.n_parameters <= KEPT_BYTES
        name = source.checkpoint.name
        return cls(source.spec, read, dtype=dtype, model=name, keeps_weights=is_kept)

    @property
    def info(self) -> EngineInfo:
        """What goes into records."""
        return self.describe(self._model, self._dtype)

    @staticmethod
    def describe(model: str = "model", dtype: FloatType = np.float32) -> EngineInfo:
        """Give the ``info`` of a model without opening it."""
        settings = {"dtype": np.dtype(dtype).name}
        return EngineInfo("reference", np.__version__, model, settings=settings)

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
        is_long = self._forward.is_long(n_past + len(ids))
        hidden = [
            self._run_chunk(ids[start : start + _CHUNK_TOKENS], n_past + start, is_long)
            for start in range(0, len(ids), _CHUNK_TOKENS)
        ]
        self._n_cached = n_past + len(ids)
        logits: F32Array = self._forward.head(np.concatenate(hidden)[-n_logits:]).astype(np.float32)
        return logits

    def close(self) -> None:
        """Let go of weights and cache; safe to call twice."""
        self._is_closed = True
        self._forward.close()
        self._cache.clear()

    def _run_chunk(self, ids: NDArray[np.int64], n_past: int, is_long: bool) -> FloatArray:
        """Give the final hidden states of T tokens, (T, C), and extend the cache."""
        residual = self._forward.embed(ids)
        for layer, cache in enumerate(self._cache):
            residual = self._forward.run_layer(layer, residual, cache, n_past, is_long=is_long)
        return self._forward.finish(residual)

    def _reserve(self, n_positions: int) -> None:
        """Make room for ``n_positions``, keeping what is cached."""
        if n_positions <= self._capacity:
            return
        capacity = min(max(_FIRST_CAPACITY, 2 * self._capacity, n_positions), self._context_length)
        self._capacity = capacity
        self._forward.reserve(capacity)
        for layer, old in enumerate(self._cache):
            grown = self._forward.empty_cache(capacity)
            grown.keys[:, : self._n_cached] = old.keys[:, : self._n_cached]
            grown.values[:, : self._n_cached] = old.values[:, : self._n_cached]
            self._cache[layer] = grown
