"""``ServerBackend``: a model behind any OpenAI-compatible server, used like a local engine.

Times are taken where bytes arrive. A request is repeated only before its first text, because later
the answer would be a mixture; a repeated request is timed from its last attempt.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Self
from urllib.parse import urlsplit

from edgekit.errors import ServerError, UsageError
from edgekit.lazy import require
from edgekit.records import EngineInfo
from edgekit.runtime.base import Finish, GenerateOptions, Message, TokenEvent
from edgekit.runtime.request_stats import NetworkSamples, RequestStats
from edgekit.runtime.server_chunks import ChunkReader
from edgekit.runtime.server_errors import ErrorMapper, FaultError
from edgekit.runtime.server_fields import Fields
from edgekit.runtime.server_sse import iter_data
from edgekit.runtime.server_transport import Transport, WireTimes

DEFAULT_TIMEOUT_S: Final = 60.0
DEADLINE_FACTOR: Final = 10.0
MAX_RETRY_WAIT_S: Final = 20.0
_FIRST_WAIT_S: Final = 0.5
_KEY_VARIABLE: Final = "OPENAI_API_KEY"
# What the library tells every server of the machine that asks; the answer does not depend on it.
_MACHINE_HEADERS: Final = tuple(
    f"X-Stainless-{what}"
    for what in ("Arch", "Async", "Lang", "OS", "Package-Version", "Runtime", "Runtime-Version")
)
_NO_KEY: Final = "none"
_EVENT_STREAM: Final = "text/event-stream"
_PACKINGS: Final = ("identity", "gzip", "deflate")
_MAX_MS: Final = 1e12


@dataclass(frozen=True, slots=True)
class ServerAnswer:
    """A whole answer with its facts."""

    text: str
    finish: Finish
    events: tuple[TokenEvent, ...]
    stats: RequestStats


class ServerBackend:
    """A model behind a URL; a ``ChatBackend``. One request at a time."""

    def __init__(
        self,
        base_url: str,
        model: str,
        key: str,
        timeout_s: float,
        deadline_s: float,
        n_retries: int,
    ) -> None:
        parts = urlsplit(base_url)
        self._model = model
        self._timeout_s, self._deadline_s, self._max_retries = timeout_s, deadline_s, n_retries
        self._url = base_url.rstrip("/")
        self._scheme, self._name = parts.scheme, parts.hostname or ""
        self._error_mapper = ErrorMapper(parts.netloc, key if key != _NO_KEY else "", timeout_s)
        self._transport = self._connect()
        self._fields = Fields()
        self._last: RequestStats | None = None
        openai = require("openai")
        self._version = f"openai {openai.__version__}"
        self._client = openai.OpenAI(
            base_url=base_url,
            api_key=key,
            max_retries=0,
            timeout=timeout_s,
            http_client=self._transport.http,
            default_headers=dict.fromkeys(_MACHINE_HEADERS, openai.omit),
        )

    @classmethod
    def open(
        cls,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        deadline_s: float | None = None,
        max_retries: int = 2,
    ) -> Self:
        """Prepare to ask a server; nothing is sent yet.

        Args:
            base_url: Such as ``http://127.0.0.1:8000/v1``.
            model: The model's name there.
            api_key: Taken from ``OPENAI_API_KEY`` when None.
            timeout_s: Longest wait for a connection and longest silence.
            deadline_s: Longest request as a whole; ten times ``timeout_s`` when None.
            max_retries: Further attempts before the first text, after temporary faults.

        Raises:
            UsageError: The URL, the key or a number is not valid.
            MissingExtraError: The ``openai`` package is absent.
        """
        _check_url(base_url)
        if not model:
            raise UsageError("no model name for the server", do="Name one with --server-model.")
        deadline_s = timeout_s * DEADLINE_FACTOR if deadline_s is None else deadline_s
        if not (0 < timeout_s < float("inf") and 0 < deadline_s < float("inf")):
            raise UsageError("time limit", got=f"{timeout_s}, {deadline_s}", wanted="above 0 s")
        if max_retries < 0:
            raise UsageError("max_retries", got=max_retries, wanted="0 or more")
        key = (api_key or os.environ.get(_KEY_VARIABLE) or _NO_KEY).strip()
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise UsageError(
                "the API key cannot be sent", wanted="printable ASCII without spaces",
                do=f"Check {_KEY_VARIABLE} for stray characters.",
            )  # fmt: skip
        return cls(base_url, model, key, timeout_s, deadline_s, max_retries)

    @property
    def info(self) -> EngineInfo:
        """What answers: the host, and after the first answer what the server said about itself."""
        last = self._last
        return EngineInfo(
            engine="server",
            version=(last.system_fingerprint if last else "") or "unknown",
            model=(last.model if last else "") or self._model,
            settings={
                "host": self._error_mapper.host,
                "client": self._version,
                "model_asked": self._model,
                "refused_fields": sorted(self._fields.unsupported),
            },
        )

    @property
    def last_request_stats(self) -> RequestStats | None:
        """Facts of the last answer that was read to its end."""
        return self._last

    def stream_chat(
        self,
        messages: Sequence[Message],
        options: GenerateOptions,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Iterator[TokenEvent]:
        """Stream the assistant's answer; the last event carries ``finish``.

        Events have no token ids. Tool calls arrive as ``[TOOL_CALLS]`` when the first one begins,
        and as the JSON list of all of them with the last event.

        Raises:
            ServerError: The server refused, timed out, broke off or sent an invalid response.
        """
        unsupported = self._fields.unsupported
        n_retries = 0
        while True:
            has_text = False
            sent = self._fields.make(self._model, messages, options, tools, unsupported)
            try:
                for event in self._attempt(sent, n_retries, unsupported):
                    has_text = True
                    yield event
            except FaultError as fault:
                if has_text:
                    raise fault.error from fault.__cause__
                more = self._learn(fault, sent, unsupported)
                if more == unsupported:
                    if not fault.is_transient or n_retries >= self._max_retries:
                        raise fault.error from fault.__cause__
                    time.sleep(_wait_s(fault, n_retries))
                    n_retries += 1
                unsupported = more
            else:
                return

    def chat(
        self,
        messages: Sequence[Message],
        options: GenerateOptions | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> ServerAnswer:
        """Answer a conversation as a whole, with usage and times.

        Raises:
            ServerError: See ``stream_chat``.
        """
        events = tuple(self.stream_chat(messages, options or GenerateOptions(), tools))
        if self._last is None or events[-1].finish is None:
            raise ServerError(f"{self._error_mapper.host} sent an answer without end")
        text = "".join(event.text for event in events)
        return ServerAnswer(text, events[-1].finish, events, self._last)

    def measure_network(self, n_samples: int = 5) -> NetworkSamples:
        """Time the network alone: fresh connections, and a tiny request on a warm one.

        The tiny request is ``HEAD .../models`` without a key; any status will do, because the
        request has been to the server and back.

        Raises:
            ServerError: The server cannot be reached.
        """
        fresh = [self._probe_fresh() for _ in range(n_samples)]
        transport = self._connect()
        try:
            warm = [self._probe(transport) for _ in range(n_samples + 1)][1:]
        finally:
            transport.close()
        return NetworkSamples(
            connect_s=tuple(t.connect_s for t in fresh if t.connect_s is not None),
            tls_s=tuple(t.tls_s for t in fresh if t.tls_s is not None),
            round_trip_s=tuple(t.first_byte_s for t in warm if t.first_byte_s is not None),
        )

    def close(self) -> None:
        """Close the connections. Safe to call twice."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _attempt(
        self, sent: Mapping[str, Any], n_retries: int, unsupported: frozenset[str]
    ) -> Iterator[TokenEvent]:
        """Send one request and read its answer; every fault is raised as ``FaultError``."""
        reader = ChunkReader()
        create = self._client.chat.completions.with_streaming_response.create
        with self._faults(), self._transport.exchange(self._deadline_s) as times:
            with create(**sent) as response:
                _check_is_stream(response.headers)
                chunks = response.iter_bytes()
                for data in iter_data(chunks):
                    yield from reader.feed(data, time.monotonic())
                    if reader.is_done:
                        break
                self._transport.drain(chunks)
            last_event = reader.finish()
        self._fields.remember(unsupported)
        self._last = _request_stats(reader, times, n_retries, unsupported)
        yield last_event

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """Raise faults as ``FaultError``; a passed deadline otherwise looks like a broken link."""
        try:
            with self._error_mapper.mapped():
                yield
        except FaultError as fault:
            if not self._transport.has_expired:
                raise
            error = ServerError(
                f"{self._error_mapper.host} did not finish in time",
                got="an answer that arrives too slowly",
                wanted=f"all of it within {self._deadline_s:g} s",
                do="Raise the time limit, or ask for fewer tokens.",
            )
            raise FaultError(error, is_transient=True) from fault

    def _learn(
        self, fault: FaultError, sent: Mapping[str, Any], unsupported: frozenset[str]
    ) -> frozenset[str]:
        if fault.error.status not in (400, 422):
            return unsupported
        return self._fields.find_unsupported(fault.reply, sent, unsupported)

    def _connect(self) -> Transport:
        return Transport(self._scheme, self._name, self._timeout_s)

    def _probe_fresh(self) -> WireTimes:
        transport = self._connect()
        try:
            return self._probe(transport)
        finally:
            transport.close()

    def _probe(self, transport: Transport) -> WireTimes:
        try:
            with self._error_mapper.mapped(), transport.exchange(self._deadline_s) as times:
                transport.http.head(f"{self._url}/models")
        except FaultError as fault:
            raise fault.error from fault.__cause__
        return times


