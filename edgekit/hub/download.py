"""Answer one question: how does a model on the Hub become a checked folder on this disk?

Only the files that edgekit reads are fetched, over plain HTTP with ranges, because the
downloader of huggingface_hub starts a broken file again from its first byte. A file gets its
name in the cache only after its hash was compared.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeAlias

from edgekit.errors import CheckpointError, MissingFileError
from edgekit.hub.cache import RepositoryCache, check_file
from edgekit.hub.http import (
    HubClient,
    HubNonsenseError,
    HubUnavailableError,
    Source,
    file_path,
    is_offline,
)
from edgekit.hub.listing import COMMIT, HubFile, Listing, fetch_listing
from edgekit.model_files import INDEX_NAME, WEIGHTS_NAME, read_weight_map

Progress: TypeAlias = Callable[[str, int, int], None]
_MAX_FUTILE_TRIES: Final = 3
_RETRY_S: Final = 1.0
_MAX_RETRY_S: Final = 20.0


def ignore_progress(what: str, n_done: int, n_total: int) -> None:
    """Show nothing."""


def cached(source: Source) -> Path | None:
    """Give the folder of a model that is on this disk already; asks nobody."""
    return RepositoryCache(source).complete_snapshot()


def download(source: Source, progress: Progress = ignore_progress) -> Path:
    """Bring a model to this disk; what is there already is only checked.

    Args:
        source: Repository and revision.
        progress: Called as ``progress(what, n_done, n_total)`` in MB.

    Raises:
        CheckpointError: The Hub refuses or cannot be reached, a file is not what the Hub states,
            or the disk refuses.
        MissingExtraError: huggingface_hub is not installed.
    """
    cache = RepositoryCache(source)
    is_commit = COMMIT.fullmatch(source.revision or "") is not None
    if is_commit and source.revision and cache.all_verified(source.revision):
        folder = cache.complete_snapshot()
        if folder is not None:
            return folder
    try:
        fetch = Fetch.open(source, progress)
    except HubUnavailableError:
        folder = cache.complete_snapshot()
        if folder is None:
            raise
        return folder
    with fetch.writing():
        fetch.fetch(fetch.listing.assets())
        fetch.fetch(fetch.weights())
        fetch.finish()
    return fetch.folder


class Fetch:
    """Brings files of one commit into the cache.

    Attributes:
        hub: Asks the Hub.
        listing: What the commit holds.
        folder: The snapshot.
    """

    def __init__(
        self, hub: HubClient, listing: Listing, cache: RepositoryCache, progress: Progress
    ) -> None:
        self.hub = hub
        self.listing = listing
        self.folder = cache.snapshot(listing.commit)
        self._cache = cache
        self._progress = progress

    @classmethod
    def open(cls, source: Source, progress: Progress = ignore_progress) -> Fetch:
        """Ask what the revision holds.

        Raises:
            CheckpointError: Refused, unreachable, or offline mode is on.
        """
        if is_offline():
            raise HubUnavailableError(
                f"{source}: not in the local cache, and the Hub must not be asked",
                got="HF_HUB_OFFLINE is set",
                do="Unset HF_HUB_OFFLINE, or give the folder of a downloaded model.",
            )
        hub = HubClient(source)
        return cls(hub, fetch_listing(hub), RepositoryCache(source), progress)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turn a disk that refuses into an error in our words."""
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"{self.hub.source}: the cache cannot be written",
                got=str(error),
                do="Free some space, or set HF_HOME to a folder that can be written.",
            ) from error

    def weights(self) -> tuple[HubFile, ...]:
        """Give the weight files: the single one, or those that the index names.

        Raises:
            MissingFileError: The repository lacks a file that the index names.
            CheckpointError: The index is damaged.
        """
        files = self.listing.files
        if WEIGHTS_NAME in files:
            return (files[WEIGHTS_NAME],)
        names = sorted(set(read_weight_map(self.folder / INDEX_NAME).values()))
        missing = [name for name in names if name not in files]
        if missing:
            raise MissingFileError(
                f"{self.hub.source}: {len(missing)} of {len(names)} weight files are missing",
                got=f"no {', '.join(missing[:8])}",
                wanted=f"every file that {INDEX_NAME} names",
                do="The repository is incomplete; choose another revision.",
            )
        return tuple(files[name] for name in names)

    def fetch(self, files: Iterable[HubFile]) -> None:
        """Bring files here that are not here yet, and check every one that was not checked.

        Raises:
            CheckpointError: See ``download``.
        """
        commit, cache = self.listing.commit, self._cache
        due = [file for file in files if not cache.is_verified(commit, file)]
        self._require_space(due)
        for file in due:
            with cache.lock(file):
                # Another process may have brought it meanwhile.
                if not cache.is_verified(commit, file):
                    self._bring(file)
                    cache.remember(commit, file)

    def finish(self) -> None:
        """Note that this revision is complete."""
        self._cache.set_ref(self.listing.commit)
        self._cache.remember(self.listing.commit, None)

    def _bring(self, file: HubFile) -> None:
        blob, place = self._cache.blob(file), self.folder / file.name
        if not blob.is_file() and place.is_file():
            # A cache without symbolic links keeps the file itself here.
            self._check(place, file)
            return
        if blob.is_file():
            self._check(blob, file)
        else:
            partial = self._cache.partial(file)
            partial.parent.mkdir(parents=True, exist_ok=True)
            self._transfer(partial, file)
            self._check(partial, file)
            partial.replace(blob)
        self._cache.link(self.listing.commit, file)

    def _check(self, path: Path, file: HubFile) -> None:
        check_file(
            path,
            file,
            self.hub.source,
            lambda n_done: self._progress(f"check {file.name}", n_done // 10**6, _mb(file)),
        )

    def _require_space(self, due: Iterable[HubFile]) -> None:
        n_missing = 0
        for file in due:
            if not self._cache.blob(file).is_file() and not (self.folder / file.name).is_file():
                n_missing += max(0, file.n_bytes - _size(self._cache.partial(file)))
        folder = self._cache.folder
        folder.mkdir(parents=True, exist_ok=True)
        n_free = shutil.disk_usage(folder).free
        if n_missing > n_free:
            raise CheckpointError(
                f"{self.hub.source}: not enough disk space",
                got=f"{n_free // 10**6} MB free",
                wanted=f"{n_missing // 10**6} MB",
                do="Free some space, or set HF_HOME to a folder on another disk.",
            )

    def _transfer(self, partial: Path, file: HubFile) -> None:
        """Fetch the rest of a file; a connection that breaks off is continued where it ended."""
        partial.touch()
        n_futile = 0
        while (n_have := _size(partial)) != file.n_bytes:
            if n_have > file.n_bytes:
                partial.write_bytes(b"")
                n_have = 0
            try:
                self._append(partial, file, n_have)
                if _size(partial) <= n_have:
                    raise HubUnavailableError(
                        f"{self.hub.source}: the Hub sends no bytes of {file.name}",
                        got=f"{n_have} of {file.n_bytes} bytes",
                        do="Run the command again: what was downloaded is kept.",
                    )
            except HubNonsenseError:
                partial.unlink(missing_ok=True)
                raise
            except HubUnavailableError as error:
                n_futile = 0 if _size(partial) > n_have else n_futile + 1
                if n_futile == _MAX_FUTILE_TRIES or (error.retry_s or 0) > _MAX_RETRY_S:
                    raise
                if n_futile:
                    time.sleep(_RETRY_S if error.retry_s is None else error.retry_s)

    def _append(self, partial: Path, file: HubFile, n_have: int) -> None:
        path = file_path(self.hub.source, self.listing.commit, file.name)
        with self.hub.open(path, start=n_have) as body, partial.open("r+b") as stream:
            # A server that knows no ranges begins again.
            stream.seek(body.start)
            stream.truncate()
            n_done = body.start
            for chunk in body.chunks:
                n_done += len(chunk)
                if n_done > file.n_bytes:
                    raise self.hub.nonsense(
                        path, f"more than {file.n_bytes} bytes", f"{file.n_bytes} bytes"
                    )
                stream.write(chunk)
                self._progress(f"download {file.name}", n_done // 10**6, _mb(file))


def _mb(file: HubFile) -> int:
    return max(1, file.n_bytes // 10**6)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
