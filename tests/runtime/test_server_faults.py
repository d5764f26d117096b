"""Whatever a server does wrong, the caller gets one clear ServerError, soon."""

from __future__ import annotations

import json
import platform
import re
import socket
import threading
import traceback

import pytest

from edgekit.errors import ServerError, UsageError
from edgekit.runtime.base import Finish, GenerateOptions
from edgekit.runtime.server import ServerBackend
from edgekit.runtime.server_sse import MAX_EVENT_BYTES
from tests.runtime.raw_server import (
    HELLO,
    RawServer,
    drip,
    hang,
    refuse,
    reply,
    send,
    send_and_reset,
    sse,
)

KEY = "sk-very-secret"
ASK = [{"role": "user", "content": "hello"}]
GOOD = reply(sse(HELLO))
SHORT = (
    {"choices": [{"delta": {"role": "assistant"}}]},
    {"choices": [{"delta": {"content": "Hé"}}]},
    {"choices": [{"delta": {"content": "🙂"}, "finish_reason": "stop"}]},
)


def open_backend(url: str, **options) -> ServerBackend:
    settings = {"api_key": KEY, "timeout_s": 5.0, "max_retries": 0, **options}
    return ServerBackend.open(url, "m", **settings)


def fault_of(url: str, **options) -> ServerError:
    """Ask and give the error that must come; it must not hold the key, nor leave threads."""
    with open_backend(url, **options) as backend, pytest.raises(ServerError) as caught:
        backend.chat(ASK)
    error = caught.value
    assert error.what
    assert error.got
    assert KEY not in str(error)
    assert KEY not in "".join(traceback.format_exception_only(error))
    assert not any(isinstance(thread, threading.Timer) for thread in threading.enumerate())
    return error


def fault_from(*scripts, **options) -> ServerError:
    with RawServer(*scripts) as server:
        return fault_of(server.url, **options)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


def test_nobody_listens():
    port = free_port()
    error = fault_of(f"http://127.0.0.1:{port}/v1")
    assert error.what == f"127.0.0.1:{port} refused the connection"
    assert (error.status, error.wanted) == (None, "a server")
    assert error.do == "Start it, or check the port."


def test_a_name_that_does_not_resolve():
    error = fault_of("http://no-such-host.invalid/v1")
    assert error.what == "no-such-host.invalid has no address"


def test_silence_is_a_timeout():
    error = fault_from(hang(), timeout_s=0.15)
    assert error.what.endswith("did not answer in time")
    assert error.wanted == "an answer within 0.15 s"


def test_silence_after_the_headers_is_a_timeout():
    head = GOOD[: GOOD.index(b"\r\n\r\n") + 4]
    assert fault_from(hang(head), timeout_s=0.15).what.endswith("did not answer in time")


def test_silence_after_some_text_is_a_timeout_and_not_tried_again():
    with RawServer(hang(GOOD[:-40])) as server:
        error = fault_of(server.url, timeout_s=0.15, max_retries=3)
        assert error.what.endswith("did not answer in time")
        assert len(server.requests) == 1


def test_an_unroutable_listener_is_a_timeout():
    # A listener whose queue is full lets connections wait for ever.
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        port = listener.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        try:
            for sock in waiting:
                sock.setblocking(False)
                sock.connect_ex(("127.0.0.1", port))
            error = fault_of(f"http://127.0.0.1:{port}/v1", timeout_s=0.15)
        finally:
            for sock in waiting:
                sock.close()
    assert error.what.endswith("did not answer in time")


@pytest.mark.parametrize(
    "script",
    [
        drip(b"HTTP/1.1 200 OK\r\n", b"x: y\r\n"),
        drip(b"HTTP/1.1 200 OK\r\nx: ", b"y"),
        drip(GOOD[: GOOD.index(b"\r\n\r\n") + 4], b"0"),
        drip(reply(b": wait\n\n", is_chunked=False), b": keepalive\n\n"),
        drip(reply(b"data: ", is_chunked=False), b"x"),
    ],
    ids=["headers", "one-header", "chunk-size", "comments", "event"],
)
def test_a_server_that_drips_is_given_up_at_the_deadline(script):
    error = fault_from(script, deadline_s=0.3)
    assert error.what.endswith("did not finish in time")
    assert error.wanted == "all of it within 0.3 s"


def test_headers_without_end_are_refused():
    error = fault_from(drip(b"HTTP/1.1 200 OK\r\n", b"x: " + b"y" * 65536 + b"\r\n", 0))
    assert error.what.endswith("broke off the connection")


def test_an_event_without_end_is_refused():
    error = fault_from(drip(reply(b"data: ", is_chunked=False), b"x" * (1 << 20), 0))
    assert error.what == "the server sent an event without end"
    assert error.got == f"more than {MAX_EVENT_BYTES} bytes"


