"""``Session``: a loaded model with its tokenizer, from prompt to text, for every engine.

Prefill, sampling, UTF-8 safe streaming, stop strings, end tokens and chat are written once, here. A
session keeps nothing between requests: every request starts a new sequence, so that a profiler
never measures a cached prompt.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Self

from edgekit.artifact import MANIFEST_NAME, Artifact
from edgekit.dtypes import F32Array
from edgekit.errors import ArtifactError, CheckpointError, FormatError, UsageError
from edgekit.files import read_inside
from edgekit.records import EngineInfo
from edgekit.runtime import open_decoder
from edgekit.runtime.base import (
    Decoder,
    Finish,
    GenerateOptions,
    Message,
    TokenEvent,
    TokenLogprob,
)
from edgekit.runtime.sampling import Pick, Sampler
from edgekit.runtime.stopping import StopMatcher
from edgekit.strict_json import MAX_OBJECT_BYTES, parse_object
from edgekit.text.chat import ChatTemplate
from edgekit.text.files import TextFiles
from edgekit.text.tokenizer import StreamDecoder, Tokenizer
from edgekit.text.tokenizer_file import has_tokenizer

TOOL_MARKERS: Final = ("[TOOL_CALLS]", "<tool_call>")
"""Special tokens that stay in the text, so that a reader can find the calls after them."""


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """A whole answer; ``n_output_tokens`` counts every token written, including the end token."""

    text: str
    finish: Finish
    n_prompt_tokens: int
    n_output_tokens: int
    events: tuple[TokenEvent, ...]


class Session:
    """One loaded model with its tokenizer; a ``ChatBackend``.

    Args:
        decoder: The engine; the session closes it.
        tokenizer: Text to ids and back; None for a model without one, which takes only ids.
        template: How messages become a prompt.
        eos_ids: Tokens that end an answer.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer | None,
        template: ChatTemplate,
        eos_ids: Iterable[int],
    ) -> None:
        self._decoder = decoder
        self._tokenizer = tokenizer
        self._template = template
        self._eos_ids = frozenset(eos_ids)
        found = ((tokenizer.token_id(marker), marker) for marker in TOOL_MARKERS if tokenizer)
        self._markers = {i: marker for i, marker in found if i is not None}
        self._turn = 0  # the engine has one cache: it belongs to the latest request

    @property
    def info(self) -> EngineInfo:
        """What answers."""
        return self._decoder.info

    @property
    def decoder(self) -> Decoder:
        """The engine."""
        return self._decoder

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            CheckpointError: The model has none.
        """
        if self._tokenizer is None:
            raise CheckpointError(
                f"{self._template.where.parent}: no tokenizer, so text cannot be read or written",
                got="a model that was exported without tokenizer files",
                do="Give token ids (Session.logits, Session.generate), or copy the tokenizer files "
                "next to the model's weights and export it again.",
            )
        return self._tokenizer

    @property
    def context_length(self) -> int:
        """Most tokens of prompt and answer together."""
        return self._decoder.context_length

    @property
    def eos_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        return self._eos_ids

    @cached_property
    def offers_tools(self) -> bool:
        """Whether tools given to the model appear in its prompt."""
        return self._tokenizer is not None and self._template.offers_tools(self._tokenizer)

    def count_tokens(self, text: str) -> int:
        """Count the tokens of a plain text."""
        return len(self.tokenizer.encode(text, allow_special=False))

    def encode(self, text: str) -> list[int]:
        """Give the ids of a plain text as a prompt, with a begin token if the model needs one.

        Names of special tokens in the text stay text.
        """
        tokenizer = self.tokenizer
        around = tokenizer.encode("", allow_special=True, add_special=True)
        begin = around[:1] if around[:1] == [tokenizer.bos_id] else []
        return begin + tokenizer.encode(text, allow_special=False)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Give the text of ids, special tokens left out."""
        return self.tokenizer.decode(token_ids)

    def logits(self, token_ids: Sequence[int]) -> F32Array:
        """Run a new sequence and give the logits after each token.

        Args:
            token_ids: T ids.

        Returns:
            float32, shape (T, V).

        Raises:
            UsageError: No tokens, an id outside the vocabulary, or more than the context holds.
            EngineCrashError: The runtime failed.
        """
        self._turn += 1
        return self._decoder.forward(token_ids, n_past=0, n_logits=len(token_ids))

    def generate(
        self,
        prompt: str | Sequence[int],
        options: GenerateOptions | None = None,
        **overrides: Any,
    ) -> Iterator[TokenEvent]:
        """Continue a text or a list of ids; nothing runs before the first event is read.

        Without a tokenizer, ids can be continued; the events then hold no text.

        Args:
            prompt: Plain text (special tokens in it stay text), or ids.
            options: How to continue.
            overrides: Single fields of ``GenerateOptions``, such as ``max_tokens=20``.

        Returns:
            The events; the last one carries ``finish``.

        Raises:
            UsageError: An option is wrong, or the prompt is empty or longer than the context.
        """
        chosen = _override(options or GenerateOptions(), overrides)
        ids = self.encode(prompt) if isinstance(prompt, str) else list(prompt)
        return self._start(ids, chosen)

    def encode_chat(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()
    ) -> list[int]:
        """Give the prompt ids of a conversation, ready for the assistant's answer.

        Raises:
            CheckpointError: The model has no chat template, or it refuses the messages.
        """
        return self._template.encode(messages, self.tokenizer, tools)

    def stream_chat(
        self,
        messages: Sequence[Message],
        options: GenerateOptions | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Iterator[TokenEvent]:
        """Stream the assistant's answer; the last event carries ``finish``.

        Raises:
            CheckpointError: See ``encode_chat``.
            UsageError: See ``generate``.
            EngineCrashError: The runtime failed.
        """
        return self._start(self.encode_chat(messages, tools), options or GenerateOptions())

    def chat(
        self,
        messages: Sequence[Message],
        options: GenerateOptions | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        **overrides: Any,
    ) -> ChatAnswer:
        """Answer a conversation.

        Raises:
            CheckpointError: See ``encode_chat``.
            UsageError: See ``generate``.
            EngineCrashError: The runtime failed.
        """
        chosen = _override(options or GenerateOptions(), overrides)
        prompt = self.encode_chat(messages, tools)
        events = tuple(self._start(prompt, chosen))
        finish = events[-1].finish
        return ChatAnswer(
            text="".join(event.text for event in events),
            finish=finish or Finish.STOP,
            n_prompt_tokens=len(prompt),
            n_output_tokens=sum(event.token_id is not None for event in events),
            events=events,
        )

    def close(self) -> None:
        """Free the model. Safe to call twice."""
        self._decoder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, prompt: list[int], options: GenerateOptions) -> Iterator[TokenEvent]:
        """Check the request now; run it later."""
        sampler = Sampler(options)
        if options.stop and self._tokenizer is None:
            raise UsageError("stop strings for a model without a tokenizer", wanted="none")
        if not prompt:
            raise UsageError("the prompt is empty", got="0 tokens", wanted="at least 1")
        if len(prompt) > self.context_length:
            raise UsageError(
                "the prompt is longer than the context",
                got=f"{len(prompt)} tokens",
                wanted=f"at most {self.context_length}",
                do="Shorten the prompt.",
            )
        return self._events(prompt, options, sampler)

    def _events(
        self, prompt: list[int], options: GenerateOptions, sampler: Sampler
    ) -> Iterator[TokenEvent]:
        # The last token of an answer needs no position, because its logits are not used.
        n_most = min(options.max_tokens, self.context_length - len(prompt) + 1)
        text = _TextStream(self._tokenizer, self._markers, options.stop)
        next_ids, n_past = prompt, 0
        self._turn += 1
        turn = self._turn
        for index in range(n_most):
            if turn != self._turn:
                raise UsageError(
                    "this answer was interrupted by another request to the same session",
                    do="Finish one answer before the next, or open a second session.",
                )
            logits = self._decoder.forward(next_ids, n_past=n_past, n_logits=1)[0]
            n_past += len(next_ids)
            pick = sampler.pick(logits)
            is_end = pick.token_id in self._eos_ids and not options.ignore_eos
            shown = "" if is_end else text.add(pick.token_id)
            if is_end or index == n_most - 1:
                shown += text.end()
            finish = Finish.LENGTH if index == n_most - 1 else None
            if is_end or text.is_stopped:
                finish = text.finish
            yield self._event(index, pick, shown, finish)
            if finish is not None:
                return
            next_ids = [pick.token_id]

    def _event(self, index: int, pick: Pick, text: str, finish: Finish | None) -> TokenEvent:
        name = self._tokenizer.token_text if self._tokenizer else lambda token_id: ""
        top = tuple(TokenLogprob(i, name(i), value) for i, value in pick.top)
        return TokenEvent(index, pick.token_id, text, time.monotonic(), pick.logprob, top, finish)


