"""``verify``: check that artifacts hold the same weights, and that their engines agree.

Weights: every artifact is re-read from disk with its format's own library, and codes and scales
are counted against the first. Logits: each artifact runs on its engine with float activations,
against a plain numpy forward over the recovered weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from edgekit.artifact import Artifact, Format
from edgekit.dtypes import F32Array
from edgekit.errors import ArtifactError, CheckpointError, FormatError, UsageError
from edgekit.exporters import open_exporter
from edgekit.families.spec import DecoderSpec
from edgekit.progress import Progress, ignore_progress
from edgekit.quality.evaluate import SuitePlan
from edgekit.quantize.model import ModelTensor, QuantizedTensor, combine_hashes
from edgekit.records import VerifyRecord
from edgekit.runtime import open_decoder
from edgekit.runtime.base import Decoder
from edgekit.runtime.reference import ReferenceDecoder
from edgekit.text.chat import ChatTemplate
from edgekit.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Largest logit error allowed, as a multiple of the logits' standard deviation."""

    name: str
    factor: float
    reason: str


FLOAT_TOLERANCE: Final = Tolerance(
    "float32-sums", 2e-4, "float32 sums in another order; weights are exactly equal"
)


@dataclass(frozen=True, slots=True)
class Check:
    """How a format is run for verification: engine, its options, and what may differ."""

    engine: str
    options: Mapping[str, Any]
    tolerance: Tolerance


CHECKS: Final[dict[Format, Check]] = {
    Format.ONNX: Check("onnxruntime", {"activation": "fp32"}, FLOAT_TOLERANCE),
    Format.MLX: Check("mlx", {"activation": "fp32"}, FLOAT_TOLERANCE),
    Format.COREML: Check("mil", {"arithmetic": "fp32"}, FLOAT_TOLERANCE),
}


def verify(
    artifacts: Sequence[Artifact],
    *,
    token_ids: Sequence[int] | None = None,
    progress: Progress = ignore_progress,
) -> tuple[VerifyRecord, ...]:
    """Compare artifacts of one model: codes and scales, then logits on the same tokens.

    Artifacts are compared within each scheme, against the first of that scheme.

    Args:
        artifacts: At least one; all exported from the same weights.
        token_ids: What to run; None skips the logits.
        progress: Called as ``progress(what, n_done, n_total)``.

    Raises:
        UsageError: None given, or they come from different models.
        ArtifactError: A file changed since the export.
        FormatError: A file is not what its exporter writes.
        EngineError: An engine failed on the tokens.
    """
    _refuse_mixed(artifacts)
    groups: dict[str, list[Artifact]] = {}
    for artifact in artifacts:
        groups.setdefault(artifact.manifest.scheme, []).append(artifact)
    return tuple(
        record for group in groups.values() for record in _verify_scheme(group, token_ids, progress)
    )


def _verify_scheme(
    artifacts: Sequence[Artifact], token_ids: Sequence[int] | None, progress: Progress
) -> list[VerifyRecord]:
    hashes: list[dict[str, str]] = []
    for index, artifact in enumerate(artifacts):
        progress(f"re-read {artifact.name}", index, len(artifacts))
        artifact.check_files()
        hashes.append(_hash_tensors(artifact))
    records = [
        _compare_weights(artifacts[0], hashes[0], artifact, own)
        for artifact, own in zip(artifacts, hashes, strict=True)
    ]
    if token_ids is not None:
        reference = reference_decoder(artifacts[0])
        wanted = reference.forward(token_ids, n_past=0, n_logits=len(token_ids))
        reference.close()
        for index, artifact in enumerate(artifacts):
            progress(f"run {artifact.name}", index, len(artifacts))
            records[index] = _compare_logits(records[index], artifact, token_ids, wanted)
    progress("verify", len(artifacts), len(artifacts))
    return records


def is_verified(records: Sequence[VerifyRecord]) -> bool:
    """Say whether no code or scale differs and every logit error is within its tolerance."""
    return all(
        record.is_identical
        and (
            record.max_logit_error is None
            or record.logit_tolerance is None
            or record.max_logit_error <= record.logit_tolerance
        )
        for record in records
    )


def verification_tokens(artifact: Artifact, n_tokens: int) -> list[int]:
    """Make token ids to run: suite questions and answers in the model's own chat form.

    Falls back to evenly spread ids when the artifact has no chat template.
    """
    refuse_traced([artifact])
    spec = read_spec(artifact)
    limit = min(n_tokens, artifact.manifest.context_length)
    try:
        tokenizer, template = Tokenizer.open(artifact.path), ChatTemplate.open(artifact.path)
        ids: list[int] = []
        has_tools = template.offers_tools(tokenizer)
        for items in SuitePlan(n_items=4).make_items(None).values():
            for item in items:
                tools = item.tools if has_tools else ()
                ids += template.encode(item.messages, tokenizer, tools)
                ids += tokenizer.encode(item.target, allow_special=True)
    except CheckpointError:
        ids = []
    while len(ids) < limit:
        ids.append((7919 * len(ids) + 13) % spec.vocab_size)
    # Short documents one after another cover every kind of text within the limit.
    return ids[:limit]


def reference_decoder(artifact: Artifact) -> ReferenceDecoder:
    """Open a plain numpy forward over the weights recovered from an artifact."""
    tensors: dict[str, ModelTensor] = {
        t.name: t for t in open_exporter(artifact.format).recover(artifact)
    }

    def weights(name: str) -> F32Array:
        tensor = tensors[name]
        return tensor.dequantize() if isinstance(tensor, QuantizedTensor) else tensor.values

    return ReferenceDecoder(read_spec(artifact), weights, model=artifact.name)


