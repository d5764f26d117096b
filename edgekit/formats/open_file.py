"""An open file that is read at any place, without a memory map.

Not by a memory map: its pages count as this process's memory until the system wants them back,
and a file that somebody cuts short while it is mapped ends the process.
"""

from __future__ import annotations

import os
import weakref
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


class OpenFile:
    """A file that is open for reading; use it as a context manager.

    Attributes:
        path: Where it lies.
    """

    def __init__(
        self, path: str | Path, opener: Callable[[Path], BufferedReader] = open_inside
    ) -> None:
        """Open a file.

        Args:
            path: Where it lies.
            opener: ``open_plain`` for one that the user names, which may be a link.

        Raises:
            FormatError: It cannot be opened, is no plain file, or a link that leads elsewhere.
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
                    do="Leave the file alone until edgekit is done, and run it again.",
                )
            n_done += n_read
        return data

    def read_pieces(self, begin: int, n_bytes: int) -> Iterator[U8Array]:
        """Read bytes from ``begin`` on, a piece of at most 16 MiB at a time; as ``read_at``."""
        for start in range(0, n_bytes, _PIECE_BYTES):
            yield self.read_at(begin + start, min(_PIECE_BYTES, n_bytes - start))

    def close(self) -> None:
        """Let go of the file; safe to call twice. What was read stays."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
