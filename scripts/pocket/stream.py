"""The stream of training chats, grouped into rows of one length.

Everything is made from seeds on the fly; only train-split templates and entities are used. At
first chats are short and partly plain drills, because the circuits that all four skills need form
earliest on short rows in which most tokens need them.
"""

import multiprocessing
import os
import queue
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit.draw import Draw
from edgekit.quality.suites.base import Item, Split
from edgekit.quality.suites.long_context import LongContext
from edgekit.quality.suites.multi_step import MultiStep
from edgekit.quality.suites.structured_output import StructuredOutput
from edgekit.quality.suites.tool_calls import ToolCalls
from edgekit.quality.suites.tools import TOOLS
from pocket.chat import Chat
from pocket.drills import drill

__all__ = ["Batch", "Stage", "batches", "sample_texts", "start_stream"]

_TRAIN = Split.TRAIN
ROW_STEP = 32
POOL_TALKS = 384
_SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "Answer briefly.",
    "You help people on a small device.",
    "Use the tools when they fit.",
)


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the curriculum.

    Attributes:
        until: Fraction of training, 0..1, at which it ends.
        weights: Shares of talks: tool_calls, structured_output, long_context, multi_step, drill.
        lengths: Context lengths of long_context in tokens, drawn evenly.
        max_steps: Most steps of a multi_step story.
        max_fields: Most fields of a record.
        row_tokens: Tokens of a batch, padding included; small batches mean more steps.
        prompt_weight: Loss weight of a prompt's tokens; those of an answer weigh 1.
    """

    until: float
    weights: tuple[int, int, int, int, int]
    lengths: tuple[int, ...]
    max_steps: int
    max_fields: int
    row_tokens: int
    prompt_weight: float = 0.0


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one length; `weights` belongs to the next-token targets.

    Attributes:
        ids: Token ids, shape (B, T + 1).
        weights: Loss weight of each target, shape (B, T).
        n_used: Tokens that are not padding.
    """

    ids: NDArray[np.int64]
    weights: NDArray[np.float32]
    n_used: int


def _stage_at(stages: tuple[Stage, ...], progress: float) -> Stage:
    return next((stage for stage in stages if progress < stage.until), stages[-1])


