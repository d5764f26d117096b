"""Answer one question: which folder does the user mean by a model name?

A folder, a name under ``models/`` (a bundled model, or a recipe that names a repository), or a
Hugging Face Hub id (``owner/name`` or ``owner/name@revision``), in that order. The only code that
talks to the Hub. It must not read what is in the folder.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Final

from edgekit.checkpoint.recipe import recipes
from edgekit.errors import CheckpointError
from edgekit.lazy import require
from edgekit.paths import models_dir

_HUB_ID: Final = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?"
)
# Weights and text only: a pickle or a Python file is never fetched.
_WANTED_FILES: Final = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "README.md",
)
# Sub-folders hold other formats; consolidated files hold the same weights once more.
_UNWANTED_FILES: Final = ("*/*", "consolidated*")
CONFIG_NAME: Final = "config.json"


def resolve_model(model: str | Path) -> Path:
    """Find the folder of a model, downloading it if it is a Hub id.

    Args:
        model: Folder, bundled name, or Hub id.

    Raises:
        CheckpointError: Nothing of that name, or the download failed.
        MissingExtraError: A Hub id was given and huggingface_hub is not installed.
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
    if "/" not in text and "\\" not in text:
        return _named(text)
    match = _HUB_ID.fullmatch(text)
    if match is None or isinstance(model, Path):
        raise CheckpointError(
            f"no model folder {text}",
            wanted="a folder, a bundled name or a Hub id such as owner/name",
            do=_known_names(text),
        )
    return _download(match["repo"], match["revision"])


def bundled_models() -> list[str]:
    """Names of the models under ``models/`` that are there to be used."""
    folder = models_dir()
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if (entry / CONFIG_NAME).is_file())


def model_name(model: str | Path, folder: Path) -> str:
    """Give the short display name: the folder's or repository's last part."""
    match = _HUB_ID.fullmatch(str(model))
    if match is not None and not Path(model).is_dir():
        return match["repo"].rpartition("/")[2]
    if not Path(model).is_dir() and str(model) in recipes(models_dir()):
        return str(model)
    return folder.resolve().name


def _named(name: str) -> Path:
    if name in bundled_models():
        return models_dir() / name
    known = recipes(models_dir())
    if name in known:
        return _download(known[name].source, known[name].revision)
    raise CheckpointError(f"no model named {name!r}", do=_known_names(name))


def _known_names(name: str) -> str:
    bundled, others = bundled_models(), list(recipes(models_dir()))
    close = difflib.get_close_matches(Path(name).name.lower(), [*bundled, *others], n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    listed = f"Bundled models: {', '.join(bundled) or 'none'}."
    return f"{hint}{listed} Known on the Hub: {', '.join(others)}." if others else hint + listed


def _download(repo: str, revision: str | None) -> Path:
    hub = require("huggingface_hub")
    errors = require("huggingface_hub.errors")
    named = f"{repo}@{revision}" if revision else repo
    try:
        folder = hub.snapshot_download(
            repo,
            revision=revision,
            allow_patterns=list(_WANTED_FILES),
            ignore_patterns=list(_UNWANTED_FILES),
        )
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{named}: access is restricted",
            got=_first_line(error),
            do="Accept the licence on the model's page, then set HF_TOKEN.",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{named}: no such repository on the Hub, or it is private",
            got=_first_line(error),
            do=f"Check the spelling, or set HF_TOKEN. {_known_names(repo)}",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(
            f"{named}: no such revision", got=_first_line(error), wanted="a branch, tag or commit"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise CheckpointError(
            f"{named}: not in the local cache, and the Hub cannot be reached",
            got=_first_line(error),
            do="Go online (unset HF_HUB_OFFLINE), or give the folder of a downloaded model.",
        ) from error
    except _download_errors() as error:
        raise CheckpointError(
            f"{named}: download failed",
            got=f"{type(error).__name__}: {_first_line(error)}",
            do="Run the command again: what was downloaded is kept.",
        ) from error
    return Path(folder)


def _download_errors() -> tuple[type[Exception], ...]:
    """Give every error class of huggingface_hub, and those of the system below it."""
    found = [
        item
        for item in vars(require("huggingface_hub.errors")).values()
        if isinstance(item, type) and issubclass(item, Exception)
    ]
    return (*found, OSError, ValueError)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
