"""Parser of server-sent events in a stream of bytes.

It accepts what real servers send (comments, keep-alives, a byte-order mark, any line end, text
split anywhere) and limits what a hostile one could send (a line without end).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from edgekit.errors import ServerError

MAX_EVENT_BYTES: Final = 4 << 20
_BOM: Final = b"\xef\xbb\xbf"


def iter_data(chunks: Iterable[bytes]) -> Iterator[str]:
    """Give the data of each complete event; an event cut off at the end is dropped.

    Raises:
        ServerError: An event beyond ``MAX_EVENT_BYTES``, or bytes that are not UTF-8.
    """
    data: list[bytes] = []
    n_bytes = 0
    for line in _iter_lines(chunks):
        if not line:
            if data:
                yield _decode(b"\n".join(data))
            data, n_bytes = [], 0
        elif line.startswith(b"data"):
            name, _, value = line.partition(b":")
            if name == b"data":
                data.append(value.removeprefix(b" "))
                n_bytes += len(value)
                _check_size(n_bytes)


def _iter_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Split at LF, CRLF or CR; what follows the last line end is dropped."""
    parts: list[bytes] = []
    n_bytes = 0
    is_first, was_cr = True, False
    for chunk in chunks:
        rest = chunk[1:] if was_cr and chunk.startswith(b"\n") else chunk
        was_cr = chunk.endswith(b"\r") if chunk else was_cr
        *ends, tail = rest.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for end in ends:
            line = b"".join([*parts, end])
            parts, n_bytes = [], 0
            yield line.removeprefix(_BOM) if is_first else line
            is_first = False
        parts.append(tail)
        n_bytes += len(tail)
        _check_size(n_bytes)


def _check_size(n_bytes: int) -> None:
    if n_bytes > MAX_EVENT_BYTES:
        raise ServerError(
            "the server sent an event without end", got=f"more than {MAX_EVENT_BYTES} bytes"
        )


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ServerError(
            "the server sent an event that is not text", got=str(error), wanted="UTF-8"
        ) from error
