"""``ModelServer``: a loaded model on a port, answering the OpenAI API.

It uses the standard library only. It binds the loopback address unless told otherwise, and any
other address only with an API key. Threads and sockets are counted, limited and gone after
``stop``.
"""

from __future__ import annotations

import hmac
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

from edgekit.errors import ServerError, UsageError
from edgekit.hosted.api_error import too_many_connections, unexpected_error
from edgekit.hosted.http_handler import Connection, RequestHandler, raw_refusal
from edgekit.hosted.model import HostedModel
from edgekit.hosted.openai_api import DEFAULT_MAX_WAIT_S, DEFAULT_MAX_WAITING, OpenAiApi

Log: TypeAlias = Callable[[str], None]
"""Called with one line about each request; must return quickly and never raise."""

MAX_CONNECTIONS: Final = 64
READ_LIMIT_S: Final = 30.0
_POLL_S: Final = 0.1
_JOIN_S: Final = 5.0
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


def ignore_log(line: str) -> None:
    """Ignore the line; the default log."""


class ModelServer:
    """Hosts one model behind the OpenAI API; use it as a context manager or start and stop it.

    Args:
        model: The model that answers; the caller closes it.
        model_name: Name that requests must ask for.
        host: Address to bind.
        port: 0 lets the system choose.
        api_key: Key that requests must have; None accepts requests without one.
        log: Receives a line per request.
        max_waiting, max_wait_s: See ``RequestQueue``.
        read_limit_s: Longest time a client may take to send a request, or stay idle.

    Raises:
        UsageError: An address beyond this machine without an API key.
    """

    def __init__(
        self,
        model: HostedModel,
        *,
        model_name: str,
        host: str = "127.0.0.1",
        port: int = 0,
        api_key: str | None = None,
        log: Log = ignore_log,
        max_waiting: int = DEFAULT_MAX_WAITING,
        max_wait_s: float = DEFAULT_MAX_WAIT_S,
        read_limit_s: float = READ_LIMIT_S,
    ) -> None:
        if host not in _LOOPBACK and not api_key:
            raise UsageError(
                "an address that others can reach needs an API key", got=host,
                wanted="127.0.0.1, or a key", do="Set an API key, or bind 127.0.0.1.",
            )  # fmt: skip
        self._api = OpenAiApi(model, model_name, max_waiting=max_waiting, max_wait_s=max_wait_s)
        self._host, self._port = host, port
        self._api_key, self._log, self._read_limit_s = api_key, log, read_limit_s
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Base URL for OpenAI clients, ``http://HOST:PORT/v1``.

        Raises:
            UsageError: The server is not running.
        """
        return f"http://{self.address}/v1"

    @property
    def address(self) -> str:
        """``HOST:PORT`` as bound."""
        if self._server is None:
            raise UsageError("the server is not running", do="Call start() first.")
        host, port = self._server.server_address[:2]
        name = host.decode() if isinstance(host, bytes | bytearray) else str(host)
        return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"

    def _bind(self) -> _Server:
        if self._server is not None:
            return self._server
        try:
            self._server = _Server(
                (self._host, self._port), self._api, self._api_key, self._log, self._read_limit_s
            )
        except (OSError, OverflowError) as error:
            raise ServerError(
                f"cannot listen on {self._host}:{self._port}",
                got=str(error),
                do="Choose another port, or 0 to let the system choose.",
            ) from error
        return self._server

    def start(self) -> Self:
        """Answer requests in a thread until ``stop``.

        Raises:
            ServerError: The address is in use or cannot be bound.
            UsageError: Already started.
        """
        if self._thread is not None:
            raise UsageError("the server is already running")
        self._thread = threading.Thread(
            target=self._bind().serve_forever, args=(_POLL_S,), name="edgekit-serve", daemon=True
        )
        self._thread.start()
        return self

    def serve_forever(self) -> None:
        """Answer requests in this thread until another calls ``stop`` or an interrupt comes."""
        self._bind().serve_forever(_POLL_S)

    def stop(self, *, grace_s: float = 2.0) -> None:
        """Stop answering and free the port. Safe to call twice.

        Args:
            grace_s: How long running answers may take to finish before they are cut off.
        """
        server, self._server = self._server, None
        if server is None:
            return
        server.drain(grace_s)
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(_JOIN_S)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = MAX_CONNECTIONS

    def __init__(
        self,
        address: tuple[str, int],
        api: OpenAiApi,
        api_key: str | None,
        log: Log,
        read_limit_s: float,
    ) -> None:
        self.api = api
        self.log = log
        self.allowed_hosts = self._host_names(address[0])
        self.is_draining = False
        self.is_stopping = False
        self._key = None if not api_key else f"Bearer {api_key}".encode()
        self._read_limit_s = read_limit_s
        self._connections: dict[socket.socket, Connection] = {}
        self._lock = threading.Lock()
        self._has_closed = threading.Condition(self._lock)
        self._is_serving = threading.Event()
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, RequestHandler)

    def server_bind(self) -> None:
        """Bind without http.server's name lookup, which may ask the network."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def serve_forever(self, poll_interval: float = _POLL_S) -> None:
        """Accept connections until ``drain``."""
        self._is_serving.set()
        super().serve_forever(poll_interval)

    def service_actions(self) -> None:
        """Give up on clients that take too long to send their request."""
        oldest_s = time.monotonic() - self._read_limit_s
        for connection in self._open_connections():
            since_s = connection.reading_since_s
            if since_s is not None and since_s < oldest_s:
                connection.has_expired = True
                _shutdown(connection.socket)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection, unless there are too many."""
        with self._lock:
            is_full = len(self._connections) >= MAX_CONNECTIONS
            if not is_full:
                self._connections[request] = Connection(request)
        if is_full:
            with suppress(OSError):
                request.sendall(raw_refusal(too_many_connections()))
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer one connection and forget it."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                del self._connections[request]
                self._has_closed.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log an unexpected error; tell the client only that there was one."""
        error = sys.exception()
        if isinstance(error, OSError):
            return  # the connection broke, so no answer can be sent
        self.log(f"unexpected error: {type(error).__name__}: {error}")
        if not self.connection_of(request).has_begun:
            with suppress(OSError):
                request.sendall(raw_refusal(unexpected_error()))

    def is_key_right(self, header: str) -> bool:
        """Compare in constant time; without a key every request is accepted."""
        return self._key is None or hmac.compare_digest(
            header.encode("latin-1", "replace"), self._key
        )

    def connection_of(self, sock: socket.socket) -> Connection:
        """Find the record of an open connection."""
        with self._lock:
            return self._connections[sock]

    def drain(self, grace_s: float) -> None:
        """Stop accepting, let running answers finish for a while, then close everything."""
        self.is_draining = True
        if self._is_serving.is_set():
            self.shutdown()
        self.server_close()
        self._await_end(grace_s)
        self.is_stopping = True
        self._await_end(_JOIN_S)

    def _await_end(self, limit_s: float) -> None:
        """Close idle connections and wait for the busy ones."""
        until_s = time.monotonic() + limit_s
        with self._lock:
            while self._connections and time.monotonic() < until_s:
                for connection in self._connections.values():
                    if connection.reading_since_s is not None:
                        _shutdown(connection.socket)
                self._has_closed.wait(_POLL_S)

    def _open_connections(self) -> list[Connection]:
        with self._lock:
            return list(self._connections.values())

    @staticmethod
    def _host_names(host: str) -> frozenset[str]:
        """Names under which a loopback server answers; empty if any name is accepted."""
        return _LOOPBACK | {"[::1]"} if host in _LOOPBACK else frozenset()


def _shutdown(sock: socket.socket) -> None:
    """Wake the thread that reads a socket; it then sees the end of the input."""
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RD)
