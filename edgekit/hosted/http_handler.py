"""Handling of one HTTP connection: read a request, route it, send the answer.

Clients are not trusted: every length has a limit, every refusal is a JSON error object, and a
client that disconnects ends its generation at the next token.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, Final, Protocol, cast

from edgekit.hosted.api_error import ApiError, ClientGoneError
from edgekit.hosted.openai_api import OpenAiApi
from edgekit.hosted.openai_request import parse_request

MAX_BODY_BYTES: Final = 4 << 20
_JSON: Final = "application/json"
_ROUTES: Final[Mapping[str, str]] = {
    "/health": "GET",
    "/v1/models": "GET",
    "/v1/chat/completions": "POST",
    "/v1/completions": "POST",
}
_MODEL_PREFIX: Final = "/v1/models/"
_MAX_DISCARD_BYTES: Final = 64 << 20
_DISCARD_S: Final = 1.0


class Connection:
    """What the server knows about one open connection.

    Attributes:
        socket: The connection itself.
        reading_since_s: Monotonic clock since when a request is awaited or read, else None.
        has_begun: The status line of the current answer was sent.
        has_expired: The server gave up waiting for the request.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.reading_since_s: float | None = time.monotonic()
        self.has_begun = False
        self.has_expired = False


class Host(Protocol):
    """The parts of a server that its handlers use."""

    api: OpenAiApi
    allowed_hosts: frozenset[str]
    is_draining: bool
    is_stopping: bool

    def is_key_right(self, header: str) -> bool:
        """Compare the Authorization header with the API key, if there is one."""
        ...

    def connection_of(self, sock: socket.socket) -> Connection:
        """Find the record of an open connection."""
        ...

    def log(self, line: str) -> None:
        """Log one line about a request."""
        ...


