"""Comparison of edgekit's graph with optimum's graph over the same weights.

The weights are read from the artifact, dequantized exactly, and written as a float32 checkpoint
with the source's own config. optimum traces that; both graphs then run the same tokens. So the
other graph does not depend on how edgekit reads the config.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgekit.artifact import Artifact
from edgekit.checkpoint.reader import open_checkpoint
from edgekit.dtypes import DType, F32Array
from edgekit.encoding import FP32
from edgekit.errors import ArtifactError, CheckpointError, ExportError, UsageError
from edgekit.exporters import open_exporter
from edgekit.exporters.base import ExportOptions
from edgekit.exporters.staging import refuse_small_disk
from edgekit.families import FAMILIES, open_model
from edgekit.families.base import Family, SourceModel
from edgekit.families.names import NameTable
from edgekit.families.spec import DecoderSpec
from edgekit.formats.safetensors import SafetensorsWriter
from edgekit.lazy import load_object
from edgekit.model_files import CONFIG_NAME, WEIGHTS_NAME
from edgekit.optimum.environment import OptimumEnvironment, Tell, open_environment
from edgekit.optimum.model import check_model_type, translate_config
from edgekit.optimum.route import check_request, write_optimum_artifact
from edgekit.pipeline.agreement import (
    arithmetic_of,
    compare_logits,
    open_float_decoder,
    read_spec,
    refuse_traced,
)
from edgekit.progress import Progress, ignore_progress
from edgekit.quantize.model import EncodedTensor, Source
from edgekit.records import OracleRecord
from edgekit.runtime import open_decoder
from edgekit.tensors import TensorInfo
from edgekit.text.view import NO_TOKENIZER

OPTIMUM: Final = "optimum"
_SAME_SCALE: Final = 1e-6  # float32 has no closer number


@dataclass(frozen=True, slots=True)
class OracleRun:
    """Logits of optimum's graph over the weights of one artifact.

    Attributes:
        token_ids: The tokens that were run, T ids.
        logits: float32, shape (T, V).
        title: Program and versions that gave them.
    """

    token_ids: tuple[int, ...]
    logits: F32Array
    title: str


def check_oracle(name: str, artifacts: Sequence[Artifact]) -> None:
    """Refuse, before any work, what the oracle cannot judge.

    Raises:
        UsageError: No such oracle, or an artifact that optimum wrote itself.
        UnsupportedArchError: optimum does not know the family.
    """
    if name != OPTIMUM:
        raise UsageError("unknown value of --oracle", got=repr(name), wanted=OPTIMUM)
    refuse_traced(artifacts)
    for artifact in artifacts:
        check_model_type(
            {"model_type": artifact.manifest.model_type},
            str(artifact.path),
            do="optimum cannot judge this family; edgekit verify without --oracle compares it with "
            "a plain numpy forward.",
        )


def compare_with_oracle(
    artifacts: Sequence[Artifact],
    token_ids: Sequence[int],
    *,
    tell: Tell = lambda text: None,
    progress: Progress = ignore_progress,
) -> tuple[OracleRecord, ...]:
    """Run artifacts of one model against optimum's graph over their weights.

    One graph is traced for each scheme, over the weights of its first artifact; ``verify`` checks
    that the other artifacts hold the same weights.

    Args:
        artifacts: At least one; their source must still exist, unchanged.
        token_ids: The tokens to run; cut to the positions for which optimum's graph is right.
        tell: Gets a text about what will be installed, before the environment is first made.
        progress: Called as ``progress(what, n_done, n_total)``.

    Raises:
        UsageError, UnsupportedArchError: See ``check_oracle``.
        ArtifactError: The source is absent or has changed.
        ExportError: The environment cannot be made, or optimum failed.
        EngineError: An engine failed on the tokens.
    """
    check_oracle(OPTIMUM, artifacts)
    environment = open_environment(tell, progress)
    runs: dict[str, OracleRun] = {}
    records = []
    for artifact in artifacts:
        scheme = artifact.manifest.scheme
        if scheme not in runs:
            runs[scheme] = run_oracle(artifact, token_ids, environment, progress)
        progress(f"run {artifact.name}", 0, 1)
        records.append(_compare(artifact, runs[scheme]))
    return tuple(records)


def run_oracle(
    artifact: Artifact,
    token_ids: Sequence[int],
    environment: OptimumEnvironment,
    progress: Progress,
) -> OracleRun:
    """Trace a checkpoint made of an artifact's weights with optimum, and run it.

    Raises:
        ArtifactError: The source is absent or has changed.
        ExportError: optimum failed.
    """
    with _scratch(4 * artifact.manifest.n_parameters) as scratch:
        model = scratch / "weights-of-the-artifact"
        model.mkdir()
        progress("write the weights as a checkpoint", 0, 1)
        _write_checkpoint(artifact, model)
        with open_checkpoint(model) as checkpoint:
            check_request(checkpoint, FP32, ExportOptions())
            traced = write_optimum_artifact(
                checkpoint,
                Source(artifact.manifest.model_name, str(model)),
                environment,
                FP32,
                scratch / "traced",
                ExportOptions(),
                progress,
            )
        ids = tuple(token_ids)[: traced.manifest.context_length]
        decoder = open_decoder(traced)
        try:
            logits = decoder.forward(ids, n_past=0, n_logits=len(ids))
        finally:
            decoder.close()
        versions = environment.tool_versions
        # The folder that was traced holds only weights.
        said = [n for n in traced.manifest.notes if not n.startswith(NO_TOKENIZER)]
        notes = "".join(f"; {note}" for note in said)
        title = f"optimum-onnx {versions['optimum-onnx']}, transformers {versions['transformers']}"
        title += notes
        return OracleRun(ids, logits, title)


@contextlib.contextmanager
def _scratch(n_bytes: int) -> Iterator[Path]:
    """Give a folder for the checkpoint and optimum's graph, of ``n_bytes`` each."""
    where = Path(tempfile.gettempdir())
    # The tracer writes tensors one by one and then joins them: the disk holds the weights 3 times.
    refuse_small_disk(where, 3 * n_bytes, "for the oracle", "Free space or set TMPDIR.")
    try:
        with tempfile.TemporaryDirectory(prefix="edgekit-oracle-") as name:
            yield Path(name)
    except OSError as error:
        raise ExportError(
            f"cannot write the weights for the oracle to {where}",
            got=error.strerror or str(error),
            do="Free space or set TMPDIR.",
        ) from error


