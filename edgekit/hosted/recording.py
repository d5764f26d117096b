"""Recording of a server's answers, so that a comparison can be repeated without the server.

One JSON line per answered request, appended in one write, so that an interrupted run leaves whole
lines. Prompts are stored as a hash only, and keys not at all. replay.py reads recordings.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, Self, runtime_checkable

from edgekit.errors import MeasureError
from edgekit.records import EngineInfo, to_data
from edgekit.runtime.base import ChatBackend, GenerateOptions, Message, TokenEvent
from edgekit.runtime.request_stats import RequestStats

SCHEMA_VERSION: Final = 1


@runtime_checkable
class HasRequestStats(Protocol):
    """A backend that knows facts about its last answer."""

    @property
    def last_request_stats(self) -> RequestStats | None:
        """Facts of the last answer that was read to its end."""
        ...


def hash_request(
    model: str,
    messages: Sequence[Message],
    options: GenerateOptions,
    tools: Sequence[Mapping[str, Any]],
) -> str:
    """Give a sha256 that is equal exactly for requests that ask for the same."""
    asked = {
        "model": model,
        "messages": to_data(list(messages)),
        "tools": to_data(list(tools)),
        "options": to_data(options),
    }
    text = json.dumps(asked, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def asked_model(info: EngineInfo) -> str:
    """Give the model name that requests use; a server may answer under another one."""
    return str(info.settings.get("model_asked", info.model))


class RecordingBackend:
    """A ``ChatBackend`` that passes everything on and writes down each whole answer.

    Args:
        inner: What answers; closed together with the recording.
        path: JSONL file; answers are added at its end.

    Raises:
        MeasureError: The file cannot be opened.
    """

    def __init__(self, inner: ChatBackend, path: str | Path) -> None:
        self._inner = inner
        self._path = Path(path)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab+", buffering=0)
            self._drop_cut_line()
        except OSError as error:
            raise self._cannot_write(error) from error

    @property
    def inner(self) -> ChatBackend:
        """The backend that is recorded."""
        return self._inner

    @property
    def info(self) -> EngineInfo:
        """What answers."""
        return self._inner.info

    @property
    def last_request_stats(self) -> RequestStats | None:
        """Facts of the last answer, where the inner backend knows them."""
        return self._inner.last_request_stats if isinstance(self._inner, HasRequestStats) else None

    def stream_chat(
        self,
        messages: Sequence[Message],
        options: GenerateOptions,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Iterator[TokenEvent]:
        """Stream the inner backend's answer; it is on disk before its last event is given.

        Raises:
            EngineError: The inner backend failed; nothing is recorded.
            MeasureError: The answer cannot be written.
        """
        start_s = time.monotonic()
        events: list[TokenEvent] = []
        for event in self._inner.stream_chat(messages, options, tools):
            events.append(event)
            if event.finish is not None:
                self._write(hash_request(self._model, messages, options, tools), events, start_s)
            yield event

    def close(self) -> None:
        """Close the file and the inner backend. Safe to call twice."""
        self._file.close()
        self._inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _model(self) -> str:
        return asked_model(self._inner.info)

    def _write(self, request_sha256: str, events: Sequence[TokenEvent], start_s: float) -> None:
        stats = self.last_request_stats
        if stats is not None:
            start_s = stats.start_s
        line = {
            "schema_version": SCHEMA_VERSION,
            "request_sha256": request_sha256,
            "model": self._model,
            "time_unix_s": time.time(),
            "server": to_data(self._inner.info),
            "text": "".join(event.text for event in events),
            "events": [_event_data(event, start_s) for event in events],
            "exchange": None if stats is None else _stats_data(stats),
        }
        data = json.dumps(line, sort_keys=True, separators=(",", ":"), allow_nan=False) + "\n"
        try:
            written = self._file.write(data.encode("ascii"))
            os.fsync(self._file.fileno())
        except (OSError, ValueError) as error:
            raise self._cannot_write(error) from error
        if written != len(data):
            raise self._cannot_write(f"{written} of {len(data)} bytes written")

    def _drop_cut_line(self) -> None:
        """Remove an unfinished last line, which an interrupted run may leave."""
        end = self._file.seek(0, os.SEEK_END)
        size = end
        while size > 0:
            step = min(1 << 16, size)
            self._file.seek(size - step)
            at = self._file.read(step).rfind(b"\n")
            if at >= 0:
                size = size - step + at + 1
                break
            size -= step
        if size < end:
            self._file.truncate(size)

    def _cannot_write(self, reason: object) -> MeasureError:
        return MeasureError(
            f"cannot write the recording {self._path}", got=reason, do="Choose another file."
        )


def _event_data(event: TokenEvent, start_s: float) -> dict[str, Any]:
    """Keep an event with its time since the request began; absent fields are defaults."""
    data: dict[str, Any] = {"text": event.text, "after_s": event.time_s - start_s}
    if event.token_id is not None:
        data["token_id"] = event.token_id
    if event.logprob is not None:
        data["logprob"] = event.logprob
    if event.top:
        data["top"] = to_data(event.top)
    if event.finish is not None:
        data["finish"] = event.finish.value
    return data


def _stats_data(stats: RequestStats) -> dict[str, Any]:
    data = dataclasses.asdict(stats)
    data["refused"] = data.pop("unsupported_params")  # its name in schema version 1
    del data["start_s"]  # a monotonic clock means nothing after the run
    return data