class _TextStream:
    """Turns token ids into final text; without a tokenizer, into empty text."""

    def __init__(
        self, tokenizer: Tokenizer | None, markers: Mapping[int, str], stops: Sequence[str]
    ) -> None:
        self._decoder = StreamDecoder(tokenizer) if tokenizer else None
        self._markers = markers
        self._stops = StopMatcher(stops)
        self._has_call = False

    @property
    def is_stopped(self) -> bool:
        return self._stops.is_stopped

    @property
    def finish(self) -> Finish:
        """Why an answer ended by itself."""
        return Finish.TOOL_CALLS if self._has_call else Finish.STOP

    def add(self, token_id: int) -> str:
        """Add a token and give the text that became final with it."""
        if self._decoder is None:
            return ""
        marker = self._markers.get(token_id)
        if marker is None:
            return self._stops.feed(self._decoder.push(token_id))
        self._has_call = True
        return self._stops.feed(self._decoder.finish() + marker)

    def end(self) -> str:
        """End the text: give what was held back, up to a stop string in it."""
        shown = self._stops.feed(self._decoder.finish() if self._decoder else "")
        return shown if self._stops.is_stopped else shown + self._stops.flush()


def _override(options: GenerateOptions, overrides: Mapping[str, Any]) -> GenerateOptions:
    known = {field.name for field in dataclasses.fields(GenerateOptions)}
    unknown = sorted(set(overrides) - known)
    if unknown:
        raise UsageError(
            "unknown generation option", got=", ".join(unknown), wanted=", ".join(sorted(known))
        )
    return dataclasses.replace(options, **overrides)


