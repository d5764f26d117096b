"""``export``: from a model to artifacts.

Each row of the model is quantized once and put into every format at the same time.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from edgekit.artifact import Artifact, Format, Manifest
from edgekit.checkpoint.assets import files_of_artifact
from edgekit.checkpoint.recipe import check_golden
from edgekit.checkpoint.remote import needs_download
from edgekit.checkpoint.repository import recipe_of
from edgekit.decision import Accepted, Decision, Rejected
from edgekit.errors import ExportError, UsageError
from edgekit.exporters import open_exporter
from edgekit.exporters.base import Exporter, ExportOptions
from edgekit.exporters.staging import write_artifacts
from edgekit.exporters.work_folder import work_folder
from edgekit.families import open_model
from edgekit.families.base import SourceModel
from edgekit.pipeline.calibration import (
    Calibration,
    calibrated_s,
    describe,
    read_power,
    read_text,
    write_power,
)
from edgekit.pipeline.mixed_precision import Budget, mix, needs_budget
from edgekit.pipeline.preflight import check_room, join_predictions, predict_export
from edgekit.pipeline.rates import known_rates
from edgekit.progress import Progress, ignore_progress
from edgekit.quantize.encoded_model import quantize_model
from edgekit.quantize.methods import Method
from edgekit.quantize.prequantized import CHANGES_OF_CODES, expected_plan
from edgekit.scheme import Scheme
from edgekit.text.view import TextView
from edgekit.units import format_seconds

ALL_FORMATS = tuple(Format)
LAYERS_NAME = ".edgekit-layers"
"""Folder beside the artifacts: layers that calibrated exports have finished so far. What was
stopped goes on with the same command; what is finished removes what it used."""
NO_BUDGET = Budget()
OWN_CALIBRATION = Calibration()


def export(
    model: str | Path,
    formats: str | Format | Iterable[str | Format] = ALL_FORMATS,
    scheme: str | Scheme = "int4",
    out: str | Path = "artifacts",
    *,
    context_length: int | None = None,
    exact_activations: bool = False,
    method: str | Method | None = None,
    fold: bool = True,
    budget: Budget = NO_BUDGET,
    calibration: Calibration = OWN_CALIBRATION,
    ignore_config_keys: Iterable[str] = (),
    adapter: str | Path | None = None,
    progress: Progress = ignore_progress,
    warn: Callable[[str], None] = lambda text: None,
) -> list[Artifact]:
    """Quantize a model once and write it in every format asked for.

    Args:
        model: A folder, a name under ``models/``, or a Hub id.
        formats: ``"onnx"``, ``"mlx"``, ``"coreml"``, ``"gguf"``, several of them, or ``"all"``,
            which leaves out GGUF, with a warning, where llama.cpp does not compute the model.
        scheme: ``fp32``, ``fp16``, ``int8``, ``int4``, ``int4-g64``, ...; a preset (``fast``,
            ``tiny``, ``balanced``, ``quality``), or the path of a TOML file (docs/schemes.md).
        out: Parent folder; each artifact is ``{model}-{format}-{scheme}`` in it.
        context_length: Positions the artifacts hold, those of prompt and answer together;
            default the model's own, in ONNX and Core ML no more than 4,096 unless their
            key/value cache stays small (exporters/context.py).
        exact_activations: Whether ONNX artifacts take what goes into a matmul in two int8 terms
            instead of one: answers are those of float activations, decode is about a fifth slower
            and a prompt takes twice as long (docs/activations.md).
        method: How codes are chosen: ``search``, ``rtn``, ``importance``, ``gptq`` or ``auto``;
            default what the scheme says, else ``importance``.
        fold: Whether channel scales are moved between tensors before they are quantized, which
            costs nothing when the model runs (docs/activations.md).
        budget: Bits or bytes that are spent where they help most (docs/schemes.md).
        calibration: The text that the model reads, or an importance matrix.
        ignore_config_keys: Keys of config.json that pass although edgekit does not know them; one
            of a section is written ``section.key``. The manifest's notes name them.
        adapter: Folder of a LoRA adapter that is merged into the weights (docs/adapters.md).
        progress: Called as ``progress(what, n_done, n_total)``.
        warn: Gets warnings about what may go wrong, such as scarce memory.

    Returns:
        One artifact per format, in the order asked for.

    Raises:
        UsageError: Unknown format, scheme or method, positions that a format cannot hold, or a
            config key to ignore that is not there or that edgekit computes with.
        CheckpointError: The model cannot be read.
        FormatError: A weight file is damaged.
        QuantError: A weight is not a finite number, or the scheme cannot hold it.
        MissingExtraError: The library of a format is not installed.
        ExportError: A format cannot hold the model, or the disk cannot be written. Nothing
            half-written is left, and no artifact of this call.
    """
    wanted = parse_formats(formats)
    parsed = scheme if isinstance(scheme, Scheme) else Scheme.parse(scheme)
    chosen = choose_method(method, parsed)
    calibration.check(chosen)
    if exact_activations and Format.ONNX not in wanted:
        raise UsageError(
            "exact activations are a choice of ONNX artifacts",
            got=", ".join(item.value for item in wanted),
            wanted="onnx among the formats",
        )
    exporters = [open_exporter(fmt) for fmt in wanted]
    parent, options = Path(out), ExportOptions(context_length, exact_activations)
    if needs_download(model):
        check_export(
            model,
            wanted,
            [parsed],
            parent,
            context_length=context_length,
            ignore_config_keys=ignore_config_keys,
            adapter=adapter,
        )
    source = open_model(
        model, progress=progress, ignore_config_keys=ignore_config_keys, adapter=adapter
    )
    try:
        exporters = _without_refused(source, exporters, parsed, _may_miss(formats), warn)
        _refuse_early(source, exporters, parsed, context_length)
        check_text(source.text, source.checkpoint.origin)
        _refuse_text(source, exporters)
        wanted = [exporter.format for exporter in exporters]
        needs_text = calibration.write_imatrix is not None or needs_budget(parsed, budget)
        reads_long = _reads_long_text(chosen, calibration)
        needs_text |= reads_long and calibration.imatrix is None
        power = read_power(source, calibration, warn)
        text = read_text(source, calibration, progress) if needs_text else None
        if text is not None and needs_budget(parsed, budget):
            mixed = mix(
                source, parsed, budget, exporters, options, text, tell=warn, progress=progress
            )
            parsed = mixed.scheme
        prediction = predict_export(source, parsed, wanted, options, known_rates())
        for warning in check_room(prediction, parent):
            warn(warning)
        reads = text if reads_long and power is None else None
        if reads is not None:
            seconds = calibrated_s(source.spec, chosen, reads.n_tokens)
            warn(
                f"calibrating on {reads.n_tokens} tokens ({reads.content}): about "
                f"{format_seconds(seconds)}"
            )
        if text is not None and calibration.write_imatrix is not None:
            write_power(source, text, calibration.write_imatrix, progress=progress)
        with _store_folder(parent) as store_dir:
            quantized = quantize_model(
                source,
                parsed,
                store_dir,
                method=chosen,
                text=None if reads is None else reads.sequences,
                mean_squares=None if power is None else power.of_layers,
                calibration=describe(chosen, reads, power),
                fold=fold and parsed.fold,
                layers_dir=parent / LAYERS_NAME,
                n_threads=os.cpu_count() or 1,
                progress=progress,
            )
            folders = {
                parent / artifact_name(source, exporter.format, parsed): exporter
                for exporter in exporters
            }
            n_threads = os.cpu_count() or 1
            artifacts = write_artifacts(folders, quantized, options, progress, n_threads=n_threads)
            quantized.discard_layers()
            return artifacts
    finally:
        source.close()


def check_export(
    model: str | Path,
    formats: str | Format | Iterable[str | Format],
    schemes: Sequence[Scheme],
    out: str | Path,
    *,
    context_length: int | None = None,
    ignore_config_keys: Iterable[str] = (),
    adapter: str | Path | None = None,
) -> None:
    """Refuse what could not be exported, using only config, tokenizer and tensor headers.

    Nothing is written, and no weight of a model on the Hub is downloaded.

    Raises:
        EdgekitError: See ``export``.
    """
    wanted, options = parse_formats(formats), ExportOptions(context_length)
    exporters = [open_exporter(fmt) for fmt in wanted]
    source = open_model(
        model, headers_only=True, ignore_config_keys=ignore_config_keys, adapter=adapter
    )
    try:
        may_miss = _may_miss(formats)
        for scheme in schemes:
            held = _without_refused(source, exporters, scheme, may_miss, has_text=False)
            _refuse_early(source, held, scheme, context_length)
        source.checkpoint.fetch_text()
        check_text(source.text, source.checkpoint.origin)
        held = _without_refused(source, exporters, schemes[0], may_miss)
        _refuse_text(source, held)
        wanted = [exporter.format for exporter in held]
        predictions = [predict_export(source, scheme, wanted, options) for scheme in schemes]
        n_download = source.checkpoint.weights_bytes if needs_download(model) else 0
        check_room(join_predictions(predictions), Path(out), n_download, source.checkpoint.folder)
    finally:
        source.close()


def describe_import(manifest: Manifest) -> list[str]:
    """Describe in lines what became of codes that the source already had; none for floats."""
    kept = Counter(tensor.imported for tensor in manifest.tensors if tensor.imported)
    lines = [f"{_matrices(n)} imported unchanged from {label}" for label, n in kept.items()]
    for what in CHANGES_OF_CODES:
        changed = [tensor for tensor in manifest.tensors if tensor.reason.startswith(what)]
        if changed:
            first = changed[0]
            reason = first.reason.removeprefix(f"{what}: ")
            lines.append(f"{_matrices(len(changed))} {what}, such as {first.name}: {reason}")
    return lines


def _matrices(n: int) -> str:
    return f"{n} matrix" if n == 1 else f"{n} matrices"


def artifact_name(source: SourceModel, fmt: Format, scheme: Scheme) -> str:
    """Name the folder of an artifact."""
    base = source.checkpoint.name.rpartition("/")[2]
    return f"{base}-{fmt.value}-{scheme}"


def parse_formats(formats: str | Format | Iterable[str | Format]) -> list[Format]:
    """Read format names; ``all`` means every format; duplicates count once.

    Raises:
        UsageError: A name is not a format.
    """
    names = [formats] if isinstance(formats, str | Format) else list(formats)
    found: dict[Format, None] = {}
    for name in names:
        if name == "all":
            found.update(dict.fromkeys(Format))
            continue
        try:
            found[Format(name)] = None
        except ValueError as error:
            known = ", ".join(fmt.value for fmt in Format)
            raise UsageError("unknown format", got=repr(name), wanted=f"{known} or all") from error
    if not found:
        raise UsageError("no format given", wanted=", ".join(fmt.value for fmt in Format))
    return list(found)


def choose_method(method: str | Method | None, scheme: Scheme) -> Method:
    """Give the method that was asked for, or that of the scheme.

    Raises:
        UsageError: There is no such method.
    """
    if method is None:
        method = Method.IMPORTANCE if scheme.method is None else scheme.method
    try:
        return Method(method)
    except ValueError as error:
        known = ", ".join(item.value for item in Method)
        raise UsageError("unknown method", got=repr(method), wanted=known) from error


def _reads_long_text(method: Method, calibration: Calibration) -> bool:
    """Tell whether a method reads more than the few words that channel scales are chosen by.

    ``importance`` does so only if a text was asked for.
    """
    if method is Method.IMPORTANCE:
        return calibration.file is not None or calibration.answers or bool(calibration.n_tokens)
    return method.reads_text


def _may_miss(formats: str | Format | Iterable[str | Format]) -> frozenset[Format]:
    """Give the formats that are left out where they cannot hold a model, because nobody named them.

    GGUF holds what llama.cpp computes and no other model; the other formats hold every decoder.
    """
    names = [formats] if isinstance(formats, str | Format) else list(formats)
    is_named = Format.GGUF.value in names or (Format.GGUF in names and set(names) != set(Format))
    return frozenset() if is_named else frozenset({Format.GGUF})


def _without_refused(
    source: SourceModel,
    exporters: Iterable[Exporter],
    scheme: Scheme,
    may_miss: frozenset[Format],
    warn: Callable[[str], None] = lambda text: None,
    *,
    has_text: bool = True,
) -> list[Exporter]:
    """Leave out formats that cannot hold the model, of those that may be left out."""
    held = []
    encodings = {item.name: item.encoding for item in expected_plan(source, scheme)}
    for exporter in exporters:
        decision = exporter.supports(source.spec, encodings)
        if exporter.format in may_miss and has_text and isinstance(decision, Accepted):
            decision = _judge_text(source, exporter)
        if exporter.format in may_miss and isinstance(decision, Rejected):
            warn(f"left out: {exporter.format.value}, which cannot hold it: {decision.reason}")
        else:
            held.append(exporter)
    return held


def _judge_text(source: SourceModel, exporter: Exporter) -> Decision:
    spec = replace(source.spec, eos_token_ids=source.text.end_ids or source.spec.eos_token_ids)
    return exporter.supports_text(files_of_artifact(source.text), spec)


def _refuse_text(source: SourceModel, exporters: Iterable[Exporter]) -> None:
    """Refuse formats that cannot hold the tokenizer.

    Raises:
        ExportError: See above.
    """
    for exporter in exporters:
        decision = _judge_text(source, exporter)
        if isinstance(decision, Rejected):
            raise ExportError(
                f"{exporter.format.value} cannot hold the tokenizer of {source.checkpoint.name}",
                got=decision.reason,
                do="Leave this format out.",
            )


def _refuse_early(
    source: SourceModel, exporters: list[Exporter], scheme: Scheme, context_length: int | None
) -> None:
    """Ask every format before any work, and name all refusals together.

    Raises:
        ExportError: Formats that cannot hold the model.
        UsageError: Positions that a format cannot hold.
    """
    encodings = {item.name: item.encoding for item in expected_plan(source, scheme)}
    decisions = {e.format.value: e.supports(source.spec, encodings) for e in exporters}
    refused = {name: d.reason for name, d in decisions.items() if isinstance(d, Rejected)}
    if refused:
        raise ExportError(
            f"{source.checkpoint.name} cannot be written as {scheme}",
            got="; ".join(f"{name}: {reason}" for name, reason in refused.items()),
            do="Leave these formats out, or pick another scheme.",
        )
    for exporter in exporters:
        exporter.positions(source.spec).choose(context_length, exporter.format.value)


def check_text(view: TextView, origin: str) -> None:
    """Refuse a tokenizer or template other than the one that the model's recipe states.

    Args:
        view: The model's text files.
        origin: What the user named.

    Raises:
        CheckpointError: It differs, or the files do not fit the model (``SourceModel.text``).
    """
    recipe = recipe_of(origin)
    if recipe is not None and view.tokenizer is not None:
        check_golden(recipe, view.files)


@contextlib.contextmanager
def _store_folder(parent: Path) -> Iterator[Path]:
    with contextlib.ExitStack() as stack:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(work_folder(parent))
        except OSError as error:
            raise ExportError(
                f"cannot write to {parent}",
                got=error.strerror or str(error),
                do="Choose another --out.",
            ) from error
        yield folder
