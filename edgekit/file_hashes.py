"""The sha256 of files, remembered from one run to the next while the files stay as they are.

Hashing reads every byte; a model of 2 GB takes more than a second. So the hashes of a folder's
files are kept in the user's cache, each beside the state that the file had (``FileState``). A file
whose state is the same was not written since, and its hash is taken from there; any other state,
and a record that is absent, damaged or cannot be read, means hashing again.

Two writes within one tick of a file system's clock leave the same state (git calls such files
racy). So a hash is kept only if the file was last written at least ``_SETTLED_NS`` before it was
read; two seconds is the coarsest clock in use (FAT, exFAT).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Final

from edgekit.files import FileState, open_plain, read_capped
from edgekit.paths import cache_dir

_CHUNK_BYTES: Final = 1 << 20
_SETTLED_NS: Final = 2_000_000_000
_MAX_RECORD_BYTES: Final = 1 << 20
_MAX_RECORDS: Final = 512
_N_STATE: Final = len(FileState.__slots__)
_SUFFIX: Final = ".json"


@dataclass(frozen=True, slots=True)
class _Known:
    """A hash, and the state that the file had when it was taken."""

    state: FileState
    sha256: str


def hash_file(path: Path) -> str:
    """Give the sha256 of a plain file as hex digits; nothing is remembered.

    Raises:
        OSError: It cannot be read, or is no plain file.
    """
    return _hash(path)[0]


def hash_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Give the sha256 of files of a folder, reading those that changed since the last call.

    Args:
        folder: Where they lie; the record is kept under its real path.
        names: Paths inside it, with forward slashes.

    Returns:
        Name to hash, as hex digits.

    Raises:
        OSError: A file cannot be read, or is no plain file.
    """
    folder = folder.resolve()
    record = _record_path(folder)
    before = _read(record, folder)
    hashes: dict[str, str] = {}
    known: dict[str, _Known] = {}
    for name in names:
        kept = before.get(name)
        if kept is None or kept.state != FileState.of(folder / name):
            kept = None
            began_ns = time.time_ns()
            hashes[name], state = _hash(folder / name)
            if state is not None and began_ns - state.written_ns >= _SETTLED_NS:
                kept = _Known(state, hashes[name])
        else:
            hashes[name] = kept.sha256
        if kept is not None:
            known[name] = kept
    if known != before and record is not None:
        _write(record, folder, known)
    return hashes


def _hash(path: Path) -> tuple[str, FileState | None]:
    """Give hash and state of a file; no state if it changed while it was read."""
    digest = hashlib.sha256()
    with open_plain(path) as stream:
        before = FileState.of_status(os.fstat(stream.fileno()))
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
        after = FileState.of_status(os.fstat(stream.fileno()))
    return digest.hexdigest(), after if after == before else None


def _record_path(folder: Path) -> Path | None:
    """Give the file that holds the hashes of a folder; None where the user has no cache."""
    try:
        cache = cache_dir()
    except RuntimeError:  # the system knows no home for this user
        return None
    return cache / "hashes" / (hashlib.sha256(os.fsencode(folder)).hexdigest()[:32] + _SUFFIX)


def _read(record: Path | None, folder: Path) -> dict[str, _Known]:
    """Read a record; empty where there is none, or it is not what ``_write`` writes."""
    if record is None:
        return {}
    try:
        with open_plain(record) as stream:
            data = json.loads(read_capped(stream, _MAX_RECORD_BYTES))
        if data["folder"] != os.fsdecode(folder):
            return {}
        return {name: _known(values) for name, values in data["files"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def _known(values: list[object]) -> _Known:
    *state, sha256 = values
    numbers = [value for value in state if type(value) is int]
    if len(state) != _N_STATE or len(numbers) != _N_STATE or not isinstance(sha256, str):
        raise ValueError("not a record of this program")
    return _Known(FileState(*numbers), sha256)


def _write(record: Path, folder: Path, known: Mapping[str, _Known]) -> None:
    """Replace a record in one step; where that cannot be done, the next run hashes again."""
    files = {name: [*astuple(item.state), item.sha256] for name, item in known.items()}
    text = json.dumps({"folder": os.fsdecode(folder), "files": files})
    with contextlib.suppress(OSError):
        record.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, partial = tempfile.mkstemp(dir=record.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as stream:
                stream.write(text)
            Path(partial).replace(record)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise
        _forget_oldest(record.parent)


def _forget_oldest(folder: Path) -> None:
    """Keep the number of records, and of what killed processes left beside them, bounded."""
    entries = [(entry.stat().st_mtime_ns, entry.path) for entry in os.scandir(folder)]
    for _, path in sorted(entries)[:-_MAX_RECORDS]:
        Path(path).unlink(missing_ok=True)
