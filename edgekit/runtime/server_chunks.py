"""Reader of the chunks of a streamed chat answer.

It reads every variant of the OpenAI API that real servers were seen to send: ``choices`` empty,
null or absent, usage on any chunk or none, several tokens in a chunk, reasoning text under two
names, tool calls in pieces. It knows nothing about the network.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final

from edgekit.errors import FormatError, ServerError
from edgekit.runtime.base import Finish, TokenEvent, TokenLogprob
from edgekit.strict_json import parse_object

TOOL_CALLS_TAG: Final = "[TOOL_CALLS]"
_FINISHES: Final[Mapping[str, Finish]] = {
    "length": Finish.LENGTH,
    "tool_calls": Finish.TOOL_CALLS,
    "function_call": Finish.TOOL_CALLS,
}
_DONE: Final = "[DONE]"
_MAX_COUNT: Final = 1 << 53
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class ChunkReader:
    """Turns the data of server-sent events into token events and collects facts about the answer.

    Attributes:
        model, system_fingerprint, finish_reason: As the server said; empty if it did not.
        usage, timings: Its counts and own times; empty if it gave none.
        first_text_s: When the first content, reasoning or tool text came.
        end_s: When the answer was complete.
        is_done: ``[DONE]`` was seen: nothing follows.
    """

    def __init__(self) -> None:
        self.model = ""
        self.system_fingerprint = ""
        self.finish_reason = ""
        self.usage: Mapping[str, Any] = {}
        self.timings: Mapping[str, Any] = {}
        self.first_text_s: float | None = None
        self.end_s: float | None = None
        self.is_done = False
        self._has_choices = False
        self._n_events = 0
        self._calls: dict[int, dict[str, str]] = {}
        self._late_text: list[str] = []

    def feed(self, data: str, time_s: float) -> Iterator[TokenEvent]:
        """Read one event that arrived at ``time_s``.

        Raises:
            ServerError: Not JSON, not an object, or an error object.
        """
        if data.strip() == _DONE:
            self.is_done = True
            self.end_s = self.end_s or time_s
            return
        chunk = _load(data)
        self._note(chunk)
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict) and choice.get("index") in (0, None):
                self._has_choices = True
                yield from self._choice(choice, time_s)

    def finish(self) -> TokenEvent:
        """Give the closing event: tool calls in the models' own form, and why the answer ended.

        Raises:
            ServerError: The stream ended too early, or held nothing at all.
        """
        if not self._has_choices:
            raise ServerError(
                "the server sent an empty answer",
                got="no chunk with choices",
                wanted="chat.completion.chunk events",
                do="Check that the URL and the model are for chat completions.",
            )
        if self.end_s is None:
            raise ServerError(
                "the server cut the answer short",
                got=f"the stream ended after {self._n_events} pieces of text",
                wanted="a finish_reason or [DONE]",
                do="Try again; if it persists, look at the server's log.",
            )
        finish = _FINISHES.get(self.finish_reason, Finish.STOP)
        if self._calls and finish is Finish.STOP:
            finish = Finish.TOOL_CALLS
        text = self._calls_text() + "".join(self._late_text)
        return TokenEvent(self._n_events, None, text, self.end_s, finish=finish)

    def count(self, name: str, *path: str) -> int | None:
        """Give a usage count; None when the server gave none or an invalid one."""
        value: Any = self.usage.get(name)
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        is_count = (
            isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_COUNT
        )
        return value if is_count else None

    def _note(self, chunk: Mapping[str, Any]) -> None:
        for name in ("model", "system_fingerprint"):
            value = chunk.get(name)
            if isinstance(value, str) and value:
                setattr(self, name, _whole(value))
        if isinstance(chunk.get("usage"), dict):
            self.usage = chunk["usage"]
        if isinstance(chunk.get("timings"), dict):
            self.timings = chunk["timings"]

    def _choice(self, choice: Mapping[str, Any], time_s: float) -> Iterator[TokenEvent]:
        delta = choice.get("delta")
        if isinstance(delta, dict):
            if _text(delta, "reasoning_content") or _text(delta, "reasoning"):
                yield self._event("", time_s)
            if text := _text(delta, "content"):
                yield from self._content(text, choice.get("logprobs"), time_s)
            calls = delta.get("tool_calls")
            if isinstance(calls, list) and calls:
                if not self._calls:
                    yield self._event(TOOL_CALLS_TAG, time_s)
                self._add_calls(calls)
        reason = choice.get("finish_reason")
        if isinstance(reason, str) and reason:
            self.finish_reason = _whole(reason)
            self.end_s = time_s

    def _content(self, text: str, logprobs: Any, time_s: float) -> Iterator[TokenEvent]:
        if self._calls:
            self._late_text.append(text)
            return
        tokens = _tokens(logprobs)
        if "".join(token for token, _, _ in tokens) != text:
            yield self._event(text, time_s)
            return
        for token, logprob, top in tokens:
            yield self._event(token, time_s, logprob, top)

    def _event(
        self,
        text: str,
        time_s: float,
        logprob: float | None = None,
        top: tuple[TokenLogprob, ...] = (),
    ) -> TokenEvent:
        if self.first_text_s is None:
            self.first_text_s = time_s
        event = TokenEvent(self._n_events, None, text, time_s, logprob, top)
        self._n_events += 1
        return event

    def _add_calls(self, calls: list[Any]) -> None:
        for position, call in enumerate(calls):
            if not isinstance(call, dict):
                continue
            index = call.get("index")
            number = index if isinstance(index, int) else len(self._calls) + position
            known = self._calls.setdefault(number, {"name": "", "arguments": ""})
            function = call.get("function")
            if isinstance(function, dict):
                # Arguments arrive in pieces; a name arrives whole, from some servers repeatedly.
                known["name"] = known["name"] or _text(function, "name")
                known["arguments"] += _text(function, "arguments")

    def _calls_text(self) -> str:
        if not self._calls:
            return ""
        calls = [
            {"name": call["name"], "arguments": _arguments(call["arguments"])}
            for _, call in sorted(self._calls.items())
        ]
        return json.dumps(calls, ensure_ascii=False)


def _load(data: str) -> dict[str, Any]:
    try:
        chunk = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ServerError(
            "the server sent an event that is not JSON",
            got=repr(data[:80]),
            wanted="a JSON object",
            do="Check that the URL is that of an OpenAI-compatible server.",
        ) from error
    if not isinstance(chunk, dict):
        raise ServerError(
            "the server sent an event that is not an object",
            got=repr(data[:80]),
            wanted="a JSON object",
        )
    error_object = chunk.get("error")
    if error_object:
        is_object = isinstance(error_object, dict)
        message = error_object.get("message") if is_object else error_object
        code = error_object.get("code") if is_object else None
        raise ServerError(
            "the server broke off with an error",
            status=code if isinstance(code, int) and 400 <= code < 600 else None,
            got=str(message)[:200],
        )
    return chunk


def _text(part: Mapping[str, Any], name: str) -> str:
    value = part.get(name)
    return _whole(value) if isinstance(value, str) else ""


def _whole(text: str) -> str:
    """Replace half of a surrogate pair, which JSON can spell and UTF-8 cannot hold, by U+FFFD."""
    return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)


def _tokens(logprobs: Any) -> list[tuple[str, float, tuple[TokenLogprob, ...]]]:
    """Give token, log probability and alternatives of each token that is described completely."""
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    tokens = []
    for entry in content if isinstance(content, list) else ():
        known = _logprob(entry)
        if known is None:
            return []
        listed = entry.get("top_logprobs")
        top = [_logprob(other) for other in listed] if isinstance(listed, list) else []
        tokens.append((*known, tuple(TokenLogprob(-1, *other) for other in top if other)))
    return tokens


def _logprob(entry: Any) -> tuple[str, float] | None:
    if not isinstance(entry, dict):
        return None
    token, logprob = entry.get("token"), entry.get("logprob")
    if not isinstance(token, str) or isinstance(logprob, bool):
        return None
    if not isinstance(logprob, int | float) or not abs(logprob) <= sys.float_info.max:
        return None
    return _whole(token), float(logprob)


def _arguments(text: str) -> Any:
    """Parse the arguments as an object; give the text itself if they are not one."""
    try:
        return parse_object((text or "{}").encode(), "arguments")
    except FormatError:
        return text
