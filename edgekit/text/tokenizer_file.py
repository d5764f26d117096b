"""The tokenizer files of a model, merged into one tokenizer.json.

tokenizer.json alone is not enough. transformers lets tokenizer_config.json overrule parts of it
(but not ``add_bos_token``), and adds the tokens that tokenizer_config.json, added_tokens.json and
special_tokens_map.json name; edgekit gives the same token ids as transformers. A model that has
only another kind of tokenizer file (tekken.json, tokenizer.model, vocab.json with merges.txt) is
read as well. Nothing here encodes text.

Source: transformers 5.23, tokenization_utils_base.py (``_from_pretrained``: which file counts),
tokenization_utils_tokenizers.py (``TokenizersBackend``), models/llama and models/code_llama.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from edgekit.errors import CheckpointError, MissingFileError
from edgekit.model_files import (
    ADDED_TOKENS_NAME,
    CONFIG_NAME,
    MERGES_NAME,
    SENTENCEPIECE_NAME,
    SPECIAL_MAP_NAME,
    TEKKEN_NAME,
    TOKENIZER_CONFIG_NAME,
    TOKENIZER_NAME,
    VOCAB_NAME,
)
from edgekit.text.byte_files import Naming, convert_vocab
from edgekit.text.files import TextFiles
from edgekit.text.sentencepiece import convert_sentencepiece, llama_parts
from edgekit.text.tekken import TEKKEN_ROLES, convert_tekken
from edgekit.text.tokenizer_class import CODE_LLAMA, DEFAULT_ROLES, LLAMA, QWEN2, tokenizer_class

TOKEN_FLAGS: Final = ("special", "single_word", "lstrip", "rstrip", "normalized")
MAX_TOKENIZER_BYTES: Final = 64 << 20
TOKENIZER_SOURCES: Final[tuple[tuple[str, ...], ...]] = (
    (TOKENIZER_NAME,),
    (TEKKEN_NAME,),
    (SENTENCEPIECE_NAME,),
    (VOCAB_NAME, MERGES_NAME),
)
"""The files that make a tokenizer; the first of them that a model has is used."""
_STANDARD_ROLES: Final = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip
_MAX_DIGITS: Final = 9
_EXTRA: Final = "extra_special_tokens"
_OLD_EXTRA: Final = "additional_special_tokens"
_LISTED: Final = "added_tokens_decoder"

NewToken: TypeAlias = Mapping[str, Any]
"""Content of an added token, and those of its flags that are stated, by name."""


@dataclass(frozen=True, slots=True)
class TokenizerFile:
    """The tokenizer of a model, from all its files.

    Attributes:
        path: The file it came from.
        text: A tokenizer.json for the tokenizers library; tokens that only other files name are
            not in it.
        is_changed: Whether the text is not what the model has as tokenizer.json.
        named_tokens: Role to text, such as ``bos_token`` to ``<s>``.
        stated_roles: The roles that a file names, not only the tokenizer's class.
        listed: Stated id to token, for tokens that other files list.
        is_list_whole: Whether the list replaces the added tokens of tokenizer.json.
        named: Tokens that have a role or are called special, in the order of being added.
        reset: Texts of tokens that the class makes special without any other flag.
    """

    path: Path
    text: str
    is_changed: bool
    named_tokens: Mapping[str, str]
    stated_roles: frozenset[str]
    listed: Mapping[int, NewToken]
    is_list_whole: bool
    named: tuple[NewToken, ...]
    reset: tuple[str, ...]


def has_tokenizer(files: TextFiles) -> bool:
    """Tell whether a model has the files of a tokenizer."""
    return any(all(map(files.has, names)) for names in TOKENIZER_SOURCES)


def read_tokenizer_file(source: str | Path | TextFiles) -> TokenizerFile:
    """Read the tokenizer files of a model.

    Args:
        source: A model folder, or its text files.

    Raises:
        MissingFileError: No tokenizer file of any kind.
        CheckpointError: A file is damaged.
    """
    files = TextFiles.of(source)
    names = next((n for n in TOKENIZER_SOURCES if all(map(files.has, n))), None)
    if names is None:
        raise MissingFileError(
            f"{files.where}: no tokenizer",
            wanted=f"one of {describe_sources()}",
            do="Copy the tokenizer files of the model next to its weights.",
        )
    config = files.read_object(TOKENIZER_CONFIG_NAME)
    path = files.path(names[0])
    original = _read_text(files, TOKENIZER_NAME) if names[0] == TOKENIZER_NAME else ""
    class_name = _class_of(files, config, original)
    stated = _Stated.read(files, config, class_name)
    pieces: tuple[NewToken, ...] = ()
    named_tokens = stated.named_tokens(files, class_name)
    ids = {str(token["content"]): token_id for token_id, token in stated.listed.items()}
    naming = Naming(class_name, named_tokens, ids)
    if names[0] == TOKENIZER_NAME:
        text = _as_its_class_does(original, config, class_name, path)
    elif names[0] == TEKKEN_NAME:
        text = convert_tekken(_read_text(files, TEKKEN_NAME), path)
    elif names[0] == SENTENCEPIECE_NAME:
        data = files.read(SENTENCEPIECE_NAME, MAX_TOKENIZER_BYTES) or b""
        text, pieces = convert_sentencepiece(data, path, naming, config)
    else:
        vocab, merges = _read_text(files, VOCAB_NAME), _read_text(files, MERGES_NAME)
        text = convert_vocab(vocab, merges, path, naming, config)
    named = (*stated.with_defaults(class_name).values(), *pieces, *stated.extra)
    return TokenizerFile(
        path=path,
        text=text,
        is_changed=text != original,
        named_tokens=named_tokens,
        stated_roles=frozenset(stated.roles),
        listed=stated.listed,
        is_list_whole=stated.is_list_whole,
        named=named,
        reset=tuple(token["content"] for token in named) if class_name == QWEN2 else (),
    )


def describe_sources() -> str:
    """Name the files that make a tokenizer, for a message."""
    return ", ".join(" with ".join(names) for names in TOKENIZER_SOURCES)


def read_named_tokens(files: TextFiles) -> dict[str, str]:
    """Read which texts are the begin, end, pad and unknown token.

    Raises:
        CheckpointError: A file is damaged.
    """
    config = files.read_object(TOKENIZER_CONFIG_NAME)
    class_name = _class_of(files, config, _read_text(files, TOKENIZER_NAME))
    return _Stated.read(files, config, class_name).named_tokens(files, class_name)


@dataclass(frozen=True, slots=True)
class _Stated:
    """Tokens that the files other than tokenizer.json name.

    Where tokenizer_config.json lists the added tokens, neither special_tokens_map.json nor
    added_tokens.json counts; otherwise special_tokens_map.json wins over tokenizer_config.json.
    """

    roles: Mapping[str, NewToken]
    absent_roles: frozenset[str]
    extra: tuple[NewToken, ...]
    listed: Mapping[int, NewToken]
    is_list_whole: bool

    @classmethod
    def read(cls, files: TextFiles, config: Mapping[str, Any], class_name: str) -> _Stated:
        merged = dict(config)
        # The list's new name wins; an empty list counts as a list under either name.
        extra = config.get(_EXTRA) or config.get(_OLD_EXTRA, config.get(_EXTRA))
        named_extra = _named_extra(extra)
        is_list_whole = isinstance(config.get(_LISTED), dict)
        special_map = {} if is_list_whole else files.read_object(SPECIAL_MAP_NAME)
        merged |= {key: _called_special(value) for key, value in special_map.items()}
        named_extra |= _named_extra(special_map.get(_EXTRA))
        if isinstance(special_map.get(_EXTRA), list):
            extra = [*_as_list(extra), *map(_called_special, special_map[_EXTRA])]
        roles = {role: token for role, token in _roles(merged) if token is not None} | named_extra
        if is_list_whole:
            listed = _listed(config[_LISTED], files.path(TOKENIZER_CONFIG_NAME))
        else:
            # An object in tokenizer_config.json is not read yet at this point.
            special = {token["content"] for token in _tokens(extra)} | {
                roles[role]["content"]
                for role in _STANDARD_ROLES
                if role in roles and (isinstance(merged.get(role), str) or role in special_map)
            }
            listed = _legacy_list(files, special)
        if not isinstance(extra, list):
            extra = merged.get(_OLD_EXTRA)
        by_text = {token["content"]: token for token in listed.values()}
        roles = {
            role: by_text.get(token["content"], token) if role in _STANDARD_ROLES else token
            for role, token in roles.items()
        }
        absent = frozenset(role for role, token in _roles(merged) if token is None)
        return cls(roles, absent, _tokens(extra), listed, is_list_whole)

    def with_defaults(self, class_name: str) -> dict[str, NewToken]:
        """Give the roles with those of the class; null in a file means that there is none."""
        defaults = {
            role: _special(text)
            for role, text in DEFAULT_ROLES.get(class_name, {}).items()
            if role not in self.absent_roles
        }
        found = {**defaults, **self.roles}
        order = [role for role in _STANDARD_ROLES if role in found]
        return {role: found[role] for role in dict.fromkeys((*order, *found))}

    def named_tokens(self, files: TextFiles, class_name: str) -> dict[str, str]:
        """Give role to text."""
        named = dict(TEKKEN_ROLES) if _is_tekken(files) else {}
        roles = self.with_defaults(class_name).items()
        return named | {role: str(token["content"]) for role, token in roles}


def _is_tekken(files: TextFiles) -> bool:
    return not files.has(TOKENIZER_NAME) and files.has(TEKKEN_NAME)


def _class_of(files: TextFiles, config: Mapping[str, Any], text: str) -> str:
    model = files.read_object(CONFIG_NAME)
    named = config.get("tokenizer_class") or model.get("tokenizer_class")
    model_type = model.get("model_type")
    return tokenizer_class(
        named if isinstance(named, str) else None,
        model_type if isinstance(model_type, str) else None,
        is_byte_level='"ByteLevel"' in text,
    )


def _roles(merged: Mapping[str, Any]) -> Iterator[tuple[str, NewToken | None]]:
    """Give each ``..._token`` with its token; None where the file says that there is none."""
    for role, value in merged.items():
        if role.endswith("_token") and (value is None or _token(value) is not None):
            yield role, _token(value)


def _token(value: Any) -> NewToken | None:
    """Read a token written as its text, or as an object with flags."""
    if isinstance(value, str):
        return _special(value) if value else None
    content = value.get("content") if isinstance(value, dict) else None
    if not isinstance(content, str) or not content:
        return None
    return {"content": content} | {f: value[f] for f in TOKEN_FLAGS if type(value.get(f)) is bool}


def _special(text: str) -> NewToken:
    return {"content": text, "special": True}


def _called_special(value: Any) -> Any:
    return {**value, "special": True} if isinstance(value, dict) else value


def _named_extra(value: Any) -> dict[str, NewToken]:
    """Read special tokens that are given by name; they become roles."""
    items = value.items() if isinstance(value, dict) else ()
    return {role: token for role, entry in items if (token := _token(entry)) is not None}


def _tokens(values: Any) -> tuple[NewToken, ...]:
    return tuple(token for value in _as_list(values) if (token := _token(value)) is not None)


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else []


def _listed(entries: Mapping[str, Any], path: Path) -> dict[int, NewToken]:
    """Read ``added_tokens_decoder``: id, written as a text, to token."""
    listed: dict[int, NewToken] = {}
    for key, value in entries.items():
        token = _token(value) if isinstance(value, dict) else None
        if not key.isascii() or not key.isdecimal() or len(key) > _MAX_DIGITS:
            raise _not_listed(path, key, "an id")
        if token is not None:
            listed[int(key)] = token
    return listed


def _legacy_list(files: TextFiles, special: set[str]) -> dict[int, NewToken]:
    """Read added_tokens.json: text to id."""
    listed: dict[int, NewToken] = {}
    path = files.path(ADDED_TOKENS_NAME)
    for text, token_id in files.read_object(ADDED_TOKENS_NAME).items():
        if type(token_id) is not int or not 0 <= token_id < 10**_MAX_DIGITS:
            raise _not_listed(path, token_id, "an id for each token")
        if text:
            is_special = text in special
            listed[token_id] = {
                "content": text, "special": is_special, "normalized": not is_special
            }  # fmt: skip
    return listed


def _not_listed(path: Path, got: Any, wanted: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: added tokens", got=repr(got)[:80], wanted=wanted, do="Download the model again."
    )


def _as_its_class_does(text: str, config: Mapping[str, Any], name: str, path: Path) -> str:
    """Rebuild the parts that a tokenizer class of transformers builds itself.

    The classes for Llama 2 read only vocabulary, merges and the tokens around a text from the file;
    how spaces are written depends on ``legacy`` and ``add_prefix_space``.
    """
    if name not in (LLAMA, CODE_LLAMA) or '"ByteLevel"' in text:
        return text
    try:
        parsed = json.loads(text)
        wanted = {
            **llama_parts(config, name),
            "model": parsed["model"] | {"fuse_unk": True, "byte_fallback": True, "dropout": None},
        }
        if all(parsed.get(key) == value for key, value in wanted.items()):
            return text
        return json.dumps(parsed | wanted, ensure_ascii=False)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: tokenizer",
            got=str(error)[:200],
            wanted="a tokenizer.json of the tokenizers library",
            do="Download the model again.",
        ) from error


def _read_text(files: TextFiles, name: str) -> str:
    return files.read_text(name, MAX_TOKENIZER_BYTES) or ""
