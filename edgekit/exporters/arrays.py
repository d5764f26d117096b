"""The weight file of an artifact as safetensors: its arrays, and the tensors whose rows they hold.

An array may stack the rows of several tensors (query, key and value in one matmul). What lies where
is planned from shapes and encodings; tensors can then be put in any order, whole or some rows at a
time, by several threads.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgekit.dtypes import DType
from edgekit.errors import ExportError, FormatError
from edgekit.formats.safetensors import SafetensorsWriter
from edgekit.quantize.model import EncodedTensor, FloatTensor, ModelTensor
from edgekit.tensors import TensorInfo

_PADDING: Final = "padding."


class Content(enum.Enum):
    """Which part of its sources an array holds."""

    CODES = "codes"
    SCALES = "scales"
    ZERO_POINTS = "zero points"
    BIASES = "biases"
    VALUES = "values"


@dataclass(frozen=True, slots=True)
class StoredArray:
    """One array of a weight file.

    Attributes:
        info: Name, shape and type as stored; the first axis counts rows.
        content: Which part of the sources it holds.
        sources: Canonical names whose rows it stacks, in order; empty for what the exporter makes.
    """

    info: TensorInfo
    content: Content
    sources: tuple[str, ...]


Encode: TypeAlias = Callable[[ModelTensor, StoredArray], NDArray[Any]]


class ArrayFile:
    """A weight file that is being written.

    Args:
        path: The file to make.
        arrays: All arrays, in the order in which they lie in the file.
        shapes: Shape of every canonical tensor.
        encode: Gives the rows that an array holds of a tensor, in the form in which it holds them.
        constants: The arrays without sources, by name.
        metadata: Text entries for the header.
        alignment: Every array begins at a multiple of this many bytes.

    Raises:
        OSError: The file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        arrays: Iterable[StoredArray],
        shapes: Mapping[str, tuple[int, ...]],
        encode: Encode,
        *,
        constants: Mapping[str, NDArray[Any]],
        metadata: Mapping[str, str],
        alignment: int = 1,
    ) -> None:
        self._encode = encode
        self._shapes = shapes
        self._places: dict[str, list[tuple[StoredArray, int]]] = {}
        infos: list[TensorInfo] = []
        for stored in arrays:
            infos += with_padding(stored.info, alignment)
            first_row = 0
            for name in stored.sources:
                self._places.setdefault(name, []).append((stored, first_row))
                first_row += shapes[name][0]
        self._writer = SafetensorsWriter(
            path, infos, metadata=metadata, alignment=max(alignment, 64)
        )
        try:
            for info in infos:
                if info.name.startswith(_PADDING):
                    self._writer.write(info.name, bytes(info.n_bytes))
            for name, values in constants.items():
                self._writer.write(name, values)
        except BaseException:
            self._writer.discard()
            raise

    def put(self, tensor: ModelTensor, first_row: int = 0) -> None:
        """Write rows of a tensor wherever the file holds them.

        Args:
            tensor: The tensor, or some of its rows.
            first_row: The row of the whole tensor that its first row is.

        Raises:
            ExportError: It is not what was planned.
            OSError: The file cannot be written.
        """
        for stored, above in self._places.get(tensor.name, ()):
            rows = np.ascontiguousarray(self._encode(tensor, stored))
            n_row_bytes = stored.info.n_bytes // stored.info.shape[0]
            is_planned = tensor.shape[1:] == self._shapes[tensor.name][1:]
            if not is_planned or rows.nbytes != tensor.shape[0] * n_row_bytes:
                raise ExportError(
                    f"{tensor.name} is stored as {tensor.encoding} {list(tensor.shape)}",
                    wanted=f"{stored.content.value} of {list(self._shapes[tensor.name])}",
                    do="Quantize the checkpoint again.",
                )
            try:
                self._writer.write(stored.info.name, rows, (above + first_row) * n_row_bytes)
            except FormatError as error:
                raise _not_as_planned(error) from error

    def offset(self, name: str) -> int:
        """Give the first byte of an array, counted from the start of the file."""
        return self._writer.offset(name)

    def close(self) -> None:
        """Finish the file.

        Raises:
            ExportError: Rows are missing, or were put twice; the file is removed.
            OSError: The file cannot be written; it is removed.
        """
        try:
            self._writer.close()
        except FormatError as error:
            raise _not_as_planned(error) from error

    def discard(self) -> None:
        """Remove the file."""
        self._writer.discard()


def with_padding(info: TensorInfo, alignment: int) -> tuple[TensorInfo, ...]:
    """Add filler after an array that ends between two places to begin; the format allows no gap."""
    n_padding = -info.n_bytes % alignment
    if not n_padding:
        return (info,)
    filler = TensorInfo(f"{_PADDING}{info.name}", (n_padding,), DType.UINT8)
    return (info, filler)


def part_of(tensor: ModelTensor, stored: StoredArray) -> NDArray[Any]:
    """Give what an array holds of a tensor, before it takes the type in which it is stored.

    Raises:
        ExportError: The tensor has no such part.
    """
    part: NDArray[Any] | None = None
    match stored.content, tensor:
        case Content.CODES, EncodedTensor():
            part = tensor.packed
        case Content.SCALES, EncodedTensor():
            part = tensor.scales
        case Content.BIASES, EncodedTensor():
            part = tensor.biases()
        case Content.ZERO_POINTS, EncodedTensor():
            part = tensor.zero_points
        case Content.VALUES, FloatTensor():
            part = tensor.values
    if part is None:
        raise ExportError(
            f"{tensor.name} is stored as {tensor.encoding}",
            wanted=f"{stored.content.value} for {stored.info.name}",
            do="Quantize the checkpoint again.",
        )
    return part


def _not_as_planned(error: FormatError) -> ExportError:
    return ExportError(
        "the model is not what its entries say",
        got=error.what,
        do="Quantize the checkpoint again.",
    )