def _request_stats(
    reader: ChunkReader, times: WireTimes, n_retries: int, unsupported: frozenset[str]
) -> RequestStats:
    start_s, first_s, end_s = times.start_s, reader.first_text_s, reader.end_s
    prompt_ms: Any = reader.timings.get("prompt_ms")
    is_number = isinstance(prompt_ms, int | float) and not isinstance(prompt_ms, bool)
    prompt_ms = prompt_ms if is_number and 0 <= prompt_ms < _MAX_MS else None
    return RequestStats(
        model=reader.model,
        system_fingerprint=reader.system_fingerprint,
        finish_reason=reader.finish_reason,
        n_prompt_tokens=reader.count("prompt_tokens"),
        n_output_tokens=reader.count("completion_tokens"),
        n_cached_tokens=reader.count("prompt_tokens_details", "cached_tokens"),
        n_reasoning_tokens=reader.count("completion_tokens_details", "reasoning_tokens"),
        start_s=start_s,
        ttft_s=None if first_s is None else first_s - start_s,
        e2e_s=(start_s if end_s is None else end_s) - start_s,
        connect_s=times.connect_s,
        tls_s=times.tls_s,
        first_byte_s=times.first_byte_s,
        server_ttft_s=None if prompt_ms is None else prompt_ms / 1000,
        n_retries=n_retries,
        unsupported_params=tuple(sorted(unsupported)),
    )


