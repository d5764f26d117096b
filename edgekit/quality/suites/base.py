"""What all suites share: items, answers, scores, and the split into training and held-out examples.

A suite makes items from a seed and grades answers. This module knows nothing about engines, prompts
or any one suite, and uses only the standard library, so that every machine makes the same items.
"""

import enum
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from edgekit.draw import Draw, digest
from edgekit.strict_json import refuse_constant

__all__ = [
    "TOOL_CALLS_TAG",
    "Answer",
    "Item",
    "Score",
    "Split",
    "Suite",
    "ToolCall",
    "is_same_value",
    "iter_items",
    "load_json",
    "parse_tool_calls",
    "split_of",
]

TOOL_CALLS_TAG = "[TOOL_CALLS]"
HELD_OUT_PCT = 20
_CALL_NAME = re.compile(r'"name"\s*:\s*"([^"\\]*)"')


class Split(enum.Enum):
    """Whether an example is for training or held out."""

    TRAIN = "train"
    HELD_OUT = "held_out"


@dataclass(frozen=True, slots=True)
class Item:
    """One question with the answer the bundled model is trained to write.

    Attributes:
        id: Stable name, e.g. `tool_calls/held_out/7/12`.
        suite: Name of the suite that made it and can grade it.
        messages: Chat messages, each with `role` and `content`.
        tools: Tool definitions in the OpenAI form; empty for most suites.
        target: Exact text of a correct answer, without the end token.
        meta: Sub-kind and sizes for slicing results, e.g. `n_steps`.
        max_tokens: Enough tokens for any correct answer of this item.
    """

    id: str
    suite: str
    messages: tuple[Mapping[str, str], ...]
    tools: tuple[Mapping[str, Any], ...]
    target: str
    meta: Mapping[str, str | int | float]
    max_tokens: int


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call as the model wrote it; `arguments` is None when they were not valid JSON."""

    name: str
    arguments: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What an engine or a server answered to one item."""

    text: str
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Score:
    """A grade; `reason` is a short failure class, empty when the answer is correct."""

    is_correct: bool
    reason: str


class Suite(Protocol):
    """One skill: makes items and grades answers to them."""

    @property
    def name(self) -> str:
        """The key in `SUITES`."""

    @property
    def title(self) -> str:
        """A heading for reports."""

    @property
    def max_tokens(self) -> int:
        """The largest `max_tokens` of any item."""

    def items(
        self,
        n: int,
        *,
        seed: int,
        split: Split = Split.HELD_OUT,
        count_tokens: Callable[[str], int] | None = None,
    ) -> list[Item]:
        """Make the first `n` items of the sequence for a `seed` and a `split`."""

    def score(self, item: Item, answer: Answer) -> Score:
        """Grade one answer; never raises, whatever the answer holds."""


def split_of(entity: str) -> Split:
    """Give the split that owns a name, place, title or other made-up value."""
    is_held_out = digest("entity\x1f" + entity.lower()) % 100 < HELD_OUT_PCT
    return Split.HELD_OUT if is_held_out else Split.TRAIN


def iter_items(suite: str, n: int, seed: int, split: Split) -> Iterator[tuple[int, str, Draw]]:
    """Give index, item id and a random stream of its own for each item, so prefixes are stable."""
    for index in range(n):
        yield index, f"{suite}/{split.value}/{seed}/{index}", Draw(suite, split.value, seed, index)


def is_same_value(got: object, wanted: object) -> bool:
    """Compare JSON values: 2 equals 2.0, true is not a number, case and outer space are ignored."""
    if isinstance(got, bool) or isinstance(wanted, bool):
        return got is wanted
    if isinstance(got, str) and isinstance(wanted, str):
        return got.strip().casefold() == wanted.strip().casefold()
    if isinstance(got, list) and isinstance(wanted, list):
        return len(got) == len(wanted) and all(map(is_same_value, got, wanted))
    if isinstance(got, dict) and isinstance(wanted, dict):
        return got.keys() == wanted.keys() and all(is_same_value(got[k], wanted[k]) for k in got)
    return got == wanted


_DECODER = json.JSONDecoder(parse_constant=refuse_constant)


def load_json(text: str) -> tuple[bool, Any]:
    """Read the first JSON value of `text`, ignoring what follows it.

    Returns:
        (True, value), or (False, None) when there is none; never raises.
    """
    try:
        value, _ = _DECODER.raw_decode(text.lstrip())
    except (ValueError, RecursionError):
        return False, None
    return True, value


def parse_tool_calls(text: str) -> tuple[ToolCall, ...]:
    """Read the calls in a raw answer, with or without the `[TOOL_CALLS]` token.

    Returns:
        The calls in order; empty for plain text. A call that is not valid JSON keeps the name that
        could be read (or "") and has `arguments` None. Never raises, whatever `text` holds.
    """
    _, tag, after = text.partition(TOOL_CALLS_TAG)
    body = (after if tag else text).strip()
    if not tag and not body.startswith(("[{", '{"name"', "[ {")):
        return ()
    is_json, value = load_json(body)
    if not is_json:
        name = _CALL_NAME.search(body)
        return (ToolCall(name.group(1) if name else "", None),)
    entries = value if isinstance(value, list) else [value]
    return tuple(_as_call(entry) for entry in entries)


def _as_call(entry: object) -> ToolCall:
    if not isinstance(entry, dict):
        return ToolCall("", None)
    inner = entry.get("function")
    if isinstance(inner, dict):
        entry = inner
    name, arguments = entry.get("name"), entry.get("arguments", {})
    if isinstance(arguments, str):
        _, arguments = load_json(arguments)
    return ToolCall(
        name if isinstance(name, str) else "",
        arguments if isinstance(arguments, dict) else None,
    )
