"""A server that answers with exactly the bytes that a test gives, or breaks off."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Sequence

Script = Callable[[socket.socket], None]


class RawServer:
    """Plays one script per request, in order; the last one again and again.

    A script gets the connection after the whole request was read. The connection is closed
    afterwards unless ``keeps_open``.
    """

    def __init__(self, *scripts: Script, keeps_open: bool = False) -> None:
        self._scripts = scripts
        self._keeps_open = keeps_open
        self.requests: list[dict] = []
        self.headers: list[str] = []
        self.n_connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"

    def __enter__(self) -> RawServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join(5)
        for sock in self._open:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        for thread in self._threads[1:]:
            thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.n_connections += 1
            self._open.append(sock)
            self._threads.append(threading.Thread(target=self._serve, args=(sock,)))
            self._threads[-1].start()

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            try:
                while self._read(sock):
                    n_seen = len(self.headers)
                    self._scripts[min(n_seen, len(self._scripts)) - 1](sock)
                    if not self._keeps_open:
                        return
            except OSError:
                return  # the client left first

    def _read(self, sock: socket.socket) -> bool:
        data = b""
        while b"\r\n\r\n" not in data:
            chunk = sock.recv(65536)
            if not chunk:
                return False
            data += chunk
        head, _, body = data.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").lower().split("\r\n")
        lengths = [int(li.partition(":")[2]) for li in lines if li.startswith("content-length:")]
        while lengths and len(body) < lengths[0]:
            body += sock.recv(65536)
        self.headers.append(head.decode("latin-1"))
        self.requests.append(json.loads(body) if body else {})
        return True


def chunk(**fields) -> dict:
    """A streamed chunk; ``delta`` and ``finish_reason`` go into its only choice."""
    names = ("delta", "finish_reason", "logprobs")
    choice = {name: fields.pop(name) for name in names if name in fields}
    base = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m-1"}
    return {**base, "choices": [{"index": 0, **choice}] if choice else [], **fields}


def sse(events: Iterable[object], *, done: bool = True) -> bytes:
    texts = [json.dumps(event, ensure_ascii=False) for event in events] + ["[DONE]"] * done
    return "".join(f"data: {text}\n\n" for text in texts).encode()


HELLO = (
    chunk(delta={"role": "assistant", "content": ""}),
    chunk(delta={"content": "Hé"}),
    chunk(delta={"content": "llo 🙂"}),
    chunk(delta={}, finish_reason="stop"),
    chunk(usage={"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}),
)


def reply(
    body: bytes,
    *,
    status: str = "200 OK",
    kind: str | None = "text/event-stream",
    headers: Sequence[str] = (),
    is_chunked: bool = True,
    keeps_open: bool = False,
) -> bytes:
    """A whole HTTP answer, in one chunk of chunked coding or up to the end of the connection.

    It says that the connection is closed afterwards, so that no client sends a second request on
    it in the moment before it is, unless ``keeps_open``.
    """
    lines = [f"HTTP/1.1 {status}", *headers]
    if not keeps_open:
        lines.append("Connection: close")
    if kind is not None:
        lines.append(f"Content-Type: {kind}")
    if is_chunked:
        lines.append("Transfer-Encoding: chunked")
        body = b"%X\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    return "\r\n".join([*lines, "", ""]).encode() + body


def send(data: bytes) -> Script:
    return lambda sock: sock.sendall(data)


def refuse(status: str, error: object, headers: Sequence[str] = ()) -> Script:
    body = json.dumps({"error": error} if isinstance(error, dict) else error).encode()
    return send(reply(body, status=status, kind="application/json", headers=headers))


def send_and_reset(data: bytes) -> Script:
    """Send, then close with a reset instead of an orderly end."""

    def script(sock: socket.socket) -> None:
        sock.sendall(data)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()

    return script


def drip(head: bytes, piece: bytes, every_s: float = 0.02) -> Script:
    """Send ``head``, then ``piece`` again and again until the client leaves."""

    def script(sock: socket.socket) -> None:
        sock.sendall(head)
        while True:
            sock.sendall(piece)
            time.sleep(every_s)

    return script


def hang(head: bytes = b"") -> Script:
    """Send ``head`` and then nothing until the client leaves."""

    def script(sock: socket.socket) -> None:
        sock.sendall(head)
        sock.recv(1)

    return script
