"""Hidden folders that an export works in, and the removal of those whose export was killed.

A work folder lies beside what it will become, so that a rename can move its content there. The
process that works in it holds a lock on a file in it (flock), which the system lets go when the
process ends, however it ends. A folder whose lock can be taken is left over. Process ids would not
tell: the same number is another process in another container that shares the disk.

Locks reach every process on one kernel, which the name of the folder names. Of a folder that was
made on another machine, or on a disk without locks, only the age says whether it is still used.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Final

from edgekit.artifact import MANIFEST_NAME
from edgekit.files import file_kind

PARTIAL_PREFIX: Final = ".edgekit-partial-"
EARLIER: Final = "earlier"
"""Holds, under its own name, an artifact that is being replaced where two renames are needed."""
_LOCK: Final = "lock"
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_LONGEST_S: Final = 86_400.0
"""No export takes longer; where locks say nothing, a folder is left over from this age on."""


@contextlib.contextmanager
def work_folder(parent: Path) -> Iterator[Path]:
    """Give a new hidden folder in ``parent``, locked while the block runs and then removed.

    Raises:
        OSError: It cannot be made.
    """
    folder, lock = _make(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()


def sweep(parent: Path) -> None:
    """Remove the work folders that killed exports left in ``parent``.

    An artifact that was to be replaced, and was moved away for it, is put back.
    """
    for folder in parent.glob(f"{PARTIAL_PREFIX}*"):
        with contextlib.suppress(OSError), _left_over(folder) as is_left_over:
            if not is_left_over:
                continue
            earlier = folder / EARLIER
            for kept in earlier.iterdir() if earlier.is_dir() else ():
                if (kept / MANIFEST_NAME).is_file() and not os.path.lexists(parent / kept.name):
                    kept.rename(parent / kept.name)
            shutil.rmtree(folder, ignore_errors=True)


def _make(parent: Path) -> tuple[Path, TextIOWrapper]:
    """Make a folder with a lock that is held."""
    while True:
        prefix = f"{PARTIAL_PREFIX}{os.getpid()}-{_machine()}-"
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        with contextlib.suppress(FileNotFoundError):
            lock = (folder / _LOCK).open("x", encoding="utf-8")
            if _take(lock) is not False and (folder / _LOCK).exists():
                return folder, lock
            lock.close()
        # A sweep of another process met it between its making and its locking.
        shutil.rmtree(folder, ignore_errors=True)


def _take(lock: TextIOWrapper) -> bool | None:
    """Take a lock; False if another process holds it, None where the disk has no locks."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextlib.contextmanager
def _left_over(folder: Path) -> Iterator[bool]:
    """Tell whether nobody works in a folder; while the block runs nobody can begin to."""
    path = folder / _LOCK
    is_here = f"-{_machine()}-" in folder.name
    is_old = time.time() - folder.stat().st_mtime > _LONGEST_S
    if not os.path.lexists(path):
        # Killed before it was locked or while it was removed; a living process makes another one.
        yield is_here or is_old
    elif file_kind(path) is not None:
        yield False
    else:
        with path.open("r+", encoding="utf-8") as lock:
            is_taken = _take(lock)
            yield (is_taken is True and is_here) or (is_taken is not False and is_old)


@functools.cache
def _machine() -> str:
    """Name the running system, in a few letters: equal in every container on one kernel."""
    try:
        name = _BOOT_ID.read_text(encoding="ascii")
    except OSError:
        name = platform.node()
    return hashlib.sha256(name.encode()).hexdigest()[:8]
