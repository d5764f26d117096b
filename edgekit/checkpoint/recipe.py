"""Answer one question: which real models are known by name, and what is known of each?

One TOML file per model under ``models/``. What it says was taken from the model's card and is
only shown; the checkpoint's own config decides.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from edgekit.errors import CheckpointError
from edgekit.text.chat import ChatTemplate
from edgekit.text.files import TextFiles
from edgekit.text.tokenizer import Tokenizer

_KINDS: Final[Mapping[str, type]] = {
    "str": str, "bool": bool, "int": int, "float": float, "Golden": object,
    "Package | None": object,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Golden:
    """Token ids that another program gave for the model.

    Attributes:
        status: ``produced``, or why there are none.
        source: Program, version and file that gave the ids; empty where there are none.
        texts: Texts and their ids, without a begin token.
        chat: Messages, and the ids of the prompt that asks for an answer.
    """

    status: str
    source: str = ""
    texts: tuple[tuple[str, tuple[int, ...]], ...] = ()
    chat: tuple[tuple[Mapping[str, str], ...], tuple[int, ...]] | None = None


@dataclass(frozen=True, slots=True)
class Package:
    """A Python package that holds a model as a GGUF file.

    Attributes:
        name: As pip has it; it is installed without its dependencies and never imported.
        file: Path of the GGUF file inside the environment's package folder.
    """

    name: str
    file: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """A model that can be named without knowing where it lives.

    Attributes:
        name: What the user types; the name of the file.
        title: As its makers call it.
        source: Hub id.
        revision: Branch, tag or commit.
        family: ``model_type`` of its config.
        licence: As its card says; a short identifier.
        is_gated: Whether the Hub asks for a licence to be accepted first.
        context_length: Positions.
        n_parameters_billion: Of the decoder.
        stored_as: Type of the weights.
        chat_template: Where it comes from.
        golden: Token ids of a few texts, or why there are none.
        package: A package that is read instead of the Hub where it is installed, if there is one.
    """

    name: str
    title: str
    source: str
    revision: str
    family: str
    licence: str
    is_gated: bool
    context_length: int
    n_parameters_billion: float
    stored_as: str
    chat_template: str
    golden: Golden
    package: Package | None = None


def recipes(folder: Path) -> dict[str, Recipe]:
    """Read every recipe of a folder, by name.

    Raises:
        CheckpointError: A file is damaged.
    """
    paths = sorted(folder.glob("*.toml")) if folder.is_dir() else []
    return {path.stem: read_recipe(path) for path in paths}


def read_recipe(path: Path) -> Recipe:
    """Read one recipe.

    Raises:
        CheckpointError: Unreadable, no TOML, or keys missing, unknown or of another type.
    """
    try:
        data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read", got=str(error), wanted="TOML") from error
    values = {**data, "name": path.stem}
    if "golden" in data:
        values["golden"] = _golden(data["golden"], path)
    values["package"] = _package(data.get("package"), path)
    wanted = {field.name: _KINDS[str(field.type)] for field in fields(Recipe)}
    odd = sorted(values.keys() ^ wanted.keys())
    odd += [
        key
        for key, kind in wanted.items()
        if key in values and kind is not object and type(values[key]) is not kind
    ]
    if odd:
        raise CheckpointError(
            f"{path}: keys",
            got=", ".join(odd),
            wanted=", ".join(wanted),
            do="Compare with another.",
        )
    return Recipe(**values)


def _package(section: Any, path: Path) -> Package | None:
    if section is None:
        return None
    if not isinstance(section, dict) or {k: type(v) for k, v in section.items()} != {
        "name": str,
        "file": str,
    }:
        raise CheckpointError(f"{path}: package", wanted="name and file, both texts")
    return Package(**section)


def _golden(section: Any, path: Path) -> Golden:
    """Read the golden section: a status, and ids with their source where there are any."""
    try:
        chat = section.get("chat")
        golden = Golden(
            status=_text(section["status"]),
            source=_text(section.get("source", "")),
            texts=tuple((_text(e["text"]), _ids(e["ids"])) for e in section.get("texts", ())),
            chat=None if chat is None else (_messages(chat["messages"]), _ids(chat["ids"])),
        )
        if section.keys() - {"status", "source", "texts", "chat"}:
            raise ValueError(f"keys {', '.join(section)}")
        has_ids = bool(golden.texts)
        if has_ids != (golden.status == "produced") or has_ids != bool(golden.source):
            raise ValueError(f"status {golden.status!r} with {len(golden.texts)} texts")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: golden",
            got=f"{type(error).__name__}: {error}",
            wanted='status = "produced" with source, texts and perhaps chat; or a status that '
            "says why there are none",
            do="Compare with another.",
        ) from error
    return golden


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _ids(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or any(type(i) is not int or i < 0 for i in value) or not value:
        raise TypeError(f"{value!r} are no token ids")
    return tuple(value)


def _messages(value: Any) -> tuple[Mapping[str, str], ...]:
    return tuple({"role": _text(m["role"]), "content": _text(m["content"])} for m in value)


def check_golden(recipe: Recipe, source: str | Path | TextFiles) -> None:
    """Compare a model's tokenizer and chat template with the ids that its recipe holds.

    Args:
        recipe: The recipe.
        source: A model folder, or its text files.

    Raises:
        CheckpointError: They differ, or tokenizer or template cannot be read.
    """
    golden, files = recipe.golden, TextFiles.of(source)
    tokenizer = Tokenizer.open(files) if golden.texts or golden.chat else None
    if tokenizer is None:
        return
    for text, ids in golden.texts:
        found = tokenizer.encode(text, allow_special=False)
        _compare(recipe, files.where, repr(text), found, ids)
    if golden.chat is not None:
        messages, ids = golden.chat
        found = ChatTemplate.open(files).encode(messages, tokenizer)
        _compare(recipe, files.where, "the chat", found, ids)


def _compare(
    recipe: Recipe, folder: Path, what: str, found: list[int], wanted: tuple[int, ...]
) -> None:
    if found != list(wanted):
        raise CheckpointError(
            f"{recipe.name}: the tokenizer of {recipe.source} gives other ids for {what} than "
            f"{recipe.golden.source}",
            got=_shown(found),
            wanted=_shown(wanted),
            do="Download the model again. A folder is taken as it is: if you know that the "
            f"tokenizer is right, export {folder}.",
        )


def _shown(ids: list[int] | tuple[int, ...]) -> str:
    return " ".join(map(str, ids[:24])) + (" ..." if len(ids) > 24 else "")
