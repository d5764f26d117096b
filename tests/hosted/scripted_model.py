"""A model that writes exactly what a test tells it to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

from edgekit.records import EngineInfo
from edgekit.runtime.base import Finish, GenerateOptions, TokenEvent, TokenLogprob

CALL = '[TOOL_CALLS][{"name": "set_timer", "arguments": {"minutes": 7}}]'
TOOL = {
    "type": "function",
    "function": {"name": "set_timer", "parameters": {"type": "object", "properties": {}}},
}


class ScriptedModel:
    """Answers with ``text``, one code point per token; ``before`` runs ahead of each event."""

    def __init__(
        self,
        text: str = "Hi é🙂",
        *,
        finish: Finish = Finish.STOP,
        before: Callable[[int], None] = lambda index: None,
        context_length: int = 128,
    ) -> None:
        self.text, self.last, self.before = text, finish, before
        self.context_length = context_length
        self.info = EngineInfo("scripted", "7", "letters")
        self.asked: list[tuple] = []
        self.has_ended = threading.Event()

    def encode(self, text: str) -> list[int]:
        return [ord(c) for c in text]

    def decode(self, token_ids) -> str:
        return "".join(chr(i) for i in token_ids)

    def encode_chat(self, messages, tools=()) -> list[int]:
        return self.encode("".join(m["content"] for m in messages))

    def stream_chat(self, messages, options: GenerateOptions, tools=()) -> Iterator[TokenEvent]:
        self.asked.append((messages, options, tools))
        return self._events(options)

    def generate(self, prompt: str, options: GenerateOptions) -> Iterator[TokenEvent]:
        self.asked.append((prompt, options))
        return self._events(options)

    def _events(self, options: GenerateOptions) -> Iterator[TokenEvent]:
        try:
            text = self.text[: options.max_tokens]
            finish = self.last if text == self.text else Finish.LENGTH
            for index, c in enumerate(text):
                self.before(index)
                # The most likely alternative is the token itself, the next its upper case.
                top = (TokenLogprob(ord(c), c, -0.25), TokenLogprob(0, c.upper(), -2.5))
                is_last = index == len(text) - 1
                yield TokenEvent(
                    index,
                    ord(c),
                    c,
                    time.monotonic(),
                    -0.25 if options.n_logprobs else None,
                    top[: options.n_logprobs],
                    finish if is_last else None,
                )
        finally:
            self.has_ended.set()
