"""Several texts through one decoder in lockstep: each weight is read once for a token of each text.

A text alone would read every weight for every token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from edgekit.dtypes import F32Array
from edgekit.families.spec import DecoderSpec
from edgekit.reference.forward import FloatArray, FloatType, Forward, LayerCache


class Lockstep(Forward):
    """A decoder that reads one token of each of B texts at a time.

    Args:
        spec: The decoder.
        weights: Canonical name to float32 array.
        dtype: Number type of all arithmetic.
        keeps_weights: Keep every weight, or ask for those of a layer anew at each step.
        capacity: Most positions of a text.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        weights: Callable[[str], F32Array],
        dtype: FloatType = np.float32,
        *,
        keeps_weights: bool = True,
        capacity: int,
    ) -> None:
        super().__init__(spec, weights, dtype)
        self._keeps_all = keeps_weights
        self._capacity = capacity
        self._is_long = self.is_long(capacity)
        self._caches: list[list[LayerCache]] = []
        self._lengths: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._reading: list[int] = []
        self.reserve(capacity)

    def start(self, texts: Sequence[Sequence[int]]) -> FloatArray:
        """Read the beginnings of B texts; give the logits of the next token of each, (B, V)."""
        spec = self._spec
        self._lengths = np.array([len(text) for text in texts], dtype=np.int64)
        self._caches = [
            [self.empty_cache(self._capacity) for _ in texts] for _ in range(spec.n_layers)
        ]
        residuals = [self.embed(np.asarray(text, dtype=np.int64)) for text in texts]
        for layer, caches in enumerate(self._caches):
            residuals = [
                self.run_layer(layer, x, cache, 0, is_long=self._is_long)
                for x, cache in zip(residuals, caches, strict=True)
            ]
            self._forget()
        return self._logits(np.stack([residual[-1] for residual in residuals]))

    def step(self, texts: Sequence[int], ids: Sequence[int]) -> FloatArray:
        """Read one more token of some texts; give the logits of the next, (len(texts), V).

        Args:
            texts: Which of the texts, by their place in ``start``.
            ids: The token of each.
        """
        self._reading = list(texts)
        residual = self.embed(np.asarray(ids, dtype=np.int64))
        for layer in range(self._spec.n_layers):
            # The cache and the number of past positions are those of each text; see mix.
            residual = self.run_layer(
                layer, residual, self._caches[layer][0], -1, is_long=self._is_long
            )
            self._forget()
        self._lengths[self._reading] += 1
        return self._logits(residual)

    def mix(
        self, layer: int, inner: FloatArray, cache: LayerCache, n_past: int, *, is_long: bool
    ) -> FloatArray:
        """Attend, each text to its own past; give what o reads, (T, H * D)."""
        if n_past >= 0:
            return super().mix(layer, inner, cache, n_past, is_long=is_long)
        positions = self._lengths[self._reading]
        queries, keys, values = self._project(layer, inner, positions, is_long)
        mixed: list[FloatArray] = []
        for row, (text, position) in enumerate(zip(self._reading, positions, strict=True)):
            cache = self._caches[layer][text]
            cache.keys[:, position], cache.values[:, position] = keys[:, row], values[:, row]
            mixed.append(self._attend(layer, queries[:, row : row + 1], cache, int(position)))
        return np.concatenate(mixed)

    def _logits(self, residual: FloatArray) -> FloatArray:
        logits = self.head(self.finish(residual))
        self._forget()
        return logits

    def _forget(self) -> None:
        """Let go of the weights of what was just computed, unless all are kept."""
        if not self._keeps_all:
            self._weights.clear()
