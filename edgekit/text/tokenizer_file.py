"""The tokenizer files of a model, merged into one tokenizer.json.

tokenizer.json is not the whole truth: transformers lets tokenizer_config.json overrule parts of
it (but not ``add_bos_token``), and token ids shall be those of transformers. A folder that holds
Mistral's tekken.json alone is read as well. Nothing here encodes.

Source: transformers 5.23, tokenization_utils_tokenizers.py (TokenizersBackend), models/llama and
models/code_llama (their tokenizer classes), models/auto/tokenization_auto.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgekit.errors import CheckpointError, MissingFileError
from edgekit.model_files import CONFIG_NAME, TEKKEN_NAME
from edgekit.text.files import TextFiles
from edgekit.text.tekken import TEKKEN_ROLES, convert_tekken

TOKENIZER_NAME: Final = "tokenizer.json"
TOKENIZER_CONFIG_NAME: Final = "tokenizer_config.json"
SPECIAL_MAP_NAME: Final = "special_tokens_map.json"
TOKEN_FLAGS: Final = ("special", "single_word", "lstrip", "rstrip", "normalized")
MAX_TOKENIZER_BYTES: Final = 64 << 20
_REBUILDING: Final = ("LlamaTokenizer", "CodeLlamaTokenizer")
# For these transformers takes tokenizer.json as it is, whatever class the folder names.
_AS_IT_IS: Final = frozenset(
    ("ministral", "ministral3", "mistral", "mistral3", "mixtral", "phi3", "pixtral", "qwen2")
)
_EXTRA_KEYS: Final = ("additional_special_tokens", "extra_special_tokens")


@dataclass(frozen=True, slots=True)
class TokenizerFile:
    """What a model folder says about its tokenizer.

    Attributes:
        path: The file it came from.
        text: A tokenizer.json for the tokenizers library.
        is_changed: Whether the text is not what lies in the folder as tokenizer.json.
        named_tokens: Role to text, such as ``bos_token`` to ``<s>``.
        special_names: Texts that the config calls special, whatever tokenizer.json says.
        added_tokens: Text of added tokens to the flags that the config gives them.
    """

    path: Path
    text: str
    is_changed: bool
    named_tokens: Mapping[str, str]
    special_names: tuple[str, ...]
    added_tokens: Mapping[str, Mapping[str, bool]]


def read_tokenizer_file(source: str | Path | TextFiles) -> TokenizerFile:
    """Read the tokenizer files of a model.

    Args:
        source: A model folder, or its text files.

    Raises:
        MissingFileError: Neither tokenizer.json nor tekken.json.
        CheckpointError: A file is damaged.
    """
    files = TextFiles.of(source)
    config = files.read_object(TOKENIZER_CONFIG_NAME)
    named = read_named_tokens(files)
    if not is_tekken(files):
        path = files.path(TOKENIZER_NAME)
        original = _read_text(files, TOKENIZER_NAME)
        text = _as_its_class_does(original, config, files)
    else:
        path = files.path(TEKKEN_NAME)
        original, text = "", convert_tekken(_read_text(files, TEKKEN_NAME), path)
    special = list(named.values())
    for key in _EXTRA_KEYS:
        special += _names(config.get(key))
    return TokenizerFile(
        path=path,
        text=text,
        is_changed=text != original,
        named_tokens=named,
        special_names=tuple(dict.fromkeys(special)),
        added_tokens=_added_tokens(config),
    )


def is_tekken(files: TextFiles) -> bool:
    """Tell whether Mistral's tekken.json is the only tokenizer of a model."""
    return not files.has(TOKENIZER_NAME) and files.has(TEKKEN_NAME)


def read_named_tokens(files: TextFiles) -> dict[str, str]:
    """Read which texts are the begin, end, pad and unknown token.

    Raises:
        CheckpointError: A file is damaged.
    """
    named = dict(TEKKEN_ROLES) if is_tekken(files) else {}
    for name in (SPECIAL_MAP_NAME, TOKENIZER_CONFIG_NAME):
        for role, value in files.read_object(name).items():
            text = value.get("content") if isinstance(value, dict) else value
            if role.endswith("_token") and isinstance(text, str):
                named[role] = text
    return named


def _names(value: Any) -> list[str]:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    texts = [item.get("content") if isinstance(item, dict) else item for item in items]
    return [text for text in texts if isinstance(text, str)]


def _added_tokens(config: Mapping[str, Any]) -> dict[str, dict[str, bool]]:
    listed = config.get("added_tokens_decoder")
    entries = listed.values() if isinstance(listed, dict) else ()
    return {
        entry["content"]: {flag: entry.get(flag) is True for flag in TOKEN_FLAGS}
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("content"), str) and entry["content"]
    }


def _class_name(config: Mapping[str, Any]) -> str:
    return str(config.get("tokenizer_class") or "").removesuffix("Fast")


def _as_its_class_does(text: str, config: Mapping[str, Any], files: TextFiles) -> str:
    """Put in what a tokenizer class of transformers builds in place of tokenizer.json's own.

    The classes for Llama 2 take only vocabulary, merges and what goes around a text from the
    file; how spaces are written depends on ``legacy`` and ``add_prefix_space``.
    """
    name = _class_name(config)
    if name not in _REBUILDING or '"ByteLevel"' in text:
        return text
    if files.read_object(CONFIG_NAME).get("model_type") in _AS_IT_IS:
        return text
    try:
        parsed = json.loads(text)
        model = parsed["model"]
        has_prefix = config.get("add_prefix_space") is not False
        is_legacy = name == "LlamaTokenizer" and config.get("legacy", False) is True
        scheme = ("always" if is_legacy else "first") if has_prefix else "never"
        decoders: list[dict[str, Any]] = [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ]
        if has_prefix or name == "CodeLlamaTokenizer":
            decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        wanted: dict[str, Any] = {
            "normalizer": None,
            "pre_tokenizer": {
                "type": "Metaspace",
                "replacement": "▁",
                "prepend_scheme": scheme,
                "split": False,
            },
            "decoder": {"type": "Sequence", "decoders": decoders},
            "model": model | {"fuse_unk": True, "byte_fallback": True, "dropout": None},
        }
        if all(parsed.get(key) == value for key, value in wanted.items()):
            return text
        return json.dumps(parsed | wanted, ensure_ascii=False)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(
            f"{files.path(TOKENIZER_NAME)}: tokenizer",
            got=str(error)[:200],
            wanted="a tokenizer.json of the tokenizers library",
            do="Download the model again.",
        ) from error


def _read_text(files: TextFiles, name: str) -> str:
    text = files.read_text(name, MAX_TOKENIZER_BYTES)
    if text is None:
        raise MissingFileError(
            f"{files.path(name)}: no such file",
            do="edgekit reads fast tokenizers; save one as tokenizer.json.",
        )
    return text
