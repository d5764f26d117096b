"""Answer one question: which files make up a model folder?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Final

from edgekit.errors import CheckpointError
from edgekit.strict_json import read_object

CONFIG_NAME: Final = "config.json"
WEIGHTS_NAME: Final = "model.safetensors"
INDEX_NAME: Final = "model.safetensors.index.json"
CARD_NAME: Final = "README.md"
GENERATION_NAME: Final = "generation_config.json"
ASSET_NAMES: Final = (
    CONFIG_NAME,
    GENERATION_NAME,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
TEKKEN_NAME: Final = "tekken.json"
TEMPLATES_FOLDER: Final = "additional_chat_templates"
# What says how text becomes token ids and where an answer ends (text/files.py).
TEXT_NAMES: Final = (
    *ASSET_NAMES,
    TEKKEN_NAME,
    "added_tokens.json",
    "chat_template.json",
    "merges.txt",
    "tokenizer.model",
    "vocab.json",
)
# Read where the usual file is not there; an artifact carries the usual one (checkpoint/assets.py).
STAND_INS: Final[Mapping[str, str]] = {
    TEKKEN_NAME: "tokenizer.json",
    "chat_template.json": "chat_template.jinja",
}
MAX_INDEX_BYTES: Final = 16 << 20
_MAX_NAME_BYTES: Final = 255


def read_weight_map(path: Path) -> dict[str, str]:
    """Read tensor name to file name from the index.

    Raises:
        CheckpointError: No map, or a file name that is not a plain name beside the index.
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
