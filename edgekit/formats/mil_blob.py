"""Reader and writer of Core ML's ``weight.bin``.

The file is a 64-byte header, then blobs at 64-byte boundaries. A blob is a 64-byte record (magic,
type, size, where the data begins), then the data. A program names a blob by the offset of its
record. Types of less than a byte are packed over the flattened tensor, low bits first. This module
does not know what a blob means.

Source: coremltools, mlmodel/src/MILBlob/Blob/StorageFormat.hpp.
"""

from __future__ import annotations

import enum
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgekit.dtypes import F32Array, U8Array
from edgekit.errors import FormatError
from edgekit.files import open_plain
from edgekit.formats.output_file import OutputFile
from edgekit.formats.packing import unpack_codes

ALIGNMENT: Final = 64
MAGIC: Final = 0xDEADBEEF
VERSION: Final = 2
_HEADER: Final = struct.Struct("<II7Q")
_RECORD: Final = struct.Struct("<IIQQQ4Q")
_SIGN_NIBBLES: Final = np.uint8(0x88)


class BlobType(enum.IntEnum):
    """The types of a blob that edgekit writes and reads."""

    FP16 = 1
    FP32 = 2
    UINT8 = 3
    INT8 = 4
    INT16 = 6
    UINT16 = 7
    INT4 = 8
    UINT4 = 11
    INT32 = 14
    UINT32 = 15


_NUMPY: Final[dict[BlobType, str]] = {
    BlobType.FP16: "<f2",
    BlobType.FP32: "<f4",
    BlobType.UINT8: "u1",
    BlobType.INT8: "i1",
    BlobType.INT16: "<i2",
    BlobType.UINT16: "<u2",
    BlobType.INT32: "<i4",
    BlobType.UINT32: "<u4",
}
_NIBBLES: Final = (BlobType.INT4, BlobType.UINT4)
_BLOB: Final = {np.dtype(name): blob_type for blob_type, name in _NUMPY.items()}


@dataclass(frozen=True, slots=True)
class BlobRecord:
    """The place of one blob; ``offset`` is that of its record, by which a program names it."""

    offset: int
    type: BlobType
    data_offset: int
    n_bytes: int

    @property
    def n_values(self) -> int:
        """Number of values; for 4-bit types always even, because a padding nibble counts."""
        if self.type in (BlobType.INT4, BlobType.UINT4):
            return self.n_bytes * 2
        return self.n_bytes // np.dtype(_NUMPY[self.type]).itemsize


class BlobWriter:
    """Writes blobs at places that are given out one after another. Use as a context manager.

    Threads may fill reserved blobs at the same time.
    """

    def __init__(self, path: Path) -> None:
        self._file = OutputFile(path)
        self._n_blobs = 0
        self._end = _HEADER.size

    def reserve(self, blob_type: BlobType, n_bytes: int) -> int:
        """Write the record of the next blob, whose data come later; give the record's offset."""
        # Padding comes before a record and never after the last blob, as in coremltools.
        offset = self._end + -self._end % ALIGNMENT
        data_offset = offset + _RECORD.size
        record = _RECORD.pack(MAGIC, blob_type, n_bytes, data_offset, 0, *(0,) * 4)
        self._file.write_at(record, offset)
        self._end = data_offset + n_bytes
        self._n_blobs += 1
        return offset

    def fill(self, offset: int, data: U8Array, first_byte: int = 0) -> None:
        """Write data of a blob.

        Args:
            offset: From ``reserve``.
            data: Its bytes or some of them, in the form in which the file holds them.
            first_byte: Where in the blob they begin.
        """
        at = offset + _RECORD.size + first_byte
        self._file.write_at(np.ascontiguousarray(data).data, at)

    def write(self, values: NDArray[Any]) -> int:
        """Append an array of a plain type in C order; give the offset of its record."""
        blob_type = _BLOB[values.dtype.newbyteorder("<")]
        data = np.ascontiguousarray(values, dtype=_NUMPY[blob_type]).reshape(-1).view(np.uint8)
        return self._append(blob_type, data)

    def write_codes(self, packed: U8Array, blob_type: BlobType) -> int:
        """Append packed unsigned codes; as int4 and int8 with the zero point in the middle.

        Args:
            packed: uint8, low bits first, of any shape in C order.
            blob_type: INT4, INT8, UINT4 or UINT8.

        Returns:
            The offset of the record.
        """
        return self._append(blob_type, signed_codes(packed, blob_type))

    def write_fp16(self, values: F32Array) -> int:
        """Append floats as fp16; give the offset of the record.

        Raises:
            FormatError: A value is not exact in fp16.
        """
        return self._append(BlobType.FP16, exact_fp16(values))

    def close(self) -> None:
        """Write the header and close the file."""
        self._file.write_at(_HEADER.pack(self._n_blobs, VERSION, *(0,) * 7), 0)
        self._file.close()

    def discard(self) -> None:
        """Remove the file."""
        self._file.discard()

    def __enter__(self) -> BlobWriter:
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

    def _append(self, blob_type: BlobType, data: U8Array) -> int:
        offset = self.reserve(blob_type, data.nbytes)
        self.fill(offset, data)
        return offset


