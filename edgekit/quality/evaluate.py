"""Evaluation: ask a backend the items of each suite and count the right answers.

Answers are greedy, one item at a time, and timed as they arrive. The same code asks a local engine
and a server, so the two can be paired item by item.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Final

from edgekit.errors import UsageError
from edgekit.progress import Progress
from edgekit.quality.suites import SUITES, Answer, Item, load_suite, parse_tool_calls
from edgekit.records import ItemOutcome, SuiteRecord
from edgekit.runtime.base import ChatBackend, GenerateOptions, TokenEvent
from edgekit.runtime.request_stats import RequestStats
from edgekit.statistics import wilson_interval

DEFAULT_SEED: Final = 20261


@dataclass(frozen=True, slots=True)
class SuitePlan:
    """Which items to ask: ``n_items`` of each suite, made from ``seed``.

    ``suites`` None means every suite that the model can be asked.
    """

    suites: tuple[str, ...] | None = None
    n_items: int = 100
    seed: int = DEFAULT_SEED

    def make_items(
        self, count_tokens: Callable[[str], int] | None, *, offers_tools: bool = True
    ) -> dict[str, list[Item]]:
        """Make the items of every suite.

        Args:
            count_tokens: Counter of the model's tokenizer; None for a rough count.
            offers_tools: Whether the model's template has a place for tools. Without one, suites
                of tools are left out unless they were asked for by name.

        Raises:
            UsageError: Unknown suite, or fewer than one item.
        """
        if self.n_items < 1:
            raise UsageError("items per suite", got=self.n_items, wanted="at least 1")
        made = {
            name: load_suite(name).items(self.n_items, seed=self.seed, count_tokens=count_tokens)
            for name in (SUITES if self.suites is None else self.suites)
        }
        if self.suites is not None or offers_tools:
            return made
        return {name: items for name, items in made.items() if not any(i.tools for i in items)}


NO_TOOLS_NOTE: Final = (
    "the chat template has no place for tools, so suites of tools were left out; ask for one by "
    "name to see the error"
)


def run_suites(
    backend: ChatBackend,
    items: Mapping[str, Sequence[Item]],
    progress: Progress,
    requests: list[RequestStats] | None = None,
) -> tuple[SuiteRecord, ...]:
    """Ask every item and score the answers.

    Args:
        backend: What answers.
        items: Items by suite.
        progress: Called as ``progress(suite, n_done, n_total)``.
        requests: Collects what a server reported about each answer.

    Raises:
        EngineError: The runtime or server failed.
    """
    return tuple(
        _run_suite(backend, name, suite_items, progress, requests)
        for name, suite_items in items.items()
    )


def _run_suite(
    backend: ChatBackend,
    name: str,
    items: Sequence[Item],
    progress: Progress,
    requests: list[RequestStats] | None,
) -> SuiteRecord:
    suite = load_suite(name)
    outcomes: list[ItemOutcome] = []
    for index, item in enumerate(items):
        progress(name, index, len(items))
        reply = ask(backend, item)
        if requests is not None and reply.stats is not None:
            requests.append(reply.stats)
        answer = Answer(reply.text, parse_tool_calls(reply.text) if item.tools else ())
        score = suite.score(item, answer)
        outcomes.append(
            ItemOutcome(
                item_id=item.id,
                is_correct=score.is_correct,
                reason=score.reason,
                answer=reply.text,
                meta=dict(item.meta),
                ttft_s=reply.ttft_s,
                e2e_s=reply.e2e_s,
                n_output_tokens=reply.n_output_tokens,
            )
        )
    progress(name, len(items), len(items))
    n_correct = sum(outcome.is_correct for outcome in outcomes)
    low, high = wilson_interval(n_correct, len(items))
    return SuiteRecord(
        suite=name,
        n_items=len(items),
        n_correct=n_correct,
        rate=n_correct / len(items),
        low=low,
        high=high,
        outcomes=tuple(outcomes),
    )


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer with its times; TTFT is the time of the first event that has text.

    A server's own count of tokens, if it gives one, replaces the count of events.
    """

    text: str
    ttft_s: float | None
    e2e_s: float
    n_output_tokens: int
    stats: RequestStats | None = None


def ask(backend: ChatBackend, item: Item) -> Reply:
    """Ask a backend one item, greedily, and wait for the whole answer."""
    options = GenerateOptions(max_tokens=item.max_tokens, temperature=0.0, seed=0)
    start_s = monotonic()
    reply = _collect(backend.stream_chat(item.messages, options, item.tools), start_s)
    stats = getattr(backend, "last_request_stats", None)
    if not isinstance(stats, RequestStats):
        return reply
    return replace(
        reply,
        stats=stats,
        n_output_tokens=stats.n_output_tokens or reply.n_output_tokens,
    )


def _collect(events: Iterator[TokenEvent], start_s: float) -> Reply:
    parts: list[str] = []
    first_s: float | None = None
    last_s = start_s
    n_tokens = 0
    for event in events:
        last_s = event.time_s
        if event.text:
            parts.append(event.text)
            first_s = event.time_s if first_s is None else first_s
        if event.token_id is not None or event.text:
            n_tokens += 1
    ttft_s = None if first_s is None else first_s - start_s
    return Reply("".join(parts), ttft_s, last_s - start_s, n_tokens)
