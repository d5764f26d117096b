"""`edgekit export`: quantize a model once and write it in every format asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli.options import AdapterOpt, IgnoreKeysOpt, JsonOpt, ModelArg
from edgekit.cli.output import Output


def command(
    model: ModelArg,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="File format to write: onnx, mlx, coreml, gguf or all; may be repeated.",
            show_default="all",
        ),
    ] = None,
    schemes: Annotated[
        list[str] | None,
        typer.Option(
            "--scheme",
            metavar="SCHEME",
            help="How weights are stored: a preset (fast, tiny, balanced, quality), a number type "
            "(fp32, fp16, bf16, int8, int4, uint4, lut4; int4-g64 means one scale for 64 weights: "
            "32, 64 or 128), or a TOML file (docs/schemes.md); may be repeated.",
            show_default="int4, which is int4-g32",
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option("--out", metavar="DIR", help="Folder in which each artifact gets a folder."),
    ] = Path("artifacts"),
    context_length: Annotated[
        int | None,
        typer.Option(
            "--context",
            metavar="TOKENS",
            help="Most tokens that a prompt and its answer may have together.",
            show_default="the model's own; in ONNX and Core ML often 4096, to save memory",
        ),
    ] = None,
    exact_activations: Annotated[
        bool,
        typer.Option(
            "--exact-activations",
            help="ONNX: take what goes into a matmul in two int8 terms instead of one, so that "
            "answers are those of float activations; decode is about a fifth slower, and a "
            "prompt takes twice as long.",
        ),
    ] = False,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            metavar="METHOD",
            help="How the codes of weights are chosen: rtn (rounding), search (smallest error), "
            "importance (errors weighed by the inputs, measured on a few words or on a calibration "
            "text), or on a calibration text: gptq (later weights make good the errors of earlier "
            "ones) or auto (the better for each matrix).",
            show_default="what the scheme says, else importance",
        ),
    ] = None,
    no_fold: Annotated[
        bool,
        typer.Option(
            "--no-fold",
            help="Leave channel scales where they are; usually they move into the norms first, so "
            "that rounding costs less.",
        ),
    ] = False,
    bits_per_weight: Annotated[
        float | None,
        typer.Option(
            "--bits-per-weight",
            metavar="BITS",
            show_default="what the scheme says",
            help="Give sensitive matrices 8 bits until the layers have this many bits per weight, "
            "scales included; the embedding and the output matrix are not counted.",
        ),
    ] = None,
    max_bytes: Annotated[
        str | None,
        typer.Option(
            "--max-bytes",
            metavar="SIZE",
            show_default="no limit",
            help="The same, until an artifact of this size is full in any format: 900MB, 1.2GiB.",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            metavar="DEVICE",
            show_default="no limit",
            help="The same, until the memory of one app on this device is full: a name that "
            "`edgekit devices` lists, host, or a TOML file.",
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            metavar="FILE",
            help="Text to calibrate on: plain text, or .jsonl with messages or text in each line.",
            show_default="edgekit's own text",
        ),
    ] = None,
    calibration_tokens: Annotated[
        int | None,
        typer.Option(
            "--calibration-tokens",
            metavar="N",
            help="Tokens to calibrate on.",
            show_default="8192",
        ),
    ] = None,
    own_answers: Annotated[
        bool,
        typer.Option(
            "--own-answers",
            help="Calibrate also on answers that the model samples itself; takes longer.",
        ),
    ] = False,
    imatrix: Annotated[
        Path | None,
        typer.Option(
            "--imatrix",
            metavar="FILE",
            show_default="none",
            help="Importance matrix of llama.cpp to weigh errors with, in place of a text.",
        ),
    ] = None,
    write_imatrix: Annotated[
        Path | None,
        typer.Option(
            "--write-imatrix",
            metavar="FILE",
            show_default="nothing is written",
            help="Measure an importance matrix and write it for llama.cpp: .gguf, or .dat for its "
            "older form.",
        ),
    ] = None,
    via: Annotated[
        str,
        typer.Option(
            "--via",
            metavar="ROUTE",
            help="Who writes the graph: edgekit, or optimum, which knows more architectures and "
            "writes float ONNX only.",
        ),
    ] = "edgekit",
    adapter: AdapterOpt = None,
    ignore_config_keys: IgnoreKeysOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Quantize a model once and write it in one or more formats.

    Example:
      edgekit export pocket --format all --scheme balanced --out artifacts
    """
    from edgekit.pipeline.calibration import Calibration
    from edgekit.pipeline.export import describe_import
    from edgekit.pipeline.export_optimum import export_by_route
    from edgekit.pipeline.mixed_precision import read_budget
    from edgekit.records import to_data
    from edgekit.report.table import make_table
    from edgekit.report.terminal import print_table
    from edgekit.units import format_bytes

    output = Output(is_json=as_json)
    with output.progress() as progress:
        artifacts = export_by_route(
            via,
            model,
            formats,
            schemes,
            out,
            context_length=context_length,
            exact_activations=exact_activations,
            method=method,
            fold=not no_fold,
            budget=read_budget(bits_per_weight, max_bytes, device),
            calibration=Calibration(
                calibration, calibration_tokens, imatrix, write_imatrix, own_answers
            ),
            ignore_config_keys=ignore_config_keys or (),
            adapter=adapter,
            tell=output.message,
            progress=progress,
        )
    rows = [
        (
            a.manifest.format.value,
            a.manifest.scheme,
            format_bytes(a.n_bytes),
            a.manifest.weights_sha256[:8] or "float",
            str(a.path),
        )
        for a in artifacts
    ]
    artifacts_of: dict[str, list[str]] = {}
    for artifact in artifacts:
        for note in (*artifact.manifest.notes, *describe_import(artifact.manifest)):
            artifacts_of.setdefault(note, []).append(artifact.name)
    for note, names in artifacts_of.items():
        is_shared = len(names) == len(artifacts) > 1
        output.message(note if is_shared else f"{', '.join(names)}: {note}")
    output.result(
        [
            {"path": str(a.path), "n_bytes": a.n_bytes, "manifest": to_data(a.manifest)}
            for a in artifacts
        ],
        lambda console: print_table(
            make_table(
                "artifacts", "Artifacts", ("format", "scheme", "size", "weights", "folder"), rows
            ),
            console,
        ),
    )
