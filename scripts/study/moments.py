"""Second moments of the inputs of every matrix while the float model reads the calibration text.

One file a layer, so that memory holds one layer. The diagonal is what llama.cpp calls an
importance matrix; the whole is what GPTQ calls a Hessian.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

import numpy as np

from edgekit.dtypes import F32Array, F64Array
from edgekit.families.base import SourceModel
from edgekit.quantize.calibration_text import CalibrationText
from edgekit.reference.forward import FloatArray, Forward

READERS: Final = {
    "q": ("q", "k", "v"), "o": ("o",), "gate": ("gate", "up"), "down": ("down",),
}  # fmt: skip
"""The matrix that is watched -> all that read the same input."""


class Moments:
    """Mean second moments of inputs, computed at the first use and kept on disk.

    Args:
        source: The float model.
        text: The calibration text.
        folder: Where a folder of them lies.

    Attributes:
        text: The calibration text.
        key: A hash of model and text.
    """

    def __init__(self, source: SourceModel, text: CalibrationText, folder: Path) -> None:
        self._source = source
        self.text = text
        digest = hashlib.sha256(text.sha256().encode())
        digest.update(source.checkpoint.sha256().encode())
        self.key: str = digest.hexdigest()[:8]
        self._folder = folder / f"moments-{self.key}"

    def of(self, name: str) -> F32Array:
        """Give the mean of x x' over tokens, (M, M), for the inputs of a matrix of a layer."""
        _, layer, part = name.split(".")
        watched = next(first for first, parts in READERS.items() if part in parts)
        path = self._path(int(layer))
        if not path.is_file():
            self._write()
        with np.load(path) as stored:
            moments: F32Array = stored[watched]
        return moments

    def importance(self, name: str) -> F32Array:
        """Give the mean square of each input channel of a matrix, (M,)."""
        return np.ascontiguousarray(np.diag(self.of(name)))

    def _path(self, layer: int) -> Path:
        return self._folder / f"layer-{layer:03}.npz"

    def _write(self) -> None:
        """Run all documents through one layer after the other."""
        self._folder.mkdir(parents=True, exist_ok=True)
        spec = self._source.spec
        watching = _Watching(self._source)
        watching.reserve(max(len(ids) for ids in self.text.sequences))
        residuals = [watching.embed(np.asarray(ids, dtype=np.int64)) for ids in self.text.sequences]
        for layer in range(spec.n_layers):
            for i, residual in enumerate(residuals):
                is_long = watching.is_long(len(residual))
                cache = watching.empty_cache(len(residual))
                residuals[i] = watching.run_layer(layer, residual, cache, 0, is_long=is_long)
            found = {
                name.rpartition(".")[2]: (total / self.text.n_tokens).astype(np.float32)
                for name, total in watching.take().items()
            }
            partial = self._path(layer).with_suffix(".partial.npz")
            np.savez(partial, **found)  # type: ignore[arg-type]
            partial.replace(self._path(layer))


class _Watching(Forward):
    """A float forward that sums x x' of the inputs of the watched matrices."""

    def __init__(self, source: SourceModel) -> None:
        super().__init__(source.spec, lambda name: source.tensor(name).read(), np.float32)
        self._totals: dict[str, F64Array] = {}

    def take(self) -> dict[str, F64Array]:
        """Give the sums since the last call, and let go of the layer's weights."""
        taken, self._totals = self._totals, {}
        self.close()
        return taken

    def _matmul(self, inner: FloatArray, name: str) -> FloatArray:
        if name.rpartition(".")[2] in READERS:
            square: FloatArray = inner.T @ inner
            self._totals[name] = self._totals.get(name, np.zeros(square.shape)) + square
        return super()._matmul(inner, name)
