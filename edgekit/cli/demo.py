"""`edgekit demo`: the whole job on one model, with a report at the end."""

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
        str,
        typer.Option(
            "--model",
            help="Default the bundled one; smollm2-135m-instruct is a real one. "
            "Or a folder, GGUF file or Hub id.",
        ),
    ] = "pocket",
    out: Annotated[Path, typer.Option("--out", help="Folder of the report.")] = Path("demo-report"),
    items: Annotated[
        int | None,
        typer.Option(
            "--items", min=1, help="Items of each suite; default 100, of a larger model 12."
        ),
    ] = None,
    margin: Annotated[
        float, typer.Option("--margin", min=0, max=100, help="Points a suite may lose.")
    ] = 5.0,
    as_json: JsonOpt = False,
) -> None:
    """Export, verify, run, profile, evaluate and compare a model; write a report.

    The bundled model needs no network; another one that is not on this disk is downloaded.

    Example: edgekit demo --model smollm2-135m-instruct
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
    shown = ("decision", "weights", "logits", "run", "speed", "memory", "fidelity", "suites")

    def show(console: Console) -> None:
        print_report(data, console, keys=shown)
        console.print(f"\nReport: {written[0]}", markup=False)

    output.result(to_data(data), show)
