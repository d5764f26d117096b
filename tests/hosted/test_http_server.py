"""The hosted server on the wire: exact bytes, refusals, hostile and vanishing clients."""

from __future__ import annotations

import json
import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.errors import UsageError
from edgekit.hosted.http_handler import MAX_BODY_BYTES
from edgekit.hosted.http_server import MAX_CONNECTIONS, ModelServer
from tests.hosted.scripted_model import ScriptedModel
from tests.hosted.wire import exchange, is_alive, post, read_all, refusal, split, unchunk

CHAT = "/v1/chat/completions"
ASK = {"model": "letters", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(scope="module")
def address():
    with ModelServer(ScriptedModel(), model_name="letters") as server:
        yield server.address


def test_health_answers_ok(address):
    request = b"GET /health?x=1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    status, headers, body = split(exchange(address, request))
    assert (status, json.loads(body)) == (200, {"status": "ok"})
    assert headers["server"].strip() == "edgekit"
    assert "access-control-allow-origin" not in headers


def test_stream_is_exactly_server_sent_events(address):
    body = {**ASK, "stream": True, "stream_options": {"include_usage": True}}
    status, headers, raw = split(exchange(address, post(CHAT, body)))
    assert status == 200
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["transfer-encoding"] == "chunked"
    assert headers["cache-control"] == "no-cache"
    text = unchunk(raw).decode("utf-8")
    *events, end = text.split("\n\n")
    assert end == ""
    assert all(event.startswith("data: ") and "\n" not in event for event in events)
    assert events[-1] == "data: [DONE]"
    chunks = [json.loads(event[6:]) for event in events[:-1]]
    assert chunks[0]["choices"] == [
        {
            "index": 0,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
    ]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}
    assert chunks[-1]["timings"]["prompt_n"] == 5
    assert [c["usage"] for c in chunks[:-1]] == [None] * 7


def test_http_1_0_stream_ends_with_the_connection(address):
    request = post(CHAT, {**ASK, "stream": True}).replace(b"HTTP/1.1", b"HTTP/1.0")
    status, headers, body = split(exchange(address, request))
    assert status == 200
    assert "transfer-encoding" not in headers
    assert body.endswith(b"data: [DONE]\n\n")


def test_one_connection_serves_several_requests(address):
    first = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    streamed = post(CHAT, {**ASK, "stream": True}, headers={"Connection": "keep-alive"})
    answer = exchange(address, first + streamed + post(CHAT, ASK))
    assert answer.count(b"HTTP/1.1 200 OK") == 3


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": "0"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": 2.5}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_completion_tokens": "9"}, "max_completion_tokens"),
        ({"seed": 1.5}, "seed"),
        ({"stop": [""]}, "stop"),
        ({"stop": 3}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"n": 2}, "n"),
        ({"n": 0}, "n"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options"),
        ({"logprobs": 1}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": {}}, "tools"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"colour": "blue"}, "colour"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [3]}, "messages[0]"),
        ({"messages": [{"role": "robot", "content": ""}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0]",
        ),
        ({"model": 7}, "model"),
        ({"model": None}, "model"),
    ],
)
def test_a_wrong_field_is_named(address, change, param):
    status, error = refusal(address, post(CHAT, {**ASK, **change}))
    assert (status, error["param"]) == (400, param)
    assert error["type"] == "invalid_request_error"


def test_fields_that_ask_for_nothing_are_taken(address):
    neutral = {"n": 1, "presence_penalty": 0, "logit_bias": None, "user": "me", "stop": None}
    neutral |= {"response_format": {"type": "text"}, "tools": None, "seed": None, "logprobs": False}
    assert split(exchange(address, post(CHAT, {**ASK, **neutral})))[0] == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"a": NaN}',
        b'{"model": "a", "model": "b"}',
        b"\xff\xfe",
        b'{"temperature": 1e999, "model": "letters", "messages": []}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"messages": ' + b"[" * 200 + b"]" * 200 + b"}",
        json.dumps({**ASK, "user": "\ud800"}).encode(),
        b'{"seed": ' + b"9" * 5000 + b"}",
    ],
)
def test_a_body_that_is_not_a_clean_json_object_is_a_400(address, body):
    assert refusal(address, post(CHAT, body))[0] == 400
    assert is_alive(address)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.dictionaries(
        st.sampled_from(["model", "messages", "stop", "tools", "seed", "stream", "n", "logprobs"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
            ),
            max_leaves=6,
        ),
    )
)
def test_no_json_object_crashes_the_server(address, body):
    status = split(exchange(address, post(CHAT, {**ASK, **body})))[0]
    assert status in (200, 400, 404)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 404),
        (b"GET /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 405),
        (b"DELETE /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 405),
        (b"OPTIONS /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 405),
        (b"BREW /pot HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 501),
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 505),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"x%d: y\r\n" % i for i in range(200)) + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nx: " + b"a" * 70_000 + b"\r\n\r\n", 431),
        (post(CHAT, ASK, headers={"Content-Length": "-1"}), 400),
        (post(CHAT, ASK, headers={"Content-Length": "ten"}), 400),
        (post(CHAT, ASK, headers={"Content-Length": "9" * 30}), 400),
        (post(CHAT, ASK, headers={"Content-Length": "5, 6"}), 400),
        (post(CHAT, ASK, headers={"Content-Length": str(MAX_BODY_BYTES + 1)}), 413),
        (post(CHAT, ASK, headers={"Transfer-Encoding": "chunked"}), 411),
        (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n\r\n", 411),
        (post(CHAT, ASK, headers={"Content-Type": "text/plain"}), 415),
        (post(CHAT, ASK, headers={"Host": "evil.example:80"}), 403),
        (post("/v1/completions", {"model": "letters", "prompt": ["a", "b"]}), 400),
        (post("/v1/completions", {"model": "letters", "prompt": [1, 2]}), 400),
        (post("/v1/completions", {"model": "letters", "prompt": "a", "best_of": 2}), 400),
        (post("/v1/completions", {"model": "letters", "prompt": "a", "suffix": "b"}), 400),
        (post("/v1/completions", {"model": "letters", "prompt": ""}), 400),
        (post(CHAT, {**ASK, "prompt": "a"}), 400),
    ],
)  # fmt: skip
def test_a_bad_request_gets_its_status(address, request_bytes, status):
    assert refusal(address, request_bytes)[0] == status


def test_refusals_carry_the_headers_of_their_status(address):
    request = b"PUT /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert split(exchange(address, request))[1]["allow"] == "GET"


def test_head_has_no_body_and_keeps_the_connection(address):
    head = b"HEAD /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = exchange(address, head + last)
    assert answer.startswith(b"HTTP/1.1 405")
    assert b"\r\n\r\nHTTP/1.1 200 OK" in answer


def test_unknown_model_is_a_404(address):
    status, error = refusal(address, post(CHAT, {**ASK, "model": "gpt-x"}))
    assert (status, error["code"], error["param"]) == (404, "model_not_found", "model")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {**ASK, "messages": [{"role": "user", "content": "x" * 128}]}),
        ("/v1/completions", {"model": "letters", "prompt": "x" * 200}),
    ],
)
def test_a_prompt_beyond_the_context_is_refused(address, path, body):
    status, error = refusal(address, post(path, body))
    assert (status, error["code"]) == (400, "context_length_exceeded")


