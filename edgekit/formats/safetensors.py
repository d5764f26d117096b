"""Safetensors files: reading their tensors, and writing new ones.

Reading takes one tensor (or some rows) at a time into memory. Writing begins with the header, made
from the declared tensors; then their bytes come in any order.

Source:
    https://github.com/huggingface/safetensors, README, "Format".
"""

from __future__ import annotations

import itertools
import json
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from edgekit.dtypes import BY_SAFETENSORS, DTYPES, DType, F32Array, U8Array
from edgekit.errors import FormatError
from edgekit.formats.floats import to_float32
from edgekit.formats.open_file import ByteSource, OpenFile
from edgekit.formats.output_file import OutputFile
from edgekit.strict_json import parse_object
from edgekit.tensors import TensorInfo

# Parsed JSON takes up to 64 times its size in memory. An entry has some 100 bytes, so this allows
# 150,000 tensors; the format's own library accepts headers of 100 MB.
MAX_HEADER_BYTES: Final = 16 << 20
_LENGTH: Final = struct.Struct("<Q")
_METADATA: Final = "__metadata__"
_MAX_RANK: Final = 32
_MAX_ELEMENTS: Final = 1 << 56  # so that no byte count overflows in numpy, zero axes included
_MAX_QUOTE: Final = 120
# The first eight bytes of other files that are often found in place of the weights.
_OTHER_FILES: Final = {
    b"version ": "It is a pointer that git wrote in place of the file. Run: git lfs pull",
}
_ENTRY_KEYS: Final = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True, slots=True, eq=False)
class SafetensorsTensor:
    """One tensor of an open file; satisfies ``LazyTensor``.

    Attributes:
        info: Name, shape and type. A tensor of ``DType.OTHER`` has its bytes as its only axis.
        file: The file that holds it.
        begin: Where its bytes begin, counted from ``file.data_start``.
        type_name: The type as the header of the file calls it.
    """

    info: TensorInfo
    file: SafetensorsFile
    begin: int
    type_name: str

    def read(self) -> F32Array:
        """Read the whole tensor as float32, shape ``info.shape``.

        Raises:
            FormatError: The tensor holds integers, or the file was closed.
        """
        return _widened(self.raw(), self.info.dtype)

    def read_rows(self, start: int, stop: int) -> F32Array:
        """Read rows ``start:stop`` of the first axis as float32.

        Raises:
            FormatError: Rows outside the tensor, a scalar, integers, or the file was closed.
        """
        return _widened(self.raw_rows(start, stop), self.info.dtype)

    def raw(self) -> NDArray[Any]:
        """Read the stored bits as ``DTYPES[dtype].numpy``, shape ``info.shape``."""
        return self.file.read_bits(self.info, self.begin, self.info.shape)

    def raw_pieces(self) -> Iterator[U8Array]:
        """Read the stored bytes, a piece at a time, for a hash."""
        return self.file.read_pieces(self.file.data_start + self.begin, self.info.n_bytes)

    def raw_rows(self, start: int, stop: int) -> NDArray[Any]:
        """Read the stored bits of rows ``start:stop``."""
        shape = self.info.shape
        if not shape or not 0 <= start <= stop <= shape[0]:
            raise FormatError(
                f"{self.file.path}: tensor {self.info.name}: rows {start}:{stop}",
                wanted=f"within 0:{shape[0]}" if shape else "a tensor with at least one axis",
            )
        n_row_bytes = self.info.n_bytes // shape[0] if shape[0] else 0
        return self.file.read_bits(
            self.info, self.begin + start * n_row_bytes, (stop - start, *shape[1:])
        )

    def raw_bytes(self, start: int, stop: int) -> U8Array:
        """Read bytes ``start:stop`` of the tensor as stored.

        Raises:
            FormatError: Bytes outside the tensor, or the file was closed.
        """
        if not 0 <= start <= stop <= self.info.n_bytes:
            raise FormatError(
                f"{self.file.path}: tensor {self.info.name}: bytes {start}:{stop}",
                wanted=f"within 0:{self.info.n_bytes}",
            )
        return self.file.read_at(self.file.data_start + self.begin + start, stop - start)

    def raw_columns(self, start: int, stop: int) -> NDArray[Any]:
        """Read the stored bits of columns ``start:stop`` of a matrix, and nothing else.

        Raises:
            FormatError: No matrix, columns outside it, or the file was closed.
        """
        shape = self.info.shape
        if len(shape) != 2 or not 0 <= start <= stop <= shape[1]:
            raise FormatError(
                f"{self.file.path}: tensor {self.info.name}: columns {start}:{stop}",
                wanted=f"within 0:{shape[1]}" if len(shape) == 2 else "a tensor with two axes",
            )
        if (start, stop) == (0, shape[1]):
            return self.raw()
        n_bytes = DTYPES[self.info.dtype].n_bytes
        columns: NDArray[Any] = np.empty((shape[0], stop - start), DTYPES[self.info.dtype].numpy)
        for row in range(shape[0]):
            begin = self.begin + (row * shape[1] + start) * n_bytes
            columns[row] = self.file.read_bits(self.info, begin, (stop - start,))
        return columns


