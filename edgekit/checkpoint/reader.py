"""``FolderCheckpoint``: a model folder as config and tensors that can be read one at a time.

Config and tensor headers are read and checked at once; weights only when asked for. Pickles
are never read. This module does not know what the tensors mean.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol

from edgekit.checkpoint.adapter import refuse_adapter_folder
from edgekit.checkpoint.base import Checkpoint
from edgekit.checkpoint.config import RawConfig
from edgekit.checkpoint.prequantized.method import join_parts, read_beside
from edgekit.checkpoint.repository import model_name, resolve_model
from edgekit.errors import CheckpointError, FormatError, MissingFileError
from edgekit.files import is_inside, open_inside
from edgekit.formats.safetensors import SafetensorsFile, SafetensorsTensor
from edgekit.model_files import (
    ADAPTER_WEIGHTS_NAMES,
    ASSET_NAMES,
    CONFIG_NAME,
    choose_weight_files,
    read_weight_map,
)
from edgekit.progress import Progress, ignore_progress
from edgekit.tensors import LazyTensor
from edgekit.text.files import TextFiles

_CARD_NAME: Final = "README.md"
_MAX_CARD_BYTES: Final = 1 << 16


class WeightFiles(Protocol):
    """The files of a model as they are listed and opened, on this disk or elsewhere."""

    def names(self) -> tuple[str, ...]:
        """Give the names of all files."""

    def open(self, name: str) -> SafetensorsFile:
        """Open a weight file: its header is read.

        Raises:
            FormatError: The header is damaged.
        """


class FolderFiles:
    """The files at the top of a folder."""

    def __init__(self, folder: Path) -> None:
        """Name the folder."""
        self._folder = folder

    def names(self) -> tuple[str, ...]:
        """Give the names of all files."""
        return tuple(sorted(path.name for path in self._folder.iterdir() if path.is_file()))

    def open(self, name: str) -> SafetensorsFile:
        """Open a weight file: its header is read.

        Raises:
            FormatError: The header is damaged.
        """
        return SafetensorsFile(self._folder / name)


class FolderCheckpoint(Checkpoint):
    """An open model folder."""

    def __init__(
        self, model: str | Path, folder: Path, weight_files: WeightFiles | None = None
    ) -> None:
        """Open the folder of a model; see ``open_checkpoint``.

        Args:
            model: What the user named.
            folder: Folder of config, tokenizer and template.
            weight_files: The weight files; None for those in the same folder.
        """
        self.folder = folder
        self.notes = []
        self.name = model_name(model, self.folder)
        self.origin = str(model)
        _refuse_lost_links(self.folder)
        require_config(self.folder)
        self.config = RawConfig.open(self.folder / CONFIG_NAME)
        self.assets = MappingProxyType(
            {name: self.folder / name for name in ASSET_NAMES if (self.folder / name).is_file()}
        )
        self._refuse_links_out()
        weight_files = weight_files or FolderFiles(folder)
        names = weight_files.names()
        self.adapter_files = tuple(name for name in ADAPTER_WEIGHTS_NAMES if name in names)
        self._files = ExitStack()
        try:
            self.tensors = MappingProxyType(self._open_tensors(weight_files, names))
        except BaseException:
            self.close()
            raise

    def fetch_text(self) -> None:
        """Do nothing: tokenizer and chat template are here."""

    @property
    def text_files(self) -> TextFiles:
        """The tokenizer, chat template and generation files of the model."""
        return TextFiles.of_folder(self.folder)

    @property
    def license(self) -> str:
        """The license that the model card names; empty if there is none."""
        return _read_license(self.folder / _CARD_NAME)

    @property
    def weights_bytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(tensor.info.n_bytes for tensor in self.tensors.values())

    @property
    def assets_bytes(self) -> int:
        """Bytes of the files that every artifact holds unchanged."""
        return sum(path.stat().st_size for path in self.assets.values())

    def weights(self) -> dict[str, LazyTensor]:
        """Give the weights by the checkpoint's names for them; nothing is read yet.

        Codes or values and their scales are one weight together (prequantized/method.py); what
        is read as floats and what is left out is added to ``notes``.

        Raises:
            CheckpointError: Parts are missing or do not fit together or the config.
        """
        return join_parts(
            self.tensors,
            self.config,
            reads=self.has_weights,
            notes=self.notes,
            section_beside=read_beside(self.folder),
        )

    def sha256(self) -> str:
        """Hash config.json as stored and every tensor; the same however the file is sharded."""
        config = json.dumps(self.config.as_read(), sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(config.encode())
        for name in sorted(self.tensors):
            tensor = self.tensors[name]
            info = tensor.info
            digest.update(f"\n{name} {info.dtype.value} {list(info.shape)}\n".encode())
            for piece in tensor.raw_pieces():
                digest.update(piece.data)
        return digest.hexdigest()

    def close(self) -> None:
        """Close the files; safe to call twice."""
        self._files.close()

    def _refuse_links_out(self) -> None:
        """Refuse assets that are links to elsewhere: an export would copy what they lead to."""
        outside = [name for name, path in self.assets.items() if not is_inside(path)]
        if outside:
            raise CheckpointError(
                f"{self.folder}: links that lead out of the folder",
                got=", ".join(outside),
                wanted="files of the model",
                do="Put the files themselves in place of the links, if you trust where they lead.",
            )

    def _open_tensors(
        self, files: WeightFiles, names: tuple[str, ...]
    ) -> dict[str, SafetensorsTensor]:
        """Find the weight files and list their tensors; a note says what is unusual."""
        chosen = choose_weight_files(names, self._read_map, self.folder)
        if chosen.note is not None:
            self.notes.append(chosen.note)
        shard_of = self._read_map(chosen.index) if chosen.index is not None else {}
        shards = {name: self._open_file(files, name) for name in chosen.names}
        absent = [f"{t} (in {s})" for t, s in shard_of.items() if t not in shards[s].tensors]
        if absent:
            raise CheckpointError(
                f"{self.folder / str(chosen.index)} lists tensors that their files do not hold",
                got=", ".join(absent[:8]) + (f" and {len(absent) - 8} more" if absent[8:] else ""),
                do="Index and files must come from the same model.",
            )
        found: dict[str, SafetensorsTensor] = {}
        for shard_name, shard in shards.items():
            for name, tensor in shard.tensors.items():
                if shard_of.get(name, shard_name) != shard_name:
                    continue
                if name in found:
                    raise CheckpointError(
                        f"{self.folder}: two weight files hold the same tensor",
                        got=f"{name} in {found[name].file.path.name} and in {shard_name}",
                        wanted="the files of one model",
                        do="Leave the files of one model in the folder.",
                    )
                found[name] = tensor
        return found

    def _read_map(self, index: str) -> dict[str, str]:
        return read_weight_map(self.folder / index)

    def _open_file(self, files: WeightFiles, name: str) -> SafetensorsFile:
        try:
            return self._files.enter_context(files.open(name))
        except FormatError as error:
            raise FormatError(
                error.what,
                got=error.got,
                wanted=error.wanted,
                do=error.do or "Download the model again.",
            ) from error


def _refuse_lost_links(folder: Path) -> None:
    """Refuse links to files that are gone, as a copied snapshot of a cache consists of.

    Raises:
        MissingFileError: There are some; all are named.
    """
    lost = [path for path in sorted(folder.iterdir()) if path.is_symlink() and not path.exists()]
    wanted = [p for p in lost if p.name in ASSET_NAMES or p.suffix == ".safetensors"]
    if wanted:
        first = wanted[0]
        raise MissingFileError(
            f"{folder}: links to files that are not there",
            got=", ".join(path.name for path in wanted[:8]),
            wanted=f"the files themselves; {first.name} leads to {first.readlink()}",
            do="Copy the folder with what its links lead to (cp -rL), or download it again.",
        )


def _read_license(card: Path) -> str:
    """Read ``license`` from the front matter of a model card, which is untrusted text."""
    try:
        with open_inside(card) as stream:
            lines = stream.read(_MAX_CARD_BYTES).decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    if not lines or lines[0].strip() != "---":
        return ""
    for line in lines[1:]:
        key, _, value = line.partition(":")
        if line.strip() == "---":
            break
        is_named = key in ("license", "license_name") and value.strip() not in ("", "other")
        if is_named and value.strip().isprintable():
            return value.strip().strip("\"'")[:80]
    return ""


def require_config(folder: Path) -> None:
    """Refuse a folder without config.json, and say what it is instead.

    Raises:
        MissingFileError: It has no config.json.
    """
    if os.path.lexists(folder / CONFIG_NAME):
        return
    refuse_adapter_folder(folder)
    inner = sorted(path.parent for path in folder.glob(f"*/{CONFIG_NAME}"))
    inner += sorted(path.parent for path in folder.glob(f"snapshots/*/{CONFIG_NAME}"))
    ggufs = sorted(folder.glob("*.gguf"))
    raise MissingFileError(
        f"{folder / CONFIG_NAME}: no such file",
        wanted=f"a model folder with {CONFIG_NAME}",
        do=f"Name the folder that holds it: {inner[0]}"
        if inner
        else f"Name the GGUF file: {ggufs[0]}"
        if ggufs
        else "Name the folder that holds it, or download the model again.",
    )


def open_checkpoint(model: str | Path, progress: Progress = ignore_progress) -> Checkpoint:
    """Open a model: config and headers are checked, no weight is read.

    Args:
        model: Folder, bundled name, or Hub id (``owner/name`` or ``owner/name@revision``).
        progress: Called as ``progress(what, n_done, n_total)`` while a model is downloaded.

    Raises:
        MissingFileError: config.json or a weight file is absent; all absent ones are named.
        CheckpointError: No such model, the download failed, or config or index are damaged.
        FormatError: A weight file is damaged.
    """
    return FolderCheckpoint(model, resolve_model(model, progress))
