"""The protocols of engines: ``Decoder`` (local) and ``ChatBackend`` (local or server).

A local engine is a ``Decoder``: token ids in, logits out, with its own key/value cache. Everything
between logits and text (sampling, stop strings, chat) is written once, in session.py, for every
engine. A server is not a ``Decoder``, but like a local session it is a ``ChatBackend``, which
suites, profiler and reports use.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from edgekit.dtypes import F32Array
from edgekit.errors import UsageError
from edgekit.records import EngineInfo

Message: TypeAlias = Mapping[str, Any]
"""One chat message in OpenAI form: role, content, and tool_calls where there are any."""


class Finish(enum.Enum):
    """Why a generation ended, in OpenAI's words."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """How to continue a text. ``temperature`` 0 is greedy.

    Attributes:
        max_tokens: Most tokens to write.
        temperature: 0 greedy; else softmax temperature.
        top_p: Nucleus mass kept, 0..1.
        top_k: Candidates kept; 0 keeps all.
        seed: Seed of the sampler; None draws one.
        stop: Texts that end the answer; they are not part of it.
        ignore_eos: Continue after an end token (speed runs only).
        n_logprobs: Alternatives to report per token; 0 reports none.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    n_logprobs: int = 0


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A candidate token with its natural-log probability."""

    token_id: int
    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One step of a streamed generation.

    Attributes:
        index: 0 for the first token of the answer.
        token_id: None when a server streams text without ids, or for the closing event.
        text: Text that became final with this event; may be empty (split UTF-8, held-back stop).
        time_s: Monotonic clock when the event was available.
        logprob: Natural log of the token's probability, if asked for.
        top: Alternatives, most likely first, if asked for.
        finish: Set on the last event only.
    """

    index: int
    token_id: int | None
    text: str
    time_s: float
    logprob: float | None = None
    top: tuple[TokenLogprob, ...] = ()
    finish: Finish | None = None


class Decoder(Protocol):
    """A loaded model: token ids in, logits out, one sequence, own key/value cache."""

    @property
    def info(self) -> EngineInfo:
        """Engine name, version, threads and settings, as they go into records."""
        ...

    @property
    def vocab_size(self) -> int:
        """V."""
        ...

    @property
    def context_length(self) -> int:
        """Most positions the cache holds."""
        ...

    def forward(self, token_ids: Sequence[int], *, n_past: int, n_logits: int = 1) -> F32Array:
        """Run ``token_ids`` after the first ``n_past`` positions of the cache.

        A smaller ``n_past`` than last time rewinds: later positions are forgotten. The engine
        splits long inputs into chunks. The caller may keep the result.

        Args:
            token_ids: T >= 1 ids.
            n_past: Positions already in the cache that stay valid, 0 for a new sequence.
            n_logits: How many of the last positions to return logits for, 1 .. T.

        Returns:
            float32, shape (n_logits, V).

        Raises:
            UsageError: T is 0, an id is outside 0..V-1, n_past is beyond the cache, n_logits is
                out of range, or n_past + T exceeds ``context_length``.
            EngineCrashError: The runtime failed.
        """
        ...

    def close(self) -> None:
        """Free the model. Safe to call twice."""
        ...


class ChatBackend(Protocol):
    """Anything that answers chat messages: a local session or a server."""

    @property
    def info(self) -> EngineInfo:
        """What answers."""
        ...

    def stream_chat(
        self,
        messages: Sequence[Message],
        options: GenerateOptions,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Iterator[TokenEvent]:
        """Stream the assistant's answer; the last event carries ``finish``.

        Raises:
            EngineError: The runtime or server failed.
        """
        ...

    def close(self) -> None:
        """Free all resources. Safe to call twice."""
        ...


def check_forward(
    token_ids: Sequence[int],
    n_past: int,
    n_logits: int,
    *,
    n_cached: int,
    vocab_size: int,
    context_length: int,
) -> None:
    """Refuse a bad ``Decoder.forward`` call; every engine calls this first.

    Raises:
        UsageError: See ``Decoder.forward``.
    """
    n_tokens = len(token_ids)
    if n_tokens == 0:
        raise UsageError("no tokens to run", got=0, wanted="at least 1")
    low, high = min(token_ids), max(token_ids)
    if low < 0 or high >= vocab_size:
        raise UsageError(
            "a token id is outside the vocabulary",
            got=low if low < 0 else high,
            wanted=f"0 .. {vocab_size - 1}",
        )
    if not 0 <= n_past <= n_cached:
        raise UsageError("n_past is beyond the cache", got=n_past, wanted=f"0 .. {n_cached}")
    if not 1 <= n_logits <= n_tokens:
        raise UsageError("n_logits is out of range", got=n_logits, wanted=f"1 .. {n_tokens}")
    if n_past + n_tokens > context_length:
        raise UsageError(
            "the text is longer than the context",
            got=f"{n_past + n_tokens} tokens",
            wanted=f"at most {context_length}",
            do="Shorten the prompt or lower --max-tokens.",
        )
