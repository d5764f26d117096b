"""Where bundled files and files of installed packages are, and where edgekit keeps its cache.

Bundled files have two places: in a source checkout, ``models/`` and ``device_profiles/`` are next
to the package; in an installed wheel they are in ``edgekit/_data``. Only this module knows both.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from pathlib import Path
from typing import Final

_PACKAGE: Final = Path(__file__).resolve().parent


def data_dir(name: str) -> Path:
    """Give the folder ``models`` or ``device_profiles`` of this installation."""
    bundled = _PACKAGE / "_data" / name
    return bundled if bundled.is_dir() else _PACKAGE.parent / name


def models_dir() -> Path:
    """Folder with the bundled model and the model recipes."""
    return data_dir("models")


def device_profiles_dir() -> Path:
    """Folder with the bundled device profiles."""
    return data_dir("device_profiles")


def schemes_dir() -> Path:
    """Folder with the scheme files of the presets."""
    return _PACKAGE / "schemes"


def cache_dir() -> Path:
    """Folder for files that edgekit can make again: ``EDGEKIT_HOME``, else the user's cache."""
    chosen = os.environ.get("EDGEKIT_HOME")
    if chosen:
        return Path(chosen).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "edgekit"
    base = os.environ.get("XDG_CACHE_HOME")
    # The XDG base directory specification says that relative paths are to be ignored.
    if base and Path(base).is_absolute():
        return Path(base) / "edgekit"
    return Path.home() / ".cache" / "edgekit"


def packaged_file(package: str, name: str) -> Path | None:
    """Find a file of an installed Python package without importing the package.

    Args:
        package: Name of the distribution, as pip has it.
        name: Path inside the environment's package folder, with forward slashes.

    Returns:
        The file, or None if the package or the file is not there.
    """
    try:
        found = Path(str(importlib.metadata.distribution(package).locate_file(name)))
    except importlib.metadata.PackageNotFoundError:
        return None
    return found if found.is_file() else None
