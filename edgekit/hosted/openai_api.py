"""``OpenAiApi``: answers checked requests with the hosted model.

It knows the model and the API's objects, but no sockets. The connection passes ``check``, which
raises when the client has gone.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any, Final, TypeAlias

from edgekit.errors import EdgekitError
from edgekit.hosted.api_error import ApiError, ClientGoneError, from_model_error
from edgekit.hosted.model import HostedModel
from edgekit.hosted.openai_answer import AnswerWriter
from edgekit.hosted.openai_request import HostedRequest
from edgekit.hosted.request_queue import RequestQueue
from edgekit.runtime.base import TokenEvent

Check: TypeAlias = Callable[[], None]
"""Raises when the answer is no longer wanted; called between tokens and while waiting."""

DEFAULT_MAX_WAITING: Final = 8
DEFAULT_MAX_WAIT_S: Final = 120.0


class OpenAiApi:
    """The endpoints of one hosted model.

    Args:
        model: What answers.
        model_name: Its name in the API.
        max_waiting, max_wait_s: See ``RequestQueue``.
    """

    def __init__(
        self,
        model: HostedModel,
        model_name: str,
        *,
        max_waiting: int = DEFAULT_MAX_WAITING,
        max_wait_s: float = DEFAULT_MAX_WAIT_S,
    ) -> None:
        self._model = model
        self._model_name = model_name
        self._queue = RequestQueue(max_waiting, max_wait_s)
        self._created_s = int(time.time())
        info = model.info
        self._fingerprint = f"{info.engine}-{info.version}"

    def models(self) -> dict[str, Any]:
        """Answer GET /v1/models."""
        return {"object": "list", "data": [self._card()]}

    def model(self, name: str) -> dict[str, Any]:
        """Answer GET /v1/models/NAME.

        Raises:
            ApiError: 404, another name.
        """
        self._check_model(name)
        return self._card()

    def complete(self, request: HostedRequest, check: Check) -> dict[str, Any]:
        """Give the whole answer as one object.

        Raises:
            ApiError: The request cannot be answered, or the model failed.
        """
        writer, request = self._prepare(request)
        with closing(self._events(request, writer, check)) as events:
            for event in events:
                writer.feed(event)
        writer.close()
        return writer.whole()

    def stream(self, request: HostedRequest, check: Check) -> Iterator[dict[str, Any]]:
        """Give the chunks of the answer; the first comes with the model's first token.

        Raises:
            ApiError: As ``complete``; after the first chunk only if the model failed midway.
        """
        writer, request = self._prepare(request)
        is_open = False
        with closing(self._events(request, writer, check)) as events:
            for event in events:
                if not is_open:
                    is_open = True
                    yield from writer.open()
                yield from writer.feed(event)
        yield from writer.close()

    def _card(self) -> dict[str, Any]:
        return {
            "id": self._model_name,
            "object": "model",
            "created": self._created_s,
            "owned_by": "edgekit",
            "max_model_len": self._model.context_length,
        }

    def _check_model(self, name: str) -> None:
        if name != self._model_name:
            raise ApiError(
                404, "no such model", got=repr(name[:80]), wanted=repr(self._model_name),
                code="model_not_found", param="model",
            )  # fmt: skip

    def _prepare(self, request: HostedRequest) -> tuple[AnswerWriter, HostedRequest]:
        """Check the request against the model, and limit its answer to the context."""
        self._check_model(request.model)
        n_prompt = self._count_prompt(request)
        n_left = self._model.context_length - n_prompt
        if n_prompt == 0:
            raise ApiError(400, "the prompt is empty", wanted="at least one token")
        if n_left < 1:
            raise ApiError(
                400, "the prompt fills the context", got=f"{n_prompt} tokens",
                wanted=f"less than {self._model.context_length}", do="Shorten the prompt.",
                code="context_length_exceeded", param="messages" if request.is_chat else "prompt",
            )  # fmt: skip
        max_tokens = min(request.options.max_tokens, n_left) if request.has_max_tokens else n_left
        options = dataclasses.replace(request.options, max_tokens=max_tokens)
        writer = AnswerWriter(
            request,
            model_name=self._model_name,
            fingerprint=self._fingerprint,
            n_prompt_tokens=n_prompt,
            model=self._model,
        )
        return writer, dataclasses.replace(request, options=options)

    def _count_prompt(self, request: HostedRequest) -> int:
        try:
            if request.is_chat:
                return len(self._model.encode_chat(request.messages, request.tools))
            return len(self._model.encode(request.prompt))
        except EdgekitError as error:
            raise from_model_error(error) from error

    def _events(
        self, request: HostedRequest, writer: AnswerWriter, check: Check
    ) -> Generator[TokenEvent, None, None]:
        """Run the model when its turn comes, until it ends or the client has gone."""
        with self._queue.hold(check):
            writer.begin(time.monotonic())
            events: Iterator[TokenEvent] = iter(())
            try:
                events = self._start(request)
                for event in events:
                    check()
                    yield event
            except ClientGoneError:
                raise
            except EdgekitError as error:
                raise from_model_error(error) from error
            finally:
                # The model must have stopped before the next request gets its turn.
                if isinstance(events, Generator):
                    events.close()

    def _start(self, request: HostedRequest) -> Iterator[TokenEvent]:
        if request.is_chat:
            return self._model.stream_chat(request.messages, request.options, request.tools)
        return self._model.generate(request.prompt, request.options)
