"""`edgekit devices`: list the device profiles, and match artifacts with them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli.options import JsonOpt
from edgekit.cli.output import Output

if TYPE_CHECKING:
    from rich.console import Console


def command(
    device: Annotated[
        str | None,
        typer.Argument(
            metavar="DEVICE",
            help="Profile to show: host (this machine), a name from the list, or a TOML file.",
            show_default="list all profiles",
        ),
    ] = None,
    artifacts: Annotated[
        list[Path] | None,
        typer.Option(
            "--artifact",
            metavar="DIR",
            help="Say whether this artifact fits on DEVICE, and why; may be repeated.",
        ),
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """List device profiles, or say which artifacts fit a device.

    Example:
      edgekit devices raspberry-pi-5 --artifact artifacts/pocket-onnx-int4-g32
    """
    from edgekit.artifact import Artifact
    from edgekit.pipeline.devices import describe_profile, list_devices, match_tables
    from edgekit.report.terminal import print_table

    output = Output(is_json=as_json)
    if device is None:
        data, tables = list_devices()
    elif artifacts:
        data, tables = match_tables([Artifact.open(path) for path in artifacts], device)
    else:
        data, tables = describe_profile(device)

    def show(console: Console) -> None:
        for table in tables:
            print_table(table, console)

    output.result(data, show)
