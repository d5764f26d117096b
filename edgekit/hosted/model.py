"""``HostedModel``: the protocol that a model must satisfy to be hosted.

It is the part of ``edgekit.runtime.session.Session`` that the server uses; any other object with
these members can be hosted as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from edgekit.records import EngineInfo
from edgekit.runtime.base import GenerateOptions, Message, TokenEvent


class HostedModel(Protocol):
    """A loaded model that answers one request at a time."""

    @property
    def info(self) -> EngineInfo:
        """What answers."""
        ...

    @property
    def context_length(self) -> int:
        """Most tokens of prompt and answer together."""
        ...

    def encode(self, text: str) -> Sequence[int]:
        """Give the token ids that ``generate`` makes of a plain prompt."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Give the text of ids, special tokens left out."""
        ...

    def encode_chat(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()
    ) -> Sequence[int]:
        """Render the chat template and give the token ids of the prompt."""
        ...

    def stream_chat(
        self,
        messages: Sequence[Message],
        options: GenerateOptions,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Iterator[TokenEvent]:
        """Stream the assistant's answer; the last event carries ``finish``."""
        ...

    def generate(self, prompt: str, options: GenerateOptions) -> Iterator[TokenEvent]:
        """Continue a plain text; the last event carries ``finish``."""
        ...
