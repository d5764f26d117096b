"""`edgekit compare`: an artifact against a server-hosted model, with a verdict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli.options import (
    ArtifactArg,
    DeviceOpt,
    EngineOpt,
    ItemsOpt,
    JsonOpt,
    MarginOpt,
    SeedOpt,
    SuiteOpt,
    ThreadsOpt,
)
from edgekit.cli.output import Output

if TYPE_CHECKING:
    from rich.console import Console


def command(
    artifact: ArtifactArg,
    server: Annotated[
        str | None,
        typer.Option(
            "--server",
            metavar="URL",
            help="Base URL of an OpenAI-compatible server, such as http://host/v1. The questions "
            "are sent there, and nowhere else.",
        ),
    ] = None,
    server_model: Annotated[
        str | None,
        typer.Option(
            "--server-model",
            metavar="NAME",
            help="Name of the model to ask there; needed with --server.",
        ),
    ] = None,
    api_key_env: Annotated[
        str,
        typer.Option(
            "--api-key-env",
            metavar="VARIABLE",
            help="Environment variable that holds the server's API key.",
        ),
    ] = "OPENAI_API_KEY",
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout", min=0.1, metavar="SECONDS", help="Longest wait for an answer, in seconds."
        ),
    ] = 60.0,
    record: Annotated[
        Path | None,
        typer.Option(
            "--record",
            metavar="FILE",
            help="Keep the server's answers in this file (JSONL), for --replay.",
        ),
    ] = None,
    replay: Annotated[
        Path | None,
        typer.Option(
            "--replay",
            metavar="FILE",
            help="Take the server's answers from this file; nothing is sent anywhere.",
        ),
    ] = None,
    items: ItemsOpt = 100,
    suite: SuiteOpt = None,
    seed: SeedOpt = 20261,
    margin: MarginOpt = 5.0,
    max_ttft: Annotated[
        float,
        typer.Option(
            "--max-ttft",
            min=0,
            metavar="SECONDS",
            help="Longest time to the first token that is good enough on the device, in seconds.",
        ),
    ] = 1.0,
    min_speed: Annotated[
        float,
        typer.Option(
            "--min-speed",
            min=0,
            metavar="SPEED",
            help="Lowest speed of the answer that is good enough on the device, in tokens per "
            "second.",
        ),
    ] = 10.0,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Also write the pages of a report here."),
    ] = None,
    device: DeviceOpt = "host",
    engine: EngineOpt = None,
    threads: ThreadsOpt = None,
    as_json: JsonOpt = False,
) -> None:
    r"""Ask an artifact and a server the same; say which to ship.

    Example:
      edgekit compare artifacts/pocket-onnx-int4-g32 \
        --server http://127.0.0.1:8080/v1 --server-model pocket-onnx-fp32 \
        --record answers.jsonl --out report
    """
    from edgekit.artifact import Artifact
    from edgekit.pipeline.compare import compare, comparison_report
    from edgekit.pipeline.hosting import open_server
    from edgekit.quality.evaluate import SuitePlan
    from edgekit.quality.verdict import Rule
    from edgekit.records import to_data
    from edgekit.report.terminal import print_report
    from edgekit.report.write import write_report

    output = Output(is_json=as_json)
    plan = SuitePlan(tuple(suite) if suite else None, items, seed)
    rule = Rule(margin=margin / 100, max_ttft_s=max_ttft, min_decode_tok_per_s=min_speed)
    opened = Artifact.open(artifact)
    with (
        open_server(
            server,
            server_model,
            api_key_env=api_key_env,
            timeout_s=timeout,
            record=record,
            replay=replay,
        ) as backend,
        output.progress() as progress,
    ):
        found = compare(
            opened,
            backend,
            plan=plan,
            rule=rule,
            device=device,
            engine=engine,
            n_threads=threads,
            progress=progress,
        )
    data = comparison_report(opened, found)
    written = write_report(data, out) if out is not None else ()

    def show(console: Console) -> None:
        print_report(data, console, keys=("decision", "paired", "speed", "suites"))
        if written:
            console.print(f"\nReport: {written[0]}", markup=False, soft_wrap=True)

    output.result(to_data(data), show)
