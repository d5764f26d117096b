"""Answer one question: how does somebody's text stay text inside a chat prompt?

A message may contain the name of a special token, such as ``[INST]`` or ``</s>``. The prompt
is rendered a second time with private characters around such texts; where they come out shows
which special tokens are the template's own and which are only words in a message.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from edgekit.checkpoint.tokenizer import Tokenizer

_PRIVATE_USE: Final = range(0xF0000, 0xFFFFE, 2)
# Keys whose values templates compare or iterate by; they are marked only when suspect alone.
_STRUCTURE_KEYS: Final = frozenset({"role", "type", "name", "id", "tool_call_id"})


@dataclass(frozen=True, slots=True)
class Span:
    """Characters ``start:stop`` of a prompt."""

    start: int
    stop: int

    def overlaps(self, start: int, stop: int) -> bool:
        """Tell whether any character is in both."""
        return self.start < stop and start < self.stop


def is_suspect(value: Any, pattern: re.Pattern[str]) -> bool:
    """Tell whether texts in a JSON value hold special-token names, alone or put together."""
    if any(map(pattern.search, _texts(value, with_structure=True))):
        return True
    return pattern.search("".join(_texts(value, with_structure=False))) is not None


def find_foreign_spans(
    rendered: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]],
    pattern: re.Pattern[str],
    render: Callable[[list[Any], list[Any]], str],
) -> list[Span] | None:
    """Find where texts of suspect messages and tools stand in the prompt.

    Args:
        rendered: The prompt.
        messages: The chat.
        tools: The tools offered.
        pattern: Finds special-token names.
        render: Renders (messages, tools) with the same template.

    Returns:
        The places, or None if the template changes the texts so that they cannot be followed.
    """
    pair = _free_pair(rendered)
    if pair is None:
        return None
    opening, closing = pair

    # When no item holds a name by itself, one is put together from several.
    is_spread = not any(is_suspect(item, pattern) for item in (*messages, *tools))

    def mark(items: Sequence[Mapping[str, Any]]) -> list[Any]:
        return [
            _mark(item, opening, closing, pattern)
            if is_spread or is_suspect(item, pattern)
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


def encode_guarded(tokenizer: Tokenizer, rendered: str, spans: Sequence[Span]) -> list[int]:
    """Encode a prompt so that special-token names inside the spans stay text.

    Everything between two special tokens of the template is encoded in one piece, as the
    tokenizer itself does, so the ids of all other text are those of the whole prompt.
    """
    ids: list[int] = []
    own = [
        Span(*match.span())
        for match in tokenizer.special_pattern.finditer(rendered)
        if not any(span.overlaps(*match.span()) for span in spans)
    ]
    # Pieces alternate: text, special token, text, ...; stretches without foreign names are
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


def _mark(value: Any, opening: str, closing: str, pattern: re.Pattern[str]) -> Any:
    if isinstance(value, str):
        core = value.strip()
        # Inside the outer white space, so that a template's trim works as before.
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
    return _mark(value, opening, closing, pattern) if is_suspect(value, pattern) else value


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
    """Give two private-use characters that the text does not contain, or None."""
    taken = set(text)
    free = (
        (chr(code), chr(code + 1))
        for code in _PRIVATE_USE
        if chr(code) not in taken and chr(code + 1) not in taken
    )
    return next(free, None)
