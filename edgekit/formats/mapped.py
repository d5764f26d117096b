"""Answer one question: how long does the memory map of a file live?"""

from __future__ import annotations

import mmap
from typing import Self


class MappedFile:
    """A file that is mapped while open; use it as a context manager."""

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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
