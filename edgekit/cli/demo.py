"""`edgekit demo`: the whole job on one model, with a report at the end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli.options import JsonOpt, MarginOpt
from edgekit.cli.output import Output

if TYPE_CHECKING:
    from rich.console import Console


def command(
    model: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="Model: pocket is bundled and made for this demo, smollm2-135m-instruct is a real "
            "one; or a folder, a GGUF file or a Hub id.",
        ),
    ] = "pocket",
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the report.")] = Path(
        "demo-report"
    ),
    items: Annotated[
        int | None,
        typer.Option(
            "--items",
            min=1,
            metavar="N",
            help="Number of questions of each suite.",
            show_default="100; 12 for a larger model",
        ),
    ] = None,
    margin: MarginOpt = 5.0,
    as_json: JsonOpt = False,
) -> None:
    """Do all of it with one model and write a report.

    Exports, verifies, runs, profiles, evaluates and compares the model.

    The bundled model needs no network; another one that is not on this disk is downloaded.

    Example:
      edgekit demo --model smollm2-135m-instruct
    """
    from edgekit.pipeline.demo import run_demo
    from edgekit.quality.verdict import Rule
    from edgekit.records import to_data
    from edgekit.report.terminal import print_report
    from edgekit.report.write import write_report

    output = Output(is_json=as_json)
    with output.progress() as progress:
        data = run_demo(
            model,
            out,
            n_items=items,
            rule=Rule(margin=margin / 100),
            progress=progress,
            tell=output.message,
        )
    written = write_report(data, out)
    shown = ("decision", "weights", "speed", "memory", "fidelity", "suites")

    def show(console: Console) -> None:
        print_report(data, console, keys=shown)
        console.print(f"\nReport: {written[0]}", markup=False)

    output.result(to_data(data), show)
