"""Reader of GGUF files: their metadata and their tensors.

Opening walks the header and checks every length against the bytes in the file. The arrays of the
metadata and the tensors are read only when asked for. What the blocks of a tensor hold is in
gguf_blocks.py.

Source:
    https://github.com/ggml-org/ggml, docs/gguf.md.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import numpy as np

from edgekit.dtypes import F64Array, U8Array
from edgekit.errors import FormatError
from edgekit.files import open_plain
from edgekit.formats.gguf_blocks import BLOCK_TYPES, NOT_FLOATS, WITHDRAWN, BlockType
from edgekit.formats.open_file import OpenFile

MAX_TENSORS: Final = 1 << 16
MAX_KEYS: Final = 1 << 16
MAX_STRING_BYTES: Final = 1 << 24
MAX_NAME_BYTES: Final = 1 << 10
MAX_ITEMS: Final = 1 << 22
MAX_ARRAY_BYTES: Final = 64 << 20
_VERSIONS: Final = (2, 3)
_MAX_AXES: Final = 4
_MAX_ELEMENTS: Final = 1 << 48
_LENGTH: Final = struct.Struct("<Q")
_MAX_ALIGNMENT: Final = 1 << 16
_DEFAULT_ALIGNMENT: Final = 32
_STRING: Final = 8
_ARRAY: Final = 9
_BOOL: Final = 7
_FLOATS: Final = (6, 12)
# struct codes of the numbers, by the format's type number.
_NUMBERS: Final[Mapping[int, str]] = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", _BOOL: "B", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GgufArray:
    """An array of the metadata; its items are read with ``GgufFile.texts`` or ``numbers``.

    Attributes:
        n_items: How many items it has.
        kind: The format's type number of an item.
        begin: Where its first item begins in the file.
        n_bytes: Size of all items, the lengths of texts included.
    """

    n_items: int
    kind: int
    begin: int
    n_bytes: int

    @property
    def holds_texts(self) -> bool:
        """Tell whether the items are texts and not numbers."""
        return self.kind == _STRING


Value: TypeAlias = bool | int | float | str | GgufArray


@dataclass(frozen=True, slots=True, eq=False)
class GgufTensor:
    """One tensor of an open file.

    Attributes:
        name: As in the file.
        shape: Rows first, as everywhere in edgekit; the file has it the other way round.
        kind: Its type.
    """

    name: str
    shape: tuple[int, ...]
    kind: BlockType
    file: GgufFile
    begin: int

    @property
    def n_bytes(self) -> int:
        """Size as stored."""
        return self.n_rows * self.n_row_bytes

    @property
    def n_rows(self) -> int:
        """Rows of all axes but the last; 1 for a vector."""
        return int(np.prod(self.shape[:-1], dtype=np.int64))

    @property
    def n_row_bytes(self) -> int:
        """Size of one row: values along the last axis."""
        return self.shape[-1] // self.kind.n_values * self.kind.n_bytes

    def raw(self) -> U8Array:
        """Read the stored bytes, (rows, bytes of a row)."""
        return self.raw_rows(0, self.n_rows)

    def raw_rows(self, start: int, stop: int) -> U8Array:
        """Read the stored bytes of rows ``start:stop``, which must be inside the tensor."""
        n_bytes = (stop - start) * self.n_row_bytes
        data = self.file.read_at(self.begin + start * self.n_row_bytes, n_bytes)
        return data.reshape(-1, self.n_row_bytes)


class GgufFile(OpenFile):
    """An open file: its metadata and its tensors in file order.

    Attributes:
        path: Where the file is.
        metadata: The key-value pairs; arrays as their place in the file.
        tensors: Name to tensor; nothing is read yet.
    """

    def __init__(self, path: str | Path) -> None:
        """Open the file and check its header.

        Raises:
            FormatError: The file cannot be read, or is not what the format says; the message
                names the key, tensor or offset.
        """
        super().__init__(path, open_plain)
        try:
            # The header does not say how long it is; a memory map can be walked without a guess.
            with mmap.mmap(self.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                cursor = _Cursor(mapped, self.path)
                n_tensors, n_keys = _read_counts(cursor)
                self.metadata: Mapping[str, Value] = MappingProxyType(
                    _read_metadata(cursor, n_keys)
                )
                headers = [_read_header(cursor) for _ in range(n_tensors)]
            self.tensors: Mapping[str, GgufTensor] = MappingProxyType(
                self._place(headers, cursor, _alignment(self.metadata, self.path))
            )
        except FormatError:
            self.close()
            raise
        except (OSError, ValueError) as error:
            self.close()
            raise FormatError(f"{self.path}: cannot be read", got=str(error)) from error

    def texts(self, key: str) -> list[str]:
        """Read an array of texts.

        Raises:
            FormatError: The value is not an array of texts, one of them is not UTF-8, or together
                they are larger than ``MAX_ARRAY_BYTES``.
        """
        data = self._items(key, {_STRING}, "texts").tobytes()
        items: list[str] = []
        at = 0
        try:
            for _ in range(self._array(key).n_items):
                (n_bytes,) = _LENGTH.unpack_from(data, at)
                at += _LENGTH.size + n_bytes
                items.append(data[at - n_bytes : at].decode("utf-8"))
        except UnicodeDecodeError as error:
            raise FormatError(
                f"{self.path}: item {len(items)} of {key}",
                got=str(error),
                wanted="UTF-8",
                do="Convert the model again with a current llama.cpp.",
            ) from error
        return items

    def numbers(self, key: str) -> F64Array:
        """Read an array of numbers, float64, (items,); exact for all but integers above 2**53.

        Raises:
            FormatError: The value is not an array of numbers, or larger than ``MAX_ARRAY_BYTES``.
        """
        data = self._items(key, _NUMBERS.keys(), "numbers")
        values: F64Array = data.view(f"<{_NUMBERS[self._array(key).kind]}").astype(np.float64)
        return values

    def value(self, key: str) -> bool | int | float | str | list[Any] | None:
        """Read a value, an array as a list; None for a key that is not there.

        Raises:
            FormatError: See ``texts`` and ``numbers``.
        """
        found = self.metadata.get(key)
        if not isinstance(found, GgufArray):
            return found
        if found.holds_texts:
            return self.texts(key)
        numbers = self.numbers(key).tolist()
        if found.kind in _FLOATS:
            return list(numbers)
        return [bool(n) if found.kind == _BOOL else int(n) for n in numbers]

    def _array(self, key: str) -> GgufArray:
        value = self.metadata.get(key)
        if isinstance(value, GgufArray):
            return value
        raise FormatError(f"{self.path}: {key}", got=str(value)[:80], wanted="an array")

    def _items(self, key: str, kinds: Collection[int], what: str) -> U8Array:
        array = self._array(key)
        if array.kind not in kinds:
            raise FormatError(f"{self.path}: {key}", got=f"items of type {array.kind}", wanted=what)
        if array.n_bytes > MAX_ARRAY_BYTES:
            raise FormatError(
                f"{self.path}: {key}",
                got=f"{array.n_bytes} bytes",
                wanted=f"at most {MAX_ARRAY_BYTES}",
            )
        return self.read_at(array.begin, array.n_bytes)

    def _place(
        self, headers: list[_Header], cursor: _Cursor, alignment: int
    ) -> dict[str, GgufTensor]:
        """Check that every tensor is inside the file and that none overlaps another."""
        data_start = -(-cursor.position // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        position = 0
        for header in sorted(headers, key=lambda header: header.offset):
            tensor = GgufTensor(
                header.name, header.shape, header.kind, self, data_start + header.offset
            )
            where = f"{self.path}: tensor {header.name}"
            if header.name in tensors:
                raise FormatError(f"{self.path}: tensor named twice", got=repr(header.name[:80]))
            if header.offset % alignment or header.offset < position:
                raise FormatError(
                    f"{where}: offset",
                    got=header.offset,
                    wanted=f"a multiple of {alignment} from {position} on",
                )
            position = header.offset + tensor.n_bytes
            if data_start + position > cursor.n_bytes:
                raise FormatError(
                    f"{where} ends after the file",
                    got=f"{cursor.n_bytes} bytes",
                    wanted=f"at least {data_start + position}",
                    do="Download the file again.",
                )
            tensors[header.name] = tensor
        return tensors


@dataclass(frozen=True, slots=True)
class _Header:
    name: str
    shape: tuple[int, ...]
    kind: BlockType
    offset: int


class _Cursor:
    """A position in the header; every step checks that the bytes are there."""

    def __init__(self, mapped: mmap.mmap, path: Path) -> None:
        self._map = mapped
        self.path = path
        self.n_bytes = len(mapped)
        self.position = 0
        self.n_items_left = MAX_ITEMS

    def skip(self, n_bytes: int) -> int:
        """Move forward; give the position before the move."""
        start = self.position
        if n_bytes > self.n_bytes - start:
            raise FormatError(
                f"{self.path}: file ends inside the header",
                got=f"{self.n_bytes - start} bytes left at offset {start}",
                wanted=f"{n_bytes} more",
                do="Download the file again.",
            )
        self.position = start + n_bytes
        return start

    def skip_texts(self, n_items: int, what: str) -> None:
        """Move past texts, each after its length; there may be hundreds of thousands."""
        unpack, size, position = _LENGTH.unpack_from, _LENGTH.size, self.position
        last = self.n_bytes - size
        for _ in range(n_items):
            n_text_bytes = unpack(self._map, position)[0] if position <= last else MAX_STRING_BYTES
            if n_text_bytes >= MAX_STRING_BYTES or position + size + n_text_bytes > self.n_bytes:
                self.position = position
                self.skip(self.count("Q", what, MAX_STRING_BYTES))  # raises the error for it
                position = self.position
                continue
            position += size + n_text_bytes
        self.position = position

    def number(self, code: str) -> int | float:
        """Read one little-endian number."""
        size = struct.calcsize(f"<{code}")
        value: int | float = struct.unpack_from(f"<{code}", self._map, self.skip(size))[0]
        return value

    def count(self, code: str, what: str, at_most: int) -> int:
        """Read an unsigned number that says how long something else is."""
        value = int(self.number(code))
        if value > at_most:
            raise FormatError(
                f"{self.path}: {what} at offset {self.position}",
                got=value,
                wanted=f"at most {at_most}",
            )
        return value

    def text(self, what: str, at_most: int) -> str:
        """Read a string."""
        n_bytes = self.count("Q", f"length of {what}", at_most)
        start = self.skip(n_bytes)
        try:
            return self._map[start : start + n_bytes].decode("utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(
                f"{self.path}: {what} at offset {start}", got=str(error), wanted="UTF-8"
            ) from error


def _read_counts(cursor: _Cursor) -> tuple[int, int]:
    start = cursor.skip(4)
    magic = cursor._map[start : start + 4]
    if magic != b"GGUF":
        raise FormatError(f"{cursor.path}: first bytes", got=repr(magic), wanted="GGUF")
    version = int(cursor.number("I"))
    if version not in _VERSIONS:
        is_big_endian = int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS
        raise FormatError(
            f"{cursor.path}: version",
            got="a big-endian file" if is_big_endian else version,
            wanted="2 or 3, little-endian",
            do="Convert the model again with a current llama.cpp.",
        )
    n_tensors = cursor.count("Q", "number of tensors", MAX_TENSORS)
    return n_tensors, cursor.count("Q", "number of keys", MAX_KEYS)


def _read_metadata(cursor: _Cursor, n_keys: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    for _ in range(n_keys):
        key = cursor.text("key", MAX_NAME_BYTES)
        if key in metadata:
            raise FormatError(f"{cursor.path}: key given twice", got=repr(key[:80]))
        metadata[key] = _read_value(cursor, cursor.count("I", f"type of {key[:80]!r}", 12), key)
    return metadata


def _read_value(cursor: _Cursor, kind: int, key: str) -> Value:
    if kind == _STRING:
        return cursor.text(f"text of {key[:80]!r}", MAX_STRING_BYTES)
    if kind != _ARRAY:
        value = cursor.number(_NUMBERS[kind])
        return bool(value) if kind == _BOOL else value
    item = cursor.count("I", f"item type of {key[:80]!r}", 12)
    n_items = cursor.count("Q", f"items of {key[:80]!r}", cursor.n_items_left)
    cursor.n_items_left -= n_items
    if item == _ARRAY:
        raise FormatError(f"{cursor.path}: {key[:80]!r}", got="an array of arrays")
    begin = cursor.position
    if item == _STRING:
        cursor.skip_texts(n_items, f"length in {key[:80]!r}")
    else:
        cursor.skip(n_items * struct.calcsize(f"<{_NUMBERS[item]}"))
    return GgufArray(n_items, item, begin, cursor.position - begin)


def _read_header(cursor: _Cursor) -> _Header:
    name = cursor.text("tensor name", MAX_NAME_BYTES)
    where = f"{cursor.path}: tensor {name[:80]!r}"
    n_axes = cursor.count("I", f"axes of {name[:80]!r}", _MAX_AXES)
    sizes = [cursor.count("Q", f"size of {name[:80]!r}", _MAX_ELEMENTS) for _ in range(n_axes)]
    number = int(cursor.number("I"))
    offset = cursor.count("Q", f"offset of {name[:80]!r}", cursor.n_bytes)
    n_values = 1
    for size in sizes:
        n_values *= size
    if not sizes or not 0 < n_values <= _MAX_ELEMENTS:
        raise FormatError(f"{where}: shape", got=sizes, wanted="1 to 4 positive sizes")
    kind = BLOCK_TYPES.get(number)
    if kind is None:
        known = ", ".join(k.name for k in BLOCK_TYPES.values() if k.name not in NOT_FLOATS)
        raise FormatError(
            f"{where}: type",
            got=WITHDRAWN.get(number, f"one that edgekit does not know (number {number})"),
            wanted=known,
            do="Use another file of this model, or the original checkpoint.",
        )
    if sizes[0] % kind.n_values:
        raise FormatError(
            f"{where}: row length", got=sizes[0], wanted=f"a multiple of {kind.n_values}"
        )
    return _Header(name, tuple(reversed(sizes)), kind, offset)


def _alignment(metadata: Mapping[str, Value], path: Path) -> int:
    value = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if type(value) is not int or not 0 < value <= _MAX_ALIGNMENT or value & (value - 1):
        raise FormatError(
            f"{path}: general.alignment",
            got=str(value)[:40],
            wanted=f"a power of two up to {_MAX_ALIGNMENT}",
        )
    return value