class SafetensorsFile(ByteSource):
    """An open file: its tensors in file order, and its metadata.

    Attributes:
        path: Where the file is.
        data_start: Where the bytes of the tensors begin.
        tensors: Name to tensor; nothing is read yet.
        metadata: The text entries of ``__metadata__``.
    """

    def __init__(self, source: str | Path | ByteSource) -> None:
        """Open the file and check its header.

        Args:
            source: A path, or an object that gives the file's bytes.

        Raises:
            FormatError: The file cannot be read, or is not what the format says; the message
                names the tensor or offset.
        """
        self._source = OpenFile(source) if isinstance(source, str | Path) else source
        self.path = self._source.path
        n_file = self.n_bytes
        try:
            if n_file < _LENGTH.size:
                raise FormatError(f"{self.path}: size", got=n_file, wanted="at least 8 bytes")
            end = _header_end(self.read_at(0, _LENGTH.size).tobytes(), n_file, self.path)
            self._read_header(self.read_at(_LENGTH.size, end - _LENGTH.size).tobytes(), n_file)
        except FormatError:
            self.close()
            raise

    @property
    def n_bytes(self) -> int:
        """Size of the file now."""
        return self._source.n_bytes

    def read_at(self, begin: int, n_bytes: int) -> U8Array:
        """Read bytes of the file, its header included; see ``ByteSource``."""
        return self._source.read_at(begin, n_bytes)

    def close(self) -> None:
        """Close the file; safe to call twice. Arrays that were read stay valid."""
        self._source.close()

    def _read_header(self, data: bytes, n_file: int) -> None:
        """Check the header of a file of ``n_file`` bytes and list its tensors."""
        self.data_start = _LENGTH.size + len(data)
        header = parse_object(data, f"{self.path}: header at offset 8")
        self.metadata = MappingProxyType(_metadata(header.pop(_METADATA, {}), self.path))
        entries = [_entry(name, entry, self.path) for name, entry in header.items()]
        _check_layout(entries, n_file - self.data_start, self.path)
        self.tensors: Mapping[str, SafetensorsTensor] = MappingProxyType(
            {
                info.name: SafetensorsTensor(info, self, begin, header[info.name]["dtype"])
                for info, begin, _ in sorted(entries, key=lambda entry: entry[1:])
            }
        )

    def read_bits(self, info: TensorInfo, begin: int, shape: tuple[int, ...]) -> NDArray[Any]:
        """Read bits at ``begin`` (bytes after the header) with the type of ``info``.

        Raises:
            FormatError: The file was closed, or has changed since it was opened.
        """
        dtype = np.dtype(DTYPES[info.dtype].numpy)
        n_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if n_bytes == 0:
            return np.empty(shape, dtype)
        return self.read_at(self.data_start + begin, n_bytes).view(dtype).reshape(shape)


