"""An artifact in the runtime that others use for its format, against edgekit's default engine.

The runtime answers the same prompts in a process of its own, where it may print or crash. Its
token ids of the prompts, its end tokens, why its answers end and its text of them must be
edgekit's. The tokens of the answers must be too where both compute in the same numbers.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from edgekit.artifact import Artifact, Format
from edgekit.errors import EngineCrashError
from edgekit.exporters.gguf.tokenizer import ends_in_llama_cpp
from edgekit.pipeline.agreement import (
    DefaultRun,
    Reference,
    arithmetic_of,
    chat_ids,
    first_difference,
    read_spec,
)
from edgekit.profiler.isolate import Failed, Job, run_isolated
from edgekit.progress import Progress
from edgekit.quality.suites import Item
from edgekit.records import AnswerDifference, Answered, EngineInfo, StockCheck
from edgekit.runtime.stock import STOCK_RUNTIMES
from edgekit.text.files import TextFiles

_MAX_SHOWN: Final = 400
_TIMEOUT_S: Final = 3600.0
_NO_CORE_ML: Final = "needs macOS; edgekit ran the package in an interpreter of its own"
_IS_CORE_ML: Final = "edgekit's default engine is Core ML itself"


def check_stock(
    artifact: Artifact,
    run: DefaultRun,
    prompts: Sequence[Item],
    n_new_tokens: int,
    reference: Reference,
    progress: Progress,
) -> StockCheck:
    """Ask the stock runtime of an artifact what its default engine was asked.

    Args:
        artifact: What to run.
        run: What the default engine gave to ``prompts``.
        prompts: The same.
        n_new_tokens: Most tokens of an answer, the same.
        reference: Over the weights of the artifact; says how near a tie was.
        progress: Called as ``progress(what, n_done, n_total)``.
    """
    runtime = STOCK_RUNTIMES.get(artifact.format)
    if runtime is None:
        is_here = run.session.info.engine == "coreml"
        return StockCheck("Core ML", not_run=_IS_CORE_ML if is_here else _NO_CORE_ML)
    if not runtime.installed_version:
        return StockCheck(runtime.title, not_run="not installed")
    if not run.has_tokenizer:
        return StockCheck(runtime.title, not_run="needs a tokenizer, which this model has none of")
    wanted_ids = [chat_ids(run.session, prompt) for prompt in prompts]
    ends = _expected_ends(artifact, run)
    request = {
        "path": str(artifact.path),
        "end_candidates": sorted(ends),
        "n_new_tokens": n_new_tokens,
        "prompts": [
            {
                "messages": None if ids is None else [dict(m) for m in prompt.messages],
                "ids": list(answered.prompt_ids),
            }
            for prompt, ids, answered in zip(prompts, wanted_ids, run.answers, strict=True)
        ],
    }
    outcome = run_isolated(
        Job(runtime.job, request, os.cpu_count() or 1),
        timeout_s=_TIMEOUT_S,
        on_event=lambda _, fields: progress(
            f"{runtime.package}: {artifact.name}", int(fields.get("index", 0)), len(prompts)
        ),
    )
    if isinstance(outcome, Failed):
        reason = outcome.reason.removeprefix(f"{EngineCrashError.__name__}: ")
        return StockCheck(runtime.title, failure=f"{outcome.kind.value}: {reason}"[:_MAX_SHOWN])
    said = list(outcome.result["answers"])
    answers = tuple(
        Answered(
            prompt=answered.prompt,
            prompt_ids=answered.prompt_ids,
            ids=tuple(theirs["ids"]),
            text=theirs["text"],
            finish=theirs["finish"],
        )
        for answered, theirs in zip(run.answers, said, strict=True)
    )
    problems = _end_problems(ends, outcome.result["end_ids"])
    differences: list[AnswerDifference] = []
    limit = _limit(artifact, run, reference)
    for ours, theirs, ids, own in zip(run.answers, answers, wanted_ids, said, strict=True):
        problems += _prompt_problems(ours.prompt, ids, own["prompt_ids"])
        difference = first_difference(theirs, ours.ids, reference.logits_of(ours), run, limit)
        if difference is not None:
            differences.append(difference)
            continue
        problems += _answer_problems(ours, theirs, run)
    return StockCheck(
        runtime.title,
        n_prompts=len(prompts),
        problems=tuple(problems),
        answers=answers,
        differences=tuple(differences),
    )


def _limit(artifact: Artifact, run: DefaultRun, reference: Reference) -> float | None:
    """Give how near a tie must be for the answers to part; None where the numbers are others."""
    # Of an MLX artifact mlx-lm takes the float type that is stored; edgekit widens it on a CPU.
    settings = {"activation": "native"} if run.session.info.engine == "mlx" else {}
    info = EngineInfo("", "", "", settings=settings or run.session.info.settings)
    return reference.float_margin if arithmetic_of(info, artifact) == run.arithmetic else None


def _expected_ends(artifact: Artifact, run: DefaultRun) -> frozenset[int]:
    """Give the end tokens of a model; llama.cpp adds some by their names, as the notes tell."""
    if artifact.format is not Format.GGUF:
        return run.session.eos_ids
    files = TextFiles.of_folder(artifact.path, [entry.path for entry in artifact.manifest.files])
    return run.session.eos_ids | set(ends_in_llama_cpp(files, read_spec(artifact)))


def _end_problems(wanted: frozenset[int], end_ids: Sequence[int]) -> list[str]:
    ours, theirs = sorted(wanted), sorted(set(end_ids))
    return [] if ours == theirs else [f"end tokens {theirs}, in edgekit {ours}"]


def _prompt_problems(
    prompt: str, wanted: Sequence[int] | None, got: Sequence[int] | None
) -> list[str]:
    if wanted is None or got is None or list(wanted) == list(got):
        return []
    pairs = enumerate(zip(wanted, got, strict=False))
    place = next((i for i, (a, b) in pairs if a != b), min(len(wanted), len(got)))
    return [
        f"prompt {prompt}: {len(got)} token ids, in edgekit {len(wanted)}; other from {place} on"
    ]


def _answer_problems(ours: Answered, theirs: Answered, run: DefaultRun) -> list[str]:
    """Compare two answers of which one's ids begin with the other's."""
    if len(ours.ids) != len(theirs.ids) or (ours.finish == "length") != (theirs.finish == "length"):
        return [
            f"prompt {ours.prompt}: ended after {len(theirs.ids)} tokens ({theirs.finish}), in "
            f"edgekit after {len(ours.ids)} ({ours.finish})"
        ]
    # Some runtimes show the names of special tokens within an answer, some do not.
    shown = ours.ids[:-1] if ours.finish != "length" else ours.ids
    texts = {ours.text, run.session.decode(shown), run.text(shown)}
    if theirs.text.strip() not in {text.strip() for text in texts}:
        return [f"prompt {ours.prompt}: text {theirs.text!r}, in edgekit {ours.text!r}"]
    return []
