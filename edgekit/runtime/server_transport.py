"""HTTP client for one server that times each exchange and limits its length.

The HTTP library limits each single read, so a server that sends a byte now and then would never
time out. ``deadline`` ends the whole exchange by shutting its socket down. Redirects are not
followed: prompts and keys go only to the server that was named.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from edgekit.lazy import require
from edgekit.runtime.server_errors import http_library

_DRAIN_S: Final = 0.2
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(slots=True)
class WireTimes:
    """When the steps of one exchange happened; None for a step that did not happen."""

    start_s: float
    connect_s: float | None = None
    tls_s: float | None = None
    first_byte_s: float | None = None


class Transport:
    """An HTTP client for one server, one exchange at a time.

    Args:
        scheme: ``http`` or ``https``.
        host: Host name; a loopback host is never contacted through a proxy.
        timeout_s: Longest connection set-up and longest silence.
    """

    def __init__(self, scheme: str, host: str, timeout_s: float) -> None:
        openai, http = require("openai"), http_library()
        self.times = WireTimes(time.monotonic())
        self.has_expired = False
        self._socket: Any = None
        self._step_s = 0.0
        self._lock = threading.Lock()
        # Reading the certificates takes longer than a local answer; without TLS none are needed.
        bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.http = openai.DefaultHttpxClient(
            verify=True if scheme == "https" else bare,
            timeout=http.Timeout(timeout_s),
            follow_redirects=False,
            trust_env=host not in _LOOPBACK,
            event_hooks={"request": [self._watch]},
        )

    @contextmanager
    def exchange(self, deadline_s: float) -> Iterator[WireTimes]:
        """Time one exchange and end it after ``deadline_s``, wherever it is stuck."""
        self.times = WireTimes(time.monotonic())
        self.has_expired = False
        timer = threading.Timer(deadline_s, self._expire)
        timer.daemon = True
        timer.start()
        try:
            yield self.times
        finally:
            timer.cancel()
            timer.join()

    def drain(self, chunks: Iterator[bytes]) -> None:
        """Read what follows the end of an answer, so that its connection can be used again.

        Limited: a server that keeps sending loses the connection, but the answer stays whole.
        """
        http = http_library()
        timer = threading.Timer(_DRAIN_S, self._cut)
        timer.daemon = True
        timer.start()
        try:
            with suppress(http.HTTPError, http.StreamError, OSError):
                for _ in chunks:
                    pass
        finally:
            timer.cancel()
            timer.join()

    def close(self) -> None:
        """Close every connection. Safe to call twice."""
        self.http.close()

    def _watch(self, request: Any) -> None:
        request.extensions = {**request.extensions, "trace": self._trace}

    def _trace(self, name: str, facts: dict[str, Any]) -> None:
        now_s = time.monotonic()
        step, _, state = name.rpartition(".")
        step = step.rpartition(".")[2]
        if step in ("connect_tcp", "start_tls"):
            if state == "started":
                self._step_s = now_s
            elif state == "complete":
                self._connected(step, now_s, facts["return_value"])
        elif step == "receive_response_headers" and state == "complete":
            self.times.first_byte_s = now_s - self.times.start_s

    def _connected(self, step: str, now_s: float, stream: Any) -> None:
        if step == "connect_tcp":
            self.times.connect_s = now_s - self._step_s
        else:
            self.times.tls_s = now_s - self._step_s
        with self._lock:
            self._socket = stream.get_extra_info("socket")
            if self.has_expired:
                self._cut()

    def _expire(self) -> None:
        with self._lock:
            self.has_expired = True
            self._cut()

    def _cut(self) -> None:
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
