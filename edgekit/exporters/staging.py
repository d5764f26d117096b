"""Staging: an artifact appears in its folder complete, or not at all.

Files are written to a hidden folder next to the target (work_folder.py). When all are there, the
folder and the target exchange their names in one step, so that there is an artifact at any moment.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import shutil
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Final

from edgekit.artifact import MANIFEST_NAME, Artifact, FileEntry, Manifest, TensorEntry
from edgekit.decision import Rejected
from edgekit.errors import ExportError
from edgekit.exporters.base import Exporter, ExportOptions, Sink, Written
from edgekit.exporters.work_folder import EARLIER, PARTIAL_PREFIX, sweep, work_folder
from edgekit.file_hashes import hash_file
from edgekit.progress import Progress, ignore_progress
from edgekit.quantize.model import (
    EncodedTensor,
    ModelTensor,
    QuantizedModel,
    TensorHash,
    combine_hashes,
    encodings_of,
)
from edgekit.scheme import describe
from edgekit.units import format_bytes

_NEW: Final = "new"
_AT_CWD: Final = -100  # AT_FDCWD of Linux
_EXCHANGE: Final = 2  # RENAME_EXCHANGE of renameat2 (Linux), RENAME_SWAP of renamex_np (macOS)
# What a system, or the file system, answers that cannot exchange two names.
_CANNOT: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})


def write_artifact(
    exporter: Exporter,
    model: QuantizedModel,
    folder: Path,
    options: ExportOptions | None = None,
    progress: Progress = ignore_progress,
) -> Artifact:
    """Export a quantized model into one folder; see ``write_artifacts``."""
    (artifact,) = write_artifacts({folder: exporter}, model, options, progress)
    return artifact


def write_artifacts(
    exporters: Mapping[Path, Exporter],
    model: QuantizedModel,
    options: ExportOptions | None = None,
    progress: Progress = ignore_progress,
    *,
    n_threads: int = 1,
) -> list[Artifact]:
    """Export a quantized model in several formats; each tensor is read once for all of them.

    Args:
        exporters: Folder of an artifact to its format; an earlier artifact there is replaced.
        model: The model.
        options: Choices of this export.
        progress: Called as ``progress(what, n_done, n_total)`` after each tensor.
        n_threads: Threads that encode and write.

    Returns:
        The artifacts, in the order of ``exporters``.

    Raises:
        ExportError: A format refuses the model, a folder holds something that is not an artifact,
            or a file cannot be written. All folders are then as they were before.
    """
    chosen = options or ExportOptions()
    decisions = {path: _accept(exporter, model) for path, exporter in exporters.items()}
    with contextlib.ExitStack() as stack:
        staged = {folder: stack.enter_context(staged_folder(folder)) for folder in exporters}
        sinks: dict[Path, Sink] = {}
        try:
            for folder, exporter in exporters.items():
                with _mapped_os_errors(folder):
                    sinks[folder] = exporter.open(model, staged[folder], chosen)
            with ThreadPoolExecutor(n_threads) as pool:
                entries = _put_all(model, sinks, pool, n_threads, progress)
                model.refuse_changed()
                tasks = {
                    folder: pool.submit(_finish, folder, sinks[folder], entries) for folder in sinks
                }
                written = {folder: task.result() for folder, task in tasks.items()}
                files = {folder: list_files(staged[folder], pool) for folder in sinks}
        except BaseException:
            for sink in sinks.values():
                sink.discard()
            raise
        for folder, exporter in exporters.items():
            cut = exporter.positions(model.spec).note(
                chosen.context_length, model.spec.context_length
            )
            notes = (*decisions[folder], *written[folder].notes, *([cut] if cut else []))
            with _mapped_os_errors(folder):
                manifest = _manifest(
                    exporter, model, entries, written[folder], notes, files[folder]
                )
                path = staged[folder] / MANIFEST_NAME
                path.write_bytes(manifest.to_json().encode("utf-8"))
    return [Artifact.open(folder) for folder in exporters]


def _accept(exporter: Exporter, model: QuantizedModel) -> tuple[str, ...]:
    """Ask a format; give its notes."""
    decision = exporter.supports(model.spec, encodings_of(model.entries))
    if isinstance(decision, Rejected):
        raise ExportError(
            f"{exporter.format.value} cannot hold {model.source.name} as {model.scheme}",
            got=decision.reason,
            do="Pick another format or scheme.",
        )
    return decision.notes


def _put_all(
    model: QuantizedModel,
    sinks: Mapping[Path, Sink],
    pool: ThreadPoolExecutor,
    n_threads: int,
    progress: Progress,
) -> tuple[TensorEntry, ...]:
    """Encode all tensors and put them into all artifacts; give the entries with their hashes.

    One queue holds the rows of all tensors: while the last rows of one are encoded, other threads
    are at the next. Hashes are made here, in the order of the rows.
    """
    planned = model.entries
    n_total = len(planned)
    waiting: deque[tuple[int, Future[ModelTensor]]] = deque()
    entries: list[TensorEntry] = []
    made: TensorHash | None = None

    def take() -> None:
        nonlocal made
        n_left, task = waiting.popleft()
        rows = task.result()
        entry = planned[len(entries)]
        if isinstance(rows, EncodedTensor):
            made = made or TensorHash(entry.name, entry.shape, rows.encoding)
            made.add(rows)
        if not n_left:
            entries.append(replace(entry, sha256=made.hexdigest() if made else None))
            made = None
            progress(f"quantize and write {entry.name}", len(entries), n_total)

    for entry in planned:
        parts = list(model.row_blocks(entry.name))
        for n_left, part in zip(range(len(parts) - 1, -1, -1), parts, strict=True):
            if len(waiting) > n_threads:
                take()
            waiting.append((n_left, pool.submit(_put, model, entry.name, part, sinks)))
    while waiting:
        take()
    return tuple(entries)


def _put(model: QuantizedModel, name: str, part: slice, sinks: Mapping[Path, Sink]) -> ModelTensor:
    rows = model.rows(name, part)
    for folder, sink in sinks.items():
        with _mapped_os_errors(folder):
            sink.put(rows, part.start)
    return rows


def _finish(folder: Path, sink: Sink, entries: tuple[TensorEntry, ...]) -> Written:
    with _mapped_os_errors(folder):
        return sink.finish(entries)


def _manifest(
    exporter: Exporter,
    model: QuantizedModel,
    entries: tuple[TensorEntry, ...],
    written: Written,
    notes: tuple[str, ...],
    files: tuple[FileEntry, ...],
) -> Manifest:
    return Manifest(
        format=exporter.format,
        scheme=str(model.scheme),
        model_name=model.source.name,
        model_type=model.spec.model_type,
        source=model.source.origin,
        source_sha256=model.source_sha256,
        weights_sha256=combine_hashes(entries),
        n_parameters=sum(prod(entry.shape) for entry in entries),
        context_length=written.context_length,
        decoder=model.spec.as_dict(),
        tensors=entries,
        files=files,
        tool_versions={
            "edgekit": version("edgekit"),
            "python": platform.python_version(),
            **written.tool_versions,
        },
        settings={
            **written.settings,
            "channel_scales": model.source.channel_scales,
            **({} if model.scheme.is_word else {"scheme": describe(model.scheme)}),
            **({"calibration": found} if (found := model.source.calibration) else {}),
        },
        ignored_config_keys=model.source.ignored_config_keys,
        adapter=model.source.adapter,
        adapter_sha256=model.source.adapter_sha256,
        notes=(*model.source.notes, *notes),
        end_tokens=model.source.ends,
    )


@contextlib.contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder that becomes ``folder`` when the block ends without an error.

    Raises:
        ExportError: ``folder`` holds something that is not an artifact, or the disk refuses.
    """
    with _mapped_os_errors(folder):
        _refuse_foreign(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        sweep(folder.parent)
        with work_folder(folder.parent) as work:
            staging = work / _NEW
            staging.mkdir()
            yield staging
            _sync(staging)
            _put_in_place(staging, folder)


def _refuse_foreign(folder: Path) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ExportError(f"{folder} is in the way", got="not a folder", do="Choose another --out.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST_NAME).is_file():
        raise ExportError(
            f"{folder} is not empty and holds no {MANIFEST_NAME}",
            got="files that edgekit did not write",
            do="Choose another --out.",
        )


def _put_in_place(staging: Path, folder: Path) -> None:
    """Give the name ``folder`` to ``staging``; what bore it is afterwards in the work folder."""
    if not folder.exists():
        staging.rename(folder)
    elif not _exchange(staging, folder):
        _replace(staging, folder)


def _exchange(first: Path, second: Path) -> bool:
    """Have two folders exchange their names in one step; False where that cannot be done.

    Source:
        Linux man-pages, rename(2); macOS, renamex_np(2).
    """
    library = ctypes.CDLL(None, use_errno=True)
    names = (os.fsencode(first), os.fsencode(second))
    if sys.platform == "darwin":
        failed = library.renamex_np(*names, ctypes.c_uint(_EXCHANGE))
    elif hasattr(library, "renameat2"):
        failed = library.renameat2(_AT_CWD, names[0], _AT_CWD, names[1], ctypes.c_uint(_EXCHANGE))
    else:
        return False
    if not failed:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT:
        return False
    raise OSError(number, os.strerror(number), str(first), None, str(second))


def _replace(staging: Path, folder: Path) -> None:
    """Replace a folder by two renames; a kill between them is mended by the next export."""
    earlier = staging.parent / EARLIER / folder.name
    earlier.parent.mkdir()
    folder.rename(earlier)
    try:
        staging.rename(folder)
    except OSError:
        earlier.rename(folder)
        raise


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def list_files(folder: Path, pool: ThreadPoolExecutor | None = None) -> tuple[FileEntry, ...]:
    """Give every file of a folder with its size and hash; a pool hashes several at a time."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    hashes = (pool.map if pool is not None else map)(hash_file, paths)
    return tuple(
        FileEntry(path.relative_to(folder).as_posix(), path.stat().st_size, sha256)
        for path, sha256 in zip(paths, hashes, strict=True)
    )


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
