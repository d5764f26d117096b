"""Tensors on disk: their name, shape and type, and reading them when they are needed."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Final, Protocol

from edgekit.dtypes import DTYPES, DType, F32Array

_BLOCK_ELEMENTS: Final = 1 << 22  # 16 MiB of float32


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Name, shape and stored type of a tensor; no bytes."""

    name: str
    shape: tuple[int, ...]
    dtype: DType

    @property
    def n_elements(self) -> int:
        """Number of values."""
        return prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """Size as stored."""
        return self.n_elements * DTYPES[self.dtype].n_bytes


class LazyTensor(Protocol):
    """A tensor on disk; nothing is in memory until it is read."""

    @property
    def info(self) -> TensorInfo:
        """Name, shape and stored type."""
        ...

    def read(self) -> F32Array:
        """Read the whole tensor as float32, shape ``info.shape``."""
        ...

    def read_rows(self, start: int, stop: int) -> F32Array:
        """Read rows ``start:stop`` of the first axis as float32."""
        ...


def row_blocks(
    shape: tuple[int, ...], n_elements: int = _BLOCK_ELEMENTS, multiple: int = 2
) -> list[slice]:
    """Cut the first axis into blocks of about ``n_elements`` values, ``multiple`` rows or more."""
    n_row = max(1, prod(shape[1:]))
    n_rows = max(multiple, n_elements // n_row // multiple * multiple)
    return [slice(i, min(i + n_rows, shape[0])) for i in range(0, shape[0], n_rows)]
