"""A file that is written at any place, by several threads at once."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Final

# Systems cap a single write a little below 2 GiB.
_MOST_AT_ONCE: Final = 1 << 30


class OutputFile:
    """A new file; an existing one of that name is emptied.

    Raises:
        OSError: The file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb", buffering=0)
        self._lock = threading.Lock()

    def write_at(self, data: bytes | memoryview, offset: int) -> None:
        """Write bytes from ``offset`` on; what lies between two writes is zeros.

        Raises:
            OSError: The file cannot be written.
        """
        rest = memoryview(data).cast("B")
        while rest:
            n_written = self._write(rest[:_MOST_AT_ONCE], offset)
            rest, offset = rest[n_written:], offset + n_written

    def _write(self, data: memoryview, offset: int) -> int:
        if hasattr(os, "pwrite"):
            return os.pwrite(self._file.fileno(), data, offset)
        with self._lock:  # Windows: place and write are two steps
            self._file.seek(offset)
            return self._file.write(data) or 0

    def close(self) -> None:
        """Close the file; safe to call twice.

        Raises:
            OSError: The last bytes could not be written.
        """
        self._file.close()

    def discard(self) -> None:
        """Close the file and remove it."""
        try:
            self._file.close()
        finally:
            self.path.unlink(missing_ok=True)
