"""What becomes of a hosted model when things fail, clients leave, or the server stops."""

from __future__ import annotations

import json
import socket
import threading
import time

import pytest

from edgekit.errors import EngineCrashError, ServerError, UsageError
from edgekit.hosted.http_server import ModelServer
from tests.hosted.scripted_model import ScriptedModel
from tests.hosted.wire import exchange, is_alive, post, refusal, split, unchunk

CHAT = "/v1/chat/completions"
ASK = {"model": "letters", "messages": [{"role": "user", "content": "hello"}]}


@pytest.mark.parametrize("is_stream", [False, True])
def test_an_unforeseen_error_is_a_500_without_details(is_stream):
    def fail(index):
        raise KeyError("/secret/path")

    lines = []
    model = ScriptedModel(before=fail)
    with ModelServer(model, model_name="letters", log=lines.append) as server:
        status, error = refusal(server.address, post(CHAT, {**ASK, "stream": is_stream}))
        assert (status, error["type"]) == (500, "server_error")
        assert "secret" not in error["message"]
        assert "KeyError" in lines[0]
        model.before = lambda index: None
        assert split(exchange(server.address, post(CHAT, ASK)))[0] == 200


@pytest.mark.parametrize(
    ("raised", "status", "shown"),
    [
        (UsageError("roles must alternate"), 400, "roles must alternate"),
        (EngineCrashError("/secret/path broke"), 500, "the model failed (EngineCrashError)"),
    ],
)
def test_a_failing_model_says_only_what_concerns_the_client(raised, status, shown):
    def fail(index):
        raise raised

    with ModelServer(ScriptedModel(before=fail), model_name="letters") as server:
        for is_stream in (False, True):
            got = refusal(server.address, post(CHAT, {**ASK, "stream": is_stream}))
            assert (got[0], got[1]["message"]) == (status, shown)


def test_a_model_that_fails_midway_ends_the_stream_with_an_error_event():
    def fail(index):
        if index == 2:
            raise EngineCrashError("/secret/path broke")

    with ModelServer(ScriptedModel(before=fail), model_name="letters") as server:
        answer = exchange(server.address, post(CHAT, {**ASK, "stream": True}))
        events = unchunk(split(answer)[2]).decode().split("\n\n")
        assert json.loads(events[-2][6:])["error"]["code"] == "model_failed"
        assert "[DONE]" not in events[-1]


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_client_that_leaves_frees_the_model(is_stream):
    started, left = threading.Event(), threading.Event()

    def pause(index):
        if index == 1 and not left.is_set():
            started.set()
            left.wait(5)
        time.sleep(0.001)

    model = ScriptedModel("x" * 100, before=pause)
    lines = []
    with ModelServer(model, model_name="letters", log=lines.append) as server:
        host, _, port = server.address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=5) as sock:
            sock.sendall(post(CHAT, {**ASK, "stream": is_stream}))
            assert started.wait(5)
        left.set()
        assert model.has_ended.wait(5)
        body = {**ASK, "max_tokens": 2}
        assert split(exchange(server.address, post(CHAT, body)))[0] == 200
    assert f"POST {CHAT} client left" in lines[0]


@pytest.fixture
def busy():
    """A server whose model is held by one request; gives it, and a way to let go."""
    started, go = threading.Event(), threading.Event()

    def pause(index):
        started.set()
        go.wait(5)

    model = ScriptedModel(before=pause)
    server = ModelServer(model, model_name="letters", max_waiting=1, max_wait_s=0.2).start()
    answers: list[bytes] = []
    first = threading.Thread(
        target=lambda: answers.append(exchange(server.address, post(CHAT, ASK)))
    )
    first.start()
    assert started.wait(5)
    yield server, go, first, answers
    go.set()
    first.join(10)
    server.stop()


def test_who_waits_too_long_gets_a_503_and_who_finds_the_queue_full_a_429(busy):
    server, go, _, _ = busy
    waiting: list[bytes] = []
    address = server.address
    second = threading.Thread(target=lambda: waiting.append(exchange(address, post(CHAT, ASK))))
    second.start()
    statuses = []
    while 429 not in statuses and len(statuses) < 20:
        status, headers, _ = split(exchange(address, post(CHAT, ASK)))
        assert headers["retry-after"] == "1"
        statuses.append(status)
        if waiting:
            break
    second.join(10)
    assert {*statuses, split(waiting[0])[0]} == {429, 503}
    go.set()


def test_stop_lets_a_running_answer_finish(busy):
    server, go, first, answers = busy
    timer = threading.Timer(0.1, go.set)
    timer.start()
    server.stop(grace_s=5)
    timer.join()
    first.join(5)
    assert split(answers[0])[0] == 200


def test_stop_cuts_off_an_answer_that_takes_too_long():
    started, n_threads = threading.Event(), threading.active_count()

    def pause(index):
        started.set()
        time.sleep(0.02)

    model = ScriptedModel("x" * 100, before=pause)
    server = ModelServer(model, model_name="letters").start()
    answers = []
    address = server.address
    asker = threading.Thread(
        target=lambda: answers.append(exchange(address, post(CHAT, {**ASK, "stream": True})))
    )
    asker.start()
    assert started.wait(5)
    server.stop(grace_s=0.1)
    asker.join(5)
    events = unchunk(split(answers[0])[2]).decode().split("\n\n")
    assert json.loads(events[-2][6:])["error"]["code"] == "stopping"
    assert model.has_ended.is_set()
    assert threading.active_count() == n_threads


def test_stop_frees_the_port_and_closes_idle_connections():
    server = ModelServer(ScriptedModel(), model_name="letters").start()
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5) as idle:
        idle.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b""
        while not answer.endswith(b'{"status":"ok"}'):
            answer += idle.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200")
        server.stop()
        server.stop()
        assert idle.recv(65536) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=5)
    again = ModelServer(ScriptedModel(), model_name="letters", port=int(port)).start()
    assert is_alive(again.address)
    again.stop()


def test_a_port_in_use_is_a_clear_error():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = ModelServer(ScriptedModel(), model_name="letters", port=taken.getsockname()[1])
        with pytest.raises(ServerError, match=r"listen on 127\.0\.0\.1:\d+; got .*in use.*Choose"):
            server.start()


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_is_none_is_a_clear_error(port):
    with pytest.raises(ServerError, match="cannot listen on"):
        ModelServer(ScriptedModel(), model_name="letters", port=port).start()


def test_serve_forever_runs_until_stop():
    server = ModelServer(ScriptedModel(), model_name="letters")
    with pytest.raises(UsageError, match="not running"):
        _ = server.url
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            assert is_alive(server.address)
            break
        except UsageError:
            time.sleep(0.01)
    server.stop()
    thread.join(5)
    assert not thread.is_alive()