def read_spec(artifact: Artifact) -> DecoderSpec:
    """Give the decoder that a manifest describes.

    Raises:
        ArtifactError: It describes none.
    """
    try:
        return DecoderSpec.from_dict(artifact.manifest.decoder)
    except ValueError as error:
        raise ArtifactError(
            f"{artifact.path}: decoder in the manifest", got=error, do="Export the model again."
        ) from error


def open_check_decoder(artifact: Artifact) -> Decoder:
    """Open an artifact on the engine, and with the settings, that verification uses."""
    check = CHECKS[artifact.format]
    return open_decoder(artifact, engine=check.engine, options=check.options)


def refuse_traced(artifacts: Sequence[Artifact]) -> None:
    """Refuse graphs that optimum wrote: their weights carry no names to compare by.

    Raises:
        UsageError: See above.
    """
    for artifact in artifacts:
        if artifact.is_traced:
            raise UsageError(
                f"{artifact.path}: the graph is optimum's",
                wanted="artifacts that edgekit wrote",
                do="It was compared with transformers when it was exported; the manifest has the "
                "figures under settings.checked_against_transformers.",
            )


def _refuse_mixed(artifacts: Sequence[Artifact]) -> None:
    if not artifacts:
        raise UsageError("nothing to verify", wanted="at least one artifact")
    refuse_traced(artifacts)
    sources = {a.manifest.source_sha256: a.path for a in artifacts}
    if len(sources) > 1:
        raise UsageError(
            "artifacts of different models",
            got=", ".join(str(path) for path in sources.values()),
            wanted="artifacts exported from the same weights",
            do="Verify them in separate calls.",
        )


def _hash_tensors(artifact: Artifact) -> dict[str, str]:
    """Re-read an artifact and check its tensors against its own manifest."""
    expected = {entry.name: entry for entry in artifact.manifest.tensors}
    found = {
        tensor.name: tensor.sha256() if isinstance(tensor, QuantizedTensor) else ""
        for tensor in open_exporter(artifact.format).recover(artifact)
    }
    if found.keys() != expected.keys():
        odd = sorted(found.keys() ^ expected.keys())
        raise FormatError(
            f"{artifact.path}: tensors", got=", ".join(odd[:5]), wanted="those of the manifest"
        )
    return found


def _compare_weights(
    first: Artifact, first_hashes: Mapping[str, str], artifact: Artifact, own: Mapping[str, str]
) -> VerifyRecord:
    if own.keys() != first_hashes.keys():
        odd = sorted(own.keys() ^ first_hashes.keys())
        raise FormatError(
            f"{artifact.path}: tensors", got=", ".join(odd[:5]), wanted=f"those of {first.path}"
        )
    n_codes = sum(
        int(np.prod(entry.shape)) for entry in artifact.manifest.tensors if entry.sha256 is not None
    )
    different = {name for name, digest in own.items() if digest != first_hashes[name]}
    codes, scales = _count_differences(first, artifact, different) if different else (0, 0)
    entries = [
        replace(entry, sha256=own[entry.name] or None) for entry in artifact.manifest.tensors
    ]
    manifest_hash = combine_hashes(entries)
    if manifest_hash != artifact.manifest.weights_sha256:
        raise FormatError(
            f"{artifact.path}: weights on disk are not those of its manifest",
            got=manifest_hash[:12],
            wanted=artifact.manifest.weights_sha256[:12],
            do="Export the model again.",
        )
    return VerifyRecord(
        artifact=artifact.name,
        format=artifact.format.value,
        scheme=artifact.manifest.scheme,
        weights_sha256=manifest_hash,
        n_tensors=len(own),
        n_codes=n_codes,
        n_codes_differing=codes,
        n_scales_differing=scales,
    )


def _count_differences(first: Artifact, second: Artifact, names: set[str]) -> tuple[int, int]:
    n_codes = n_scales = 0
    ours = _collect(first, names)
    for name, theirs in _collect(second, names).items():
        if theirs.codes.shape != ours[name].codes.shape or theirs.scheme != ours[name].scheme:
            n_codes += theirs.codes.size
            n_scales += theirs.scales.size
            continue
        n_codes += int((theirs.codes != ours[name].codes).sum())
        n_scales += int((theirs.scales != ours[name].scales).sum())
    return n_codes, n_scales


def _collect(artifact: Artifact, names: set[str]) -> dict[str, QuantizedTensor]:
    recovered = open_exporter(artifact.format).recover(artifact)
    return {t.name: t for t in recovered if isinstance(t, QuantizedTensor) and t.name in names}


def _compare_logits(
    record: VerifyRecord, artifact: Artifact, token_ids: Sequence[int], wanted: F32Array
) -> VerifyRecord:
    decoder = open_check_decoder(artifact)
    try:
        got = decoder.forward(token_ids, n_past=0, n_logits=len(token_ids))
    finally:
        decoder.close()
    tolerance = CHECKS[artifact.format].tolerance
    return replace(
        record,
        max_logit_error=float(np.abs(got - wanted).max()),
        logit_tolerance=tolerance.factor * float(wanted.std()),
        tolerance_name=tolerance.name,
        note=tolerance.reason,
        top1_agreement=float((got.argmax(-1) == wanted.argmax(-1)).mean()),
    )