def signed_codes(packed: U8Array, blob_type: BlobType) -> U8Array:
    """Give packed unsigned codes as a blob holds them: int4 and int8 in two's complement."""
    sign = {BlobType.INT4: 0x88, BlobType.INT8: 0x80}.get(blob_type)
    # Toggling the top bit turns a code into code - zero point in two's complement.
    return packed if sign is None else packed ^ np.uint8(sign)


def exact_fp16(values: F32Array) -> U8Array:
    """Give floats as the bytes of fp16.

    Raises:
        FormatError: A value is not exact in fp16.
    """
    with np.errstate(over="ignore"):
        narrow = np.ascontiguousarray(values, dtype="<f2")
    if not np.array_equal(narrow.astype(np.float32), values):
        raise FormatError("fp16 blob", got="values that fp16 rounds", wanted="exact fp16 values")
    return narrow.reshape(-1).view(np.uint8)


class BlobReader:
    """Reads blobs from a mapped file; every number in the file is checked before it is used."""

    def __init__(self, path: Path) -> None:
        """Map a file.

        Raises:
            FormatError: The file cannot be read or its header is not that of a weight file.
        """
        self._path = path
        try:
            with open_plain(path) as stream:
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise FormatError(
                f"{path}: cannot be read", got=str(error), do="Export the model again."
            ) from error
        if len(self._map) < _HEADER.size:
            raise FormatError(
                f"{path}: length", got=len(self._map), wanted=f"at least {_HEADER.size} bytes"
            )
        self.n_blobs, version, *_ = _HEADER.unpack_from(self._map)
        if version != VERSION:
            raise FormatError(f"{path}: weight file version", got=version, wanted=VERSION)

    def record(self, offset: int) -> BlobRecord:
        """Read the record at an offset.

        Raises:
            FormatError: There is no record, its type is unknown, or its data leaves the file.
        """
        where = f"{self._path}: blob at {offset}"
        if offset % ALIGNMENT or not _HEADER.size <= offset <= len(self._map) - _RECORD.size:
            raise FormatError(
                where, got="an offset outside the file", wanted=f"below {len(self._map)}"
            )
        magic, kind, n_bytes, data_offset, *_ = _RECORD.unpack_from(self._map, offset)
        if magic != MAGIC:
            raise FormatError(f"{where}: magic", got=f"{magic:#x}", wanted=f"{MAGIC:#x}")
        try:
            blob_type = BlobType(kind)
        except ValueError as error:
            raise FormatError(
                f"{where}: type", got=kind, wanted=", ".join(t.name for t in BlobType)
            ) from error
        if data_offset < offset + _RECORD.size or data_offset + n_bytes > len(self._map):
            raise FormatError(
                f"{where}: data range",
                got=f"{data_offset} + {n_bytes} bytes",
                wanted=f"inside {len(self._map)} bytes",
                do="The file is cut off; export again.",
            )
        return BlobRecord(offset, blob_type, data_offset, n_bytes)

    def check(self, offset: int, blob_type: BlobType, shape: tuple[int, ...]) -> BlobRecord:
        """Give the record of a blob that holds ``shape`` values of ``blob_type``.

        Raises:
            FormatError: The record is damaged, of another type, or of another size.
        """
        record = self.record(offset)
        n_values = prod(shape)
        n_wanted = n_values + n_values % 2 if blob_type in _NIBBLES else n_values
        if record.type is not blob_type or record.n_values != n_wanted:
            raise FormatError(
                f"{self._path}: blob at {offset}",
                got=f"{record.n_values} values of {record.type.name}",
                wanted=f"{n_wanted} of {blob_type.name}",
            )
        return record

    def read(self, offset: int, blob_type: BlobType, shape: tuple[int, ...]) -> NDArray[Any]:
        """Give a blob as an array; a copy is made only where the type needs it.

        4-bit types come back as int8 (INT4, values -8 .. 7) or uint8 (UINT4, 0 .. 15).

        Raises:
            FormatError: The record is damaged, of another type, or of another size.
        """
        record, n_values = self.check(offset, blob_type, shape), prod(shape)
        if blob_type not in _NIBBLES:
            flat = np.frombuffer(self._map, _NUMPY[blob_type], n_values, record.data_offset)
            return flat.reshape(shape)
        packed = np.frombuffer(self._map, np.uint8, record.n_bytes, record.data_offset)
        if blob_type is BlobType.UINT4:
            return unpack_codes(packed, 4)[:n_values].reshape(shape)
        codes = unpack_codes(packed ^ _SIGN_NIBBLES, 4)[:n_values].reshape(shape)
        return codes.view(np.int8) - np.int8(8)

    def walk(self) -> Iterator[BlobRecord]:
        """Give every record in file order.

        Raises:
            FormatError: A record is damaged.
        """
        offset = _HEADER.size
        for _ in range(self.n_blobs):
            record = self.record(offset)
            yield record
            end = record.data_offset + record.n_bytes
            offset = end + -end % ALIGNMENT
