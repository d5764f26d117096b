"""Safe opening of untrusted files: plain files only, inside the folder of their name.

A model folder may come from anybody. A name that looks like its config may be a pipe (opening one
waits for ever), a device (reading one never ends) or a link to a private file of the user (which an
export would copy). Names are resolved before the file is opened, so a program that changes the
folder in between is not stopped.
"""

from __future__ import annotations

import os
import re
import stat
from io import BufferedReader
from pathlib import Path
from typing import Final

_SNAPSHOTS: Final = "snapshots"
_BLOBS: Final = "blobs"
_BLOB_NAME: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_FLAGS: Final = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


class NotTrustedError(OSError):
    """A name that edgekit does not read: not a plain file, too large, or outside the folder.

    Attributes:
        do: What the user can do about it; None if nothing is known.
    """

    def __init__(self, reason: str, do: str | None = None) -> None:
        """Say why the file is not read."""
        super().__init__(reason)
        self.do = do

    def __str__(self) -> str:
        """Give the reason alone; callers name the file."""
        return str(self.args[0])


def open_plain(path: Path) -> BufferedReader:
    """Open a plain file for reading; a pipe, a device or a folder is refused without waiting.

    Raises:
        NotTrustedError: It is not a plain file.
        OSError: It cannot be opened.
    """
    descriptor = os.open(path, _FLAGS)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotTrustedError("not a plain file")
    return os.fdopen(descriptor, "rb")


def open_inside(path: Path) -> BufferedReader:
    """Open a plain file that lies in the folder of its name, also after following links.

    Links to a blob of a Hugging Face cache count as inside (``is_inside``).

    Raises:
        NotTrustedError: It is not a plain file, or a link leads out of the folder.
        OSError: It cannot be opened.
    """
    if not is_inside(path):
        raise NotTrustedError(
            "a link that leads out of the folder",
            do="Put the file itself in place of the link, if you trust where it leads.",
        )
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
    """Read an open plain file; memory is used for its content, not for ``max_bytes``.

    Raises:
        NotTrustedError: It holds more than ``max_bytes``.
        OSError: It cannot be read.
    """
    n_bytes = os.fstat(stream.fileno()).st_size
    if n_bytes > max_bytes:
        raise NotTrustedError(f"a size above {max_bytes} bytes")
    return stream.read(n_bytes)


def is_inside(path: Path) -> bool:
    """Tell whether a name leads to a place in its own folder, links followed.

    Blobs of a Hugging Face cache count as inside: the snapshots in the cache are links to them,
    and so were the large files of a ``local_dir`` until huggingface_hub 0.23. A blob's name is
    the hash of what it holds, so a link to one gives away nothing that its writer did not know.
    """
    if not path.is_symlink():
        return True
    folder, target = path.parent.resolve(), path.resolve()
    in_cache = folder.parent.name == _SNAPSHOTS and folder.parent.parent.name.startswith("models--")
    is_blob = (
        target.parent.name == _BLOBS
        and target.parent.parent.name.startswith("models--")
        and _BLOB_NAME.fullmatch(target.name) is not None
    )
    return is_blob or target.is_relative_to(folder.parent.parent if in_cache else folder)
