"""Escaping of special tokens: text of a message stays text inside a chat prompt.

A message may contain the name of a special token, such as ``[INST]`` or ``</s>``. So the prompt is
rendered a second time with two unused characters around such texts. Where these come out shows
which special tokens the template wrote and which are only words in a message.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from edgekit.text.tokenizer import Tokenizer

# Letters of an undeciphered script (Linear A), which Python's repr writes unchanged, and after them
# characters without a meaning.
_MARKS: Final = (*range(0x10600, 0x10736, 2), *range(0xF0000, 0xF2000, 2))
# Keys whose values templates compare or iterate over; they are marked only when suspect alone.
_STRUCTURE_KEYS: Final = frozenset({"role", "type", "name", "id", "tool_call_id"})


@dataclass(frozen=True, slots=True)
class Span:
    """Characters ``start:stop`` of a prompt."""

    start: int
    stop: int

    def overlaps(self, start: int, stop: int) -> bool:
        """Tell whether any character is in both."""
        return self.start < stop and start < self.stop


@dataclass(frozen=True, slots=True)
class Names:
    """The names that must not become tokens when they come from a message.

    Attributes:
        special: Finds names of special tokens; no message may write those.
        control: Finds those too, and names that the template writes, such as ``<think>``. In the
            assistant's messages the latter are allowed: they are the model's own words.
    """

    special: re.Pattern[str]
    control: re.Pattern[str]

    def of(self, item: Mapping[str, Any]) -> re.Pattern[str]:
        """Give the pattern for a message or a tool."""
        return self.special if item.get("role") == "assistant" else self.control


def has_names(items: Sequence[Mapping[str, Any]], names: Names) -> bool:
    """Tell whether messages and tools hold forbidden names, alone or joined."""
    if any(_is_suspect(item, names.of(item)) for item in items):
        return True
    others = [item for item in items if item.get("role") != "assistant"]
    return _is_suspect(items, names.special) or _is_suspect(others, names.control)


def find_foreign_spans(
    rendered: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]],
    names: Names,
    render: Callable[[list[Any], list[Any]], str],
) -> list[Span] | None:
    """Find where texts of suspect messages and tools stand in the prompt.

    Args:
        rendered: The prompt.
        messages: The chat.
        tools: The tools offered.
        names: The forbidden names.
        render: Renders (messages, tools) with the same template.

    Returns:
        The places, or None if the template changes the texts so that they cannot be found again.
    """
    pair = _free_pair(rendered)
    if pair is None:
        return None
    opening, closing = pair

    # When no item holds a name by itself, several items together form one.
    is_spread = not any(_is_suspect(item, names.of(item)) for item in (*messages, *tools))

    def mark(items: Sequence[Mapping[str, Any]]) -> list[Any]:
        return [
            _mark(item, opening, closing, names.of(item))
            if is_spread or _is_suspect(item, names.of(item))
            else item
            for item in items
        ]

    marked = render(mark(messages), mark(tools))
    spans: list[Span] = []
    depth_start: int | None = None
    for n_marks, match in enumerate(re.finditer(f"[{opening}{closing}]", marked)):
        position = match.start() - n_marks
        if (match[0] == opening) == (depth_start is not None):
            return None
        if depth_start is None:
            depth_start = position
        else:
            spans.append(Span(depth_start, position))
            depth_start = None
    unmarked = marked.replace(opening, "").replace(closing, "")
    return spans if depth_start is None and unmarked == rendered else None


def encode_escaped(tokenizer: Tokenizer, rendered: str, spans: Sequence[Span]) -> list[int]:
    """Encode a prompt so that special-token names inside the spans stay text.

    Everything between two special tokens of the template is encoded in one piece, as the
    tokenizer itself does, so the ids of all other text are those of the whole prompt.
    """
    ids: list[int] = []
    own = [
        Span(*tokenizer.swallowed_span(match))
        for match in tokenizer.special_pattern.finditer(rendered)
        if not any(span.overlaps(*match.span()) for span in spans)
    ]
    # Pieces alternate: text, special token, text, ...; runs of pieces without foreign names are
    # encoded together, their special tokens included.
    done = 0
    edges = [*own, Span(len(rendered), len(rendered))]
    before = 0
    for edge in edges:
        if tokenizer.special_pattern.search(rendered, before, edge.start):
            ids += tokenizer.encode(rendered[done:before], allow_special=True)
            ids += tokenizer.encode(
                rendered[before : edge.start], allow_special=False, is_continued=before > 0
            )
            done = edge.start
        before = edge.stop
    return ids + tokenizer.encode(rendered[done:], allow_special=True)


def _is_suspect(value: Any, pattern: re.Pattern[str]) -> bool:
    if any(map(pattern.search, _texts(value, with_structure=True))):
        return True
    return pattern.search("".join(_texts(value, with_structure=False))) is not None


def _mark(value: Any, opening: str, closing: str, pattern: re.Pattern[str]) -> Any:
    if isinstance(value, str):
        core = value.strip()
        # Inside the outer white space, so that a template's trim still works.
        return value.replace(core, f"{opening}{core}{closing}", 1) if core else value
    if isinstance(value, Mapping):
        return {
            _mark_if_suspect(key, opening, closing, pattern): (
                _mark_if_suspect(item, opening, closing, pattern)
                if key in _STRUCTURE_KEYS
                else _mark(item, opening, closing, pattern)
            )
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_mark(item, opening, closing, pattern) for item in value]
    return value


def _mark_if_suspect(value: Any, opening: str, closing: str, pattern: re.Pattern[str]) -> Any:
    return _mark(value, opening, closing, pattern) if _is_suspect(value, pattern) else value


def _texts(value: Any, *, with_structure: bool) -> Iterator[str]:
    """Give the texts of a JSON value in order; keys and structure only when asked for."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if with_structure:
                yield str(key)
            if with_structure or key not in _STRUCTURE_KEYS:
                yield from _texts(item, with_structure=with_structure)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item, with_structure=with_structure)


def _free_pair(text: str) -> tuple[str, str] | None:
    """Give two characters that are not in the text, or None."""
    taken = set(text)
    free = (
        (chr(code), chr(code + 1))
        for code in _MARKS
        if chr(code) not in taken and chr(code + 1) not in taken
    )
    return next(free, None)
