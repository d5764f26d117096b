"""Export through optimum, and the choice between this route and edgekit's own."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from edgekit.artifact import Artifact, Format
from edgekit.checkpoint.assets import read_text
from edgekit.checkpoint.config import IGNORE_OPTION
from edgekit.checkpoint.gguf.file import is_gguf
from edgekit.checkpoint.reader import open_checkpoint
from edgekit.checkpoint.remote import needs_download, open_headers
from edgekit.errors import UsageError
from edgekit.exporters.base import ExportOptions
from edgekit.optimum.environment import Tell, open_environment
from edgekit.optimum.model import read_rows, translate_config
from edgekit.optimum.route import check_request, write_optimum_artifact
from edgekit.pipeline.calibration import Calibration
from edgekit.pipeline.export import (
    NO_BUDGET,
    OWN_CALIBRATION,
    check_export,
    check_text,
    choose_method,
    export,
    parse_formats,
)
from edgekit.pipeline.mixed_precision import Budget
from edgekit.progress import Progress, ignore_progress
from edgekit.quantize.model import Source
from edgekit.scheme import RECOMMENDED, Scheme

SUFFIX: Final = "optimum"


class Route(enum.Enum):
    """Which program builds the graph."""

    EDGEKIT = "edgekit"
    OPTIMUM = "optimum"


def export_by_route(
    via: str,
    model: str | Path,
    formats: Sequence[str] | None,
    schemes: Sequence[str] | None,
    out: Path,
    *,
    context_length: int | None,
    exact_activations: bool = False,
    method: str | None,
    fold: bool = True,
    budget: Budget = NO_BUDGET,
    calibration: Calibration = OWN_CALIBRATION,
    ignore_config_keys: Sequence[str] = (),
    adapter: Path | None = None,
    tell: Tell,
    progress: Progress,
) -> list[Artifact]:
    """Export in every format and scheme asked for; None takes the defaults of the route.

    Raises:
        UsageError: No such route, or it does not offer what is asked for.
        EdgekitError: See ``export`` and ``export_via_optimum``.
    """
    try:
        route = Route(via)
    except ValueError as error:
        known = " or ".join(item.value for item in Route)
        raise UsageError("unknown value of --via", got=repr(via), wanted=known) from error
    if route is Route.EDGEKIT:
        chosen = list(dict.fromkeys(Scheme.parse(text) for text in schemes or ["int4"]))
        for scheme in chosen:
            calibration.check(choose_method(method, scheme))
        if len(chosen) > 1:
            # Refuse what the second export cannot do before the first is written.
            check_export(
                model,
                formats or ["all"],
                chosen,
                out,
                context_length=context_length,
                ignore_config_keys=ignore_config_keys,
                adapter=adapter,
            )
        artifacts = [
            artifact
            for scheme in chosen
            for artifact in export(
                model,
                formats or ["all"],
                scheme,
                out,
                context_length=context_length,
                exact_activations=exact_activations,
                method=method,
                fold=fold,
                budget=budget,
                calibration=calibration,
                ignore_config_keys=ignore_config_keys,
                adapter=adapter,
                progress=progress,
                warn=tell,
            )
        ]
        if schemes is None:
            tell(f"no --scheme was named: int4. Recommended: --scheme {RECOMMENDED} (calibrated)")
        return artifacts
    if parse_formats(formats or ["onnx"]) != [Format.ONNX]:
        raise UsageError(
            "--via optimum cannot write this format",
            got=", ".join(formats or ()),
            wanted="onnx",
            do="optimum writes ONNX; leave --format out.",
        )
    if exact_activations:
        raise UsageError(
            "--exact-activations cannot be used with --via optimum",
            do="Its graphs have float activations already.",
        )
    if not fold:
        raise UsageError(
            "--no-fold cannot be used with --via optimum",
            got="--no-fold",
            do="It quantizes nothing.",
        )
    if method is not None:
        raise UsageError(
            "--method cannot be used with --via optimum", got=method, do="It quantizes nothing."
        )
    if budget != NO_BUDGET or calibration != OWN_CALIBRATION:
        raise UsageError(
            "budgets and calibration cannot be used with --via optimum",
            do="It quantizes nothing.",
        )
    if ignore_config_keys:
        raise UsageError(
            f"{IGNORE_OPTION} cannot be used with --via optimum",
            got=", ".join(ignore_config_keys),
            wanted="none",
            do="optimum reads config.json itself and refuses no key.",
        )
    if adapter is not None:
        raise UsageError(
            "--adapter cannot be used with --via optimum",
            got=adapter,
            wanted="none",
            do="Merge it with peft (merge_and_unload, save_pretrained) and name the merged folder.",
        )
    chosen = list(dict.fromkeys(Scheme.parse(text) for text in schemes or ["fp32"]))
    return [
        export_via_optimum(
            model, scheme, out, context_length=context_length, tell=tell, progress=progress
        )
        for scheme in chosen
    ]


def export_via_optimum(
    model: str | Path,
    scheme: str | Scheme = "fp32",
    out: str | Path = "artifacts",
    *,
    context_length: int | None = None,
    tell: Tell = lambda text: None,
    progress: Progress = ignore_progress,
) -> Artifact:
    """Trace a model with optimum and write it as an ONNX artifact.

    Args:
        model: A folder, a name under ``models/``, or a Hub id; edgekit downloads it.
        scheme: ``fp32`` or ``fp16``.
        out: Parent folder; the artifact is ``{model}-onnx-{scheme}-optimum`` in it.
        context_length: Positions; default what the graph is right for, at most 4096.
        tell: Gets a text about what will be installed, before the environment is first made.
        progress: Called as ``progress(what, n_done, n_total)``.

    Raises:
        UsageError: A scheme, a length or a source that this route does not support.
        CheckpointError: The model cannot be read or lacks weights.
        UnsupportedArchError: optimum does not know the model_type.
        ExportError: The environment cannot be made, optimum failed, or its graph is not right.
    """
    parsed = scheme if isinstance(scheme, Scheme) else Scheme.parse(scheme)
    if is_gguf(model):
        raise UsageError(
            f"{model}: a GGUF file",
            wanted="a checkpoint in Hugging Face form for --via optimum",
            do="Name the float model that the file was made from.",
        )
    options = ExportOptions(context_length)
    if needs_download(model):
        with open_headers(model) as headers:
            check_request(headers, parsed.encoding, options)
    with open_checkpoint(model, progress) as checkpoint:
        check_request(checkpoint, parsed.encoding, options)
        rows = read_rows(translate_config(checkpoint.config, str(checkpoint.folder)))
        check_text(read_text(checkpoint, rows), checkpoint.origin)
        environment = open_environment(tell, progress)
        progress("hash the model", 0, 1)
        name = checkpoint.name.rpartition("/")[2]
        return write_optimum_artifact(
            checkpoint,
            Source(checkpoint.name, checkpoint.origin),
            environment,
            parsed.encoding,
            Path(out) / f"{name}-{Format.ONNX.value}-{parsed}-{SUFFIX}",
            options,
            progress,
        )
