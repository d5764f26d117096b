"""Changes to a weight (LoRA, DoRA, replaced rows), applied in float32 while it is read.

Source:
    LoRA: Hu et al. 2021, https://arxiv.org/abs/2106.09685, section 4.1; DoRA: Liu et al. 2024,
    https://arxiv.org/abs/2402.09353, equation 5; rank-stabilized scaling: Kalajdzievski 2023,
    https://arxiv.org/abs/2312.03732. As peft 0.21 merges them (tuners/lora/layer.py, variants.py).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edgekit.dtypes import DType, F32Array
from edgekit.tensors import LazyTensor, TensorInfo, row_blocks


class Change(Protocol):
    """A change of rows of a weight."""

    def apply(self, values: F32Array, start: int, stop: int) -> F32Array:
        """Change rows ``start:stop``, shape (stop - start, ...), which may be written to."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class MergedTensor:
    """A stored tensor with a change applied; satisfies ``LazyTensor``."""

    stored: LazyTensor
    change: Change

    @property
    def info(self) -> TensorInfo:
        """Name and shape as stored; the computed values are float32."""
        return TensorInfo(self.stored.info.name, self.stored.info.shape, DType.FP32)

    def read(self) -> F32Array:
        """Read the whole tensor as float32, shape ``info.shape``."""
        return self.change.apply(self.stored.read(), 0, self.info.shape[0])

    def read_rows(self, start: int, stop: int) -> F32Array:
        """Read rows ``start:stop`` of the first axis as float32."""
        return self.change.apply(self.stored.read_rows(start, stop), start, stop)


class LatestMatrices:
    """Keeps the low-rank matrices of the weight that was read last, and no others.

    A weight is read some rows at a time, and the weights one after the other: so each thin matrix
    is read once and no more than those of one weight are in memory.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self._lock = threading.Lock()
        self._tensors: tuple[LazyTensor, ...] = ()
        self._values: tuple[F32Array, ...] = ()

    def read(self, *tensors: LazyTensor) -> tuple[F32Array, ...]:
        """Give the values of tensors, read now unless they were asked for last."""
        with self._lock:
            is_same = len(tensors) == len(self._tensors) and all(
                one is other for one, other in zip(tensors, self._tensors, strict=True)
            )
            if not is_same:
                self._values = tuple(tensor.read() for tensor in tensors)
                self._tensors = tensors
            return self._values


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """Adds ``scale * left @ right``.

    Attributes:
        left: (N, r), or (r, N) where ``is_transposed``.
        right: (r, M), or (M, r) where ``is_transposed``.
        scale: Factor of the product.
        is_transposed: Whether both are stored the other way round.
        row_lengths: (N,); DoRA: each row gets this length after the sum. None: it keeps its own.
        latest: Keeps the matrices between two calls.
    """

    left: LazyTensor
    right: LazyTensor
    scale: float
    is_transposed: bool
    row_lengths: F32Array | None
    latest: LatestMatrices

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the product, (N, M)."""
        rows, columns = self.left.info.shape, self.right.info.shape
        return (rows[1], columns[0]) if self.is_transposed else (rows[0], columns[1])

    def apply(self, values: F32Array, start: int, stop: int) -> F32Array:
        """Add the product's rows, and set the rows' lengths."""
        left, right = self.latest.read(self.left, self.right)
        if self.is_transposed:
            left, right = left.T, right.T
        delta: F32Array = left[start:stop] @ right
        delta *= np.float32(self.scale)
        delta += values
        if self.row_lengths is not None:
            norms = np.linalg.norm(delta, axis=1)
            delta *= (self.row_lengths[start:stop] / norms)[:, None]
        return delta


class ColumnLengths:
    """DoRA of an embedding: adds a product, then gives each *column* a length.

    The length of a column depends on the whole matrix; it is computed at the first use.
    """

    def __init__(self, stored: LazyTensor, product: LowRank, lengths: F32Array) -> None:
        """Keep the parts.

        Args:
            stored: The embedding, (V, C).
            product: What is added to it.
            lengths: The length of each column after the sum, (C,).
        """
        self._stored = stored
        self._product = product
        self._lengths = lengths
        self._factors: F32Array | None = None
        self._lock = threading.Lock()

    def apply(self, values: F32Array, start: int, stop: int) -> F32Array:
        """Add the product's rows, and scale the columns."""
        with self._lock:
            if self._factors is None:
                self._factors = self._lengths / self._norms()
        merged = self._product.apply(values, start, stop)
        merged *= self._factors
        return merged

    def _norms(self) -> F32Array:
        squares = np.zeros(self._lengths.shape, np.float64)
        for rows in row_blocks(self._stored.info.shape):
            values = self._stored.read_rows(rows.start, rows.stop)
            merged = self._product.apply(values, rows.start, rows.stop)
            squares += np.square(merged, dtype=np.float64).sum(axis=0)
        norms: F32Array = np.sqrt(squares).astype(np.float32)
        return norms


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Replaces some rows: row number -> (M,)."""

    rows: Mapping[int, F32Array]

    def apply(self, values: F32Array, start: int, stop: int) -> F32Array:
        """Replace the rows that lie within ``start:stop``."""
        for row, replacement in self.rows.items():
            if start <= row < stop:
                values[row - start] = replacement
        return values


@dataclass(frozen=True, slots=True, eq=False)
class Offset:
    """Adds a vector to a bias."""

    values: F32Array

    def apply(self, values: F32Array, start: int, stop: int) -> F32Array:
        """Add the vector's entries ``start:stop``."""
        return values + self.values[start:stop]
