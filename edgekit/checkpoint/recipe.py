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

_KINDS: Final[Mapping[str, type]] = {"str": str, "bool": bool, "int": int, "float": float}


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
        golden: Whether token ids of a golden set are kept, or why not.
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
    golden: str


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
    golden = data.pop("golden", {})
    values = {**data, "name": path.stem, "golden": golden.get("status", golden)}
    wanted = {field.name: _KINDS[str(field.type)] for field in fields(Recipe)}
    odd = sorted(values.keys() ^ wanted.keys())
    odd += [key for key in wanted if key in values and type(values[key]) is not wanted[key]]
    if odd:
        raise CheckpointError(
            f"{path}: keys",
            got=", ".join(odd),
            wanted=", ".join(wanted),
            do="Compare with another.",
        )
    return Recipe(**values)
