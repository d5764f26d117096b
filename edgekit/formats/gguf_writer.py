"""Writer of GGUF files: the header first, then tensors in any order, each at its own place.

``plan_file`` gives the size of the file and the place of every tensor before any weight is read.
The writer of the ``gguf`` package is not used: it takes whole tensors in the order of the file and
says how large the file is only when it is written.

Source:
    https://github.com/ggml-org/ggml, docs/gguf.md.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import FormatError
from edgekit.formats.gguf_blocks import BLOCK_TYPES, BlockType
from edgekit.formats.output_file import OutputFile

VERSION: Final = 3
ALIGNMENT: Final = 32
Value: TypeAlias = bool | int | float | str | Sequence[str] | Sequence[int] | Sequence[float]
"""A value of the metadata: an integer is uint32, a float is float32, a list has one type."""
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_NUMBERS: Final[Mapping[str, int]] = {kind.name: number for number, kind in BLOCK_TYPES.items()}


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """Name, shape and type of a tensor that will be written.

    Attributes:
        name: At most 63 bytes, llama.cpp's limit.
        shape: Rows first, as everywhere in edgekit; the file has it the other way round.
        kind: Its type; blocks lie along the last axis.
    """

    name: str
    shape: tuple[int, ...]
    kind: BlockType

    @property
    def n_row_bytes(self) -> int:
        """Size of one row, along all axes but the first; of a vector, of one value."""
        n_row_values = prod(self.shape[1:])
        return n_row_values // self.kind.n_values * self.kind.n_bytes

    @property
    def n_bytes(self) -> int:
        """Size as stored."""
        return self.shape[0] * self.n_row_bytes


@dataclass(frozen=True, slots=True)
class FileLayout:
    """Where everything in a file is.

    Attributes:
        header: The first bytes: metadata and the list of tensors, padded.
        tensors: Name to tensor.
        offsets: Name to where the tensor begins in the file.
        n_bytes: Size of the file.
        n_padding: Bytes behind the last tensor.
    """

    header: bytes
    tensors: Mapping[str, TensorHeader]
    offsets: Mapping[str, int]
    n_bytes: int
    n_padding: int


def plan_file(metadata: Mapping[str, Value], tensors: Iterable[TensorHeader]) -> FileLayout:
    """Lay out a file; nothing is written.

    Raises:
        FormatError: Two tensors have one name, a row is no whole number of blocks, or a value is
            of no type of the format.
    """
    listed = tuple(tensors)
    by_name = {tensor.name: tensor for tensor in listed}
    if len(by_name) != len(listed):
        raise FormatError("GGUF: two tensors have one name", got=_first_twice(listed))
    parts = [b"GGUF", struct.pack("<IQQ", VERSION, len(listed), len(metadata))]
    for key, value in metadata.items():
        parts += [_text(key), _value(key, value)]
    relative: dict[str, int] = {}
    end = n_padding = 0
    for tensor in listed:
        if tensor.shape[-1] % tensor.kind.n_values:
            raise FormatError(
                f"GGUF: tensor {tensor.name}: row length",
                got=tensor.shape[-1],
                wanted=f"a multiple of {tensor.kind.n_values}, the block of {tensor.kind.name}",
            )
        relative[tensor.name] = end
        sizes = tensor.shape[::-1]
        parts += [
            _text(tensor.name),
            struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes),
            struct.pack("<IQ", _NUMBERS[tensor.kind.name], end),
        ]
        n_padding = _padded(tensor.n_bytes) - tensor.n_bytes
        end += tensor.n_bytes + n_padding
    header = b"".join(parts)
    header += bytes(_padded(len(header)) - len(header))
    offsets = {name: len(header) + offset for name, offset in relative.items()}
    return FileLayout(header, by_name, offsets, len(header) + end, n_padding)


class GgufWriter:
    """Writes a file to a layout; a context manager that removes a file left unfinished.

    Threads may write different rows at the same time.
    """

    def __init__(self, path: str | Path, layout: FileLayout) -> None:
        """Make the file, with its header.

        Raises:
            OSError: It cannot be written.
        """
        self.path = Path(path)
        self._layout = layout
        self._n_left = {name: tensor.n_bytes for name, tensor in layout.tensors.items()}
        self._lock = threading.Lock()
        self._file = OutputFile(self.path)
        try:
            self._file.write_at(layout.header, 0)
        except OSError:
            self.discard()
            raise

    def put(self, name: str, data: NDArray[Any], first_row: int = 0) -> None:
        """Write rows of a tensor at their place; tensors and rows may come in any order.

        Args:
            name: The tensor.
            data: The bytes of whole rows, as the type of the tensor stores them. The values of a
                vector are its rows.
            first_row: The row that the first of them is.

        Raises:
            FormatError: No such tensor, or the bytes are not whole rows inside it.
            OSError: The file cannot be written.
        """
        tensor = self._layout.tensors.get(name)
        if tensor is None:
            raise FormatError(f"{self.path}: no tensor {name!r} in the layout")
        begin, n_row = first_row * tensor.n_row_bytes, tensor.n_row_bytes
        if data.nbytes % n_row or not 0 <= begin <= tensor.n_bytes - data.nbytes:
            raise FormatError(
                f"{self.path}: tensor {name}",
                got=f"{data.nbytes} bytes from row {first_row} on",
                wanted=f"whole rows of {n_row} bytes, {tensor.n_bytes} in all",
            )
        if data.nbytes:
            self._file.write_at(np.ascontiguousarray(data).data, self._layout.offsets[name] + begin)
            with self._lock:
                self._n_left[name] -= data.nbytes

    def close(self) -> None:
        """Finish the file.

        Raises:
            FormatError: Rows are missing, or were put twice; the file is removed.
            OSError: The file cannot be written; it is removed.
        """
        odd = [name for name, n_left in self._n_left.items() if n_left]
        if odd:
            self.discard()
            raise FormatError(
                f"{self.path}: tensors not written whole, once",
                got=", ".join(odd[:5]),
                wanted=f"all {len(self._n_left)}",
            )
        try:
            n_padding = self._layout.n_padding  # behind the last tensor
            self._file.write_at(bytes(n_padding), self._layout.n_bytes - n_padding)
            self._file.close()
        except OSError:
            self.discard()
            raise

    def discard(self) -> None:
        """Remove the file."""
        self._file.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


def block_type(name: str) -> BlockType:
    """Give a tensor type by its name, such as ``Q4_0``."""
    return BLOCK_TYPES[_NUMBERS[name]]


def _padded(n_bytes: int) -> int:
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


def _first_twice(tensors: Sequence[TensorHeader]) -> str:
    names = [tensor.name for tensor in tensors]
    return next(name for name in names if names.count(name) > 1)


def _text(value: str) -> bytes:
    data = value.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _value(key: str, value: Value) -> bytes:
    """Give the type of a value and the value."""
    if isinstance(value, str | bool | int | float):
        kind, data = _scalar(key, value)
        return struct.pack("<I", kind) + data
    items = list(value)
    if not items:
        raise FormatError(f"GGUF: {key}", got="an empty list", wanted="at least one item")
    first = items[0]
    if not all(type(item) is type(first) for item in items):
        raise FormatError(f"GGUF: {key}", got="items of several types", wanted="items of one type")
    if isinstance(first, int) and not isinstance(first, bool):
        kind, data = _INT32, np.asarray(items, "<i4").tobytes()
    elif isinstance(first, float):
        kind, data = _FLOAT32, np.asarray(items, "<f4").tobytes()
    else:
        kind = _scalar(key, first)[0]
        data = b"".join(_scalar(key, item)[1] for item in items)
    return struct.pack("<IIQ", _ARRAY, kind, len(items)) + data


def _scalar(key: str, value: Any) -> tuple[int, bytes]:
    if isinstance(value, bool):
        return _BOOL, struct.pack("<?", value)
    if isinstance(value, str):
        return _STRING, _text(value)
    if isinstance(value, float):
        return _FLOAT32, struct.pack("<f", value)
    if isinstance(value, int) and 0 <= value < 1 << 32:
        return _UINT32, struct.pack("<I", value)
    raise FormatError(f"GGUF: {key}", got=repr(value)[:80], wanted="a number, a text or a list")