class SafetensorsWriter:
    """Writes a file whose tensors come in any order, whole or in pieces; a context manager.

    Threads may write different pieces at the same time. The file exists at ``path`` while it is
    written. It is removed again when the block ends with an error or before every byte was given.
    """

    def __init__(
        self,
        path: str | Path,
        infos: Iterable[TensorInfo],
        *,
        metadata: Mapping[str, str] | None = None,
        alignment: int = 64,
    ) -> None:
        """Write the header.

        Args:
            path: New file; an existing one is replaced.
            infos: Every tensor, in the order in which they lie in the file.
            metadata: Text entries for the header.
            alignment: The data begin at a multiple of this many bytes (64, or 4096 for mapping).

        Raises:
            FormatError: A name is given twice or reserved, a type has no name in the format, or the
                header is too large.
            OSError: The file cannot be written.
        """
        self.path = Path(path)
        listed = tuple(infos)
        header = _make_header(listed, metadata or {}, alignment, self.path)
        ends = itertools.accumulate((info.n_bytes for info in listed), initial=len(header))
        self._places = {
            info.name: (at, info.n_bytes) for info, at in zip(listed, ends, strict=False)
        }
        self._missing = {info.name: info.n_bytes for info in listed if info.n_bytes}
        self._lock = threading.Lock()
        self._file = OutputFile(self.path)
        try:
            self._file.write_at(header, 0)
        except OSError:
            self._file.discard()
            raise

    def offset(self, name: str) -> int:
        """Give the first byte of a tensor, counted from the start of the file."""
        return self._places[name][0]

    def write(
        self, name: str, data: bytes | memoryview | NDArray[Any], first_byte: int = 0
    ) -> None:
        """Write bytes of a tensor.

        Args:
            name: The tensor.
            data: Its bytes or some of them, or an array that holds exactly those in memory order.
            first_byte: Where in the tensor they begin.

        Raises:
            FormatError: There is no such tensor, or it ends before these bytes do.
            OSError: The file cannot be written.
        """
        view = np.ascontiguousarray(data).data if isinstance(data, np.ndarray) else memoryview(data)
        at, n_bytes = self._places.get(name, (0, -1))
        if not 0 <= first_byte <= first_byte + view.nbytes <= n_bytes:
            raise FormatError(
                f"{self.path}: tensor {name}: bytes",
                got=f"{view.nbytes} from {first_byte} on",
                wanted=f"no more than its {n_bytes}" if n_bytes >= 0 else "a tensor of the file",
            )
        if view.nbytes:
            self._file.write_at(view, at + first_byte)
            with self._lock:
                self._missing[name] = self._missing.get(name, 0) - view.nbytes

    def close(self) -> None:
        """Finish the file.

        Raises:
            FormatError: Bytes are missing, or were given twice; the file is removed.
            OSError: The file cannot be written; it is removed.
        """
        wrong = [name for name, n_bytes in self._missing.items() if n_bytes]
        if wrong:
            self._file.discard()
            raise FormatError(
                f"{self.path}: file is incomplete",
                got=f"{len(wrong)} tensors not written, or written twice",
                wanted=", ".join(wrong[:5]),
            )
        try:
            self._file.close()
        except OSError:
            self._file.discard()
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


def file_bytes(
    infos: Iterable[TensorInfo],
    *,
    metadata: Mapping[str, str] | None = None,
    alignment: int = 64,
) -> int:
    """Give the exact size of the file that ``SafetensorsWriter`` makes of these tensors."""
    listed = tuple(infos)
    header = _make_header(listed, metadata or {}, alignment, Path())
    return len(header) + sum(info.n_bytes for info in listed)


