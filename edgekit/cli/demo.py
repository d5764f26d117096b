"""`edgekit demo`: the whole job on the bundled model, with a report at the end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli.options import JsonOpt
from edgekit.cli.output import Output

if TYPE_CHECKING:
    from rich.console import Console


def command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Default the bundled one.")
    ] = "pocket",
    out: Annotated[Path, typer.Option("--out", help="Folder of the report.")] = Path("demo-report"),
    items: Annotated[int, typer.Option("--items", min=1, help="Items of each suite.")] = 100,
    margin: Annotated[
        float, typer.Option("--margin", min=0, max=100, help="Points a suite may lose.")
    ] = 5.0,
    as_json: JsonOpt = False,
) -> None:
    """Export, verify, run, profile, evaluate and compare MODEL; write a report.

    Uses no network.

    Example: edgekit demo --out demo-report
    """
    from edgekit.pipeline.demo import run_demo
    from edgekit.quality.verdict import Rule
    from edgekit.records import to_data
    from edgekit.report.terminal import print_report
    from edgekit.report.write import write_report

    output = Output(is_json=as_json)
    with output.progress() as progress:
        data = run_demo(
            model, out, n_items=items, rule=Rule(margin=margin / 100), progress=progress
        )
    written = write_report(data, out)
    shown = ("decision", "weights", "speed", "memory", "fidelity", "suites")

    def show(console: Console) -> None:
        print_report(data, console, keys=shown)
        console.print(f"\nReport: {written[0]}", markup=False)

    output.result(to_data(data), show)
