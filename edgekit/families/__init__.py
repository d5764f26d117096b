"""Model families: one file per model_type, which reads its config and its tensor names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from edgekit.checkpoint.adapted import AdaptedCheckpoint
from edgekit.checkpoint.adapter import Adapter
from edgekit.checkpoint.base import Checkpoint
from edgekit.checkpoint.gguf.file import GgufCheckpoint, is_gguf
from edgekit.checkpoint.reader import open_checkpoint
from edgekit.checkpoint.remote import open_headers
from edgekit.checkpoint.repository import PackagedModel, find_packaged, offering_package
from edgekit.errors import UnsupportedArchError
from edgekit.families.base import Family, SourceModel
from edgekit.families.other_types import (
    describe_other_type,
    other_route,
    refuse_other_heads,
)
from edgekit.lazy import load_object
from edgekit.progress import Progress, ignore_progress

FAMILIES: Final[Mapping[str, str]] = {
    "exaone": "edgekit.families.exaone:FAMILY",
    "exaone4": "edgekit.families.exaone4:FAMILY",
    "gemma": "edgekit.families.gemma:FAMILY",
    "gemma2": "edgekit.families.gemma2:FAMILY",
    "gemma3": "edgekit.families.gemma3:FAMILY",
    "gemma3_text": "edgekit.families.gemma3_text:FAMILY",
    "granite": "edgekit.families.granite:FAMILY",
    "granitemoehybrid": "edgekit.families.granitemoehybrid:FAMILY",
    "hunyuan_v1_dense": "edgekit.families.hunyuan_v1_dense:FAMILY",
    "llama": "edgekit.families.llama:FAMILY",
    "mimo": "edgekit.families.mimo:FAMILY",
    "minicpm": "edgekit.families.minicpm:FAMILY",
    "ministral": "edgekit.families.ministral:FAMILY",
    "ministral3": "edgekit.families.ministral3:FAMILY",
    "mistral": "edgekit.families.mistral:FAMILY",
    "mistral3": "edgekit.families.mistral3:FAMILY",
    "olmo2": "edgekit.families.olmo2:FAMILY",
    "olmo3": "edgekit.families.olmo3:FAMILY",
    "phi3": "edgekit.families.phi3:FAMILY",
    "qwen2": "edgekit.families.qwen2:FAMILY",
    "qwen2_5_vl": "edgekit.families.qwen2_5_vl:FAMILY",
    "qwen2_vl": "edgekit.families.qwen2_vl:FAMILY",
    "qwen3": "edgekit.families.qwen3:FAMILY",
    "qwen3_vl": "edgekit.families.qwen3_vl:FAMILY",
    "smollm3": "edgekit.families.smollm3:FAMILY",
    "xverse": "edgekit.families.xverse:FAMILY",
}


def open_family(checkpoint: Checkpoint) -> SourceModel:
    """Read a checkpoint through the family of its ``model_type``.

    Raises:
        UnsupportedArchError: No family has that model_type, or the model is not a language model.
        CheckpointError: Config or tensors are not what the family expects; all faults are named.
    """
    refuse_other_heads(checkpoint.config)
    model_type = checkpoint.config.get("model_type")
    reference = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if reference is None:
        raise UnsupportedArchError(
            f"{checkpoint.folder}: model_type",
            got=describe_other_type(checkpoint.config),
            wanted=", ".join(sorted(FAMILIES)),
            do=other_route(model_type),
        )
    family: Family = load_object(reference)
    return SourceModel(checkpoint, family)


def open_model(
    model: str | Path,
    *,
    headers_only: bool = False,
    adapter: str | Path | None = None,
    progress: Progress = ignore_progress,
    ignore_config_keys: Iterable[str] = (),
) -> SourceModel:
    """Open a model by folder, GGUF file, name or Hub id, and read it by its family.

    Args:
        model: Folder, GGUF file, bundled name, name of a recipe, or Hub id. A recipe that names an
            installed package is read from there, and a note says so.
        headers_only: Download no weights; the tensors of a model that is not on this disk can
            then be listed and not read.
        adapter: Folder of a LoRA adapter that is merged into the weights while they are read.
        progress: Called as ``progress(what, n_done, n_total)`` while a model is downloaded.
        ignore_config_keys: Keys of config.json, or of a GGUF file's metadata, that pass whatever
            their value is; one of a section is written ``section.key``.

    Raises:
        CheckpointError: See ``open_checkpoint`` and ``open_family``.
        UsageError: Keys to ignore are not there, or the family computes with them.
        FormatError: A weight file is damaged.
    """
    asked = None if adapter is None else Adapter.open(adapter)
    try:
        checkpoint = _open_checkpoint(
            model, progress, ignore_config_keys, headers_only=headers_only
        )
    except BaseException:
        if asked is not None:
            asked.close()
        raise
    if asked is not None:
        checkpoint = AdaptedCheckpoint(checkpoint, asked)
    try:
        if asked is None and (within := Adapter.unmerged(checkpoint.folder, checkpoint.tensors)):
            checkpoint = AdaptedCheckpoint(checkpoint, within)
        elif asked is None and checkpoint.adapter_files:
            checkpoint.notes.append(
                f"{' and '.join(checkpoint.adapter_files)} is an adapter file next to the weights "
                "and was not merged into them; if the weights are those of the base model: "
                f"--adapter {checkpoint.folder}"
            )
        return open_family(checkpoint)
    except BaseException:
        checkpoint.close()
        raise


def _open_checkpoint(
    model: str | Path, progress: Progress, ignore_keys: Iterable[str], *, headers_only: bool
) -> Checkpoint:
    ignore_keys = tuple(ignore_keys)
    packaged = find_packaged(model)
    if packaged is not None or is_gguf(model):
        checkpoint: Checkpoint = (
            GgufCheckpoint(model, ignore_keys)
            if packaged is None
            else _open_packaged(str(model), packaged, ignore_keys)
        )
        checkpoint.ignored_config_keys = ignore_keys
        return checkpoint
    with offering_package(model):
        checkpoint = open_headers(model) if headers_only else open_checkpoint(model, progress)
    try:
        checkpoint.config.ignore_as_asked(ignore_keys)
        checkpoint.ignored_config_keys = ignore_keys
    except BaseException:
        checkpoint.close()
        raise
    return checkpoint


def _open_packaged(
    name: str, packaged: PackagedModel, ignore_keys: Iterable[str]
) -> GgufCheckpoint:
    """Open the model of a recipe from an installed package, with a note that says so."""
    checkpoint = GgufCheckpoint(packaged.file, ignore_keys)
    checkpoint.name = checkpoint.origin = name
    checkpoint.notes.insert(
        0,
        f"read from {packaged.file.name} of the installed package {packaged.package}, not from "
        f"the Hub; {packaged.source} means the one there",
    )
    return checkpoint
