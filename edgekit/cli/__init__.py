"""The ``edgekit`` command: its list of commands, and the exit codes of errors.

Each command is a file with its options, one call of the pipeline and one printout. Nothing heavy is
imported before a command runs, so ``--help`` is quick. Only ``main`` catches errors for the user.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable
from inspect import getdoc as inspect_docstring
from io import TextIOWrapper
from types import FrameType
from typing import Any, Final, NoReturn

import typer

from edgekit import __version__
from edgekit.cli import (
    chat,
    compare,
    demo,
    devices,
    evaluate,
    export,
    inspect,
    profile,
    quality_cost,
    report,
    run,
    serve,
    verify,
)
from edgekit.cli.output import Output, show_warning
from edgekit.errors import EdgekitError, UsageError

# typer keeps the base of its own errors in a private module, older versions take click's.
_CommandLineError: Final[type[Any]] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)

app = typer.Typer(
    name="edgekit",
    help=(
        "Quantize a small language model once, write it as ONNX, MLX and Core ML, measure it, "
        "and say whether to ship it on the device or on a server."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _help(command: Callable[..., None]) -> str:
    """Give a command's docstring with the lines of its example unchanged."""
    text = inspect_docstring(command) or ""
    # click joins and breaks the lines of a paragraph, unless this character stands before it.
    return text.replace("\nExample:\n", "\n\b\nExample:\n")


for module in (
    inspect,
    export,
    verify,
    run,
    chat,
    profile,
    evaluate,
    quality_cost,
    compare,
    report,
    devices,
    serve,
    demo,
):
    name = module.__name__.rpartition(".")[2].replace("_", "-")
    app.command(name, help=_help(module.command))(module.command)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"edgekit {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False,
        "--version",
        help="Print the version and exit.",
        callback=_show_version,
        is_eager=True,
    ),
) -> None:
    pass


def main() -> NoReturn:
    """Run the command line; every edgekit error becomes a message and its exit code."""
    signal.signal(signal.SIGTERM, _stop)
    warnings.showwarning = show_warning
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the shell (>&-): nobody reads it
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
        elif isinstance(stream, TextIOWrapper):
            # Text of a model may hold characters that the terminal's encoding lacks.
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(standalone_mode=False)
    except EdgekitError as error:
        _output().error(error)
        code = error.exit_code
    except _CommandLineError as error:
        error.show()
        if _is_json():
            _output().document(UsageError(error.format_message()).as_dict())
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    sys.exit(code or 0)


def _is_json() -> bool:
    """Tell whether ``--json`` is asked for, even if the command line is wrong."""
    return "--json" in sys.argv[: sys.argv.index("--") if "--" in sys.argv else None]


def _output() -> Output:
    return Output(is_json=_is_json())


def _stop(signum: int, frame: FrameType | None) -> NoReturn:
    """Turn SIGTERM into an exit that still removes half-written files."""
    sys.exit(128 + signum)
