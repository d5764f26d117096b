"""``verify``: check that artifacts hold the same weights, and run as they should.

Three checks. Weights: every artifact is re-read from disk with its format's own library; codes and
scales are counted against the first, and against its manifest. Logits: each graph runs with float
activations, against a plain numpy forward over the recovered weights. As run: each artifact runs as
``edgekit run`` runs it, against the same forward. ``stock.py`` adds the runtimes of others.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from math import prod
from typing import Final

import numpy as np

from edgekit.artifact import Artifact, Format, TensorEntry
from edgekit.devices.probe import probe_host
from edgekit.devices.profile import OPTIONAL_ENGINES
from edgekit.errors import CheckpointError, FormatError, UsageError
from edgekit.exporters import open_exporter
from edgekit.pipeline.agreement import (
    REFERENCE,
    DefaultRun,
    Reference,
    arithmetic_of,
    compare_logits,
    compare_run,
    make_prompts,
    open_float_decoder,
    read_spec,
    refuse_traced,
    run_by_default,
)
from edgekit.pipeline.claims import recover_entries, refuse_false_claims
from edgekit.pipeline.stock import check_stock
from edgekit.progress import Progress, ignore_progress
from edgekit.quality.evaluate import SuitePlan
from edgekit.quantize.model import EncodedTensor, combine_hashes
from edgekit.records import LogitsCheck, VerifyRecord, WeightsCheck
from edgekit.runtime import default_engine
from edgekit.text.chat import ChatTemplate
from edgekit.text.tokenizer import Tokenizer, spread_ids

_LARGE: Final = 500_000_000
LIBRARIES: Final[Mapping[Format, str]] = {
    Format.ONNX: "onnx",
    Format.MLX: "mlx",
    Format.COREML: "coremltools",
    Format.GGUF: "gguf",
}
"""The library of each format, by its package."""


@dataclass(frozen=True, slots=True)
class VerifyPlan:
    """How much is run.

    Attributes:
        n_tokens: Tokens of texts whose logits are compared.
        n_prompts: Suite questions that are answered greedily.
        n_new_tokens: Most tokens of an answer.
        asks_stock: Whether the stock runtimes that are installed answer them too.
    """

    n_tokens: int = 192
    n_prompts: int = 4
    n_new_tokens: int = 32
    asks_stock: bool = False


def usual_plan(artifact: Artifact) -> VerifyPlan:
    """Give a plan that takes minutes: large models do less, engines on a CPU are slow on them."""
    if artifact.manifest.n_parameters < _LARGE:
        return VerifyPlan()
    return VerifyPlan(n_tokens=64, n_prompts=2, n_new_tokens=8)


def verify(
    artifacts: Sequence[Artifact],
    plan: VerifyPlan | None = None,
    *,
    progress: Progress = ignore_progress,
) -> tuple[VerifyRecord, ...]:
    """Compare artifacts of one model: weights, logits, and each as it runs by default.

    Artifacts are compared within each scheme, against the first of that scheme.

    Args:
        artifacts: At least one; all exported from the same weights.
        plan: How much to run; None checks the weights alone.
        progress: Called as ``progress(what, n_done, n_total)``.

    Raises:
        UsageError: None given, or they come from different models.
        ArtifactError: A file changed since the export, or the manifest claims what its files do
            not say.
        FormatError: A file is not what its exporter writes.
        NoFitError: No engine of this machine runs one of them.
        EngineError: An engine failed on the tokens.
    """
    _refuse_mixed(artifacts)
    groups: dict[str, list[Artifact]] = {}
    for artifact in artifacts:
        groups.setdefault(artifact.manifest.scheme, []).append(artifact)
    return tuple(
        record for group in groups.values() for record in _verify_scheme(group, plan, progress)
    )


def _verify_scheme(
    artifacts: Sequence[Artifact], plan: VerifyPlan | None, progress: Progress
) -> list[VerifyRecord]:
    entries: list[list[TensorEntry]] = []
    for index, artifact in enumerate(artifacts):
        progress(f"re-read {artifact.name}", index, len(artifacts))
        artifact.check_files()
        entries.append(recover_entries(artifact))
        refuse_false_claims(artifact, entries[-1])
    records = [
        VerifyRecord(
            artifact.name,
            artifact.format.value,
            artifact.manifest.scheme,
            _compare_weights(artifacts[0], entries[0], artifact, own),
        )
        for artifact, own in zip(artifacts, entries, strict=True)
    ]
    if plan is not None:
        records = [
            replace(record, not_run=_why_not_run(artifact))
            for artifact, record in zip(artifacts, records, strict=True)
        ]
        here = [i for i, record in enumerate(records) if not record.not_run]
        ran = _run_all([artifacts[i] for i in here], [records[i] for i in here], plan, progress)
        for i, record in zip(here, ran, strict=True):
            records[i] = record
    progress("verify", len(artifacts), len(artifacts))
    return records


def _why_not_run(artifact: Artifact) -> str:
    """Say which optional engine would run an artifact and is not installed; empty if none is."""
    engine = default_engine(artifact.format, platform.system())
    if engine not in OPTIONAL_ENGINES or engine in probe_host().engines:
        return ""
    return f"engine {engine} is not installed: {OPTIONAL_ENGINES[engine]}"


def _run_all(
    artifacts: Sequence[Artifact],
    records: Sequence[VerifyRecord],
    plan: VerifyPlan,
    progress: Progress,
) -> list[VerifyRecord]:
    """Run artifacts of one scheme; those with the same weights share one reference."""
    if not artifacts:
        return []
    n_positions = min(artifact.manifest.context_length for artifact in artifacts)
    token_ids = verification_tokens(artifacts[0], min(plan.n_tokens, n_positions))
    n_new_tokens = max(1, min(plan.n_new_tokens, n_positions // 2))
    prompts = make_prompts(plan.n_prompts)
    prompt_ids: dict[str, tuple[int, ...]] = {}
    done: dict[int, VerifyRecord] = {}
    for weights in dict.fromkeys(record.weights.weights_sha256 for record in records):
        same = [i for i, record in enumerate(records) if record.weights.weights_sha256 == weights]
        progress(f"reference of {artifacts[same[0]].name}", 0, 1)
        reference = Reference(artifacts[same[0]], token_ids)
        for index in same:
            artifact = artifacts[index]
            run = run_by_default(artifact, token_ids, prompts, n_new_tokens, n_positions, progress)
            prompt_ids = prompt_ids or {a.prompt: a.prompt_ids for a in run.answers}
            progress(f"compare {artifact.name}", 0, 1)
            done[index] = replace(
                records[index],
                logits=_check_logits(artifact, run, token_ids, reference),
                run=compare_run(run, reference, prompt_ids),
            )
            if plan.asks_stock:
                stock = check_stock(artifact, run, prompts, n_new_tokens, reference, progress)
                done[index] = replace(done[index], stock=stock)
        reference.close()
    return [done[index] for index in range(len(records))]


def _check_logits(
    artifact: Artifact, run: DefaultRun, token_ids: Sequence[int], reference: Reference
) -> LogitsCheck:
    """Run with float activations, unless the default run just did."""
    info, got = run.session.info, run.read
    if run.arithmetic != "fp32":
        decoder = open_float_decoder(artifact)
        try:
            info = decoder.info
            got = decoder.forward(token_ids, n_past=0, n_logits=len(token_ids))
        finally:
            decoder.close()
    return compare_logits(
        info.engine, arithmetic_of(info, artifact), artifact, got, reference.read, REFERENCE
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
    ids += spread_ids(limit - len(ids), spec.vocab_size, first=len(ids))
    # Short documents one after another cover every kind of text within the limit.
    return ids[:limit]


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


def _compare_weights(
    first: Artifact,
    first_entries: Sequence[TensorEntry],
    artifact: Artifact,
    entries: Sequence[TensorEntry],
) -> WeightsCheck:
    wanted = {entry.name: entry.sha256 for entry in first_entries}
    own = {entry.name: entry.sha256 for entry in entries}
    if own.keys() != wanted.keys():
        odd = sorted(own.keys() ^ wanted.keys())
        raise FormatError(
            f"{artifact.path}: tensors", got=", ".join(odd[:5]), wanted=f"those of {first.path}"
        )
    different = {name for name, digest in own.items() if digest != wanted[name]}
    codes, scales = _count_differences(first, artifact, different) if different else (0, 0)
    package = LIBRARIES[artifact.format]
    return WeightsCheck(
        library=f"{package} {version(package)}",
        weights_sha256=combine_hashes(entries),
        n_tensors=len(entries),
        n_codes=sum(int(np.prod(e.shape)) for e in entries if e.sha256 is not None),
        n_codes_differing=codes,
        n_scales_differing=scales,
        compared_with="" if artifact is first else first.name,
    )


def _count_differences(first: Artifact, second: Artifact, names: set[str]) -> tuple[int, int]:
    n_codes = n_scales = 0
    ours = _collect(first, names)
    for name, theirs in _collect(second, names).items():
        if theirs.shape != ours[name].shape or theirs.encoding != ours[name].encoding:
            n_codes += prod(theirs.shape)
            n_scales += theirs.scales.size
            continue
        n_codes += int((theirs.codes() != ours[name].codes()).sum())
        differs = theirs.scales != ours[name].scales
        if theirs.zero_points is not None:
            differs |= theirs.zero_points != ours[name].zero_points
        n_scales += int(differs.sum())
    return n_codes, n_scales


def _collect(artifact: Artifact, names: set[str]) -> dict[str, EncodedTensor]:
    recovered = open_exporter(artifact.format).recover(artifact)
    return {t.name: t for t in recovered if isinstance(t, EncodedTensor) and t.name in names}
