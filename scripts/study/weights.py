"""The weights of a model as floats, with what they take where they are stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from edgekit.dtypes import F32Array
from edgekit.families.base import SourceModel
from edgekit.families.spec import DecoderSpec

ENDS = ("embed", "lm_head")
"""Matrices that touch tokens: not counted among the linear layers."""


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """Weights that one way of quantizing gave, dequantized.

    Attributes:
        tensors: Canonical name to float32 array; those left out are the source's own.
        n_bytes: Canonical name to stored bytes, scales and zero points included; those left out
            are stored in 32 bits when they have one axis and in 16 when they have two.
    """

    tensors: Mapping[str, F32Array]
    n_bytes: Mapping[str, float]

    def bits(self, spec: DecoderSpec, *, linear_only: bool) -> float:
        """Give stored bits for each weight of the linear layers, or of all tensors."""
        shapes = spec.weight_shapes()
        names = linear_names(spec) if linear_only else tuple(shapes)
        n_weights = sum(int(np.prod(shapes[name])) for name in names)
        return 8 * sum(self._bytes_of(name, shapes[name]) for name in names) / n_weights

    def _bytes_of(self, name: str, shape: tuple[int, ...]) -> float:
        n_each = 4 if len(shape) == 1 else 2
        return self.n_bytes.get(name, n_each * int(np.prod(shape)))


def linear_names(spec: DecoderSpec) -> tuple[str, ...]:
    """Give the matrices inside the layers, in file order."""
    shapes = spec.weight_shapes()
    return tuple(name for name, shape in shapes.items() if len(shape) == 2 and name not in ENDS)


def end_names(spec: DecoderSpec) -> tuple[str, ...]:
    """Give the embedding, and the head where it is a matrix of its own."""
    return tuple(name for name in ENDS if name in spec.weight_shapes())


def join(parts: Iterable[Weights]) -> Weights:
    """Put weights of several parts of a model together; later ones win."""
    tensors: dict[str, F32Array] = {}
    n_bytes: dict[str, float] = {}
    for part in parts:
        tensors.update(part.tensors)
        n_bytes.update(part.n_bytes)
    return Weights(tensors, n_bytes)


def read(source: SourceModel, name: str) -> F32Array:
    """Read a tensor of the float model."""
    return source.tensor(name).read()


def pad_columns(matrix: F32Array, multiple: int) -> F32Array:
    """Add zero columns until their number is a multiple; (N, M) to (N, M')."""
    n_more = -matrix.shape[1] % multiple
    return np.pad(matrix, ((0, 0), (0, n_more))) if n_more else matrix
