"""Manifests of artifacts that a test changed, written again so that the change is not seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgekit.artifact import MANIFEST_NAME, Artifact, Manifest
from edgekit.exporters.staging import list_files


def relist(folder: Path, change: Callable[[Manifest], Manifest] = lambda m: m) -> Artifact:
    """List the files of an artifact as they are now and seal the manifest again.

    Args:
        folder: The artifact, of which files were changed, added or removed.
        change: What else becomes of the manifest.
    """
    path = folder / MANIFEST_NAME
    old = Manifest.from_json(path.read_text(encoding="utf-8"), where="m")
    path.unlink()
    manifest = change(replace(old, files=list_files(folder)))
    path.write_text(manifest.to_json(), encoding="utf-8")
    return Artifact.open(folder)


def claim(folder: Path, **fields: Any) -> Artifact:
    """Have the manifest of an artifact say something else, sealed again."""
    return relist(folder, lambda manifest: replace(manifest, **fields))