def _compare(artifact: Artifact, oracle: OracleRun) -> OracleRecord:
    decoder = open_float_decoder(artifact)
    try:
        ids = oracle.token_ids
        got = decoder.forward(ids, n_past=0, n_logits=len(ids))
    finally:
        decoder.close()
    arithmetic = arithmetic_of(decoder.info, artifact)
    return OracleRecord(
        artifact.name,
        artifact.format.value,
        artifact.manifest.scheme,
        artifact.manifest.weights_sha256,
        compare_logits(decoder.info.engine, arithmetic, artifact, got, oracle.logits, oracle.title),
    )


def _write_checkpoint(artifact: Artifact, folder: Path) -> None:
    """Write the weights of an artifact, dequantized, under the names of its family."""
    spec = read_spec(artifact)
    family: Family = load_object(FAMILIES[spec.model_type])
    names = family.name_tables[0]
    config = _source_config(artifact) | {
        "model_type": spec.model_type,
        "tie_word_embeddings": spec.is_tied,
    }
    weights = _float_weights(artifact)
    shapes = spec.weight_shapes()
    ratio = _scale_ratio(spec)
    if ratio is not None:
        config["tie_word_embeddings"] = False
        shapes["lm_head"] = shapes["embed"]
        weights.setdefault("lm_head", weights["embed"])
        weights["embed"] = weights["embed"] * np.float32(ratio)
    translated = translate_config(config, f"{artifact.manifest.source}: {CONFIG_NAME}")
    text = json.dumps({**translated, "torch_dtype": "float32"}, indent=1, sort_keys=True)
    (folder / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")
    groups = _whole_tensors(shapes, names)
    infos = [
        TensorInfo(theirs, _stacked_shape([weights[part].shape for part in parts]), DType.FP32)
        for theirs, parts in groups.items()
    ]
    path = folder / WEIGHTS_NAME
    with SafetensorsWriter(path, infos, metadata={"format": "pt"}) as writer:
        for theirs, parts in groups.items():
            writer.write(theirs, np.concatenate([weights[part] for part in parts]))


def _scale_ratio(spec: DecoderSpec) -> float | None:
    """Give the factor for the input embedding that makes transformers in float32 scale as edgekit.

    edgekit rounds Gemma's scale to bfloat16 for bfloat16 weights, as transformers does when it runs
    them in bfloat16. optimum traces in float32, where transformers does not round. The input
    embedding then gets a matrix of its own that includes the difference.
    """
    if spec.model_type not in ("gemma", "gemma2", "gemma3_text"):
        return None
    ratio = spec.embed_scale / spec.hidden_width**0.5
    return None if abs(ratio - 1) < _SAME_SCALE else ratio


def _whole_tensors(names_of: Iterable[str], names: NameTable) -> dict[str, list[str]]:
    """Give checkpoint name -> canonical matrices, in the order of their rows."""
    groups: dict[str, list[str]] = {}
    for name in names_of:
        groups.setdefault(names.to_checkpoint(name), []).append(name)
    return {
        theirs: sorted(parts, key=lambda part: len(names.parts_above(part)))
        for theirs, parts in groups.items()
    }


def _stacked_shape(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def _float_weights(artifact: Artifact) -> dict[str, F32Array]:
    return {
        tensor.name: tensor.dequantize() if isinstance(tensor, EncodedTensor) else tensor.values
        for tensor in open_exporter(artifact.format).recover(artifact)
    }


def _source_config(artifact: Artifact) -> dict[str, Any]:
    """Give the config of the text decoder that the artifact was made from.

    Raises:
        ArtifactError: The source is absent or has changed.
    """
    source = _open_source(artifact)
    try:
        found = source.checkpoint.sha256()
        config: Mapping[str, Any] = source.checkpoint.config
    finally:
        source.close()
    if found != artifact.manifest.source_sha256:
        raise ArtifactError(
            f"{artifact.manifest.source} is not the model that {artifact.path} was made from",
            got=found[:12],
            wanted=artifact.manifest.source_sha256[:12],
            do="Put the source back, or export it again.",
        )
    # From a multimodal model edgekit takes the text decoder.
    inner = config.get("text_config")
    return dict(inner if isinstance(inner, dict) else config)


def _open_source(artifact: Artifact) -> SourceModel:
    try:
        return open_model(
            artifact.manifest.source,
            adapter=artifact.manifest.adapter or None,
            ignore_config_keys=artifact.manifest.ignored_config_keys,
        )
    except CheckpointError as error:
        raise ArtifactError(
            f"the model that {artifact.path} was made from cannot be opened",
            got=error.what,
            wanted="its config, which the oracle reads by itself",
            do=f"Put it back at {artifact.manifest.source}, or export it again.",
        ) from error