def test_a_prompt_that_leaves_one_position_is_answered(address):
    body = {**ASK, "messages": [{"role": "user", "content": "x" * 127}]}
    status, _, answer = split(exchange(address, post(CHAT, body)))
    choice = json.loads(answer)["choices"][0]
    assert (status, choice["message"]["content"], choice["finish_reason"]) == (200, "H", "length")


def test_a_cut_body_is_a_400(address):
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5) as sock:
        sock.sendall(post(CHAT, ASK)[:-5])
        sock.shutdown(socket.SHUT_WR)
        status, _, body = split(read_all(sock))
    assert status == 400
    assert "shorter than Content-Length" in json.loads(body)["error"]["message"]


def test_an_endless_body_is_refused_and_its_sender_reads_why(address):
    host, _, port = address.rpartition(":")
    request = post(CHAT, b"x" * (1 << 20), headers={"Content-Length": str(1 << 40)})
    with socket.create_connection((host, int(port)), timeout=5) as sock:
        sock.sendall(request)
        assert split(read_all(sock))[0] == 413


def test_slow_senders_are_given_up():
    with ModelServer(ScriptedModel(), model_name="letters", read_limit_s=0.2) as server:
        host, _, port = server.address.rpartition(":")
        whole = post(CHAT, ASK)
        for n_sent, status in ((10, 400), (len(whole) - 5, 408), (0, None)):
            with socket.create_connection((host, int(port)), timeout=5) as sock:
                sock.sendall(whole[:n_sent])
                answer = sock.recv(65536)
                assert (split(answer)[0] if answer else None) == status


def test_too_many_connections_are_refused():
    with ModelServer(ScriptedModel(), model_name="letters") as server:
        host, _, port = server.address.rpartition(":")
        idle = [
            socket.create_connection((host, int(port)), timeout=5) for _ in range(MAX_CONNECTIONS)
        ]
        try:
            with socket.create_connection((host, int(port)), timeout=5) as sock:
                assert split(read_all(sock))[0] == 503
        finally:
            for sock in idle:
                sock.close()


@pytest.mark.parametrize(
    "key", ["", "Bearer wrong", "Bearer secre", "secret", "Bearer secret2", "Bearer é"]
)
def test_a_wrong_key_is_a_401_that_does_not_repeat_it(key):
    with ModelServer(ScriptedModel(), model_name="letters", api_key="secret") as server:
        status, error = refusal(server.address, post(CHAT, ASK, headers={"Authorization": key}))
        assert (status, error["code"]) == (401, "invalid_api_key")
        assert "secre" not in error["message"]
        right = post(CHAT, ASK, headers={"Authorization": "Bearer secret"})
        assert split(exchange(server.address, right))[0] == 200
        assert is_alive(server.address)


def test_an_address_beyond_this_machine_needs_a_key():
    with pytest.raises(UsageError, match=r"needs an API key; got 0\.0\.0\.0"):
        ModelServer(ScriptedModel(), model_name="letters", host="0.0.0.0")  # noqa: S104


def test_the_log_has_one_harmless_line_a_request(address):
    lines = []
    with ModelServer(ScriptedModel(), model_name="letters", log=lines.append) as server:
        exchange(server.address, b"GET /a\x1b[31m?key=k HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert len(lines) == 1
    assert lines[0].startswith("GET /a\\x1b[31m 404 ")
    assert "key" not in lines[0]
