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
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Final

_SNAPSHOTS: Final = "snapshots"
_BLOBS: Final = "blobs"
_BLOB_NAME: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_FLAGS: Final = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
_OUTWARD: Final = "a link that leads out of the folder"
_PUT_FILE: Final = "Put the file itself in place of the link, if you trust where it leads."
_KINDS: Final = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISLNK, "a link"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


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


@dataclass(frozen=True, slots=True)
class FileState:
    """What the system says of a file without reading it; any writing changes at least one value.

    Attributes:
        n_bytes: Size.
        mtime_ns: When its content was last written; programs can set it to any time.
        ctime_ns: When anything about it last changed. No program can set it, except on Windows,
            where it is the time at which the file was made.
        inode: Its number on the device; another file in its place has another number.
        device: The number of the device.
    """

    n_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, path: Path) -> FileState:
        """Look at a file; links are followed.

        Raises:
            OSError: There is none.
        """
        return cls.of_status(path.stat())

    @classmethod
    def of_status(cls, status: os.stat_result) -> FileState:
        """Take the values of a status."""
        return cls(
            status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev
        )

    @property
    def written_ns(self) -> int:
        """The latest moment at which the content can have been written, by the file's clock."""
        return self.mtime_ns if os.name == "nt" else self.ctime_ns


def file_kind(path: Path) -> str | None:
    """Name what lies under a name where it is no plain file: "a pipe", "a link"; None if it is one.

    Raises:
        OSError: Nothing lies there.
    """
    mode = path.lstat().st_mode
    return next((title for is_kind, title in _KINDS if is_kind(mode)), None)


def has_plain(path: Path) -> bool:
    """Tell whether a file lies there that ``open_inside`` opens; nothing under the name is False.

    What bears the name and is no such file is refused and not passed over: a reader that took it
    for absent would go on without it.

    Raises:
        NotTrustedError: A pipe, a device, a folder, or a link that leads out or nowhere.
    """
    try:
        kind = file_kind(path)
        if kind != "a link":
            if kind is not None:
                raise NotTrustedError(f"{kind}, not a plain file")
            return True
        if not is_inside(path):
            raise NotTrustedError(_OUTWARD, do=_PUT_FILE)
        target = file_kind(path.resolve(strict=True))
    except FileNotFoundError as error:
        if not os.path.lexists(path):
            return False
        raise NotTrustedError(
            f"a link to {path.readlink()}, which is not there",
            do="Copy the folder with what its links lead to (cp -rL).",
        ) from error
    except NotADirectoryError:
        return False
    if target is not None:
        raise NotTrustedError(f"a link to {target}, not to a plain file")
    return True


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
        raise NotTrustedError(_OUTWARD, do=_PUT_FILE)
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
    try:
        folder, target = path.parent.resolve(), path.resolve()
    except (OSError, RuntimeError):  # links in a circle
        return False
    in_cache = folder.parent.name == _SNAPSHOTS and folder.parent.parent.name.startswith("models--")
    is_blob = (
        target.parent.name == _BLOBS
        and target.parent.parent.name.startswith("models--")
        and _BLOB_NAME.fullmatch(target.name) is not None
    )
    return is_blob or target.is_relative_to(folder.parent.parent if in_cache else folder)
