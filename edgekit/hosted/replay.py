"""``ReplayBackend``: answers from a recording in place of the server it was taken from.

No request is sent and nothing waits: events have the recorded times, counted from the start of the
replayed request. An unfinished last line, which an interrupted run may leave, is ignored; any other
damage is an error.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from edgekit.errors import FormatError, ServerError, UsageError
from edgekit.hosted.recording import SCHEMA_VERSION, hash_request
from edgekit.records import EngineInfo, from_data
from edgekit.runtime.base import GenerateOptions, Message, TokenEvent
from edgekit.runtime.request_stats import RequestStats
from edgekit.strict_json import parse_object


@dataclass(frozen=True, slots=True)
class Answer:
    """One recorded line; times count from the request."""

    request_sha256: str
    model: str
    server: EngineInfo
    events: tuple[TokenEvent, ...]
    stats: RequestStats | None


class ReplayBackend:
    """A ``ChatBackend`` over a recording; open one with ``open``.

    A request that was recorded several times is answered in the recorded order, and from the
    start again after the last.
    """

    def __init__(self, path: Path, model: str, answers: Sequence[Answer]) -> None:
        self._path = path
        self._model = model
        self._server = answers[-1].server
        self._answers: dict[str, list[Answer]] = defaultdict(list)
        for answer in answers:
            self._answers[answer.request_sha256].append(answer)
        self._n_asked: dict[str, int] = defaultdict(int)
        self._last: RequestStats | None = None

    @classmethod
    def open(cls, path: str | Path, *, model: str | None = None) -> Self:
        """Read a recording.

        Args:
            path: A file that ``RecordingBackend`` wrote.
            model: Which model's answers to give; needed when the file holds several.

        Raises:
            FormatError: The file cannot be read, holds no answer, or a line is damaged.
            UsageError: ``model`` is not in the file, or must be chosen.
        """
        path = Path(path)
        answers = list(read_answers(path))
        models = sorted({answer.model for answer in answers})
        if not models:
            raise FormatError(f"{path} holds no recorded answer", do="Record the server again.")
        if model is None and len(models) > 1:
            raise UsageError(f"{path} holds several models", got=", ".join(models), wanted="one")
        if model is not None and model not in models:
            raise UsageError(f"{path}: no such model", got=model, wanted=", ".join(models))
        chosen = model or models[0]
        return cls(path, chosen, [answer for answer in answers if answer.model == chosen])

    @property
    def info(self) -> EngineInfo:
        """What answered when it was recorded, marked as replayed."""
        settings = {**self._server.settings, "replayed": True}
        return dataclasses.replace(self._server, settings=settings)

    @property
    def last_request_stats(self) -> RequestStats | None:
        """Facts of the last replayed answer."""
        return self._last

    def stream_chat(
        self,
        messages: Sequence[Message],
        options: GenerateOptions,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Iterator[TokenEvent]:
        """Give the recorded answer, at once, with its recorded times.

        Raises:
            ServerError: This request is not in the recording.
        """
        start_s = time.monotonic()
        key = hash_request(self._model, messages, options, tools)
        known = self._answers.get(key)
        if not known:
            last = messages[-1].get("content") if messages else None
            raise ServerError(
                f"{self._path} holds no answer to this request",
                got=f"{key[:12]}, ending in {str(last)[-60:]!r}",
                wanted=f"one of {len(self._answers)} recorded requests",
                do="Record the server again with the same items, options and model.",
            )
        answer = known[self._n_asked[key] % len(known)]
        self._n_asked[key] += 1
        if answer.stats is not None:
            self._last = dataclasses.replace(answer.stats, start_s=start_s)
        for event in answer.events:
            yield dataclasses.replace(event, time_s=start_s + event.time_s)

    def close(self) -> None:
        """Do nothing; no resource is open. Safe to call twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_answers(path: Path) -> Iterator[Answer]:
    """Read the lines of a recording one by one.

    Raises:
        FormatError: The file cannot be read, or a whole line is damaged; names the line.
    """
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.endswith(b"\n"):
                    yield _answer(line, f"{path} line {number}")
    except OSError as error:
        raise FormatError(
            f"cannot read the recording {path}", got=error.strerror, wanted="a JSONL file",
            do="Make one with: edgekit compare --record FILE",
        ) from error  # fmt: skip


def _answer(line: bytes, where: str) -> Answer:
    data = parse_object(line, where)
    version = data.get("schema_version")
    if version != SCHEMA_VERSION:
        raise FormatError(f"{where}: schema_version", got=version, wanted=SCHEMA_VERSION)
    try:
        stats = data["exchange"]
        answer = Answer(
            request_sha256=str(data["request_sha256"]),
            model=str(data["model"]),
            server=from_data(EngineInfo, data["server"]),
            events=tuple(_event(i, event) for i, event in enumerate(data["events"])),
            stats=None if stats is None else _stats(stats),
        )
        is_whole = answer.events[-1].finish is not None
        is_same = data["text"] == "".join(event.text for event in answer.events)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, UsageError) as error:
        raise FormatError(
            f"{where}: not a recorded answer", got=f"{type(error).__name__}: {error}"
        ) from error
    if not (is_whole and is_same):
        raise FormatError(f"{where}: text and events do not agree")
    return answer


def _stats(data: Mapping[str, Any]) -> RequestStats:
    """Read the facts of a request; when it began is not recorded."""
    fields = {**data, "start_s": 0.0}
    fields["unsupported_params"] = fields.pop("refused", ())
    return from_data(RequestStats, fields)


def _event(index: int, data: Mapping[str, Any]) -> TokenEvent:
    """Read an event; its time is still counted from the request."""
    fields = dict(data)
    after_s = float(fields.pop("after_s"))
    if not math.isfinite(after_s):
        raise ValueError(f"after_s is {after_s}")
    return from_data(TokenEvent, {"token_id": None, **fields, "index": index, "time_s": after_s})