def _make_header(
    infos: tuple[TensorInfo, ...], metadata: Mapping[str, str], alignment: int, path: Path
) -> bytes:
    entries: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    end = 0
    for info in infos:
        if info.name in entries or info.name == _METADATA:
            raise FormatError(f"{path}: tensor name given twice or reserved", got=info.name)
        if info.dtype is DType.OTHER:
            raise FormatError(f"{path}: tensor {info.name}: the format has no name for its type")
        begin, end = end, end + info.n_bytes
        entries[info.name] = {
            "dtype": DTYPES[info.dtype].safetensors,
            "shape": list(info.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    padded = text + b" " * (-(_LENGTH.size + len(text)) % alignment)
    if len(padded) > MAX_HEADER_BYTES:
        raise FormatError(f"{path}: header", got=f"{len(padded)} bytes", wanted=MAX_HEADER_BYTES)
    return _LENGTH.pack(len(padded)) + padded


def _header_end(first: bytes, n_file: int, path: Path) -> int:
    """Give the offset where the header ends and the data begin.

    Args:
        first: The first 8 bytes of the file.
        n_file: Size of the whole file.
        path: For the message.

    Raises:
        FormatError: The header is longer than the limit or than the file.
    """
    (n_header,) = _LENGTH.unpack(first)
    if n_header > MAX_HEADER_BYTES:
        raise FormatError(
            f"{path}: header length at offset 0",
            got=f"{n_header} bytes",
            wanted=f"at most {MAX_HEADER_BYTES}",
            do=_OTHER_FILES.get(first, "The file is damaged or is not a safetensors file."),
        )
    end: int = _LENGTH.size + n_header
    if end > n_file:
        raise FormatError(
            f"{path}: file ends inside the header",
            got=f"{n_file} bytes",
            wanted=f"at least {end}",
            do="Download the file again.",
        )
    return end


def _metadata(value: object, path: Path) -> dict[str, str]:
    if value is None:  # MLX writes no metadata, and the format's own library accepts that
        return {}
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise FormatError(f"{path}: header: __metadata__", wanted="an object of strings")
    return value


def _entry(name: str, entry: object, path: Path) -> tuple[TensorInfo, int, int]:
    """Check one header entry on its own: (info, begin, end)."""
    where = f"{path}: tensor {name[:_MAX_QUOTE]}"
    if not isinstance(entry, dict) or set(entry) != _ENTRY_KEYS:
        raise FormatError(f"{where}: header entry", got=_quote(entry), wanted=sorted(_ENTRY_KEYS))
    if not isinstance(entry["dtype"], str) or not entry["dtype"].isprintable():
        raise FormatError(f"{where}: dtype", got=_quote(entry["dtype"]), wanted="a name of a dtype")
    dtype = BY_SAFETENSORS.get(entry["dtype"], DType.OTHER)
    shape, offsets = entry["shape"], entry["data_offsets"]
    if (
        not _is_counts(shape)
        or len(shape) > _MAX_RANK
        or prod(n or 1 for n in shape) > _MAX_ELEMENTS
    ):
        raise FormatError(
            f"{where}: shape", got=_quote(shape), wanted="a list of non-negative integers"
        )
    if not _is_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise FormatError(f"{where}: data_offsets", got=_quote(offsets), wanted="[begin, end]")
    begin, end = offsets
    if dtype is DType.OTHER:
        # The bits per value are unknown, so shape and byte count cannot be compared.
        return TensorInfo(name, (end - begin,), dtype), begin, end
    info = TensorInfo(name, tuple(shape), dtype)
    if end - begin != info.n_bytes:
        raise FormatError(
            f"{where}: data_offsets {begin}:{end}",
            got=f"{end - begin} bytes",
            wanted=f"{info.n_bytes} for shape {list(info.shape)} of {entry['dtype']}",
        )
    return info, begin, end


def _check_layout(entries: list[tuple[TensorInfo, int, int]], n_data: int, path: Path) -> None:
    """Refuse overlaps, gaps, and data that are cut off or too long."""
    position = 0
    for info, begin, end in sorted(entries, key=lambda entry: entry[1:]):
        if begin != position:
            what = "overlaps the tensor before it" if begin < position else "leaves a gap before it"
            raise FormatError(
                f"{path}: tensor {info.name} {what}", got=f"offset {begin}", wanted=position
            )
        position = end
    if position != n_data:
        raise FormatError(
            f"{path}: data {'is cut off' if n_data < position else 'has extra bytes at its end'}",
            got=f"{n_data} bytes",
            wanted=position,
            do="Download the file again.",
        )


def _widened(raw: NDArray[Any], dtype: DType) -> F32Array:
    """Convert what was just read to float32; float32 itself needs no copy."""
    return raw.astype(np.float32, copy=False) if dtype is DType.FP32 else to_float32(raw, dtype)


def _is_counts(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 1 << 63
        for item in value
    )


def _quote(value: object) -> str:
    """Quote a value from the file in a message, cut to a readable length."""
    text = repr(value)
    return text if len(text) <= _MAX_QUOTE else text[:_MAX_QUOTE] + "..."
