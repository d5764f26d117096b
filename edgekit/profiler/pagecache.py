"""Dropping files from the page cache, so that the next load is cold.

Without root, Linux drops the clean pages of one file on ``posix_fadvise(DONTNEED)``; a read with
``RWF_NOWAIT`` then shows for any page whether it is still cached. Where either is missing, or a
page stayed, the answer is no and the load must not be called cold.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_STRIDE_BYTES: Final = 1 << 16


def drop_from_cache(paths: Iterable[Path]) -> bool:
    """Drop files from the page cache.

    Returns:
        True when every page that was checked (one in 16) is gone; False when that is not known.
    """
    if not (hasattr(os, "posix_fadvise") and hasattr(os, "RWF_NOWAIT")):
        return False
    dropped = [_drop(path) for path in paths]  # every one, also after a failure
    return all(dropped)


def _drop(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        os.fsync(descriptor)  # dirty pages stay
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        n_bytes = os.fstat(descriptor).st_size
        return not any(_is_cached(descriptor, at) for at in range(0, n_bytes, _STRIDE_BYTES))
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _is_cached(descriptor: int, offset: int) -> bool:
    try:
        os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    return True