class RequestHandler(BaseHTTPRequestHandler):
    """Serves HTTP/1.1 on one connection, one request after another."""

    protocol_version = "HTTP/1.1"
    server_version = "edgekit"
    sys_version = ""
    disable_nagle_algorithm = True  # a token must not wait until the previous one is acknowledged

    @property
    def host(self) -> Host:
        """The server that made this handler."""
        return cast(Host, self.server)

    def handle_one_request(self) -> None:
        """Read one request and answer it."""
        self._state = self.host.connection_of(self.connection)
        self._state.reading_since_s = time.monotonic()
        self._state.has_begun = False
        super().handle_one_request()
        if self.host.is_draining:
            self.close_connection = True

    def do_GET(self) -> None:
        """Answer GET."""
        self._answer("GET")

    def do_POST(self) -> None:
        """Answer POST."""
        self._answer("POST")

    def do_PUT(self) -> None:
        """Refuse PUT."""
        self._answer("PUT")

    def do_DELETE(self) -> None:
        """Refuse DELETE."""
        self._answer("DELETE")

    def do_PATCH(self) -> None:
        """Refuse PATCH."""
        self._answer("PATCH")

    def do_HEAD(self) -> None:
        """Refuse HEAD."""
        self._answer("HEAD")

    def do_OPTIONS(self) -> None:
        """Refuse OPTIONS: pages of other origins may not use this server."""
        self._answer("OPTIONS")

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer a request that could not even be parsed; JSON instead of http.server's HTML."""
        del explain
        self.close_connection = True
        self.request_version = "HTTP/1.1"
        self._send_refusal(ApiError(code, message or HTTPStatus(code).phrase))

    def log_message(self, format: str, *args: Any) -> None:
        """Drop http.server's own lines; ``_answer`` writes ours."""

    def _answer(self, method: str) -> None:
        start_s = time.monotonic()
        path = self.path.partition("?")[0]
        status = 0
        try:
            body = self._read_body()
            self._state.reading_since_s = None
            status = self._route(method, path, body)
        except ClientGoneError:
            self.close_connection = True
        except ApiError as error:
            status = error.status
            self._send_refusal(error)
        except OSError:
            # Reading or writing failed, so no answer can be sent.
            self.close_connection = True
        duration_ms = 1000 * (time.monotonic() - start_s)
        shown = status or "client left"
        self.host.log(f"{method} {ascii(path[:120])[1:-1]} {shown} {duration_ms:.1f} ms")

    def _route(self, method: str, path: str, body: bytes) -> int:
        self._check_host()
        wanted = "GET" if path.startswith(_MODEL_PREFIX) else _ROUTES.get(path)
        if wanted is None:
            raise ApiError(404, "no such path", got=ascii(path[:120]), wanted=", ".join(_ROUTES))
        if method != wanted:
            raise ApiError(
                405, f"{path} does not take {method}", wanted=wanted, headers={"Allow": wanted}
            )
        if path == "/health":
            return self._send_json(200, {"status": "ok"})
        self._check_key()
        api = self.host.api
        if path == "/v1/models":
            return self._send_json(200, api.models())
        if wanted == "GET":
            return self._send_json(200, api.model(path.removeprefix(_MODEL_PREFIX)))
        if self.headers.get_content_type() != _JSON or "Content-Type" not in self.headers:
            raise ApiError(
                415, "content type", got=self.headers.get("Content-Type"), wanted=_JSON,
                do=f"Send the header Content-Type: {_JSON}.",
            )  # fmt: skip
        request = parse_request(body, is_chat=path == "/v1/chat/completions")
        if not request.is_stream:
            return self._send_json(200, api.complete(request, self._check))
        # The iterator is a generator; closing it stops the model when the client disconnects.
        with closing(api.stream(request, self._check)) as chunks:  # type: ignore[type-var]
            return self._send_events(chunks)

    def _check_host(self) -> None:
        """Refuse other host names: a web page could have pointed its own name at this server."""
        allowed = self.host.allowed_hosts
        name = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        if allowed and name and name.lower() not in allowed:
            raise ApiError(403, "host name not served here", got=ascii(name[:120]))

    def _check_key(self) -> None:
        if not self.host.is_key_right(self.headers.get("Authorization", "")):
            raise ApiError(
                401, "the API key is missing or wrong", wanted="Authorization: Bearer KEY",
                kind="authentication_error", code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip

    def _check(self) -> None:
        """End a generation whose client has gone."""
        if self.host.is_stopping:
            raise ApiError(503, "the server is stopping", kind="server_error", code="stopping")
        timeout_s = self.connection.gettimeout()
        self.connection.settimeout(0)
        try:
            is_gone = self.connection.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            is_gone = False
        except OSError:
            is_gone = True
        finally:
            self.connection.settimeout(timeout_s)
        if is_gone:
            raise ClientGoneError

    def _read_body(self) -> bytes:
        """Read exactly as many bytes as Content-Length says.

        Raises:
            ApiError: 400, 408, 411 or 413; the connection closes, because the rest is not read.
        """
        try:
            return self._read_announced()
        except ApiError:
            self.close_connection = True
            raise

    def _read_announced(self) -> bytes:
        if "Transfer-Encoding" in self.headers:
            raise ApiError(
                411, "chunked request bodies are not read", wanted="a Content-Length header"
            )
        lengths = {text.strip() for text in self.headers.get_all("Content-Length", [])}
        if not lengths:
            if self.command == "POST":
                raise ApiError(411, "no Content-Length header", wanted="the number of body bytes")
            return b""
        text = lengths.pop()
        if lengths or not (text.isascii() and text.isdigit() and len(text) < 20):
            raise ApiError(400, "Content-Length", got=ascii(text[:40]), wanted="one whole number")
        n_bytes = int(text)
        if n_bytes > MAX_BODY_BYTES:
            raise ApiError(
                413, "the request body is too large", got=f"{n_bytes} bytes",
                wanted=f"at most {MAX_BODY_BYTES}",
            )  # fmt: skip
        body = self.rfile.read(n_bytes)
        if len(body) < n_bytes:
            if self._state.has_expired:
                raise ApiError(408, "the request body arrived too slowly")
            raise ApiError(400, "the body is shorter than Content-Length", got=len(body))
        return body

    def _send_json(
        self, status: int, data: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> int:
        payload = _dump(data)
        self._begin(
            status, {"Content-Type": _JSON, "Content-Length": str(len(payload)), **(headers or {})}
        )
        if self.command != "HEAD":
            self.wfile.write(payload)
        return status

    def _send_refusal(self, error: ApiError) -> None:
        try:
            self._send_json(error.status, error.body(), error.headers)
            if self.close_connection:
                self._discard_input()
        except OSError:
            self.close_connection = True

    def _send_events(self, chunks: Iterator[Mapping[str, Any]]) -> int:
        """Stream chunks as server-sent events; the status is sent with the first of them."""
        first = next(chunks)
        is_chunked = self.request_version != "HTTP/1.0"
        self.close_connection = self.close_connection or not is_chunked
        framing = {"Transfer-Encoding": "chunked"} if is_chunked else {}
        self._begin(
            200,
            {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
            | framing,
        )
        status = 200
        self._send_event(_dump(first), is_chunked)
        try:
            for chunk in chunks:
                self._send_event(_dump(chunk), is_chunked)
            self._send_event(b"[DONE]", is_chunked)
        except ApiError as error:
            status = error.status
            self._send_event(_dump(error.body()), is_chunked)
        if is_chunked:
            self.wfile.write(b"0\r\n\r\n")
        return status

    def _send_event(self, payload: bytes, is_chunked: bool) -> None:
        event = b"data: " + payload + b"\n\n"
        self.wfile.write(b"%X\r\n%b\r\n" % (len(event), event) if is_chunked else event)

    def _begin(self, status: int, headers: Mapping[str, str]) -> None:
        if self.host.is_draining:
            self.close_connection = True
        self._state.has_begun = True
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def _discard_input(self) -> None:
        """Read and drop what the client still sends; closing with unread data loses our answer."""
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(_DISCARD_S)
        until_s = time.monotonic() + _DISCARD_S
        n_read = 0
        while n_read < _MAX_DISCARD_BYTES and time.monotonic() < until_s:
            data = self.rfile.read1(1 << 16)
            if not data:
                return
            n_read += len(data)


def raw_refusal(error: ApiError) -> bytes:
    """Give a whole HTTP answer for a refusal, to be sent outside a handler."""
    payload = _dump(error.body())
    lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}"]
    headers = {"Content-Type": _JSON, "Content-Length": str(len(payload)), "Connection": "close"}
    lines += [f"{name}: {value}" for name, value in {**headers, **error.headers}.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + payload


def _dump(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
