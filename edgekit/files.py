"""Answer one question: how is a file opened that nobody vouches for?

A model folder comes from a stranger. What looks like its config may be a pipe (opening one waits
for ever), a device (reading one never ends) or a link to a file of the user's (which an export
would copy). The names are resolved before the file is opened: whoever can change the folder in
between is not stopped.
"""

from __future__ import annotations

import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Final

_SNAPSHOTS: Final = "snapshots"
_FLAGS: Final = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


class NotTrustedError(OSError):
    """The name leads to something that is never read: no plain file, too large, or outside."""

    def __str__(self) -> str:
        """Give the reason alone; callers name the file."""
        return str(self.args[0])


def open_plain(path: Path) -> BufferedReader:
    """Open a plain file for reading; a pipe, a device or a folder is refused without waiting.

    Raises:
        NotTrustedError: It is no plain file.
        OSError: It cannot be opened.
    """
    descriptor = os.open(path, _FLAGS)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotTrustedError("not a plain file")
    return os.fdopen(descriptor, "rb")


def open_inside(path: Path) -> BufferedReader:
    """Open a plain file that lies in the folder of its name, also after following links.

    Links from a snapshot of the Hub's cache into the same repository's blobs are inside.

    Raises:
        NotTrustedError: It is no plain file, or a link leads out of the folder.
        OSError: It cannot be opened.
    """
    if not is_inside(path):
        raise NotTrustedError("a link that leads out of the folder")
    return open_plain(path)


def read_inside(path: Path, max_bytes: int) -> bytes:
    """Read a file that ``open_inside`` opens.

    Raises:
        NotTrustedError: As ``open_inside``, or it holds more than ``max_bytes``.
        OSError: It cannot be read.
    """
    with open_inside(path) as stream:
        return read_capped(stream, max_bytes)


def read_capped(stream: BufferedReader, max_bytes: int) -> bytes:
    """Read an open plain file; memory is taken for what it holds, not for what it might.

    Raises:
        NotTrustedError: It holds more than ``max_bytes``.
        OSError: It cannot be read.
    """
    n_bytes = os.fstat(stream.fileno()).st_size
    if n_bytes > max_bytes:
        raise NotTrustedError(f"a size above {max_bytes} bytes")
    return stream.read(n_bytes)


def is_inside(path: Path) -> bool:
    """Tell whether a name leads to a place in its own folder, links followed."""
    if not path.is_symlink():
        return True
    folder = path.parent.resolve()
    in_cache = folder.parent.name == _SNAPSHOTS and folder.parent.parent.name.startswith("models--")
    return path.resolve().is_relative_to(folder.parent.parent if in_cache else folder)
