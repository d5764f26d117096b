"""`edgekit quality-cost`: what each way of quantizing a model costs in bytes and in quality."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli.options import (
    AdapterOpt,
    IgnoreKeysOpt,
    JsonOpt,
    ModelArg,
    SeedOpt,
    ThreadsOpt,
)
from edgekit.cli.output import Output

if TYPE_CHECKING:
    from rich.console import Console


def command(
    model: ModelArg,
    schemes: Annotated[
        str,
        typer.Option(
            "--schemes",
            metavar="LIST",
            help="Schemes as for `edgekit export`, with commas between them; what follows a colon "
            "is a method (int4:gptq), :no-fold leaves channel scales where they are.",
        ),
    ] = "int8,int4,int4-g64,int4-g128",
    artifacts: Annotated[
        list[Path] | None,
        typer.Option(
            "--artifact",
            metavar="DIR",
            help="Also measure this artifact of the model, as it is; may be repeated.",
        ),
    ] = None,
    text: Annotated[
        str,
        typer.Option(
            "--text",
            metavar="TEXT",
            help="Text to measure on: builtin (chats, prose, code), suites (questions of the task "
            "suites with their answers), or a file: UTF-8, or .jsonl with text, messages or ids "
            "on each line.",
        ),
    ] = "builtin",
    n_tokens: Annotated[
        int, typer.Option("--tokens", min=1, metavar="N", help="Most tokens of the text.")
    ] = 8192,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder for the results; what is finished there is not measured again.",
        ),
    ] = Path("quality-cost"),
    keep: Annotated[
        bool,
        typer.Option("--keep", help="Keep the exported artifacts in the output folder."),
    ] = False,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            "--suite",
            metavar="SUITE",
            help="Also ask this suite: tool_calls, structured_output, long_context or multi_step; "
            "may be repeated.",
            show_default="none",
        ),
    ] = None,
    items: Annotated[
        int, typer.Option("--items", min=1, metavar="N", help="Number of questions of each suite.")
    ] = 50,
    seed: SeedOpt = 20261,
    threads: ThreadsOpt = None,
    adapter: AdapterOpt = None,
    ignore_config_keys: IgnoreKeysOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Show what quantizing costs: bytes against quality.

    Exports the model in each scheme, compares every artifact with the float model on the same
    text, and writes a table, a picture with the best settings marked, and JSON.

    Example:
      edgekit quality-cost pocket --schemes int8,int4,int4-g128
    """
    from edgekit.artifact import Artifact
    from edgekit.pipeline.quality_cost import CostPlan, parse_settings, quality_cost
    from edgekit.quality.evaluate import SuitePlan
    from edgekit.records import to_data
    from edgekit.report.cost import cost_tables
    from edgekit.report.terminal import print_table
    from edgekit.report.write import write_cost

    output = Output(is_json=as_json)
    plan = CostPlan(
        settings=parse_settings(schemes),
        artifacts=tuple(Artifact.open(path) for path in artifacts or ()),
        text=text,
        n_tokens=n_tokens,
        suites=SuitePlan(tuple(suite), items, seed) if suite else None,
        keeps_artifacts=keep,
    )
    with output.progress() as progress:
        record = quality_cost(
            model,
            plan,
            out,
            adapter=adapter,
            ignore_config_keys=ignore_config_keys or (),
            n_threads=threads,
            progress=progress,
            tell=output.message,
        )
    written = write_cost(record, out)

    def show(console: Console) -> None:
        for table in cost_tables(record):
            print_table(table, console)
        console.print()
        for path in written:
            console.print(str(path), markup=False)

    output.result(to_data(record), show)
