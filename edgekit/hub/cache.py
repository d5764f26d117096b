"""Answer one question: what of a Hub repository is on this disk, and was its hash checked?

The layout is that of huggingface_hub (blobs by hash, a snapshot folder per commit, a ref per
branch), so that other tools find what edgekit downloaded and the reverse. huggingface_hub does
not compare hashes after a download; a record beside the snapshots remembers that edgekit did.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from edgekit.errors import CheckpointError
from edgekit.hub.http import Source
from edgekit.hub.listing import COMMIT, HubFile
from edgekit.lazy import require
from edgekit.model_files import CONFIG_NAME, INDEX_NAME, WEIGHTS_NAME, read_weight_map

_HASH_CHUNK_BYTES: Final = 4 << 20


def cache_dir() -> Path:
    """Folder of the cache: HF_HUB_CACHE, else ``hub`` in HF_HOME, as huggingface_hub has it."""
    environment = os.environ
    stated = environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE")
    home = environment.get("HF_HOME")
    if not stated and home:
        stated = str(Path(home) / "hub")
    if not stated:
        stated = require("huggingface_hub.constants").HF_HUB_CACHE
    return Path(os.path.expandvars(stated)).expanduser()


class RepositoryCache:
    """What is here of one repository."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._root = cache_dir()
        self._name = f"models--{source.repo.replace('/', '--')}"
        self.folder = self._root / self._name

    def snapshot(self, commit: str) -> Path:
        """Folder of a commit's files."""
        return self.folder / "snapshots" / commit

    def blob(self, file: HubFile) -> Path:
        """Where the bytes of a file lie."""
        return self.folder / "blobs" / file.digest

    def partial(self, file: HubFile) -> Path:
        """Where the bytes of a file gather until all are there and checked."""
        return self.folder / "blobs" / f"{file.digest}.incomplete"

    def complete_snapshot(self) -> Path | None:
        """Give the folder of the revision if all that a model needs is in it; asks nobody."""
        commit = self._commit()
        folder = self.snapshot(commit) if commit else None
        if folder is None or not (folder / CONFIG_NAME).is_file():
            return None
        if (folder / WEIGHTS_NAME).is_file():
            names = {WEIGHTS_NAME}
        elif (folder / INDEX_NAME).is_file():
            names = set(read_weight_map(folder / INDEX_NAME).values())
        else:
            return None
        return folder if all((folder / name).is_file() for name in names) else None

    def is_verified(self, commit: str, file: HubFile) -> bool:
        """Tell whether a file is in the snapshot and has not changed since its hash was checked."""
        return self._record(commit).get(file.name) == [
            file.digest,
            *_identity(self.snapshot(commit) / file.name),
        ]

    def all_verified(self, commit: str) -> bool:
        """Tell whether a whole download of this commit was finished and checked."""
        record = self._record(commit)
        folder = self.snapshot(commit)
        return record.pop("", None) == ["complete"] and all(
            entry[1:] == [*_identity(folder / name)] for name, entry in record.items()
        )

    def remember(self, commit: str, file: HubFile | None) -> None:
        """Note that a file was checked, or with None that the download is complete."""
        record = self._record(commit)
        if file is None:
            record[""] = ["complete"]
        else:
            place = self.snapshot(commit) / file.name
            record[file.name] = [file.digest, *_identity(place)]
        path = self._record_path(commit)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        partial.write_text(json.dumps(record, indent=1, sort_keys=True), encoding="utf-8")
        partial.replace(path)

    def link(self, commit: str, file: HubFile) -> None:
        """Show a blob under its name in the snapshot of a commit."""
        place = self.snapshot(commit) / file.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        blob = self.blob(file)
        try:
            place.symlink_to(os.path.relpath(blob, place.parent))
        except OSError:
            # No symbolic links here: the file itself goes there, as huggingface_hub does it.
            blob.replace(place)

    def set_ref(self, commit: str) -> None:
        """Note which commit the branch or tag means now."""
        revision = self._source.revision or "main"
        if revision == commit:
            return
        path = self.folder / "refs" / revision
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        partial.write_text(commit, encoding="utf-8")
        partial.replace(path)

    @contextmanager
    def lock(self, file: HubFile) -> Iterator[None]:
        """Let one process at a time download a file, those of huggingface_hub included."""
        place = self._root / ".locks" / self._name / f"{file.digest}.lock"
        place.parent.mkdir(parents=True, exist_ok=True)
        with require("huggingface_hub.utils").WeakFileLock(place):
            yield

    def _commit(self) -> str | None:
        revision = self._source.revision or "main"
        if COMMIT.fullmatch(revision):
            return revision
        try:
            text = (self.folder / "refs" / revision).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            return None
        return text if COMMIT.fullmatch(text) else None

    def _record_path(self, commit: str) -> Path:
        return self.folder / "edgekit" / f"{commit}.json"

    def _record(self, commit: str) -> dict[str, Any]:
        try:
            record = json.loads(self._record_path(commit).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if not isinstance(record, dict) or not all(isinstance(e, list) for e in record.values()):
            return {}
        return record


def check_file(path: Path, file: HubFile, source: Source, progress: Callable[[int], None]) -> None:
    """Compare size and hash of a file with what the Hub states.

    Args:
        path: The file.
        file: What it should be.
        source: For the message.
        progress: Called with the bytes read so far.

    Raises:
        CheckpointError: They differ; the file was removed.
    """
    n_bytes = path.stat().st_size
    got: str | int = n_bytes
    wanted: str | int = file.n_bytes
    if n_bytes == file.n_bytes:
        got, wanted = _digest(path, file, progress), file.digest
    if got == wanted:
        return
    path.unlink(missing_ok=True)
    what = "hash" if n_bytes == file.n_bytes else "size in bytes"
    raise CheckpointError(
        f"{source}: {file.name}: the {what} is not what the Hub states; the file was removed",
        got=got,
        wanted=wanted,
        do="Run the command again; if it happens twice, the server or a proxy changes the file.",
    )


def _digest(path: Path, file: HubFile, progress: Callable[[int], None]) -> str:
    if len(file.digest) == 64:
        digest = hashlib.sha256()
    else:
        # git's name for a file: SHA-1 with the length in front.
        digest = hashlib.sha1(b"blob %d\0" % file.n_bytes, usedforsecurity=False)
    n_done = 0
    with path.open("rb") as stream:
        while chunk := stream.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
            n_done += len(chunk)
            progress(n_done)
    return digest.hexdigest()


def _identity(path: Path) -> tuple[int, int]:
    """Give size and change time, or impossible ones for a file that is not there."""
    try:
        found = path.stat()
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns
