"""Printing: the result of a command goes to stdout, messages and progress go to stderr.

stdout gets the result: tables and text for a person, or exactly one JSON document. Messages and
progress go to stderr, and so does everything that a library prints, from Python or from C. The
first ``Output`` of a process keeps stdout for itself. No other module prints.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

from edgekit.errors import EdgekitError, NoFitError
from edgekit.lazy import UntestedVersionWarning, require
from edgekit.progress import Progress, TimeLeft, format_left

if TYPE_CHECKING:
    from rich.console import Console

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


# A shell's exit code for a program that SIGPIPE ended: the output was not read to its end.
CLOSED_PIPE: Final = 128 + signal.SIGPIPE
_kept: TextIO | None = None


class Output:
    """Where a command's result and messages go; made before any library is imported."""

    def __init__(self, *, is_json: bool = False) -> None:
        self.is_json = is_json
        self._stdout = _own_stdout()

    def result(self, data: Any, show: Callable[[Console], None]) -> None:
        """Print the JSON form, or let ``show`` draw the human one."""
        if self.is_json:
            self.document(data, indent=2)
            return
        console: Console = require("rich.console").Console(file=self._stdout, highlight=False)
        # Drawn first and written in one piece: rich ends the process itself at a closed pipe.
        with console.capture() as drawn:
            show(console)
        _write(self._stdout, drawn.get())

    def document(self, data: Any, indent: int | None = None) -> None:
        """Print the one JSON document of a command, in what stdout's encoding can hold."""
        is_unicode = (self._stdout.encoding or "").lower().replace("-", "") == "utf8"
        text = json.dumps(
            data, indent=indent, sort_keys=True, ensure_ascii=not is_unicode, allow_nan=False
        )
        _write(self._stdout, text + "\n")

    def write(self, text: str) -> None:
        """Stream a piece of the answer to stdout; nothing in JSON mode.

        Text of a model or a server must not control the terminal; files and pipes get it unchanged.
        """
        if not self.is_json:
            _write(
                self._stdout,
                _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text) if self.is_terminal else text,
            )

    @property
    def is_terminal(self) -> bool:
        """Whether stdout is a terminal."""
        return self._stdout.isatty()

    def message(self, text: str) -> None:
        """Print text for the person that is not the result."""
        _write(sys.stderr, text + "\n")

    def error(self, error: EdgekitError) -> None:
        """Say what failed, what was found, what was wanted and what to do."""
        if self.is_json:
            self.document(error.as_dict())
        lines = [f"error: {error.what}"]
        if isinstance(error, NoFitError):
            lines += [f"  {name}: {reason}" for name, reason in error.reasons.items()]
        elif error.got is not None:
            lines.append(f"  got:    {error.got}")
        if error.wanted is not None:
            lines.append(f"  wanted: {error.wanted}")
        if error.do:
            lines.append(f"  do:     {error.do}")
        self.message("\n".join(lines))

    @contextlib.contextmanager
    def progress(self) -> Iterator[Progress]:
        """Show a progress bar on stderr while the block runs; only on a terminal."""
        rich_progress = require("rich.progress")
        console = require("rich.console").Console(stderr=True)
        bar = rich_progress.Progress(
            rich_progress.TextColumn("{task.description}", markup=False),
            rich_progress.BarColumn(bar_width=30),
            rich_progress.TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            rich_progress.TimeElapsedColumn(),
            rich_progress.TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        with bar:
            task = bar.add_task("starting", total=1, left="")
            time_left = TimeLeft()

            def show(what: str, done: int, total: int) -> None:
                left = format_left(time_left.report(time.monotonic(), done, total))
                bar.update(
                    task, description=what[:48], completed=done, total=max(1, total), left=left
                )

            yield show


def _write(stream: TextIO, text: str) -> None:
    """Write to stdout or stderr; if its reader has closed it, clean up and end the process.

    A thread of a server goes on without a log.

    Raises:
        SystemExit: With ``CLOSED_PIPE``.
    """
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        # The rest of the buffer is dropped, so that closing it does not fail again.
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())
        if threading.current_thread() is threading.main_thread():
            sys.exit(CLOSED_PIPE)


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Write a warning of edgekit's own without the line of code that it comes from."""
    if issubclass(category, UntestedVersionWarning):
        _write(sys.stderr, f"warning: {message}\n")
    else:
        _write(sys.stderr, warnings.formatwarning(message, category, filename, lineno, line))


def _own_stdout() -> TextIO:
    """Give the process's stdout, and send everything else that is printed to stderr."""
    global _kept
    if _kept is None or sys.stdout is not sys.stderr:
        _kept = sys.stdout
        if _is_descriptor(_kept, 1):
            # Text of a model may hold characters that the terminal's encoding lacks.
            _kept = os.fdopen(os.dup(1), "w", encoding=_kept.encoding, errors="backslashreplace")
            if _is_descriptor(sys.stderr, 2):
                os.dup2(2, 1)
        sys.stdout = sys.stderr
    return _kept


def _is_descriptor(stream: TextIO, number: int) -> bool:
    try:
        return stream.fileno() == number
    except (OSError, ValueError, AttributeError):
        return False
