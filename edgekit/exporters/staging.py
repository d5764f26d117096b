"""Staging: an artifact appears in its folder complete, or not at all.

Files are written to a hidden folder next to the target and renamed into place when complete.
A folder left by a killed export has the prefix below; the next export removes it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Final

from edgekit.artifact import MANIFEST_NAME, Artifact, FileEntry, Manifest, hash_file
from edgekit.decision import Rejected
from edgekit.errors import ExportError
from edgekit.exporters.base import Exporter, ExportOptions
from edgekit.progress import Progress, ignore_progress
from edgekit.quantize.model import QuantizedModel, combine_hashes
from edgekit.units import format_bytes

PARTIAL_PREFIX: Final = ".edgekit-partial-"
_EARLIER: Final = "-earlier-"


def write_artifact(
    exporter: Exporter,
    model: QuantizedModel,
    folder: Path,
    options: ExportOptions | None = None,
    progress: Progress = ignore_progress,
) -> Artifact:
    """Export a quantized model into ``folder``, replacing an earlier artifact there.

    Raises:
        ExportError: The format refuses the model, ``folder`` holds something that is not an
            artifact, or a file cannot be written. The folder is then as it was before.
    """
    decision = exporter.supports(model.spec, model.scheme)
    if isinstance(decision, Rejected):
        raise ExportError(
            f"{exporter.format.value} cannot hold {model.source.name} as {model.scheme}",
            got=decision.reason,
            do="Pick another format or scheme.",
        )
    chosen = options or ExportOptions()
    cut = exporter.positions(model.spec).note(chosen.context_length, model.spec.context_length)
    with staged_folder(folder) as staging:
        written = exporter.write(model, staging, chosen, progress)
        manifest = Manifest(
            format=exporter.format,
            scheme=str(model.scheme),
            model_name=model.source.name,
            model_type=model.spec.model_type,
            source=model.source.origin,
            source_sha256=model.source.sha256,
            weights_sha256=combine_hashes(model.entries),
            n_parameters=sum(_n_elements(entry.shape) for entry in model.entries),
            context_length=written.context_length,
            decoder=model.spec.as_dict(),
            tensors=model.entries,
            files=list_files(staging),
            tool_versions={
                "edgekit": version("edgekit"),
                "python": platform.python_version(),
                **written.tool_versions,
            },
            settings={**written.settings, "channel_scales": model.source.channel_scales},
            ignored_config_keys=model.source.ignored_config_keys,
            adapter=model.source.adapter,
            adapter_sha256=model.source.adapter_sha256,
            notes=(
                *model.source.notes,
                *decision.notes,
                *written.notes,
                *([cut] if cut else []),
            ),
            end_tokens=model.source.ends,
        )
        (staging / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return Artifact.open(folder)


@contextlib.contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder that becomes ``folder`` when the block ends without an error.

    Raises:
        ExportError: ``folder`` holds something that is not an artifact, or the disk refuses.
    """
    with _mapped_os_errors(folder):
        _refuse_foreign(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder.parent)
        staging = Path(
            tempfile.mkdtemp(prefix=f"{PARTIAL_PREFIX}{os.getpid()}-", dir=folder.parent)
        )
    try:
        with _mapped_os_errors(folder):
            yield staging
            _sync(staging)
            _swap(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _refuse_foreign(folder: Path) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ExportError(f"{folder} is in the way", got="not a folder", do="Choose another --out.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST_NAME).is_file():
        raise ExportError(
            f"{folder} is not empty and holds no {MANIFEST_NAME}",
            got="files that edgekit did not write",
            do="Choose another --out.",
        )


def _swap(staging: Path, folder: Path) -> None:
    staging.chmod(0o755)
    if not folder.exists():
        staging.rename(folder)
        return
    old = Path(
        tempfile.mkdtemp(prefix=f"{PARTIAL_PREFIX}{os.getpid()}{_EARLIER}", dir=folder.parent)
    )
    try:
        folder.rename(old / folder.name)
        try:
            staging.rename(folder)
        except OSError:
            (old / folder.name).rename(folder)
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _sweep(parent: Path) -> None:
    """Remove what dead exports left; a live process keeps its own."""
    for path in parent.glob(f"{PARTIAL_PREFIX}*"):
        owner = path.name[len(PARTIAL_PREFIX) :].partition("-")[0]
        if not owner.isdigit() or _is_alive(int(owner)):
            continue
        for earlier in path.iterdir() if _EARLIER in path.name else ():
            # A swap that was cut between its two renames: put the earlier artifact back.
            if (earlier / MANIFEST_NAME).is_file() and not (parent / earlier.name).exists():
                earlier.rename(parent / earlier.name)
        shutil.rmtree(path, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def list_files(folder: Path) -> tuple[FileEntry, ...]:
    """Give every file of a folder with its size and hash."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return tuple(
        FileEntry(path.relative_to(folder).as_posix(), path.stat().st_size, hash_file(path))
        for path in paths
    )


def _n_elements(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


@contextlib.contextmanager
def _mapped_os_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            free = shutil.disk_usage(existing_parent(folder)).free
            raise ExportError(
                f"no space left while writing {folder}",
                got=f"{free} bytes free",
                do="Free space or choose another --out; nothing was left behind.",
            ) from error
        reason, name = error.strerror or str(error), str(error.filename or "")
        # The staging folder means nothing to the user; the names of other files do.
        if name and PARTIAL_PREFIX not in name:
            reason = f"{reason}: {name}"
        raise ExportError(
            f"cannot write {folder}", got=reason, do="Choose another --out."
        ) from error


def refuse_small_disk(folder: Path, need: int, purpose: str, do: str) -> None:
    """Refuse before any work what the disk of ``folder`` cannot hold.

    Raises:
        ExportError: Fewer than ``need`` bytes are free there.
    """
    free = shutil.disk_usage(existing_parent(folder)).free
    if need > free:
        raise ExportError(
            f"not enough space {purpose} at {folder}",
            got=f"{format_bytes(free)} free",
            wanted=f"about {format_bytes(need)}",
            do=do,
        )


def existing_parent(folder: Path) -> Path:
    """Give the nearest folder above that exists."""
    path = folder.absolute()
    while not path.exists():
        path = path.parent
    return path
