"""Recipes: the real models that edgekit knows by name, and what is known of each.

One TOML file per model under ``models/``. What it says was taken from the model's card and is
only shown; the checkpoint's own config decides.
"""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgekit.errors import CheckpointError
from edgekit.text.chat import ChatTemplate
from edgekit.text.files import TextFiles
from edgekit.text.tokenizer import Tokenizer
from edgekit.typed_values import WrongValuesError, from_plain


@dataclass(frozen=True, slots=True)
class GoldenText:
    """A text and its token ids, without a begin token."""

    text: str
    ids: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_ids(self.ids)


@dataclass(frozen=True, slots=True)
class GoldenMessage:
    """One message of a chat."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class GoldenChat:
    """Messages, and the token ids of the prompt that asks for an answer."""

    messages: tuple[GoldenMessage, ...]
    ids: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_ids(self.ids)


@dataclass(frozen=True, slots=True)
class Golden:
    """Token ids that another program gave for the model.

    Attributes:
        status: ``produced``, or why there are none.
        source: Program, version and file that gave the ids; empty where there are none.
        texts: Texts with their ids.
        chat: A chat with its ids.
    """

    status: str
    source: str = ""
    texts: tuple[GoldenText, ...] = ()
    chat: GoldenChat | None = None

    def __post_init__(self) -> None:
        has_ids = bool(self.texts)
        if has_ids != (self.status == "produced") or has_ids != bool(self.source):
            raise ValueError(
                'status = "produced" with source, texts and perhaps chat; or a status that says '
                "why there are none"
            )


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
    try:
        return from_plain(Recipe, {**data, "name": path.stem})
    except WrongValuesError as error:
        raise CheckpointError(
            f"{path} is not a recipe", got=error, do="Compare it with another file of models/."
        ) from error


def _check_ids(ids: tuple[int, ...]) -> None:
    if not ids or min(ids) < 0:
        raise ValueError("token ids, at least one")


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
    for item in golden.texts:
        found = tokenizer.encode(item.text, allow_special=False)
        _compare(recipe, files.where, repr(item.text), found, item.ids)
    if golden.chat is not None:
        messages = [asdict(message) for message in golden.chat.messages]
        found = ChatTemplate.open(files).encode(messages, tokenizer)
        _compare(recipe, files.where, "the chat", found, golden.chat.ids)


def _compare(
    recipe: Recipe, folder: Path, what: str, found: list[int], wanted: tuple[int, ...]
) -> None:
    if found != list(wanted):
        raise CheckpointError(
            f"{recipe.name}: the tokenizer of {recipe.source} gives other ids for {what} than "
            f"{recipe.golden.source}",
            got=_shown(found),
            wanted=_shown(wanted),
            do="Download the model again. A folder is not checked this way: if you know that the "
            f"tokenizer is right, export {folder}.",
        )


def _shown(ids: list[int] | tuple[int, ...]) -> str:
    return " ".join(map(str, ids[:24])) + (" ..." if len(ids) > 24 else "")
