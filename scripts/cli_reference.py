"""Write docs/cli.md, the reference of the command line, from the commands themselves.

    python scripts/cli_reference.py

A test compares the page with the current help texts.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from edgekit.cli import app

PAGE: Final = Path(__file__).parent.parent / "docs" / "cli.md"
# The width of a default terminal, and of a pipe.
WIDTH: Final = 80
_HEAD: Final = """\
# The command line

Written by `scripts/cli_reference.py` from the `--help` of each command.

stdout gets the result of a command: tables and text, or with `--json` exactly one JSON document,
also when the command fails. Messages, progress, and everything that a library prints go to stderr.

| exit code | meaning |
| --- | --- |
| 0 | done |
| 1 | failed, or a check failed |
| 2 | the command line is wrong |
| 3 | a Python package is absent or too old |
| 4 | nothing on the device can run the artifact |
| 130, 143 | ended by Ctrl-C or SIGTERM; half-written files are removed |
| 141 | the reader of stdout closed it before the output ended |

| environment variable | meaning |
| --- | --- |
| `EDGEKIT_HOME` | folder for files that edgekit keeps (measured rates, stored float models, the environment of optimum); default `~/.cache/edgekit` |
| `EDGEKIT_API_KEY` | key that clients of `edgekit serve` must send |
| `OPENAI_API_KEY` | key for the server of `edgekit compare`; `--api-key-env` names another variable |
| `HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE` | as huggingface_hub reads them ([hub.md](hub.md)) |
"""  # noqa: E501


def command_names() -> list[str]:
    """Give the commands in the order of the list."""
    return [str(command.name) for command in app.registered_commands]


def help_text(arguments: Sequence[str] = ()) -> str:
    """Give what ``edgekit ARGUMENTS --help`` prints on a terminal of ``WIDTH`` columns."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(WIDTH)
    try:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            app([*arguments, "--help"], prog_name="edgekit", standalone_mode=False)
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
    return said.getvalue().strip("\n")


def make_page() -> str:
    """Give the page."""
    commands = [
        f"## edgekit {name}\n\n```text\n{help_text([name])}\n```\n" for name in command_names()
    ]
    return "\n".join([_HEAD, f"```text\n{help_text()}\n```\n", *commands])


if __name__ == "__main__":
    PAGE.write_text(make_page(), encoding="utf-8")