def test_every_cut_is_noticed_and_no_text_is_invented():
    text = "Hé🙂"
    data = reply(sse(SHORT))
    whole = data.index(b"[DONE]\n\n") + len(b"[DONE]\n\n")
    cut = iter(range(len(data)))
    n_failed = 0
    with (
        RawServer(lambda sock: sock.sendall(data[: next(cut)])) as server,
        open_backend(server.url) as backend,
    ):
        for n_sent in range(len(data)):
            got = ""
            try:
                for event in backend.stream_chat(ASK, GenerateOptions()):
                    got += event.text
                    finish = event.finish
            except ServerError as error:
                n_failed += 1
                assert error.got
                assert n_sent < whole
            else:
                assert (n_sent >= whole, got, finish) == (True, text, Finish.STOP)
            assert text.startswith(got)
    assert n_failed == whole


def test_every_cut_of_an_unframed_stream_is_noticed_up_to_its_finish():
    body = sse(SHORT)
    finished = body.index(b'"stop"')
    finished = body.index(b"\n\n", finished) + 2
    head = reply(b"", is_chunked=False)
    cut = iter(range(len(body)))
    n_failed = 0
    with (
        RawServer(lambda sock: sock.sendall(head + body[: next(cut)])) as server,
        open_backend(server.url) as backend,
    ):
        for n_sent in range(len(body)):
            if n_sent < finished:
                with pytest.raises(ServerError):
                    backend.chat(ASK)
                n_failed += 1
            else:
                assert backend.chat(ASK).text == "Hé🙂"
    assert n_failed == finished


