"""Notices that files of a model were changed while the model was read.

A model is read more than once: its hash first, its weights later, its tokenizer twice. What is
written into the folder in between would be mixed into one artifact without a word.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from edgekit.errors import CheckpointError
from edgekit.files import FileState
from edgekit.model_files import TEMPLATES_FOLDER, TEXT_NAMES
from edgekit.text.files import TextFiles

_SETTLED_NS: Final = 2_000_000_000  # the coarsest clock of a file system in use (FAT, exFAT)
_MAX_NAMED: Final = 8


class SourceFiles:
    """The files of a model folder as they were when it was opened; make it before reading any."""

    def __init__(self, folder: Path) -> None:
        """Look at every file of the folder, and of the one for chat templates; none is read."""
        self.folder = folder
        self._before: dict[Path, FileState] = {}
        for place in (folder, folder / TEMPLATES_FOLDER):
            for path in place.iterdir() if place.is_dir() else ():
                try:
                    self._before[path] = FileState.of(path)
                except OSError:
                    continue  # a link to nowhere; its reader refuses it
        self._opened_ns = time.time_ns()

    def with_texts(self, found: TextFiles) -> set[Path]:
        """Give the tokenizer and template files that lie there now or lay there before."""
        now = {path for path in found.sources.values() if isinstance(path, Path)}
        before = {
            path
            for path in self._before
            if path.name in TEXT_NAMES or path.parent.name == TEMPLATES_FOLDER
        }
        return now | before

    def refuse_changes(self, paths: Iterable[Path], is_same: Callable[[], bool]) -> None:
        """Refuse a model of which a file was written since.

        Args:
            paths: The files that were read.
            is_same: Hashes the weights again. Asked only where the state of a file leaves it open:
                it was written so short before that a second writing need not show, or something
                else than its content changed, such as its owner.

        Raises:
            CheckpointError: Files were written, replaced or removed; they are named.
        """
        states = {path: (self._before.get(path), _state_of(path)) for path in sorted(paths)}
        changed = [path.name for path, (then, now) in states.items() if _differ(then, now)]
        is_open = any(then != now or self._is_young(then) for then, now in states.values())
        if not changed and is_open and not is_same():
            changed = ["the weights"]
        if changed:
            more = f" and {len(changed) - _MAX_NAMED} more" if changed[_MAX_NAMED:] else ""
            raise CheckpointError(
                f"{self.folder}: the model was changed while it was read",
                got=", ".join(changed[:_MAX_NAMED]) + more,
                wanted="files that nobody writes meanwhile",
                do="Wait until the download or training is done, and run the command again.",
            )

    def _is_young(self, state: FileState | None) -> bool:
        return state is not None and self._opened_ns - state.written_ns < _SETTLED_NS


def _state_of(path: Path) -> FileState | None:
    try:
        return FileState.of(path)
    except OSError:
        return None


def _differ(then: FileState | None, now: FileState | None) -> bool:
    """Tell whether a file surely is not the one that it was."""
    if then is None or now is None:
        return then is not now
    return (then.n_bytes, then.mtime_ns, then.inode, then.device) != (
        now.n_bytes, now.mtime_ns, now.inode, now.device
    )  # fmt: skip
