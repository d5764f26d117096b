"""`edgekit evaluate`: quality of artifacts against the float model and on the suites."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli.options import (
    AdapterOpt,
    ArtifactsArg,
    DeviceOpt,
    EngineOpt,
    IgnoreKeysOpt,
    ItemsOpt,
    JsonOpt,
    SeedOpt,
    SuiteOpt,
    ThreadsOpt,
)
from edgekit.cli.output import Output

if TYPE_CHECKING:
    from rich.console import Console


def command(
    artifacts: ArtifactsArg,
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            metavar="MODEL",
            help="Float model to compare with: a model as for `edgekit export`, or an fp32 or fp16 "
            "artifact.",
            show_default="none: only the suites are asked",
        ),
    ] = None,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact",
            help="Run the float model beside each artifact and compare whole distributions; "
            "without this it runs once, and its likeliest tokens are stored for the next time.",
        ),
    ] = False,
    adapter: AdapterOpt = None,
    ignore_config_keys: IgnoreKeysOpt = None,
    items: ItemsOpt = 100,
    suite: SuiteOpt = None,
    seed: SeedOpt = 20261,
    device: DeviceOpt = "host",
    engine: EngineOpt = None,
    threads: ThreadsOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Measure how well artifacts answer, and what quantizing cost.

    Asks the task suites. With --reference also says how far the artifact is from the float model:
    KL divergence, how often the likeliest token is the same, and perplexity.

    Example:
      edgekit evaluate artifacts/pocket-onnx-int4-g32 --reference pocket
    """
    from edgekit.artifact import Artifact
    from edgekit.pipeline.evaluate import evaluate
    from edgekit.quality.evaluate import SuitePlan
    from edgekit.records import to_data
    from edgekit.report.sections import divergence_table, failure_table, sub_kind_table, suite_table
    from edgekit.report.terminal import print_table

    output = Output(is_json=as_json)
    plan = SuitePlan(tuple(suite) if suite else None, items, seed)
    with output.progress() as progress:
        records = [
            evaluate(
                Artifact.open(path),
                reference=reference,
                adapter=adapter,
                ignore_config_keys=ignore_config_keys or (),
                plan=plan,
                device=device,
                engine=engine,
                n_threads=threads,
                is_exact=exact,
                progress=progress,
            )
            for path in artifacts
        ]

    def show(console: Console) -> None:
        tables = (divergence_table, suite_table, sub_kind_table, failure_table)
        for table in (make(records) for make in tables):
            if table.rows:
                print_table(table, console)

    output.result(to_data(records), show)
