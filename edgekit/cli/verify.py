"""`edgekit verify`: check that artifacts hold the same weights and that their engines agree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli.options import ArtifactsArg, JsonOpt
from edgekit.cli.output import Output

if TYPE_CHECKING:
    from rich.console import Console


def command(
    artifacts: ArtifactsArg,
    with_logits: Annotated[
        bool,
        typer.Option(
            "--logits/--no-logits",
            help="Also run every artifact on the same tokens and compare the logits.",
        ),
    ] = True,
    n_tokens: Annotated[
        int,
        typer.Option(
            "--tokens", min=2, metavar="N", help="Number of tokens to compare the logits of."
        ),
    ] = 192,
    n_prompts: Annotated[
        int,
        typer.Option(
            "--greedy",
            min=0,
            metavar="N",
            help="Number of prompts to which all artifacts must give the same greedy answer.",
        ),
    ] = 0,
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

    Reads every artifact from disk with its format's own library and compares codes, scales, logits
    and greedy answers. Exit code 1 when anything differs by more than its tolerance.

    Example:
      edgekit verify artifacts/pocket-*-int4-g32
    """
    from edgekit.artifact import Artifact
    from edgekit.pipeline.greedy import compare_greedy
    from edgekit.pipeline.oracle import check_oracle, compare_with_oracle
    from edgekit.pipeline.verify import is_verified, verification_tokens, verify
    from edgekit.records import to_data
    from edgekit.report.terminal import print_table
    from edgekit.report.verification import oracle_table, weights_table

    output = Output(is_json=as_json)
    opened = [Artifact.open(path) for path in artifacts]
    if oracle is not None:
        check_oracle(oracle, opened)
    with output.progress() as progress:
        needs_tokens = with_logits or oracle is not None
        token_ids = verification_tokens(opened[0], n_tokens) if needs_tokens else None
        records = verify(opened, token_ids=token_ids if with_logits else None, progress=progress)
        judged = (
            compare_with_oracle(opened, token_ids, tell=output.message, progress=progress)
            if oracle is not None and token_ids is not None
            else ()
        )
        greedy = compare_greedy(opened, n_prompts, progress) if n_prompts else None
    is_good = is_verified((*records, *judged)) and (greedy is None or greedy.is_identical)
    data = {
        "records": to_data(records),
        "greedy": to_data(greedy),
        "oracle": to_data(judged),
        "is_verified": is_good,
    }

    def show(console: Console) -> None:
        print_table(weights_table(records), console)
        if judged:
            print_table(oracle_table(judged), console)
        if greedy is not None:
            console.print(greedy.sentence, markup=False)
        console.print("verified" if is_good else "NOT verified", markup=False)

    output.result(data, show)
    if not is_good:
        raise typer.Exit(1)
