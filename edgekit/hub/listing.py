"""The list of files of a revision on the Hub: names, sizes and hashes, all checked.

The list comes from a server and is not trusted. Hashes become file names of the cache, so their
form is checked; a file name that leads out of the folder refuses the whole repository.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from edgekit.errors import CheckpointError, FormatError, MissingFileError
from edgekit.hub.http import HubClient, info_path, tree_path
from edgekit.model_files import (
    ADDED_TOKENS_NAME,
    ASSET_NAMES,
    CARD_NAME,
    CONFIG_NAME,
    GENERATION_NAME,
    INDEX_SUFFIX,
    MAX_INDEX_BYTES,
    STAND_INS,
    TEXT_NAMES,
    WEIGHTS_NAME,
    choose_weight_files,
)
from edgekit.strict_json import parse_object

COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_MAX_LISTING_BYTES: Final = 16 << 20
_MAX_ASSET_BYTES: Final = 64 << 20
_MAX_CARD_BYTES: Final = 1 << 20
_MAX_FILE_BYTES: Final = 1 << 50
_KNOWN_NAMES: Final = frozenset((*TEXT_NAMES, CARD_NAME))
_PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file in a repository.

    Attributes:
        name: Plain name; files in sub-folders are never needed.
        n_bytes: Size that the Hub states.
        digest: SHA-256 (64 digits) of a large file, or the git hash (40 digits) of a small one.
    """

    name: str
    n_bytes: int
    digest: str

    def hasher(self) -> hashlib._Hash:
        """Make the hash object whose result must equal ``digest``."""
        if len(self.digest) == 64:
            return hashlib.sha256()
        # git's name for a file: SHA-1 with the length in front.
        return hashlib.sha1(b"blob %d\0" % self.n_bytes, usedforsecurity=False)


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a revision that edgekit may need.

    Attributes:
        commit: The commit that the revision means now.
        files: Known assets and every safetensors file at the top, by name.
        pickles: Weight files that are never read.
    """

    commit: str
    files: Mapping[str, HubFile]
    pickles: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all files that could matter, including those that are never read."""
        return (*self.files, *self.pickles)

    def assets(self) -> tuple[HubFile, ...]:
        """Give config, tokenizer, template and card, and the index if it is needed."""
        stand_ins = [name for name, usual in STAND_INS.items() if usual not in self.files]
        return self._present((*ASSET_NAMES, ADDED_TOKENS_NAME, *stand_ins))

    def small_files(self) -> tuple[HubFile, ...]:
        """Give the assets that describe the decoder: config, card, and the index if needed."""
        return self._present((CONFIG_NAME, GENERATION_NAME))

    def _present(self, names: Iterable[str]) -> tuple[HubFile, ...]:
        wanted = [*names, CARD_NAME]
        if WEIGHTS_NAME not in self.files:
            wanted += [name for name in self.files if name.endswith(INDEX_SUFFIX)]
        return tuple(
            self.files[name]
            for name in wanted
            if name in self.files
            and (name != CARD_NAME or self.files[name].n_bytes <= _MAX_CARD_BYTES)
        )


def fetch_listing(hub: HubClient) -> Listing:
    """Ask the Hub what a revision holds.

    Raises:
        HubUnavailableError: Unreachable or busy.
        MissingFileError: No config, or no weights that edgekit reads.
        CheckpointError: Refused, an invalid response, or names that leave the repository's folder.
    """
    path = info_path(hub.source)
    answer = _parse(hub, path, hub.read(path, _MAX_LISTING_BYTES))
    commit, siblings = answer.get("sha"), answer.get("siblings")
    if not isinstance(commit, str) or COMMIT.fullmatch(commit) is None:
        raise hub.invalid_response(path, f"sha {commit!r}", "a commit of 40 hexadecimal digits")
    if not isinstance(siblings, list):
        raise hub.invalid_response(
            path, f"siblings {type(siblings).__name__}", "siblings, a list of files"
        )
    if not any(isinstance(entry, dict) and entry.keys() & {"blobId", "lfs"} for entry in siblings):
        siblings = _with_hashes(hub, commit, siblings)
    files: dict[str, HubFile] = {}
    pickles: list[str] = []
    for entry in siblings:
        name = entry.get("rfilename") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not name:
            raise hub.invalid_response(path, f"file {entry!r}", "a file with an rfilename")
        _refuse_escape(hub, name)
        if name.endswith(_PICKLES) and "/" not in name:
            pickles.append(name)
        if _is_wanted(name):
            files[name] = _file(hub, path, name, entry)
    found = Listing(commit, MappingProxyType(files), tuple(sorted(pickles)))
    _require_model(hub, found)
    return found


