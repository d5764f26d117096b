"""Printing: the result of a command goes to stdout, messages and progress go to stderr.

stdout gets the result: tables and text for a person, or exactly one JSON document. Messages
and progress go to stderr. No other module prints.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from edgekit.errors import EdgekitError, NoFitError
from edgekit.lazy import require
from edgekit.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Output:
    """Where a command's result and messages go."""

    def __init__(self, *, is_json: bool = False) -> None:
        self.is_json = is_json

    @property
    def console(self) -> Console:
        """Console of the result; stderr in JSON mode, so that stdout stays one document."""
        console: Console = require("rich.console").Console(stderr=self.is_json, highlight=False)
        return console

    def result(self, data: Any, show: Callable[[Console], None]) -> None:
        """Print the JSON form, or let ``show`` draw the human one."""
        if self.is_json:
            text = json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
            sys.stdout.write(text + "\n")
            sys.stdout.flush()
        else:
            show(self.console)

    def write(self, text: str) -> None:
        """Stream a piece of the answer to stdout; nothing in JSON mode.

        What a model or a server says must not steer the terminal; a file or pipe gets it as it is.
        """
        if not self.is_json:
            if sys.stdout.isatty():
                text = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
            sys.stdout.write(text)
            sys.stdout.flush()

    def message(self, text: str) -> None:
        """Tell the person something that is not the result."""
        sys.stderr.write(text + "\n")

    def error(self, error: EdgekitError) -> None:
        """Say what failed, what was found, what was wanted and what to do."""
        if self.is_json:
            sys.stdout.write(json.dumps(error.as_dict(), ensure_ascii=False) + "\n")
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
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        with bar:
            task = bar.add_task("starting", total=1)
            yield lambda what, done, total: bar.update(
                task, description=what[:48], completed=done, total=max(1, total)
            )
