"""HTTP requests and answers as plain bytes over a socket."""

from __future__ import annotations

import json
import socket


def exchange(address: str, request: bytes, *, timeout_s: float = 5.0) -> bytes:
    """Send raw bytes and give everything that comes back until the server closes."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=timeout_s) as sock:
        sock.sendall(request)
        return read_all(sock)


def read_all(sock: socket.socket) -> bytes:
    """Read until the server closes."""
    answer = b""
    while chunk := sock.recv(65536):
        answer += chunk
    return answer


def post(path: str, body: object, *, headers: dict[str, str] | None = None) -> bytes:
    """Make a POST that asks the server to close afterwards."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {
        "Host": "127.0.0.1",
        "Content-Type": "application/json",
        "Content-Length": str(len(data)),
        "Connection": "close",
        **(headers or {}),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + data


def split(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    """Give status, lower-case headers and body of an answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines)}
    return int(first.split()[1]), headers, body


def unchunk(body: bytes) -> bytes:
    """Undo chunked transfer coding; fails when the framing is not exact."""
    whole = b""
    while True:
        size, _, rest = body.partition(b"\r\n")
        n = int(size, 16)
        if n == 0:
            assert rest == b"\r\n"
            return whole
        whole, body = whole + rest[:n], rest[n + 2 :]
        assert rest[n : n + 2] == b"\r\n"


def refusal(address: str, request: bytes) -> tuple[int, dict]:
    """Send a request that must be refused and give status and error object."""
    status, headers, body = split(exchange(address, request))
    assert headers["content-type"] == "application/json"
    assert int(headers["content-length"]) == len(body)
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "Traceback" not in error["message"]
    return status, error


def is_alive(address: str) -> bool:
    request = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    return split(exchange(address, request))[0] == 200
