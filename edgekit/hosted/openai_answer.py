"""Writer of OpenAI answers, whole or in chunks, from token events.

Usage counts are the model's own tokens. ``timings`` (named as in llama.cpp) holds the time spent
here, so that a client can tell network time from model time.
"""

from __future__ import annotations

import secrets
import time
from typing import Any, Final

from edgekit.hosted.model import HostedModel
from edgekit.hosted.openai_request import HostedRequest
from edgekit.hosted.tool_text import ToolText
from edgekit.runtime.base import Finish, TokenEvent, TokenLogprob

_REPLACEMENT: Final = "\ufffd"


class AnswerWriter:
    """Builds the answer to one request from its token events.

    Args:
        request: What was asked.
        model_name: Name shown to clients.
        fingerprint: OpenAI's ``system_fingerprint``: what exactly answered.
        n_prompt_tokens: Tokens of the prompt.
        model: Gives the text of a single token for log probabilities.
    """

    def __init__(
        self,
        request: HostedRequest,
        *,
        model_name: str,
        fingerprint: str,
        n_prompt_tokens: int,
        model: HostedModel,
    ) -> None:
        self._request = request
        self._model = model
        self._n_prompt_tokens = n_prompt_tokens
        self._start_s = 0.0
        self._times_s: list[float] = []
        self._text = ToolText(is_watching=bool(request.tools))
        self._content: list[str] = [request.prompt] if request.is_echo else []
        self._logprobs: list[dict[str, Any]] = []
        self._offsets = [len(request.prompt) if request.is_echo else 0]
        self._n_sent_logprobs = 0
        self._finish = Finish.STOP
        kind = "chatcmpl" if request.is_chat else "cmpl"
        self._base: dict[str, Any] = {
            "id": f"{kind}-{secrets.token_hex(12)}",
            "object": "",
            "created": int(time.time()),
            "model": model_name,
            "system_fingerprint": fingerprint,
        }

    def begin(self, time_s: float) -> None:
        """Record on the monotonic clock when the model started to work."""
        self._start_s = time_s

    def open(self) -> list[dict[str, Any]]:
        """Give the chunks before the first token: the role, or the echoed prompt."""
        if self._request.is_chat:
            return [self._chunk({"delta": {"role": "assistant", "content": ""}})]
        return [self._chunk({"text": self._content[0]})] if self._content else []

    def feed(self, event: TokenEvent) -> list[dict[str, Any]]:
        """Take one event and give the chunks that it completes."""
        if event.finish is not None:
            self._finish = event.finish
        if event.token_id is not None:
            self._times_s.append(event.time_s)
            if self._request.has_logprobs and event.logprob is not None:
                self._add_logprob(event.token_id, event.logprob, event.top)
        text = self._text.feed(event.text)
        self._content.append(text)
        if self._text.is_holding or not (text or self._n_unsent_logprobs):
            return []
        return [self._content_chunk(text)]

    def close(self) -> list[dict[str, Any]]:
        """End the answer and give the last chunks: held text or tool calls, finish, usage."""
        text = self._text.finish()
        self._content.append(text)
        chunks = [self._content_chunk(text)] if text or self._n_unsent_logprobs else []
        calls = self._text.calls
        if calls:
            numbered = [{"index": i, **call} for i, call in enumerate(calls)]
            chunks.append(self._chunk({"delta": {"tool_calls": numbered}}))
        empty: dict[str, Any] = {"delta": {}} if self._request.is_chat else {"text": ""}
        chunks.append(self._chunk(empty, finish=self._finish_reason()))
        if self._request.has_usage_chunk:
            chunks.append({**self._chunk({}), "choices": [], **self._usage()})
        return chunks

    def whole(self) -> dict[str, Any]:
        """Give the answer as one object; call it after ``close``."""
        content = "".join(self._content)
        if self._request.is_chat:
            calls = self._text.calls
            message: dict[str, Any] = {
                "role": "assistant",
                "content": None if calls and not content else content,
                "refusal": None,
            }
            if calls:
                message["tool_calls"] = calls
            part: dict[str, Any] = {"message": message}
            kind = "chat.completion"
        else:
            part, kind = {"text": content}, "text_completion"
        choice = {
            "index": 0,
            **part,
            "logprobs": self._logprobs_from(0),
            "finish_reason": self._finish_reason(),
        }
        return {**self._base, "object": kind, "choices": [choice], **self._usage()}

    @property
    def _n_unsent_logprobs(self) -> int:
        return len(self._logprobs) - self._n_sent_logprobs

    def _finish_reason(self) -> str:
        if self._text.calls:
            return "tool_calls"
        # Calls that were malformed or not asked for were sent as content: the answer just stopped.
        is_length = self._finish is Finish.LENGTH
        return "length" if is_length else "stop"

    def _content_chunk(self, text: str) -> dict[str, Any]:
        logprobs = self._logprobs_from(self._n_sent_logprobs)
        self._n_sent_logprobs = len(self._logprobs)
        part: dict[str, Any] = (
            {"delta": {"content": text}} if self._request.is_chat else {"text": text}
        )
        return self._chunk(part, logprobs=logprobs)

    def _chunk(
        self, part: dict[str, Any], *, logprobs: Any = None, finish: str | None = None
    ) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self._request.is_chat else "text_completion"
        choice = {"index": 0, **part, "logprobs": logprobs, "finish_reason": finish}
        chunk = {**self._base, "object": kind, "choices": [choice]}
        if self._request.has_usage_chunk:
            chunk["usage"] = None
        return chunk

    def _usage(self) -> dict[str, Any]:
        n_output = len(self._times_s)
        times_s = self._times_s or [self._start_s]
        return {
            "usage": {
                "prompt_tokens": self._n_prompt_tokens,
                "completion_tokens": n_output,
                "total_tokens": self._n_prompt_tokens + n_output,
            },
            "timings": {
                "prompt_n": self._n_prompt_tokens,
                "prompt_ms": 1000 * (times_s[0] - self._start_s),
                "predicted_n": n_output,
                "predicted_ms": 1000 * (times_s[-1] - times_s[0]),
            },
        }

    def _add_logprob(self, token_id: int, logprob: float, top: tuple[TokenLogprob, ...]) -> None:
        text = self._model.decode([token_id])
        if not text:
            return  # the end token is counted but, as in OpenAI's answers, not shown
        shown = [_entry(e.text, e.logprob) for e in top[: self._request.n_alternatives]]
        self._logprobs.append({**_entry(text, logprob), "top_logprobs": shown})
        self._offsets.append(self._offsets[-1] + len(text))

    def _logprobs_from(self, start: int) -> dict[str, Any] | None:
        """Give the log probabilities from token ``start`` on in the form of the endpoint."""
        if not self._request.has_logprobs:
            return None
        entries = self._logprobs[start:]
        if self._request.is_chat:
            return {"content": entries, "refusal": None}
        top = [{t["token"]: t["logprob"] for t in e["top_logprobs"]} for e in entries]
        return {
            "tokens": [e["token"] for e in entries],
            "token_logprobs": [e["logprob"] for e in entries],
            "top_logprobs": top if self._request.n_alternatives else None,
            "text_offset": self._offsets[start:-1],
        }


def _entry(text: str, logprob: float) -> dict[str, Any]:
    # A token that is part of a character has no text of its own; its bytes are not known here.
    is_whole = _REPLACEMENT not in text
    return {"token": text, "logprob": logprob, "bytes": list(text.encode()) if is_whole else None}
