"""Checks that refuse a tokenizer.json which would use endless time or memory on a text.

The tokenizers library reads such a file safely, but runs it without any limit: a few replacements
that each double the text fill the memory, and a regular expression with repeats inside repeats
takes exponential time. Both are found here in what the library has read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

MAX_GROWTH: Final = 64
MAX_ADDED_CHARS: Final = 1024
MAX_ADDED_IDS: Final = 1024
MAX_PATTERN_CHARS: Final = 4096
_PARTS: Final = ("normalizer", "pre_tokenizer", "decoder", "post_processor")
# Only a file that hides something writes ASCII letters as escapes.
_NORMALIZED: Final = re.compile(r'"normalized"\s*:\s*true|\\u00[67]')
_QUANTIFIER: Final = re.compile(r"[*+]|\{(\d*)(,?)(\d*)\}")


def find_excess_before(text: str) -> str | None:
    """Say why a tokenizer.json must not even be loaded, or None.

    Loading runs the normalizer on added tokens that ask for it. Only in that case is the text
    parsed here, because parsing takes as long as loading; a name may be written with escapes.
    """
    if not _NORMALIZED.search(text):
        return None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None  # the library gives the better message for such a file
    return _find_excess(content) if isinstance(content, dict) else None


def find_excess(tokenizer: Any) -> str | None:
    """Say why a loaded tokenizer must not run, or None.

    Args:
        tokenizer: A ``tokenizers.Tokenizer``.
    """
    return _find_excess({part: _state(getattr(tokenizer, part)) for part in _PARTS})


def _find_excess(content: Mapping[str, Any]) -> str | None:
    growth, n_added = 1, 0
    for part in _PARTS:
        for item in _objects(content.get(part)):
            pattern = item.get("pattern")
            regex = pattern.get("Regex") if isinstance(pattern, dict) else None
            if isinstance(regex, str) and (fault := _find_pattern_fault(regex)):
                return f"{part}: {fault}: {regex[:60]!r}"
            growth *= max(1, len(str(item.get("content", ""))))
            n_added += len(str(item.get("prepend", "")))
        if growth > MAX_GROWTH or n_added > MAX_ADDED_CHARS:
            return f"{part}: makes a text more than {MAX_GROWTH} times as long"
    return _find_template_fault(content.get("post_processor"))


def _state(part: Any) -> Any:
    return None if part is None else json.loads(part.__getstate__())


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Give every object in a JSON value."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            yield item
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item


def _find_template_fault(state: Any) -> str | None:
    """Count the ids that are put around every text."""
    n_ids = 0
    for item in _objects(state):
        tokens: Any = item.get("special_tokens")
        if not isinstance(tokens, dict):
            continue
        for piece in _objects(item.get("single")):
            token = tokens.get(str(piece.get("id")))
            ids = token.get("ids") if isinstance(token, dict) else None
            n_ids += len(ids) if isinstance(ids, list) else 0
    return None if n_ids <= MAX_ADDED_IDS else f"post_processor: adds {n_ids} ids to every text"


def _find_pattern_fault(pattern: str) -> str | None:
    """Find a repeated group that repeats something itself."""
    if len(pattern) > MAX_PATTERN_CHARS:
        return "a regular expression that is too long"
    repeats = [False]  # for each open group: whether something inside repeats
    position, in_class = 0, 0
    while position < len(pattern):
        char = pattern[position]
        match = None if in_class else _QUANTIFIER.match(pattern, position)
        if char == "\\":
            position += 1
        elif char == "[":
            in_class += 1
        elif char == "]" and in_class:
            in_class -= 1
        elif in_class:
            pass
        elif char == "(":
            repeats.append(False)
        elif char == ")" and len(repeats) > 1:
            inner = repeats.pop()
            after = _QUANTIFIER.match(pattern, position + 1)
            if inner and after is not None and (_is_open(after) or after[1] not in ("0", "1")):
                return "a regular expression with repeats inside repeats"
            repeats[-1] |= inner
        elif char == "?":
            repeats[-1] |= not pattern.endswith("(", 0, position)
        elif match is not None:
            repeats[-1] |= _is_open(match)
        position += 1
    return None


def _is_open(quantifier: re.Match[str]) -> bool:
    """Tell whether a quantifier has no fixed count; ``{3}`` and ``{1}`` have one."""
    if quantifier[0] in "*+":
        return True
    return bool(quantifier[2])
