"""The ``edgekit`` command: its list of commands, and the exit codes of errors.

Each command is a file with its options, one call of the pipeline and one printout. Nothing heavy is
imported before a command runs, so ``--help`` is quick. Only ``main`` catches errors for the user.
"""

from __future__ import annotations

import signal
import sys
from io import TextIOWrapper
from types import FrameType
from typing import NoReturn

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
    report,
    run,
    serve,
    verify,
)
from edgekit.cli.output import Output
from edgekit.errors import EdgekitError

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
for module in (
    inspect,
    export,
    verify,
    run,
    chat,
    profile,
    evaluate,
    compare,
    report,
    devices,
    serve,
    demo,
):
    app.command(module.__name__.rpartition(".")[2])(module.command)


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
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # Text of a model may hold characters that the terminal's encoding lacks.
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except EdgekitError as error:
        Output(is_json="--json" in sys.argv).error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader of the pipe has closed it, so nothing can be printed.
        sys.stderr.close()
        sys.exit(0)
    sys.exit(0)


def _stop(signum: int, frame: FrameType | None) -> NoReturn:
    """Turn SIGTERM into an exit that still removes half-written files."""
    sys.exit(128 + signum)
