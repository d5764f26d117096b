"""Reading of bytes at any position of an open file, without a memory map.

Memory maps are avoided for two reasons: mapped pages count as this process's memory until the
system wants them back, and the process dies if somebody shortens a file while it is mapped.
"""

from __future__ import annotations

import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Final, Self

import numpy as np

from edgekit.dtypes import U8Array
from edgekit.errors import FormatError
from edgekit.files import NotTrustedError, open_inside

_MAX_READ_BYTES: Final = 1 << 30  # Linux reads at most 2**31 - 4096 bytes a call
_PIECE_BYTES: Final = 16 << 20


class ByteSource(ABC):
    """Bytes that can be read at any position; use it as a context manager.

    Attributes:
        path: Where the bytes come from, for messages.
    """

    path: Path

    @property
    @abstractmethod
    def n_bytes(self) -> int:
        """Number of bytes now."""

    @abstractmethod
    def read_at(self, begin: int, n_bytes: int) -> U8Array:
        """Read bytes from ``begin`` on."""

    @abstractmethod
    def close(self) -> None:
        """Release the bytes; safe to call twice. Arrays that were read stay valid."""

    def read_pieces(self, begin: int, n_bytes: int) -> Iterator[U8Array]:
        """Read bytes from ``begin`` on, a piece of at most 16 MiB at a time; as ``read_at``."""
        for start in range(0, n_bytes, _PIECE_BYTES):
            yield self.read_at(begin + start, min(_PIECE_BYTES, n_bytes - start))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class OpenFile(ByteSource):
    """A file that is open for reading."""

    def __init__(
        self, path: str | Path, opener: Callable[[Path], BufferedReader] = open_inside
    ) -> None:
        """Open a file.

        Args:
            path: Where the file is.
            opener: ``open_plain`` for a file that the user names, which may be a link.

        Raises:
            FormatError: It cannot be opened, is not a plain file, or is a link out of its folder.
        """
        self.path = Path(path)
        try:
            stream = opener(self.path)
        except NotTrustedError as error:
            raise FormatError(
                f"{self.path}: cannot be read", got=str(error), do=error.do
            ) from error
        except OSError as error:
            raise FormatError(f"{self.path}: cannot be read", got=str(error)) from error
        self._descriptor = stream.fileno()
        self._close = weakref.finalize(self, stream.close)

    @property
    def n_bytes(self) -> int:
        """Size of the file now."""
        return os.fstat(self._descriptor).st_size

    def fileno(self) -> int:
        """Give the open file's descriptor."""
        return self._descriptor

    def read_at(self, begin: int, n_bytes: int) -> U8Array:
        """Read bytes from ``begin`` on; safe to call from several threads.

        Raises:
            FormatError: The file was closed, cannot be read, or is shorter than it was.
        """
        if not self._close.alive:
            raise FormatError(f"{self.path}: read after the file was closed")
        data: U8Array = np.empty(n_bytes, dtype=np.uint8)
        n_done = 0
        while n_done < n_bytes:
            part = data[n_done : n_done + _MAX_READ_BYTES]
            try:
                n_read = os.preadv(self._descriptor, [part.data], begin + n_done)
            except OSError as error:
                raise FormatError(f"{self.path}: cannot be read", got=str(error)) from error
            if n_read == 0:
                raise FormatError(
                    f"{self.path}: file became shorter while it was read",
                    got=f"{begin + n_done} bytes",
                    wanted=f"at least {begin + n_bytes}",
                    do="Do not change the file while edgekit reads it, and run the command again.",
                )
            n_done += n_read
        return data

    def close(self) -> None:
        """Close the file; safe to call twice. Arrays that were read stay valid."""
        self._close()
