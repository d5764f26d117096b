"""`edgekit verify`: check artifacts as they lie on disk and as they run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli.options import ArtifactsArg, JsonOpt
from edgekit.cli.output import Output

if TYPE_CHECKING:
    from rich.console import Console

    from edgekit.records import OracleRecord


def command(
    artifacts: ArtifactsArg,
    n_tokens: Annotated[
        int | None,
        typer.Option(
            "--tokens",
            min=2,
            metavar="N",
            help="Number of tokens to compare the logits of.",
            show_default="192, of models with more than 500 million parameters 64",
        ),
    ] = None,
    n_prompts: Annotated[
        int | None,
        typer.Option(
            "--prompts",
            min=0,
            metavar="N",
            help="Number of questions to answer greedily.",
            show_default="4, for models with more than 500 million parameters 2",
        ),
    ] = None,
    weights_only: Annotated[
        bool, typer.Option("--weights-only", help="Compare the weights alone and run nothing.")
    ] = False,
    stock: Annotated[
        bool,
        typer.Option(
            "--stock",
            help="Also ask the runtimes that others use, where they are installed "
            "(onnxruntime-genai, mlx-lm), and compare prompts, ends and answers.",
        ),
    ] = False,
    oracle: Annotated[
        str | None,
        typer.Option(
            "--oracle",
            metavar="NAME",
            help="Also compare the logits with a graph over the same weights that another program "
            "wrote: optimum.",
            show_default="none",
        ),
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """Check that artifacts hold the same weights and answer alike.

    a) The weights, read with each format's own library, are equal in every format and are what the
    manifest says. b) Each graph, run in float32, gives the logits of a plain numpy computation over
    these weights. c) So does each artifact as `edgekit run` runs it, up to the rounding of its
    engine. Exit code 1 when anything differs by more than its tolerance.

    Example:
      edgekit verify artifacts/pocket-*-int4-g32
    """
    from edgekit.artifact import Artifact
    from edgekit.errors import UsageError
    from edgekit.pipeline.oracle import check_oracle, compare_with_oracle
    from edgekit.pipeline.verify import usual_plan, verification_tokens, verify
    from edgekit.records import to_data
    from edgekit.report.terminal import print_verification

    output = Output(is_json=as_json)
    if weights_only and (stock or n_tokens is not None or n_prompts is not None):
        raise UsageError(
            "--weights-only runs nothing",
            got="--stock, --tokens or --prompts beside it",
            do="Leave one of them out.",
        )
    opened = [Artifact.open(path) for path in artifacts]
    plan = usual_plan(opened[0])
    plan = replace(
        plan,
        n_tokens=plan.n_tokens if n_tokens is None else n_tokens,
        n_prompts=plan.n_prompts if n_prompts is None else n_prompts,
        asks_stock=stock,
    )
    if oracle is not None:
        check_oracle(oracle, opened)
    with output.progress() as progress:
        records = verify(opened, None if weights_only else plan, progress=progress)
        judged: tuple[OracleRecord, ...] = ()
        if oracle is not None:
            token_ids = verification_tokens(opened[0], plan.n_tokens)
            judged = compare_with_oracle(opened, token_ids, tell=output.message, progress=progress)
    is_good = all(r.is_met for r in records) and all(r.logits.is_met for r in judged)
    data = {"records": to_data(records), "oracle": to_data(judged), "is_verified": is_good}

    def show(console: Console) -> None:
        print_verification(records, judged, console)

    output.result(data, show)
    if not is_good:
        raise typer.Exit(1)