def _parse(hub: HubClient, path: str, data: bytes) -> dict[str, Any]:
    try:
        return parse_object(data, "answer")
    except FormatError as error:
        raise hub.invalid_response(path, error.got, "a JSON object") from error


def _with_hashes(hub: HubClient, commit: str, siblings: list[Any]) -> list[Any]:
    """Ask for the folder listing, because some mirrors omit sizes and hashes in the info."""
    path = tree_path(hub.source, commit)
    data = hub.read(path, _MAX_LISTING_BYTES)
    tree = _parse(hub, path, b'{"files":%b}' % data)["files"]
    found: dict[object, dict[str, Any]] = {}
    for entry in tree if isinstance(tree, list) else ():
        if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
            raise hub.invalid_response(path, f"file {entry!r}", "a file with a path")
        found[entry["path"]] = {"size": entry.get("size"), "blobId": entry.get("oid")}
        lfs = entry.get("lfs")
        if isinstance(lfs, dict):
            found[entry["path"]]["lfs"] = {"sha256": lfs.get("oid"), "size": lfs.get("size")}
    return [
        {**entry, **found.get(entry["rfilename"], {})}
        if isinstance(entry, dict) and isinstance(entry.get("rfilename"), str)
        else entry
        for entry in siblings
    ]


def _is_wanted(name: str) -> bool:
    is_weights = "/" not in name and name.endswith((".safetensors", INDEX_SUFFIX))
    return is_weights or name in _KNOWN_NAMES


def _refuse_escape(hub: HubClient, name: str) -> None:
    parts = name.split("/")
    if (
        any(part in ("", ".", "..") for part in parts)
        or any(c in name for c in "\\:")
        or not name.isprintable()
    ):
        raise CheckpointError(
            f"{hub.source}: a file name in the repository leaves its folder",
            got=repr(name[:120]),
            wanted="relative names without .., \\ or :",
            do="Do not use this repository.",
        )


def _file(hub: HubClient, path: str, name: str, entry: dict[str, Any]) -> HubFile:
    """Check one entry: a large file states its SHA-256, a small one its git hash."""
    lfs = entry.get("lfs")
    if lfs is not None:
        n_bytes = lfs.get("size") if isinstance(lfs, dict) else None
        digest = lfs.get("sha256") if isinstance(lfs, dict) else None
        form = _SHA256
    else:
        n_bytes, digest, form = entry.get("size"), entry.get("blobId"), COMMIT
    if not isinstance(digest, str) or form.fullmatch(digest) is None:
        raise hub.invalid_response(path, f"{name}: hash {digest!r}", "lfs.sha256 or blobId")
    limit = _MAX_FILE_BYTES
    if name in TEXT_NAMES:
        limit = _MAX_ASSET_BYTES
    elif name.endswith(INDEX_SUFFIX):
        limit = MAX_INDEX_BYTES
    if not isinstance(n_bytes, int) or isinstance(n_bytes, bool) or not 0 <= n_bytes <= limit:
        raise hub.invalid_response(
            path, f"{name}: size {n_bytes!r}", f"a size of 0 .. {limit} bytes"
        )
    return HubFile(name, n_bytes, digest)


def _require_model(hub: HubClient, listing: Listing) -> None:
    if CONFIG_NAME not in listing.files:
        raise MissingFileError(
            f"{hub.source}: the repository holds no {CONFIG_NAME}",
            wanted="a model in the layout of transformers",
            do="Name the repository of the original weights.",
        )
    if any(name.endswith(INDEX_SUFFIX) for name in listing.files):
        return  # the index names the files; which they are is known after its download
    try:
        choose_weight_files(listing.names, lambda index: {}, hub.source)
    except MissingFileError as error:
        raise MissingFileError(
            f"{hub.source}: the repository holds no weights that edgekit reads",
            got=error.got,
            wanted=error.wanted,
            do="Choose a revision or repository with safetensors.",
        ) from error
