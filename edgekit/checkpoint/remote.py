"""A model on the Hub before its weights are downloaded: config, card and tensor headers.

Config and card are downloaded into the cache, because a later download needs them too. From each
weight file only the header is requested, by its byte range.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgekit.checkpoint.base import Checkpoint
from edgekit.checkpoint.gguf.file import is_gguf
from edgekit.checkpoint.reader import FolderCheckpoint
from edgekit.checkpoint.repository import find_packaged, locate
from edgekit.dtypes import U8Array
from edgekit.errors import CheckpointError
from edgekit.formats.open_file import ByteSource
from edgekit.formats.safetensors import SafetensorsFile
from edgekit.hub.download import Fetch, cached
from edgekit.hub.http import HubRepo, file_path
from edgekit.model_files import ASSET_NAMES


class RemoteFile(ByteSource):
    """A file on the Hub that is read by byte ranges until it is closed."""

    def __init__(self, fetch: Fetch, name: str) -> None:
        """Name the file; nothing is read yet."""
        self.path = Path(f"{fetch.hub.source}/{name}")
        self._hub = fetch.hub
        self._n_bytes = fetch.listing.files[name].n_bytes
        self._url_path = file_path(fetch.hub.source, fetch.listing.commit, name)
        self._is_closed = False

    @property
    def n_bytes(self) -> int:
        """Size of the file as the Hub states it."""
        return self._n_bytes

    def read_at(self, begin: int, n_bytes: int) -> U8Array:
        """Ask the Hub for bytes of the file.

        Raises:
            CheckpointError: The Hub refuses, or the file was closed: weights are downloaded whole.
        """
        if self._is_closed:
            raise CheckpointError(
                f"{self.path}: the weights were not downloaded",
                got="the header of the file",
                wanted="the file",
                do="Download the model first; edgekit export does so.",
            )
        return np.frombuffer(self._hub.read_part(self._url_path, begin, begin + n_bytes), np.uint8)

    def close(self) -> None:
        """End the requests."""
        self._is_closed = True


class RemoteFiles:
    """The weight files of a model on the Hub: their headers, and nothing else."""

    def __init__(self, fetch: Fetch) -> None:
        """Name the model."""
        self._fetch = fetch

    def names(self) -> tuple[str, ...]:
        """Give the names of all files."""
        return (*self._fetch.listing.files, *self._fetch.listing.pickles)

    def open(self, name: str) -> SafetensorsFile:
        """Read the header of a weight file."""
        with RemoteFile(self._fetch, name) as source:
            return SafetensorsFile(source)


class RemoteCheckpoint(FolderCheckpoint):
    """A model on the Hub whose tensors can be listed and not read."""

    has_weights = False

    def __init__(self, model: str | Path, source: HubRepo) -> None:
        """Fetch config and headers; see ``open_headers``."""
        self._fetch = Fetch(source)
        with self._fetch.writing():
            self._fetch.fetch(self._fetch.listing.small_files())
        super().__init__(model, self._fetch.folder, RemoteFiles(self._fetch))

    def fetch_text(self) -> None:
        """Download tokenizer and chat template into the cache, so that they can be checked."""
        with self._fetch.writing():
            self._fetch.fetch(self._fetch.listing.assets())

    @property
    def assets_bytes(self) -> int:
        """Bytes of the assets as the Hub states them; most are not downloaded yet."""
        files = self._fetch.listing.files
        return sum(files[name].n_bytes for name in ASSET_NAMES if name in files)


def needs_download(model: str | Path) -> bool:
    """Tell whether a model is on the Hub and not on this disk; makes no request."""
    if is_gguf(model) or find_packaged(model) is not None:
        return False
    found = locate(model)
    return isinstance(found, HubRepo) and cached(found) is None


def open_headers(model: str | Path) -> Checkpoint:
    """Open a model without its weights: if it is not on this disk, only headers are downloaded.

    Args:
        model: Folder, bundled name, or Hub id.

    Raises:
        CheckpointError: No such model, the Hub refuses, or config or index are damaged.
        FormatError: A header is damaged.
    """
    found = locate(model)
    if isinstance(found, HubRepo):
        folder = cached(found)
        return FolderCheckpoint(model, folder) if folder else RemoteCheckpoint(model, found)
    return FolderCheckpoint(model, found)
