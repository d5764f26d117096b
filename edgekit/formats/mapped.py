"""Answer one question: how long does the memory map of a file live, and is its file still there?

Touching a page behind the end of a file that was cut meanwhile kills the process (SIGBUS). The
size is asked for again before each view; a file that is cut while a view is in use still does.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Self

from edgekit.errors import FormatError


class MappedFile:
    """A file that is mapped while open; use it as a context manager."""

    path: Path
    _map: mmap.mmap | None = None

    def close(self) -> None:
        """Let go of the file; safe to call twice. Views handed out keep their bytes."""
        opened, self._map = self._map, None
        if opened is not None:
            try:
                opened.close()
            except BufferError:
                # A caller still holds a view: the map goes with the last one.
                return

    def _opened(self, end: int) -> mmap.mmap:
        """Give the map, of which bytes up to ``end`` are about to be viewed.

        Raises:
            FormatError: The file was closed, or cut since it was opened.
        """
        if self._map is None:
            raise FormatError(f"{self.path}: read after the file was closed")
        n_bytes = self._map.size()
        if n_bytes < end:
            raise FormatError(
                f"{self.path}: the file was cut while it was open",
                got=f"{n_bytes} bytes",
                wanted=f"at least {end}",
                do="Nothing must write to a model that is in use.",
            )
        return self._map

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