@pytest.mark.parametrize("n_sent", [0, 20, len(GOOD) // 2])
def test_a_reset_is_noticed(n_sent):
    assert fault_from(send_and_reset(GOOD[:n_sent])).what.endswith("broke off the connection")


@pytest.mark.parametrize(
    ("data", "what", "status"),
    [
        (reply(b"<html>hi</html>", kind="text/html"), "the server answered with a web page", 200),
        (
            reply(b"", headers=["Content-Encoding: gzip, gzip"]),
            "the server compressed its answer",
            200,
        ),
        (reply(b"", headers=["Content-Encoding: br"]), "the server compressed its answer", 200),
        (reply(b'{"choices": []}', kind="application/json"), "the server did not stream", 200),
        (reply(b"hello", kind="text/plain"), "the server did not stream its answer", 200),
        (reply(b"data: {oops\n\n"), "the server sent an event that is not JSON", None),
        (reply(b"data: " + b"[" * 99_999 + b"\n\n"), "the server sent an event that is not", None),
        (reply(b"data: [1]\n\n"), "the server sent an event that is not an object", None),
        (reply(b"data: \xff\xfe\n\n"), "the server sent an event that is not text", None),
        (reply(b""), "the server sent an empty answer", None),
        (reply(b"data: [DONE]\n\n"), "the server sent an empty answer", None),
        (reply(b"<html>hi</html>"), "the server sent an empty answer", None),
        (reply(sse(HELLO[:2], done=False)), "the server cut the answer short", None),
        (b"220 mail.example ESMTP\r\n", "broke off the connection", None),
        (b"\x16\x03\x01\x02\x00", "broke off the connection", None),
        (b"", "broke off the connection", None),
        (reply(sse([{"error": {"message": "out of memory"}}])), "broke off with an error", None),
        (reply(sse([HELLO[1], {"error": {"message": "x", "code": 503}}])), "with an error", 503),
        (reply(sse([{"error": "plain"}])), "the server broke off with an error", None),
    ],
)
def test_nonsense_is_named(data, what, status):
    error = fault_from(send(data))
    assert what in error.what
    assert error.status == status


@pytest.mark.parametrize(
    ("status", "do"),
    [
        ("401 Unauthorized", "OPENAI_API_KEY"),
        ("403 Forbidden", "may use this model"),
        ("404 Not Found", "ends in /v1"),
        ("418 Teapot", None),
        ("429 Too Many Requests", "Wait"),
        ("500 Internal Server Error", "Try again later"),
        ("502 Bad Gateway", "Try again later"),
        ("503 Service Unavailable", "Try again later"),
    ],
)
def test_a_refusal_carries_status_reason_and_advice(status, do):
    error = fault_from(refuse(status, {"message": f"no: {KEY} is bad"}))
    assert error.status == int(status[:3])
    assert error.got == f"HTTP {status[:3]}: no: *** is bad"
    assert (do in error.do) if do else error.do is None


def test_a_refusal_as_a_web_page_is_not_quoted():
    error = fault_from(send(reply(b"<html>" + b"x" * 9999, status="502 Bad", kind="text/html")))
    assert (error.status, error.got) == (502, "HTTP 502: a web page")


def test_a_long_reason_is_shortened():
    assert len(fault_from(refuse("400 Bad Request", {"message": "x" * 9999})).got) < 400


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary", "308 Permanent"])
def test_a_redirect_is_not_followed(status):
    with RawServer(send(GOOD)) as other:
        host = other.url.removeprefix("http://").removesuffix("/v1")
        target = f"Location: http://user:pw@{host}/v1/chat/completions?token={KEY}"
        head = reply(b"", status=status, kind=None, headers=[target])
        error = fault_from(send(head))
        assert (error.got, error.status) == (host, int(status[:3]))
        assert other.n_connections == 0


def test_transient_faults_are_tried_again_before_the_first_text():
    busy = refuse("429 Too Many Requests", {"message": "busy"}, ["Retry-After: 0"])
    broken = refuse("503 Service Unavailable", {"message": "down"}, ["Retry-After: 0.01"])
    with RawServer(busy, broken, send(GOOD)) as server:
        with open_backend(server.url, max_retries=2) as backend:
            answer = backend.chat(ASK)
        assert (answer.text, answer.stats.n_retries) == ("Héllo 🙂", 2)
        assert len(server.requests) == 3


def test_retries_end():
    busy = refuse("429 Too Many Requests", {"message": "busy"}, ["Retry-After: 0"])
    with RawServer(busy) as server:
        assert fault_of(server.url, max_retries=2).status == 429
        assert len(server.requests) == 3


@pytest.mark.parametrize("status", ["400 Bad Request", "401 Unauthorized", "404 Not Found"])
def test_lasting_faults_are_not_tried_again(status):
    with RawServer(refuse(status, {"message": "context too long"})) as server:
        fault_of(server.url, max_retries=3)
        assert len(server.requests) == 1


def test_nothing_is_tried_again_after_the_first_text():
    body = reply(sse(HELLO[:2], done=False))
    with RawServer(send_and_reset(body[:-7]), send(GOOD)) as server:
        with open_backend(server.url, max_retries=3) as backend:
            got = []
            with pytest.raises(ServerError):
                for event in backend.stream_chat(ASK, GenerateOptions()):
                    got.append(event.text)
        assert (got, len(server.requests)) == (["Hé"], 1)


def test_a_caller_who_stops_listening_closes_the_connection():
    ended = threading.Event()

    def endless(sock):
        sock.sendall(reply(sse(HELLO[:2], done=False), is_chunked=False))
        try:
            while sock.recv(1):
                pass
        finally:
            ended.set()

    with RawServer(endless) as server, open_backend(server.url) as backend:
        stream = backend.stream_chat(ASK, GenerateOptions())
        assert next(stream).text == "Hé"
        stream.close()
        assert ended.wait(5)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:80",
        "ftp://host/v1",
        "http://",
        "http://host:99999/v1",
        "http://host:x/v1",
        f"http://user:{KEY}@host/v1",
        f"http://host/v1?key={KEY}",
        f"http://host/v1#{KEY}",
        "http://[::1/v1",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_repeating_it(url):
    with pytest.raises(UsageError) as caught:
        ServerBackend.open(url, "m")
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "options", [{"timeout_s": 0}, {"timeout_s": -1}, {"deadline_s": 0}, {"max_retries": -1}]
)
def test_limits_that_make_no_sense_are_refused(options):
    with pytest.raises(UsageError):
        ServerBackend.open("http://127.0.0.1:1/v1", "m", **options)
    with pytest.raises(UsageError, match="no model name"):
        ServerBackend.open("http://127.0.0.1:1/v1", "")


@pytest.mark.parametrize("key", ["sk-a b", "sk-\u00e9", "sk-a\nb", "sk-\x7f"])
def test_a_key_that_cannot_be_sent_is_refused_without_repeating_it(key):
    with pytest.raises(UsageError, match="cannot be sent") as caught:
        ServerBackend.open("http://127.0.0.1:1/v1", "m", api_key=key)
    assert "sk-" not in str(caught.value)


def test_the_key_comes_from_the_environment_and_is_shown_nowhere(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with RawServer(send(GOOD)) as server, ServerBackend.open(server.url, "m") as backend:
        backend.chat(ASK)
        assert f"authorization: Bearer {KEY}".lower() in server.headers[0].lower()
        shown = f"{backend!r} {backend.info} {backend.last_request_stats} {backend._error_mapper!r}"
        assert KEY not in shown
        assert KEY not in json.dumps(dict(backend.info.settings))


def test_a_server_is_told_nothing_of_the_machine_that_asks():
    with RawServer(send(GOOD)) as server, ServerBackend.open(server.url, "m") as backend:
        backend.chat(ASK)
        sent = server.headers[0]
    names = {line.partition(":")[0].lower() for line in sent.splitlines()[1:] if line.strip()}
    assert names <= {
        "host", "accept", "accept-encoding", "connection", "user-agent", "content-type",
        "content-length", "authorization", "x-stainless-raw-response", "x-stainless-read-timeout",
        "x-stainless-retry-count",
    }  # fmt: skip
    assert not {platform.system().lower(), platform.machine().lower()} & set(
        re.split(r"\W+", sent.lower())
    )
