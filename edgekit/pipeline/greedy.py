"""Comparison of the greedy text of artifacts of one scheme.

It uses the settings of ``verify``. Every difference is listed; none is ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.artifact import Artifact
from edgekit.pipeline.verify import CHECKS
from edgekit.progress import Progress
from edgekit.quality.evaluate import SuitePlan
from edgekit.quality.suites import SUITES, Item
from edgekit.runtime.base import GenerateOptions
from edgekit.runtime.session import open_session

MAX_NEW_TOKENS = 48


@dataclass(frozen=True, slots=True)
class GreedyDifference:
    """Two different answers to one prompt."""

    artifact: str
    prompt: str
    wanted: str
    got: str


@dataclass(frozen=True, slots=True)
class GreedyRecord:
    """Greedy answers of several artifacts to the same prompts, by scheme."""

    n_prompts: int
    artifacts: tuple[str, ...]
    differences: tuple[GreedyDifference, ...]

    @property
    def is_identical(self) -> bool:
        """True when every artifact gave the same text for every prompt."""
        return not self.differences

    @property
    def sentence(self) -> str:
        """The result in a sentence."""
        n_total = self.n_prompts * len(self.artifacts)
        same = n_total - len(self.differences)
        return (
            f"greedy text: {same} of {n_total} answers identical "
            f"({self.n_prompts} prompts, {len(self.artifacts)} artifacts)"
        )


def compare_greedy(
    artifacts: Sequence[Artifact], n_prompts: int, progress: Progress
) -> GreedyRecord:
    """Answer ``n_prompts`` suite questions on every artifact and compare within each scheme."""
    plan = SuitePlan(n_items=-(-n_prompts // len(SUITES)))
    items = [item for pack in zip(*plan.make_items(None).values(), strict=True) for item in pack]
    items = items[:n_prompts]
    first: dict[str, list[str]] = {}
    differences: list[GreedyDifference] = []
    for artifact in artifacts:
        texts = _answers(artifact, items, progress)
        wanted = first.setdefault(artifact.manifest.scheme, texts)
        differences += [
            GreedyDifference(artifact.name, item.id, ours, theirs)
            for item, ours, theirs in zip(items, wanted, texts, strict=True)
            if ours != theirs
        ]
    return GreedyRecord(len(items), tuple(a.name for a in artifacts), tuple(differences))


def _answers(artifact: Artifact, items: Sequence[Item], progress: Progress) -> list[str]:
    check = CHECKS[artifact.format]
    options = GenerateOptions(max_tokens=MAX_NEW_TOKENS)
    texts = []
    with open_session(artifact, engine=check.engine, options=check.options) as session:
        for index, item in enumerate(items):
            progress(f"greedy {artifact.name}", index, len(items))
            tools = item.tools if session.offers_tools else ()
            events = session.stream_chat(item.messages, options, tools)
            texts.append("".join(event.text for event in events))
    return texts
