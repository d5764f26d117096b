"""Download of a model from the Hub into huggingface_hub's cache, each file checked by its hash.

Only the files that edgekit reads are downloaded. huggingface_hub transfers them (``http_get``) and
repeats failed requests. edgekit adds two things: it keeps an unfinished file for the next run
(huggingface_hub 2.4 writes to a new name each time and starts again at the first byte), and it
compares hashes, which huggingface_hub does not do. The layout of the cache is huggingface_hub's:
blobs by hash, a folder per commit, a ref per branch. So each program finds what the other
downloaded.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from edgekit.errors import CheckpointError, MissingFileError
from edgekit.hub.http import (
    HubClient,
    HubInvalidResponseError,
    HubRepo,
    HubUnavailableError,
    file_path,
    is_offline,
)
from edgekit.hub.listing import COMMIT, HubFile, Listing, fetch_listing
from edgekit.lazy import require
from edgekit.model_files import CONFIG_NAME, choose_weight_files, read_weight_map
from edgekit.progress import Progress, ignore_progress

_HASH_CHUNK_BYTES: Final = 4 << 20


def cached(source: HubRepo) -> Path | None:
    """Give the folder of a model that is already on this disk; makes no request."""
    return _Cache(source).complete_folder()


def download(source: HubRepo, progress: Progress = ignore_progress) -> Path:
    """Download a model; files that are already on this disk are only checked.

    Args:
        source: Repository and revision.
        progress: Called as ``progress(what, n_done, n_total)`` in MB.

    Raises:
        CheckpointError: The Hub refuses or cannot be reached, a file is not what the Hub states,
            or the disk cannot be written.
        MissingExtraError: huggingface_hub is not installed.
    """
    cache = _Cache(source)
    folder = cache.complete_folder()
    if folder is not None and folder.name == source.revision and cache.is_finished(folder):
        return folder
    try:
        fetch = Fetch(source, progress)
    except HubUnavailableError:
        if folder is None:
            raise
        return folder
    with fetch.writing():
        fetch.fetch(fetch.listing.assets())
        fetch.fetch(fetch.weights())
        cache.finish(fetch.folder)
    return fetch.folder


class Fetch:
    """Downloads the files of one commit into the cache.

    Attributes:
        hub: Client for requests to the Hub.
        listing: What the commit holds.
        folder: The folder of the commit in the cache.
    """

    def __init__(self, source: HubRepo, progress: Progress = ignore_progress) -> None:
        """Ask the Hub what the revision holds.

        Raises:
            CheckpointError: Refused, unreachable, or offline mode is on.
        """
        if is_offline():
            raise HubUnavailableError(
                f"{source}: not in the local cache, and offline mode forbids asking the Hub",
                got="HF_HUB_OFFLINE is set",
                do="Unset HF_HUB_OFFLINE, or give the folder of a downloaded model.",
            )
        self.hub = HubClient(source)
        self.listing: Listing = fetch_listing(self.hub)
        self._cache = _Cache(source)
        self.folder = self._cache.folder / "snapshots" / self.listing.commit
        self._progress = progress

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turn a write error of the disk into an edgekit error."""
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"{self.hub.source}: the cache cannot be written",
                got=str(error),
                do="Free some space, or set HF_HOME to a folder that can be written.",
            ) from error

    def weights(self) -> tuple[HubFile, ...]:
        """Give the weight files, chosen as in a folder with the same names.

        Raises:
            MissingFileError: The repository lacks a file of the model.
            CheckpointError: The index is damaged, or several sets of files could be the model.
        """
        try:
            chosen = choose_weight_files(
                self.listing.names,
                lambda index: read_weight_map(self.folder / index),
                self.hub.source,
            )
        except MissingFileError as error:
            raise MissingFileError(
                error.what,
                got=error.got,
                wanted=error.wanted,
                do="The repository is incomplete; choose another revision.",
            ) from error
        return tuple(self.listing.files[name] for name in chosen.names)

    def fetch(self, files: Iterable[HubFile]) -> None:
        """Download the files that are missing, and check every file that was not checked yet.

        Raises:
            CheckpointError: See ``download``.
        """
        due = [file for file in files if not self._cache.is_checked(self.folder, file)]
        self._require_space(due)
        for file in due:
            with self._cache.lock(file):
                # Another process may have downloaded it in the meantime.
                if not self._cache.is_checked(self.folder, file):
                    self._bring(file)
                    self._cache.note_checked(self.folder, file)

    def _bring(self, file: HubFile) -> None:
        blob, place = self._cache.blob(file), self.folder / file.name
        if not blob.is_file() and place.is_file():
            self._check(place, file)  # a cache without symbolic links keeps the file itself here
            return
        if blob.is_file():
            self._check(blob, file)
        else:
            self._transfer(file)
            self._check(self._cache.partial(file), file)
            self._cache.partial(file).replace(blob)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        try:
            place.symlink_to(os.path.relpath(blob, place.parent))
        except OSError:
            blob.replace(place)

    def _transfer(self, file: HubFile) -> None:
        """Fetch the rest of a file; if the connection breaks, the part stays for the next run."""
        partial = self._cache.partial(file)
        partial.parent.mkdir(parents=True, exist_ok=True)
        path = file_path(self.hub.source, self.listing.commit, file.name)
        hub, progress, n_total = self.hub, self._progress, max(1, file.n_bytes // 10**6)

        class Bar:
            """Stands in for tqdm's bar: reports progress and stops a file longer than stated."""

            def __init__(self, *, initial: int = 0, **_: Any) -> None:
                self._n_done = initial

            def update(self, n_bytes: int) -> None:
                self._n_done += n_bytes
                if self._n_done > file.n_bytes:
                    raise hub.invalid_response(
                        path, f"more than {file.n_bytes} bytes", f"{file.n_bytes} bytes"
                    )
                progress(f"download {file.name}", self._n_done // 10**6, n_total)

            def __enter__(self) -> Bar:
                return self

            def __exit__(self, *_: object) -> None:
                pass

        with partial.open("ab") as stream:
            if stream.tell() > file.n_bytes:
                stream.truncate(0)
            try:
                if stream.tell() < file.n_bytes:
                    hub.download(path, stream, Bar)
            except HubInvalidResponseError:
                partial.unlink()
                raise

    def _check(self, path: Path, file: HubFile) -> None:
        """Compare size and hash of a file with what the Hub states; remove it if they differ."""
        n_bytes, n_total = path.stat().st_size, max(1, file.n_bytes // 10**6)
        got: str | int = n_bytes
        wanted: str | int = file.n_bytes
        if n_bytes == file.n_bytes:
            digest = file.hasher()
            with path.open("rb") as stream:
                while chunk := stream.read(_HASH_CHUNK_BYTES):
                    digest.update(chunk)
                    self._progress(f"check {file.name}", stream.tell() // 10**6, n_total)
            got, wanted = digest.hexdigest(), file.digest
        if got != wanted:
            path.unlink(missing_ok=True)
            what = "hash" if n_bytes == file.n_bytes else "size in bytes"
            raise CheckpointError(
                f"{self.hub.source}: {file.name}: the {what} is not what the Hub states; "
                "the file was removed",
                got=got,
                wanted=wanted,
                do="Run the command again; if it happens twice, the server or a proxy changes "
                "the file.",
            )

    def _require_space(self, due: Iterable[HubFile]) -> None:
        cache = self._cache
        n_missing = sum(
            max(0, file.n_bytes - _identity(cache.partial(file))[0])
            for file in due
            if not cache.blob(file).is_file() and not (self.folder / file.name).is_file()
        )
        cache.folder.mkdir(parents=True, exist_ok=True)
        n_free = shutil.disk_usage(cache.folder).free
        if n_missing > n_free:
            raise CheckpointError(
                f"{self.hub.source}: not enough disk space",
                got=f"{n_free // 10**6} MB free",
                wanted=f"{n_missing // 10**6} MB",
                do="Free some space, or set HF_HOME to a folder on another disk.",
            )


class _Cache:
    """The files of one repository in huggingface_hub's cache, and which of them were checked."""

    def __init__(self, source: HubRepo) -> None:
        self._revision = source.revision or "main"
        self._root = _cache_dir()
        self.folder = self._root / f"models--{source.repo.replace('/', '--')}"

    def blob(self, file: HubFile) -> Path:
        return self.folder / "blobs" / file.digest

    def partial(self, file: HubFile) -> Path:
        return self.folder / "blobs" / f"{file.digest}.incomplete"

    def complete_folder(self) -> Path | None:
        """Give the folder of the revision if all that a model needs is in it."""
        commit = self._revision
        if COMMIT.fullmatch(commit) is None:
            try:
                commit = (self.folder / "refs" / commit).read_text(encoding="ascii").strip()
            except (OSError, UnicodeDecodeError):
                return None
        folder = self.folder / "snapshots" / commit
        if COMMIT.fullmatch(commit) is None or not (folder / CONFIG_NAME).is_file():
            return None
        here = [path.name for path in folder.iterdir() if path.is_file()]
        try:
            chosen = choose_weight_files(
                here, lambda index: read_weight_map(folder / index), self.folder
            )
        except MissingFileError:
            return None
        return folder if chosen.is_counted else None

    @contextmanager
    def lock(self, file: HubFile) -> Iterator[None]:
        """Let one process at a time download a file, those of huggingface_hub included."""
        place = self._root / ".locks" / self.folder.name / f"{file.digest}.lock"
        place.parent.mkdir(parents=True, exist_ok=True)
        with require("huggingface_hub.utils").WeakFileLock(place):
            yield

    def is_checked(self, folder: Path, file: HubFile) -> bool:
        """Tell whether a file has not changed since its hash was compared."""
        return self._record(folder).get(file.name) == [file.digest, *_identity(folder / file.name)]

    def note_checked(self, folder: Path, file: HubFile) -> None:
        """Note that the hash of a file was compared."""
        record = self._record(folder)
        record[file.name] = [file.digest, *_identity(folder / file.name)]
        self._write(self._record_path(folder), json.dumps(record, indent=1, sort_keys=True))

    def is_finished(self, folder: Path) -> bool:
        """Tell whether a whole download was checked and has not changed since."""
        record = self._record(folder)
        return record.pop("", None) == ["complete"] and all(
            entry[1:] == [*_identity(folder / name)] for name, entry in record.items()
        )

    def finish(self, folder: Path) -> None:
        """Record that this commit is complete, and is what the branch or tag means now."""
        record = {**self._record(folder), "": ["complete"]}
        self._write(self._record_path(folder), json.dumps(record, indent=1, sort_keys=True))
        if self._revision != folder.name:
            self._write(self.folder / "refs" / self._revision, folder.name)

    def _record_path(self, folder: Path) -> Path:
        return self.folder / "edgekit" / f"{folder.name}.json"

    def _record(self, folder: Path) -> dict[str, list[Any]]:
        try:
            record = json.loads(self._record_path(folder).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        is_sound = isinstance(record, dict) and all(isinstance(e, list) for e in record.values())
        return record if is_sound else {}

    def _write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)


def _cache_dir() -> Path:
    """Folder of the cache: HF_HUB_CACHE, else ``hub`` in HF_HOME, as huggingface_hub has it."""
    stated = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    home = os.environ.get("HF_HOME")
    if not stated:
        constants = require("huggingface_hub.constants")
        stated = str(Path(home) / "hub") if home else constants.HF_HUB_CACHE
    return Path(os.path.expandvars(stated)).expanduser()


def _identity(path: Path) -> tuple[int, int]:
    """Give size and change time; 0 and -1 for a file that is not there."""
    try:
        found = path.stat()
    except OSError:
        return 0, -1
    return found.st_size, found.st_mtime_ns
