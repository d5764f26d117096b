"""Names of the files in a model folder, and the choice of those that hold the weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from edgekit.errors import CheckpointError, MissingFileError
from edgekit.strict_json import read_object

CONFIG_NAME: Final = "config.json"
WEIGHTS_NAME: Final = "model.safetensors"
INDEX_NAME: Final = "model.safetensors.index.json"
CARD_NAME: Final = "README.md"
GENERATION_NAME: Final = "generation_config.json"
TOKENIZER_NAME: Final = "tokenizer.json"
TOKENIZER_CONFIG_NAME: Final = "tokenizer_config.json"
SPECIAL_MAP_NAME: Final = "special_tokens_map.json"
ADDED_TOKENS_NAME: Final = "added_tokens.json"
SENTENCEPIECE_NAME: Final = "tokenizer.model"
VOCAB_NAME: Final = "vocab.json"
MERGES_NAME: Final = "merges.txt"
TEMPLATE_NAME: Final = "chat_template.jinja"
# Where processors of multimodal models keep their template; the tokenizer's own comes first.
OLD_TEMPLATE_NAME: Final = "chat_template.json"
ASSET_NAMES: Final = (
    CONFIG_NAME,
    GENERATION_NAME,
    TOKENIZER_NAME,
    TOKENIZER_CONFIG_NAME,
    SPECIAL_MAP_NAME,
    TEMPLATE_NAME,
)
TEKKEN_NAME: Final = "tekken.json"
TEMPLATES_FOLDER: Final = "additional_chat_templates"
# What says how text becomes token ids and where an answer ends (text/files.py).
TEXT_NAMES: Final = (
    *ASSET_NAMES,
    TEKKEN_NAME,
    ADDED_TOKENS_NAME,
    OLD_TEMPLATE_NAME,
    SENTENCEPIECE_NAME,
    VOCAB_NAME,
    MERGES_NAME,
)
# Read where the usual file is absent; an artifact always holds the usual one.
STAND_INS: Final[Mapping[str, str]] = {
    TEKKEN_NAME: TOKENIZER_NAME,
    SENTENCEPIECE_NAME: TOKENIZER_NAME,
    VOCAB_NAME: TOKENIZER_NAME,
    MERGES_NAME: TOKENIZER_NAME,
    OLD_TEMPLATE_NAME: TEMPLATE_NAME,
}
ADAPTER_CONFIG_NAME: Final = "adapter_config.json"
# PEFT's name, and mlx-lm's.
ADAPTER_WEIGHTS_NAMES: Final = ("adapter_model.safetensors", "adapters.safetensors")
MAX_INDEX_BYTES: Final = 16 << 20
PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
INDEX_SUFFIX: Final = ".safetensors.index.json"
_SUFFIX: Final = ".safetensors"
_SHARD: Final = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<total>\d{5})\.safetensors")
# mlx-lm saves earlier states of a training run as 0000100_adapters.safetensors.
_ADAPTER: Final = re.compile(r"adapter_model.*\.safetensors|(\d+_)?adapters\.safetensors")
_MISTRAL_OWN: Final = re.compile(r"consolidated.*\.safetensors")
_MAX_NAME_BYTES: Final = 255
_MAX_LISTED: Final = 8


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The files that hold a model's weights.

    Attributes:
        names: Files, in the order in which they are read.
        index: The index that says which file holds which tensor; None if there is none.
        note: What is unusual about the choice, for the user; None if nothing is.
        is_counted: Whether the names or the index say how many files there are.
    """

    names: tuple[str, ...]
    index: str | None = None
    note: str | None = None
    is_counted: bool = True


def choose_weight_files(
    names: Collection[str], read_map: Callable[[str], Mapping[str, str]], where: object
) -> WeightFiles:
    """Choose the files of a folder or repository that hold the weights.

    ``model.safetensors`` comes first, then the files of an index, as in transformers. Without
    either, a complete set of numbered shards is taken, and last any other safetensors files.
    Adapters and Mistral's own ``consolidated.safetensors`` are never taken.

    Args:
        names: Names of the files at the top level.
        read_map: Reads the index with this name: tensor name to file name.
        where: The folder or repository, for messages.

    Raises:
        MissingFileError: There are no weights, or some files are missing; the message names them.
        CheckpointError: Several sets of files could be the weights, or the index is damaged.
    """
    tensors = sorted(name for name in names if name.endswith(_SUFFIX))
    if WEIGHTS_NAME in tensors:
        return WeightFiles((WEIGHTS_NAME,), None, _note_unread(tensors, (WEIGHTS_NAME,)))
    indices = sorted(name for name in names if name.endswith(INDEX_SUFFIX))
    if INDEX_NAME in indices or len(indices) == 1:
        index = INDEX_NAME if INDEX_NAME in indices else indices[0]
        shards = tuple(sorted(set(read_map(index).values())))
        _require_all(shards, names, f"every file that {index} names", where)
        return WeightFiles(shards, index, _note_unread(tensors, shards))
    tensors = [name for name in tensors if not _ADAPTER.fullmatch(name)]
    sets = {
        (shard["stem"], int(shard["total"]))
        for shard in map(_SHARD.fullmatch, tensors)
        if shard and int(shard["total"])
    }
    if len(sets) > 1:
        raise CheckpointError(
            f"{where}: several sets of weight files and no {INDEX_NAME}",
            got=", ".join(f"{stem}-*-of-{total:05}{_SUFFIX}" for stem, total in sorted(sets)),
            wanted="one of them",
            do="Keep only the files of one model in the folder.",
        )
    for stem, total in sets:
        shards = tuple(f"{stem}-{i + 1:05}-of-{total:05}{_SUFFIX}" for i in range(total))
        _require_all(shards, names, f"all {total} files of the model", where)
        return WeightFiles(shards, None, f"read without {INDEX_NAME}: {_listed(shards)}")
    plain = tuple(name for name in tensors if not _MISTRAL_OWN.fullmatch(name))
    if not plain:
        raise _no_weights(names, tensors, where)
    note = f"read as the weights: {_listed(plain)} (no {WEIGHTS_NAME})"
    return WeightFiles(plain, None, note, is_counted=False)