def _check_url(base_url: str) -> None:
    """Refuse a wrong base URL, without repeating it: it may hold a password."""
    wanted = "http://HOST:PORT/v1 or https://HOST/v1"
    try:
        parts = urlsplit(base_url)
        is_bad_port = parts.port == 0
    except ValueError as error:
        raise UsageError("the server URL cannot be read", wanted=wanted) from error
    if parts.scheme not in ("http", "https") or not parts.hostname or is_bad_port:
        raise UsageError("the server URL is not an http address", wanted=wanted)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UsageError(
            "the server URL holds a user, a query or a fragment", wanted=wanted,
            do=f"Give the key in {_KEY_VARIABLE} instead.",
        )  # fmt: skip


def _check_is_stream(headers: Mapping[str, str]) -> None:
    packing = headers.get("content-encoding", "identity").strip().lower()
    if packing not in _PACKINGS:
        # Stronger or double compression could expand to any size.
        raise ServerError(
            "the server compressed its answer", status=200, got=packing[:80],
            wanted=" or ".join(_PACKINGS),
        )  # fmt: skip
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in ("", _EVENT_STREAM):
        return
    if "html" in kind:
        raise ServerError(
            "the server answered with a web page", status=200, got=kind, wanted=_EVENT_STREAM,
            do="Check the URL; most servers want one that ends in /v1.",
        )  # fmt: skip
    raise ServerError(
        "the server did not stream its answer", status=200, got=kind[:80], wanted=_EVENT_STREAM,
        do="Use an endpoint that streams: without it there is no time to first token.",
    )  # fmt: skip


def _wait_s(fault: FaultError, n_retries: int) -> float:
    asked_s = fault.retry_after_s
    return min(_FIRST_WAIT_S * 2**n_retries if asked_s is None else asked_s, MAX_RETRY_WAIT_S)
