"""Import of heavy packages at their first use, with an error that says what to install."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from edgekit.errors import MissingExtraError


def require(module: str, *, package: str | None = None) -> ModuleType:
    """Import a module, or say which package to install.

    Args:
        module: Dotted module name, such as ``mlx.core``.
        package: Distribution name when it differs from the module's first part.

    Raises:
        MissingExtraError: The module, or something it needs, cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = package or module.partition(".")[0]
        raise MissingExtraError(f"cannot import {module}: {error}", package=name) from error


def load_object(reference: str) -> Any:
    """Load ``"package.module:Name"``, the form every registry uses."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)
