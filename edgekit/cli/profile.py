"""`edgekit profile`: speed and memory of artifacts on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli.options import ArtifactsArg, DeviceOpt, EngineOpt, JsonOpt, ThreadsOpt
from edgekit.cli.output import Output

if TYPE_CHECKING:
    from rich.console import Console


def command(
    artifacts: ArtifactsArg,
    device: DeviceOpt = "host",
    engine: EngineOpt = None,
    threads: ThreadsOpt = None,
    n_prompt: Annotated[
        int,
        typer.Option("--prompt", min=1, metavar="TOKENS", help="Length of the prompt, in tokens."),
    ] = 64,
    n_new: Annotated[
        int, typer.Option("--new", min=2, metavar="TOKENS", help="Length of the answer, in tokens.")
    ] = 32,
    repeats: Annotated[
        int,
        typer.Option(
            "--repeats", min=5, metavar="N", help="Runs that count, after one that warms up."
        ),
    ] = 5,
    as_json: JsonOpt = False,
) -> None:
    """Measure the speed and memory of artifacts on this machine.

    Time to load, time to the first token, tokens per second of prompt and answer, and memory. Each
    measurement runs in a new process; the result has every single sample.

    Example:
      edgekit profile artifacts/pocket-onnx-int4-g32 --json > profile.json
    """
    from edgekit.artifact import Artifact
    from edgekit.pipeline.profile import profile
    from edgekit.records import Workload, to_data
    from edgekit.report.sections import itl_table, memory_table, speed_table
    from edgekit.report.terminal import print_table

    output = Output(is_json=as_json)
    workload = Workload(n_prompt, n_new, repeats, n_warmup=1)
    with output.progress() as progress:
        records = [
            profile(
                Artifact.open(path),
                device=device,
                engine=engine,
                n_threads=threads,
                workload=workload,
                progress=progress,
            )
            for path in artifacts
        ]

    def show(console: Console) -> None:
        print_table(speed_table(records), console)
        print_table(itl_table(records), console)
        print_table(memory_table(records), console)

    output.result(to_data(records), show)
    if any(record.failure for record in records):
        raise typer.Exit(1)