def _require_all(
    shards: tuple[str, ...], names: Collection[str], wanted: str, where: object
) -> None:
    missing = [name for name in shards if name not in names]
    if missing:
        raise MissingFileError(
            f"{where}: {len(missing)} of {len(shards)} weight files are missing",
            got=f"no {_listed(missing)}",
            wanted=wanted,
            do="Copy the missing files into the folder, or download the model again.",
        )


def _note_unread(tensors: list[str], read: tuple[str, ...]) -> str | None:
    """Name the other safetensors files; Mistral publishes its own file next to the usual ones."""
    others = [
        name
        for name in tensors
        if name not in read and not _MISTRAL_OWN.fullmatch(name) and not _ADAPTER.fullmatch(name)
    ]
    return f"not read: {_listed(others)} (the weights are in {_listed(read)})" if others else None


def _no_weights(names: Collection[str], tensors: list[str], where: object) -> MissingFileError:
    """Make the error for a folder without weights: what it holds instead, and what to do."""
    pickles = sorted(name for name in names if name.endswith(PICKLES))
    if pickles:
        return MissingFileError(
            f"{where}: no weights",
            got=f"{_listed(pickles)} (pickle files are never read)",
            wanted=f"{WEIGHTS_NAME} or {INDEX_NAME}",
            do="Save the model as safetensors, with transformers: "
            "AutoModelForCausalLM.from_pretrained(MODEL).save_pretrained(FOLDER)",
        )
    if tensors:
        return MissingFileError(
            f"{where}: no weights in the layout of transformers",
            got=f"{_listed(tensors)}, Mistral's own layout",
            wanted=f"{WEIGHTS_NAME} or {INDEX_NAME}",
            do="Use the files in the layout of transformers, which most such repositories hold "
            "too, or convert these with transformers.",
        )
    ggufs = sorted(name for name in names if name.endswith(".gguf"))
    if ggufs:
        return MissingFileError(
            f"{where}: no weights",
            got=_listed(ggufs),
            wanted=f"{WEIGHTS_NAME} or {INDEX_NAME}",
            do=f"Name the GGUF file instead of the folder: {ggufs[0]}",
        )
    return MissingFileError(
        f"{where}: no weights",
        got=_listed(a) if (a := sorted(filter(_ADAPTER.fullmatch, names))) else None,
        wanted=f"{WEIGHTS_NAME} or {INDEX_NAME}",
        do="Copy the weight files into the folder, or download the model again.",
    )


def _listed(names: Collection[str]) -> str:
    some = list(names)[:_MAX_LISTED]
    return ", ".join(some) + (
        f" and {len(names) - len(some)} more" if len(names) > _MAX_LISTED else ""
    )


def read_weight_map(path: Path) -> dict[str, str]:
    """Read the index of the weight files: tensor name to file name.

    Raises:
        CheckpointError: Not such a map, or a file name that leads out of the folder.
    """
    entries = read_object(path, max_bytes=MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(entries, dict) or not entries:
        raise CheckpointError(f"{path}: weight_map", wanted="an object: tensor name to file name")
    for file_name in set(map(str, entries.values())):
        is_plain = PurePosixPath(file_name).name == file_name and "\\" not in file_name
        is_plain &= file_name.isprintable() and len(file_name.encode()) <= _MAX_NAME_BYTES
        if not is_plain or not file_name.endswith(".safetensors") or ":" in file_name:
            raise CheckpointError(
                f"{path}: weight file",
                got=repr(file_name[:120]),
                wanted="a plain .safetensors name in the same folder",
            )
    return {name: str(file_name) for name, file_name in entries.items()}
