"""Splitter of a streamed answer into plain content and OpenAI tool calls.

A model writes ``[TOOL_CALLS][{"name": ..., "arguments": {...}}]``; the OpenAI API needs
``tool_calls``. Text that could still become the tag is held back. Text after the tag is held until
the end, because only then is it known to be valid. Malformed calls stay plain content.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field
from typing import Any, Final

TOOL_CALLS_TAG: Final = "[TOOL_CALLS]"
_N_ID_CHARS: Final = 9  # the length that Mistral's chat templates require


@dataclass(slots=True)
class ToolText:
    """Splits a streamed answer into content and, at its end, tool calls.

    ``is_watching`` False lets everything pass: no tools were offered.
    """

    is_watching: bool
    _held: str = ""
    _has_content: bool = False
    calls: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_holding(self) -> bool:
        """True while text is kept back."""
        return bool(self._held)

    def feed(self, text: str) -> str:
        """Take the next text and give the content that is final now."""
        if not self.is_watching or self._has_content:
            return text
        self._held += text
        start = self._held.lstrip()
        if TOOL_CALLS_TAG.startswith(start[: len(TOOL_CALLS_TAG)]):
            return ""
        self._has_content = True
        return self._release()

    def finish(self) -> str:
        """End the answer: fill ``calls``, or give the held text as content."""
        start = self._held.lstrip()
        if start.startswith(TOOL_CALLS_TAG):
            self.calls = parse_calls(start[len(TOOL_CALLS_TAG) :])
        if self.calls:
            self._held = ""
        return self._release()

    def _release(self) -> str:
        text, self._held = self._held, ""
        return text


def parse_calls(text: str) -> list[dict[str, Any]]:
    """Read the text after the tag as OpenAI tool calls; empty when it is malformed."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return []
    entries = value if isinstance(value, list) else [value]
    calls = [_call(entry) for entry in entries]
    return [call for call in calls if call is not None] if all(calls) else []


def _call(entry: Any) -> dict[str, Any] | None:
    if not isinstance(entry, dict):
        return None
    name, arguments = entry.get("name"), entry.get("arguments", {})
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    return {
        "id": secrets.token_hex(_N_ID_CHARS)[:_N_ID_CHARS],
        "type": "function",
        "function": {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)},
    }
