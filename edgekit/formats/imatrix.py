"""Importance matrix files of llama.cpp ("imatrix"): how large each input channel of a matrix is.

A file holds, for each matrix, the sum of the squares of each input channel over all tokens of a
calibration text, and how many tokens that were. There are two forms. The current one is a GGUF file
with the tensors ``NAME.in_sum2`` and ``NAME.counts``. The older one (``.dat``) is a plain list; it
counts chunks of text in place of tokens, and its sums are scaled to match.

Source: https://github.com/ggml-org/llama.cpp, tools/imatrix/imatrix.cpp (both writers),
common/imatrix-loader.cpp and tools/quantize/quantize.cpp (readers).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from edgekit.dtypes import F32Array, F64Array
from edgekit.errors import FormatError
from edgekit.files import open_plain
from edgekit.formats.gguf import GgufArray, GgufFile, GgufTensor
from edgekit.formats.open_file import OpenFile

MAX_ENTRIES: Final = 1 << 16
MAX_NAME_BYTES: Final = 1 << 10
MAX_VALUES: Final = 1 << 26
"""Values of one entry: 2**26 are 256 MiB."""
_MAGIC: Final = b"GGUF"
_SUMS: Final = ".in_sum2"
_COUNTS: Final = ".counts"
_TYPE: Final = "general.type"
_DATASETS: Final = "imatrix.datasets"
_CHUNK_COUNT: Final = "imatrix.chunk_count"
_CHUNK_SIZE: Final = "imatrix.chunk_size"
_INT: Final = struct.Struct("<i")
_ALIGNMENT: Final = 32
_MAKE_AGAIN: Final = "Make the file again with llama-imatrix or `edgekit export --write-imatrix`."


@dataclass(frozen=True, slots=True, eq=False)
class ImatrixEntry:
    """What was measured of the inputs of one tensor.

    Attributes:
        mean_squares: float64 (E, M): the mean square of each of M input channels, for each of E
            matrices; E is 1 but for experts. Finite and not negative. Zeros where a matrix met no
            token.
        counts: float64 (E,): how many tokens each matrix met; in the older form, how many chunks.
    """

    mean_squares: F64Array
    counts: F64Array


@dataclass(frozen=True, slots=True, eq=False)
class Imatrix:
    """The content of an importance matrix file.

    Attributes:
        entries: llama.cpp's name of a tensor, such as ``blk.0.attn_q.weight``, to what was
            measured.
        datasets: Names of the texts that were read.
        n_chunks: How many pieces of text were read; 0 if the file does not say.
        n_chunk_tokens: Tokens of one piece; 0 if the file does not say.
    """

    entries: Mapping[str, ImatrixEntry]
    datasets: tuple[str, ...] = ()
    n_chunks: int = 0
    n_chunk_tokens: int = 0


def read_imatrix(path: str | Path) -> Imatrix:
    """Read an importance matrix file of either form.

    Args:
        path: A file that the user names; its first bytes tell which form it has.

    Raises:
        FormatError: The file cannot be read, is no importance matrix, is cut off, or holds a
            number that no sum of squares can be; the message names the entry.
    """
    with OpenFile(path, open_plain) as file:
        n_bytes = file.n_bytes
        begin = file.read_at(0, min(n_bytes, len(_MAGIC))).tobytes()
        if begin != _MAGIC:
            return _read_list(_Cursor(file))
    with GgufFile(path) as gguf:
        return _read_gguf(gguf)


def gguf_bytes(imatrix: Imatrix) -> bytes:
    """Give the file in its current form.

    Sums are written as float32, as llama.cpp does: a mean square that is read again may differ from
    the one that was written in its last digits.

    Raises:
        FormatError: A value cannot be written.
    """
    _check_entries(imatrix)
    keys: list[bytes] = [
        _gguf_text(_TYPE) + _gguf_value(8, _gguf_text("imatrix")),
        _gguf_text(_DATASETS)
        + _gguf_value(9, struct.pack("<IQ", 8, len(imatrix.datasets)))
        + b"".join(_gguf_text(name) for name in imatrix.datasets),
        _gguf_text(_CHUNK_COUNT) + _gguf_value(4, struct.pack("<I", imatrix.n_chunks)),
        _gguf_text(_CHUNK_SIZE) + _gguf_value(4, struct.pack("<I", imatrix.n_chunk_tokens)),
    ]
    headers: list[bytes] = []
    data = bytearray()
    for name, entry in sorted(imatrix.entries.items()):
        sums = (entry.mean_squares * entry.counts[:, None]).astype("<f4")
        for suffix, values in (
            (_SUMS, sums),
            (_COUNTS, entry.counts.astype("<f4")[:, None]),
        ):
            n_outer, n_inner = values.shape
            headers.append(
                _gguf_text(name + suffix) + struct.pack("<IQQIQ", 2, n_inner, n_outer, 0, len(data))
            )
            data += values.tobytes()
            data += bytes(-len(data) % _ALIGNMENT)
    head = _MAGIC + struct.pack("<IQQ", 3, len(headers), len(keys)) + b"".join(keys + headers)
    return head + bytes(-len(head) % _ALIGNMENT) + bytes(data)


def list_bytes(imatrix: Imatrix) -> bytes:
    """Give the file in its older form, which programs from before the summer of 2025 read.

    It counts chunks, so ``n_chunk_tokens`` must be known; the last of several datasets is named.

    Raises:
        FormatError: A value cannot be written, or the size of a chunk is not known.
    """
    _check_entries(imatrix)
    if imatrix.n_chunk_tokens < 1:
        raise FormatError(
            "an imatrix in the older form", got="no chunk size", wanted="tokens of a chunk"
        )
    data = bytearray(_INT.pack(len(imatrix.entries)))
    for name, entry in sorted(imatrix.entries.items()):
        n_chunks = math.ceil(float(entry.counts.max()) / imatrix.n_chunk_tokens)
        # The older form has no place for "no token": llama.cpp writes 1 there.
        means = np.where(entry.counts[:, None] > 0, entry.mean_squares, 1.0)
        values = (means * n_chunks).astype("<f4")
        data += _INT.pack(len(name.encode())) + name.encode()
        data += _INT.pack(n_chunks) + _INT.pack(values.size) + values.tobytes()
    last = imatrix.datasets[-1].encode() if imatrix.datasets else b""
    return bytes(data) + _INT.pack(imatrix.n_chunks) + _INT.pack(len(last)) + last


def _read_gguf(file: GgufFile) -> Imatrix:
    metadata = file.metadata
    kind = metadata.get(_TYPE, "model")
    if kind != "imatrix":
        raise FormatError(
            f"{file.path}: {_TYPE}",
            got=f"{str(kind)[:80]!r}",
            wanted="'imatrix'",
            do="Name a file that llama-imatrix wrote.",
        )
    sums: dict[str, GgufTensor] = {}
    counts: dict[str, GgufTensor] = {}
    for name, tensor in file.tensors.items():
        for suffix, found in ((_SUMS, sums), (_COUNTS, counts)):
            if name.endswith(suffix):
                found[name.removesuffix(suffix)] = tensor
    if alone := sorted(sums.keys() ^ counts.keys()):
        raise FormatError(
            f"{file.path}: {alone[0]}",
            got="its sums without its counts"
            if alone[0] in sums
            else "its counts without its sums",
            wanted=f"both {_SUMS} and {_COUNTS}",
            do=_MAKE_AGAIN,
        )
    if not sums:
        raise FormatError(f"{file.path}: no entry", wanted=f"tensors NAME{_SUMS}", do=_MAKE_AGAIN)
    entries = {
        name: _entry(f"{file.path}: {name}", _floats(sums[name]), _floats(counts[name]).reshape(-1))
        for name in sorted(sums)
    }
    datasets: tuple[str, ...] = ()
    if isinstance(metadata.get(_DATASETS), GgufArray):
        datasets = tuple(file.texts(_DATASETS))
    return Imatrix(
        MappingProxyType(entries),
        datasets,
        _whole_number(metadata.get(_CHUNK_COUNT, 0), f"{file.path}: {_CHUNK_COUNT}"),
        _whole_number(metadata.get(_CHUNK_SIZE, 0), f"{file.path}: {_CHUNK_SIZE}"),
    )


def _floats(tensor: GgufTensor) -> F32Array:
    if tensor.kind.name != "F32":
        raise FormatError(
            f"{tensor.file.path}: tensor {tensor.name}",
            got=tensor.kind.name,
            wanted="F32",
            do=_MAKE_AGAIN,
        )
    values: F32Array = tensor.raw().view("<f4").astype(np.float32)
    return values


def _entry(where: str, sums: F32Array, counts: F32Array) -> ImatrixEntry:
    """Check one entry, and divide its sums, (E, M), by its counts, (E,)."""
    if len(sums) != len(counts):
        raise FormatError(
            where, got=f"sums of {len(sums)} matrices, counts of {len(counts)}", do=_MAKE_AGAIN
        )
    _check_numbers(where, "counts", counts)
    _check_numbers(where, "sums of squares", sums)
    is_met = counts[:, None] > 0
    means = np.divide(
        sums.astype(np.float64), counts[:, None], out=np.zeros(sums.shape), where=is_met
    )
    return ImatrixEntry(means, counts.astype(np.float64))


def _check_numbers(where: str, what: str, values: Any) -> None:
    is_wrong = ~(np.isfinite(values) & (values >= 0))
    if is_wrong.any():
        raise FormatError(
            f"{where}: {what}",
            got=values[is_wrong][0],
            wanted="finite numbers from 0 on",
            do=_MAKE_AGAIN,
        )


def _check_entries(imatrix: Imatrix) -> None:
    for name, entry in imatrix.entries.items():
        _check_numbers(name, "counts", entry.counts)
        _check_numbers(name, "mean squares", entry.mean_squares)
        if not len(entry.counts) or not entry.counts.max() > 0:
            raise FormatError(f"{name}: counts", got="no token", wanted="at least 1")


def _whole_number(value: Any, where: str) -> int:
    if type(value) is not int or value < 0:
        raise FormatError(where, got=str(value)[:80], wanted="a whole number from 0 on")
    return value


def _read_list(cursor: _Cursor) -> Imatrix:
    """Read the older form."""
    path = cursor.file.path
    n_entries = cursor.count("number of entries", MAX_ENTRIES)
    if n_entries < 1:
        raise FormatError(f"{path}: no entry", wanted="an importance matrix", do=_MAKE_AGAIN)
    entries: dict[str, ImatrixEntry] = {}
    for number in range(n_entries):
        name = cursor.text(f"name of entry {number}")
        where = f"{path}: {name}"
        if name in entries:
            raise FormatError(f"{path}: entry given twice", got=repr(name[:80]), do=_MAKE_AGAIN)
        n_chunks = cursor.count(f"{name}: chunks", (1 << 31) - 1)
        n_values = cursor.count(f"{name}: number of values", MAX_VALUES)
        if not n_values:
            raise FormatError(f"{where}: number of values", got=0, wanted="at least 1")
        sums: F32Array = cursor.take(4 * n_values, f"values of {name}").view("<f4")
        entries[name] = _entry(where, sums[None, :], np.array([n_chunks], dtype=np.float32))
    # What follows is absent in the oldest files.
    if cursor.is_at_end:
        return Imatrix(MappingProxyType(entries))
    n_chunks = cursor.count("number of chunks", (1 << 31) - 1)
    dataset = "" if cursor.is_at_end else cursor.text("name of the dataset")
    if not cursor.is_at_end:
        raise FormatError(
            f"{path}: bytes after the end",
            got=cursor.file.n_bytes - cursor.position,
            wanted="none",
            do=_MAKE_AGAIN,
        )
    return Imatrix(MappingProxyType(entries), (dataset,) if dataset else (), n_chunks)


class _Cursor:
    """A position in a file of the older form; every step checks that the bytes are there."""

    def __init__(self, file: OpenFile) -> None:
        self.file = file
        self.position = 0
        self._n_bytes = file.n_bytes

    @property
    def is_at_end(self) -> bool:
        return self.position == self._n_bytes

    def take(self, n_bytes: int, what: str) -> Any:
        """Read bytes and move behind them."""
        n_left = self._n_bytes - self.position
        if n_bytes > n_left:
            raise FormatError(
                f"{self.file.path}: file ends inside the {what}",
                got=f"{n_left} bytes left at offset {self.position}",
                wanted=f"{n_bytes}",
                do="Name an importance matrix that llama-imatrix wrote, or download it again.",
            )
        data = self.file.read_at(self.position, n_bytes)
        self.position += n_bytes
        return data

    def count(self, what: str, at_most: int) -> int:
        """Read a number that says how many there are of something."""
        value = int(_INT.unpack(self.take(_INT.size, what))[0])
        if not 0 <= value <= at_most:
            raise FormatError(
                f"{self.file.path}: {what} at offset {self.position - _INT.size}",
                got=value,
                wanted=f"0 to {at_most}",
                do="Name an importance matrix that llama-imatrix wrote.",
            )
        return value

    def text(self, what: str) -> str:
        """Read a text after its length."""
        n_bytes = self.count(f"length of the {what}", MAX_NAME_BYTES)
        data = self.take(n_bytes, what).tobytes()
        try:
            return str(data.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise FormatError(
                f"{self.file.path}: {what}", got=str(error), wanted="UTF-8"
            ) from error


def _gguf_text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _gguf_value(kind: int, content: bytes) -> bytes:
    return struct.pack("<I", kind) + content