class _Talks:
    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.tool_calls = ToolCalls()
        self.structured = StructuredOutput()
        self.long_context = LongContext()
        self.multi_step = MultiStep()

    def turns(self, stage: Stage, draw: Draw) -> list[Item]:
        """Make the turns of one talk: most of its tokens are read once and asked about often."""
        kind = _weighted(draw, stage.weights[:4])
        if kind == 0:
            return self._requests(draw)
        if kind == 1:
            n_fields = draw.between(2, stage.max_fields)
            pair = self.structured.record_asked_twice("t", draw.below(5), n_fields, draw, _TRAIN)
            return list(pair[: draw.between(1, 2)])
        if kind == 2:
            length = draw.pick(stage.lengths)
            n_distractors = draw.between(3, 4 + length // 64)
            n_questions = min(1 + n_distractors, 4)
            return self.long_context.passage(
                "t",
                length,
                draw.between(0, 100),
                n_questions,
                draw,
                _TRAIN,
                self.chat.count,
                n_distractors,
            )
        n_steps = draw.between(1, stage.max_steps)
        first, second = self.multi_step.story_asked_twice("t", n_steps, draw, _TRAIN)
        return [first, second] if second.meta["n_steps"] else [first]

    def _requests(self, draw: Draw) -> list[Item]:
        """Make one to four requests over the same tools; a tenth ask for what none of them does."""
        order = draw.sample(tuple(TOOLS), len(TOOLS))
        n_offered = draw.between(2, 4)
        offered, missing = order[:n_offered], order[n_offered:]
        turns = []
        for _ in range(draw.between(1, 4)):
            asked: str | None = draw.pick(offered)
            if draw.chance(10):
                asked = None if draw.chance(40) else draw.pick(missing)
            turns.append(self.tool_calls.ask("t", asked, offered, draw, _TRAIN))
        return turns

    def talk(self, stage: Stage, draw: Draw) -> tuple[list[int], list[float]]:
        if _weighted(draw, stage.weights) == 4:
            return drill(draw, self.chat)
        prefix = []
        if draw.chance(8):
            prefix = [{"role": "system", "content": draw.pick(_SYSTEM_PROMPTS)}]
        ids, written = self.chat.talk_ids(self.turns(stage, draw), prefix)
        return ids, [1.0 if w else stage.prompt_weight for w in written]


def _weighted(draw: Draw, weights: tuple[int, ...]) -> int:
    at = draw.below(sum(weights))
    for i, weight in enumerate(weights):
        at -= weight
        if at < 0:
            return i
    return len(weights) - 1


def sample_texts(n: int, seed: int) -> Iterator[str]:
    """Give training texts for the tokenizer: contents, targets and tool lines apart."""
    suites = (ToolCalls(), StructuredOutput(), LongContext(), MultiStep())
    for suite in suites:
        share = n // 8 if suite.name == "long_context" else n
        for item in suite.items(share, seed=seed, split=Split.TRAIN):
            yield item.messages[0]["content"]
            yield item.target
            yield " ".join(_tool_words(item))


def _tool_words(item: Item) -> Iterator[str]:
    for tool in item.tools:
        function = tool["function"]
        yield f"{function['description']}"
        for key, spec in function["parameters"]["properties"].items():
            yield f"{key}: {spec['type']}, {key}?"


def batches(
    chat: Chat,
    stages: tuple[Stage, ...],
    seed: int,
    progress: Iterator[float],
) -> Iterator[Batch]:
    """Make batches forever; `progress` is asked once a pool of talks."""
    talks = _Talks(chat)
    for pool_index, at in enumerate(progress):
        draw = Draw("stream", seed, pool_index)
        stage = _stage_at(stages, at)
        pool = sorted((talks.talk(stage, draw) for _ in range(POOL_TALKS)), key=lambda t: len(t[0]))
        groups: list[list[tuple[list[int], list[float]]]] = [[]]
        for talk in pool:
            width = -(-len(talk[0]) // ROW_STEP) * ROW_STEP
            if groups[-1] and width * (len(groups[-1]) + 1) > stage.row_tokens:
                groups.append([])
            groups[-1].append(talk)
        for group in draw.sample(groups, len(groups)):
            yield _pack(group, chat.pad_id)


def _pack(group: list[tuple[list[int], list[float]]], pad_id: int) -> Batch:
    width = -(-max(len(ids) for ids, _ in group) // ROW_STEP) * ROW_STEP
    ids = np.full((len(group), width + 1), pad_id, dtype=np.int64)
    weights = np.zeros((len(group), width), dtype=np.float32)
    for row, (talk, talk_weights) in enumerate(group):
        ids[row, : len(talk)] = talk
        weights[row, : len(talk) - 1] = talk_weights[1:]
    return Batch(ids, weights, sum(len(talk) for talk, _ in group))


def start_stream(
    tokenizer_path: Path,
    stages: tuple[Stage, ...],
    seed: int,
    progress: "multiprocessing.sharedctypes.Synchronized[float]",
) -> "multiprocessing.Queue[Batch]":
    """Make batches in a low-priority process; it ends with this one."""
    out: multiprocessing.Queue[Batch] = multiprocessing.Queue(maxsize=32)
    arguments = (tokenizer_path, stages, seed, progress, out)
    multiprocessing.Process(target=_feed, args=arguments, daemon=True).start()
    return out


def _feed(
    tokenizer_path: Path,
    stages: tuple[Stage, ...],
    seed: int,
    progress: "multiprocessing.sharedctypes.Synchronized[float]",
    out: "queue.Queue[Batch]",
) -> None:
    os.nice(5)
    chat = Chat.open(tokenizer_path)
    values = iter(lambda: progress.value, -1.0)
    for batch in batches(chat, stages, seed, values):
        out.put(batch)
