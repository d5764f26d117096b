"""Request fields that a server accepts, learned from its refusals.

Nothing is assumed: every field that matters is sent. A field that a server refuses by name is left
out from then on, and remembered so that a report can say so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from edgekit.runtime.base import GenerateOptions, Message

# Fields that may be left out, and what replaces them; in the order in which they are given up.
_OPTIONAL: Final[Mapping[str, str | None]] = {
    "stream_options": None,
    "top_logprobs": None,
    "logprobs": None,
    "seed": None,
    "top_k": None,
    "ignore_eos": None,
    "top_p": None,
    "temperature": None,
    "max_tokens": "max_completion_tokens",
}
_NOT_STANDARD: Final = frozenset({"top_k", "ignore_eos"})
_NEVER_GUESSED: Final = frozenset({"max_tokens", "temperature"})


class Fields:
    """Makes requests for one server and learns which fields it refuses."""

    def __init__(self) -> None:
        self.unsupported: frozenset[str] = frozenset()

    def make(
        self,
        model: str,
        messages: Sequence[Message],
        options: GenerateOptions,
        tools: Sequence[Mapping[str, Any]],
        unsupported: frozenset[str],
    ) -> dict[str, Any]:
        """Give the arguments of ``chat.completions.create``, with every sampling option stated."""
        wanted: dict[str, Any] = {
            "temperature": options.temperature,
            "top_p": options.top_p,
            "max_tokens": options.max_tokens,
            "stream_options": {"include_usage": True},
        }
        if options.seed is not None:
            wanted["seed"] = options.seed
        if options.n_logprobs:
            wanted |= {"logprobs": True, "top_logprobs": options.n_logprobs}
        if options.top_k:
            wanted["top_k"] = options.top_k
        if options.ignore_eos:
            wanted["ignore_eos"] = True
        sent: dict[str, Any] = {"model": model, "messages": list(messages), "stream": True}
        if options.stop:
            sent["stop"] = list(options.stop)
        if tools:
            sent["tools"] = list(tools)
        extra: dict[str, Any] = {}
        for name, value in wanted.items():
            instead = _OPTIONAL[name] if name in unsupported else name
            if instead is not None:
                (extra if name in _NOT_STANDARD else sent)[instead] = value
        if extra:
            sent["extra_body"] = extra
        return sent

    def find_unsupported(
        self, reply: str, sent: Mapping[str, Any], unsupported: frozenset[str]
    ) -> frozenset[str]:
        """Give the fields to leave out after a 400; the same set when no more can be left out.

        Args:
            reply: What the server said.
            sent: The arguments of the refused request.
            unsupported: Fields that were left out already.
        """
        names = [n for n in _OPTIONAL if n in sent or n in sent.get("extra_body", {})]
        named = {n for n in names if re.search(rf"\b{n}\b", reply)} - unsupported
        if named & {"logprobs", "top_logprobs"}:
            named |= {"logprobs", "top_logprobs"}
        if named or unsupported or "context" in reply.lower():
            return unsupported | named
        return unsupported | (set(names) - _NEVER_GUESSED)

    def remember(self, unsupported: frozenset[str]) -> None:
        """Record that a request without these fields was answered."""
        self.unsupported = unsupported
