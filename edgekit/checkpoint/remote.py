"""What a model on the Hub holds, before its weights are downloaded.

Config and card come into the cache, because a later download needs them too; of each weight file
only the header is asked for, by its byte range.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from edgekit.checkpoint.gguf.file import is_gguf
from edgekit.checkpoint.reader import Checkpoint
from edgekit.checkpoint.repository import find_packaged, locate
from edgekit.dtypes import U8Array
from edgekit.errors import CheckpointError
from edgekit.formats.safetensors import SafetensorsFile, header_end
from edgekit.hub.download import Fetch, cached
from edgekit.hub.http import Source, file_path
from edgekit.model_files import ASSET_NAMES

_LENGTH_BYTES: Final = 8


class RemoteFile(SafetensorsFile):
    """A weight file of which only the header is here: tensors are listed and cannot be read."""

    def __init__(self, path: Path, header: bytes, n_file: int) -> None:
        """Check a header.

        Args:
            path: Name of the file, for messages.
            header: The bytes between the length at the start and the data.
            n_file: Size of the whole file.

        Raises:
            FormatError: The header is not what the format says.
        """
        self.path = path
        self._read_header(header, n_file)

    def close(self) -> None:
        """Do nothing: no file is open."""

    def read_at(self, begin: int, n_bytes: int) -> U8Array:
        """Refuse: there are no bytes to read.

        Raises:
            CheckpointError: Always.
        """
        raise CheckpointError(
            f"{self.path}: the weights were not downloaded",
            got="the header of the file",
            wanted="the file",
            do="Download the model first; edgekit export does so.",
        )


class HubCheckpoint(Checkpoint):
    """A model on the Hub: config and tensor headers; reading a tensor is an error."""

    has_weights = False

    def __init__(self, model: str | Path, source: Source) -> None:
        """Fetch config and headers; see ``open_headers``."""
        self._fetch = Fetch(source)
        with self._fetch.writing():
            self._fetch.fetch(self._fetch.listing.small_files())
        super().__init__(model, self._fetch.folder)

    def fetch_text(self) -> None:
        """Bring tokenizer and chat template into the cache, so that they can be checked."""
        with self._fetch.writing():
            self._fetch.fetch(self._fetch.listing.assets())

    @property
    def assets_bytes(self) -> int:
        """Bytes of the assets as the Hub states them; most are not here."""
        files = self._fetch.listing.files
        return sum(files[name].n_bytes for name in ASSET_NAMES if name in files)

    def _file_names(self) -> tuple[str, ...]:
        return (*self._fetch.listing.files, *self._fetch.listing.pickles)

    def _open_file(self, name: str) -> SafetensorsFile:
        """Read the header of a weight file, whose length is not trusted."""
        hub, file = self._fetch.hub, self._fetch.listing.files[name]
        path = file_path(hub.source, self._fetch.listing.commit, name)
        where = Path(f"{hub.source}/{name}")
        if file.n_bytes < _LENGTH_BYTES:
            raise hub.nonsense(path, f"size {file.n_bytes}", f"at least {_LENGTH_BYTES} bytes")
        first = hub.read_part(path, 0, _LENGTH_BYTES)
        end = header_end(first, file.n_bytes, where)
        header = hub.read_part(path, _LENGTH_BYTES, end)
        return RemoteFile(where, header, file.n_bytes)


def needs_download(model: str | Path) -> bool:
    """Tell whether a model lies on the Hub and not on this disk; asks nobody."""
    if is_gguf(model) or find_packaged(model) is not None:
        return False
    found = locate(model)
    return isinstance(found, Source) and cached(found) is None


def open_headers(model: str | Path) -> Checkpoint:
    """Open a model to look at it: of what is not on this disk yet, no weight is downloaded.

    Args:
        model: Folder, bundled name, or Hub id.

    Raises:
        CheckpointError: No such model, the Hub refuses, or config or index are damaged.
        FormatError: A header is damaged.
    """
    found = locate(model)
    if isinstance(found, Source):
        folder = cached(found)
        return Checkpoint(model, folder) if folder else HubCheckpoint(model, found)
    return Checkpoint(model, found)