def open_session(
    artifact: Artifact,
    *,
    engine: str | None = None,
    n_threads: int | None = None,
    context_length: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Session:
    """Load an artifact with its tokenizer and chat template; arguments as ``open_decoder``.

    An artifact without a tokenizer gives a session that takes token ids.

    Raises:
        UsageError: See ``open_decoder``.
        MissingExtraError: See ``open_decoder``.
        EngineLoadError: See ``open_decoder``.
        CheckpointError: The tokenizer or chat template is damaged.
    """
    files = TextFiles.of_folder(artifact.path)
    tokenizer = Tokenizer.open(files) if has_tokenizer(files) else None
    template = ChatTemplate.open(files)
    eos_ids = read_eos_ids(artifact)
    decoder = open_decoder(
        artifact,
        engine=engine,
        n_threads=n_threads,
        context_length=context_length,
        options=options,
    )
    return Session(decoder, tokenizer, template, eos_ids)


def read_eos_ids(artifact: Artifact) -> frozenset[int]:
    """Collect the end tokens of the decoder and of ``generation_config.json``.

    Raises:
        ArtifactError: One of them is not a token id.
    """
    said = {f"{MANIFEST_NAME}: decoder.eos_token_ids": artifact.manifest.decoder["eos_token_ids"]}
    path = artifact.path / "generation_config.json"
    if path.is_file():
        try:
            config = parse_object(read_inside(path, MAX_OBJECT_BYTES), str(path))
        except (FormatError, OSError) as error:
            raise ArtifactError(f"{path}: cannot be read", got=error) from error
        said[f"{path.name}: eos_token_id"] = config.get("eos_token_id")
    return frozenset(i for where, value in said.items() for i in _ids(value, where))


def _ids(value: object, where: str) -> list[int]:
    """Read no id, one id, or a list of them."""
    said = [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
    ids = [i for i in said if isinstance(i, int) and not isinstance(i, bool)]
    if len(ids) != len(said):
        raise ArtifactError(where, got=value, wanted="token ids")
    return ids
