"""Every dialect of the OpenAI API that servers speak comes out the same."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import ServerError
from edgekit.runtime.base import Finish, GenerateOptions
from edgekit.runtime.server import ServerBackend
from edgekit.runtime.server_chunks import ChunkReader
from edgekit.runtime.server_sse import iter_data
from tests.runtime.raw_server import HELLO, RawServer, chunk, refuse, reply, send, sse

ASK = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
OPTIONS = GenerateOptions(max_tokens=9, temperature=0.0, seed=5, n_logprobs=2, stop=("x",))


def open_backend(url: str) -> ServerBackend:
    return ServerBackend.open(url, "m", api_key="k", timeout_s=5, max_retries=0)


def answer_to(body: bytes, options=None, tools=()):
    with RawServer(send(reply(body))) as server, open_backend(server.url) as backend:
        return backend.chat(ASK, options, tools)


def test_a_plain_answer_with_usage():
    answer = answer_to(sse(HELLO))
    assert [event.text for event in answer.events] == ["Hé", "llo 🙂", ""]
    assert [event.index for event in answer.events] == [0, 1, 2]
    assert [event.finish for event in answer.events] == [None, None, Finish.STOP]
    assert answer.text == "Héllo 🙂"
    facts = answer.stats
    assert (facts.model, facts.finish_reason) == ("m-1", "stop")
    assert (facts.n_prompt_tokens, facts.n_output_tokens) == (3, 4)
    assert 0 < facts.first_byte_s <= facts.ttft_s <= facts.e2e_s
    assert facts.connect_s > 0
    assert (facts.tls_s, facts.n_retries, facts.unsupported_params) == (None, 0, ())


@pytest.mark.parametrize(
    "last",
    [
        chunk(usage={"prompt_tokens": 3, "completion_tokens": 4}),
        {"choices": None, "usage": {"prompt_tokens": 3, "completion_tokens": 4}},
        {"usage": {"prompt_tokens": 3, "completion_tokens": 4}},
        chunk(delta={}, usage={"prompt_tokens": 3, "completion_tokens": 4}),
    ],
    ids=["empty", "null", "missing", "with-choice"],
)
def test_usage_may_come_with_any_kind_of_choices(last):
    facts = answer_to(sse([*HELLO[:4], last])).stats
    assert (facts.n_prompt_tokens, facts.n_output_tokens) == (3, 4)


@pytest.mark.parametrize(
    "usage",
    [None, {}, [], {"prompt_tokens": "3", "completion_tokens": -4}, {"prompt_tokens": True}],
)
def test_usage_that_is_absent_or_nonsense_is_none(usage):
    facts = answer_to(sse([*HELLO[:4], chunk(usage=usage)])).stats
    assert (facts.n_prompt_tokens, facts.n_output_tokens) == (None, None)


def test_usage_details_are_kept():
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 5},
        "completion_tokens_details": {"reasoning_tokens": 6},
    }
    facts = answer_to(sse([*HELLO[:4], chunk(usage=usage)])).stats
    assert (facts.n_cached_tokens, facts.n_reasoning_tokens) == (5, 6)


def test_the_role_is_no_first_token_but_reasoning_is():
    for name in ("reasoning_content", "reasoning"):
        reader = ChunkReader()
        stream = [chunk(delta={"role": "assistant"}), chunk(delta={name: "hm"}), *HELLO[1:]]
        events = [list(reader.feed(json.dumps(c), float(i))) for i, c in enumerate(stream)]
        assert reader.first_text_s == 1.0
        assert [len(e) for e in events] == [0, 1, 1, 1, 0, 0]
        assert reader.end_s == 4.0
        assert "".join(e.text for part in events for e in part) == "Héllo 🙂"


def test_the_first_tool_delta_is_the_first_token():
    reader = ChunkReader()
    call = {"index": 0, "id": "1", "function": {"name": "f", "arguments": ""}}
    list(reader.feed(json.dumps(chunk(delta={"role": "assistant", "content": None})), 1.0))
    (event,) = reader.feed(json.dumps(chunk(delta={"tool_calls": [call]})), 2.0)
    assert (event.text, event.time_s, reader.first_text_s) == ("[TOOL_CALLS]", 2.0, 2.0)


def test_tool_calls_in_pieces_come_out_as_a_model_writes_them():
    def part(index, **function):
        return chunk(delta={"tool_calls": [{"index": index, "function": function}]})

    answer = answer_to(
        sse(
            [
                part(0, name="f", arguments=""),
                part(0, arguments='{"a": '),
                part(1, name="g", arguments="{}"),
                part(0, name="f", arguments="1}"),
                chunk(delta={}, finish_reason="tool_calls"),
            ]
        ),
        tools=[TOOL],
    )
    wanted = '[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]'
    assert (answer.text, answer.finish) == (wanted, Finish.TOOL_CALLS)
    assert answer.events[0].text == "[TOOL_CALLS]"


@pytest.mark.parametrize("reason", ["stop", "tool_calls", "function_call"])
def test_whole_tool_calls_without_index_count_as_tool_calls(reason):
    calls = [{"function": {"name": n, "arguments": "{bad"}} for n in ("f", "g")]
    answer = answer_to(
        sse([chunk(delta={"content": "so ", "tool_calls": calls}, finish_reason=reason)])
    )
    assert answer.finish is Finish.TOOL_CALLS
    calls = json.loads(answer.text.removeprefix("so [TOOL_CALLS]"))
    assert calls == [{"name": n, "arguments": "{bad"} for n in ("f", "g")]


def test_logprobs_of_several_tokens_in_a_chunk_become_one_event_each():
    entries = [
        {"token": "Hé", "logprob": -0.5, "top_logprobs": [{"token": "Ha", "logprob": -2}]},
        {"token": "llo", "logprob": -1, "top_logprobs": None},
    ]
    stream = [chunk(delta={"content": "Héllo"}, logprobs={"content": entries}), HELLO[3]]
    events = answer_to(sse(stream)).events
    assert [(e.text, e.logprob) for e in events] == [("Hé", -0.5), ("llo", -1.0), ("", None)]
    assert [(t.text, t.logprob) for t in events[0].top] == [("Ha", -2.0)]


@pytest.mark.parametrize(
    "logprobs",
    [
        None,
        [],
        {"content": None},
        {"content": [3]},
        {"content": [{"token": "H", "logprob": "x"}]},
        {"content": [{"token": "other", "logprob": -1}]},
    ],
)
def test_logprobs_that_do_not_describe_the_text_are_dropped(logprobs):
    events = answer_to(sse([chunk(delta={"content": "Hé"}, logprobs=logprobs), HELLO[3]])).events
    assert [(e.text, e.logprob) for e in events] == [("Hé", None), ("", None)]


@pytest.mark.parametrize(
    ("reason", "finish"),
    [("stop", Finish.STOP), ("length", Finish.LENGTH), ("eos", Finish.STOP)],
)
def test_finish_reasons(reason, finish):
    answer = answer_to(sse([HELLO[1], chunk(delta={}, finish_reason=reason)], done=False))
    assert (answer.finish, answer.stats.finish_reason) == (finish, reason)


def test_done_without_a_finish_reason_ends_an_answer():
    assert answer_to(sse(HELLO[:3])).finish is Finish.STOP


@pytest.mark.parametrize(
    "choices",
    [3, "x", [3], [None], [{}], [{"delta": None}], [{"index": 1, "delta": {"content": "no"}}]],
)
def test_strange_choices_say_nothing(choices):
    answer = answer_to(sse([{"choices": choices}, {"choices": None}, *HELLO]))
    assert answer.text == "Héllo 🙂"


def test_an_empty_answer_with_a_finish_is_an_answer():
    assert answer_to(sse([HELLO[0], HELLO[3]])).text == ""


def test_comments_a_mark_and_other_fields_are_skipped():
    noise = "\ufeff: keepalive 1/2\n\nevent: message\nid: 7\nretry: 5\n".encode()
    assert answer_to(noise + sse(HELLO)).text == "Héllo 🙂"


@given(st.data())
def test_events_do_not_depend_on_how_the_bytes_are_split(data):
    texts = ["Hé 🙂", "", "two\nlines", "\ufeff"]
    ends = data.draw(st.sampled_from(["\n", "\r\n", "\r"]))
    events = ["".join(f"data: {line}{ends}" for line in t.split("\n")) + ends for t in texts]
    stream = f"\ufeff: hi{ends}{ends}{''.join(events)}".encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert list(iter_data(pieces)) == texts


def test_an_event_that_is_cut_off_is_not_given():
    assert list(iter_data([b"data: a\n\ndata: b\n"])) == ["a"]
    assert list(iter_data([b"data: a\n\ndata: b"])) == ["a"]
    assert list(iter_data([b"data\n\ndata:\n\ndatax: 1\n\n"])) == ["", ""]


def test_everything_that_matters_is_sent():
    with RawServer(send(reply(sse(HELLO)))) as server, open_backend(server.url) as backend:
        list(backend.stream_chat(ASK, OPTIONS, [TOOL]))
        assert server.requests[0] == {
            "model": "m",
            "messages": ASK,
            "tools": [TOOL],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0.0,
            "top_p": 1.0,
            "max_tokens": 9,
            "seed": 5,
            "stop": ["x"],
            "logprobs": True,
            "top_logprobs": 2,
        }


def test_extensions_are_sent_only_when_asked_for():
    with RawServer(send(reply(sse(HELLO)))) as server, open_backend(server.url) as backend:
        list(backend.stream_chat(ASK, GenerateOptions(top_k=4, ignore_eos=True)))
        assert (server.requests[0]["top_k"], server.requests[0]["ignore_eos"]) == (4, True)


@pytest.mark.parametrize(
    ("error", "dropped"),
    [
        ({"message": "Unknown parameter: 'seed'.", "param": "seed"}, {"seed"}),
        ({"message": "bad", "param": "stream_options"}, {"stream_options"}),
        ({"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs"}]}, {"seed"}),
        ({"message": "logprobs are not supported"}, {"logprobs", "top_logprobs"}),
        ({"message": "'temperature' does not support 0.0"}, {"temperature"}),
    ],
)
def test_a_refused_field_is_left_out_from_then_on(error, dropped):
    refusal = refuse("400 Bad Request", error)
    with RawServer(refusal, send(reply(sse(HELLO)))) as server, open_backend(server.url) as backend:
        list(backend.stream_chat(ASK, OPTIONS))
        list(backend.stream_chat(ASK, OPTIONS))
        first, second, third = server.requests
        assert first.keys() - second.keys() == dropped
        assert second == third
        assert backend.info.settings["refused_fields"] == sorted(dropped)
        assert backend.last_request_stats.unsupported_params == tuple(sorted(dropped))


def test_max_tokens_becomes_max_completion_tokens_where_it_must():
    message = "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    refusal = refuse("400 Bad Request", {"message": message})
    with RawServer(refusal, send(reply(sse(HELLO)))) as server, open_backend(server.url) as backend:
        list(backend.stream_chat(ASK, OPTIONS))
        assert server.requests[1]["max_completion_tokens"] == 9
        assert "max_tokens" not in server.requests[1]


def test_several_fields_are_learned_one_by_one():
    refusals = [
        refuse("400 Bad Request", {"message": f"unknown field {name}"})
        for name in ("seed", "top_p")
    ]
    with (
        RawServer(*refusals, send(reply(sse(HELLO)))) as server,
        open_backend(server.url) as backend,
    ):
        list(backend.stream_chat(ASK, OPTIONS))
        assert backend.info.settings["refused_fields"] == ["seed", "top_p"]


def test_an_unexplained_refusal_is_met_with_the_plainest_request():
    refusal = refuse("422 Unprocessable", {"message": "no"})
    with RawServer(refusal, send(reply(sse(HELLO)))) as server, open_backend(server.url) as backend:
        assert backend.chat(ASK, OPTIONS).text == "Héllo 🙂"
        wanted = {"model", "messages", "stream", "temperature", "max_tokens", "stop"}
        assert server.requests[1].keys() == wanted


def test_what_is_refused_without_being_the_cause_is_not_remembered():
    refusal = refuse("400 Bad Request", {"message": "no"})
    with RawServer(refusal) as server, open_backend(server.url) as backend:
        with pytest.raises(ServerError) as caught:
            backend.chat(ASK, OPTIONS)
        assert caught.value.status == 400
        assert len(server.requests) == 2
        assert backend.info.settings["refused_fields"] == []


def test_a_prompt_beyond_the_context_is_not_blamed_on_a_field():
    message = "This model's maximum context length is 8 tokens"
    with RawServer(refuse("400 Bad Request", {"message": message})) as server:
        with open_backend(server.url) as backend, pytest.raises(ServerError):
            backend.chat(ASK, OPTIONS)
        assert len(server.requests) == 1


def test_the_connection_is_kept_between_answers():
    with RawServer(send(reply(sse(HELLO), keeps_open=True)), keeps_open=True) as server:
        with open_backend(server.url) as backend:
            facts = [backend.chat(ASK).stats for _ in range(3)]
        assert server.n_connections == 1
        assert [f.connect_s is None for f in facts] == [False, True, True]


def test_a_server_that_goes_on_after_the_end_is_cut_off():
    body = sse(HELLO)
    with RawServer(send(reply(body, keeps_open=True)[:-7]), keeps_open=True) as server:
        with open_backend(server.url) as backend:
            assert [backend.chat(ASK).text for _ in range(2)] == ["Héllo 🙂"] * 2
        assert server.n_connections == 2


def test_the_server_says_who_it_is():
    stream = [{**c, "system_fingerprint": "fp_7"} for c in HELLO]
    with RawServer(send(reply(sse(stream)))) as server, open_backend(server.url) as backend:
        assert (backend.info.model, backend.info.version) == ("m", "unknown")
        backend.chat(ASK)
        info = backend.info
        assert (info.engine, info.model, info.version) == ("server", "m-1", "fp_7")
        assert info.settings["model_asked"] == "m"
        assert f"http://{info.settings['host']}/v1" == server.url


def test_the_network_alone_is_measured():
    empty = b"HTTP/1.1 405 No\r\nContent-Length: 0\r\n\r\n"
    with RawServer(send(empty), keeps_open=True) as server, open_backend(server.url) as backend:
        samples = backend.measure_network(3)
        assert server.n_connections == 4
        assert [h.partition(" ")[0] for h in server.headers] == ["HEAD"] * 7
        assert not any("authorization" in h.lower() for h in server.headers)
    assert (len(samples.connect_s), len(samples.round_trip_s), samples.tls_s) == (3, 3, ())
    assert all(s > 0 for s in samples.connect_s + samples.round_trip_s)


def test_measuring_a_network_that_is_not_there_is_an_error():
    with RawServer(send(b"")) as server:
        url = server.url
    with open_backend(url) as backend, pytest.raises(ServerError, match="refused the connection"):
        backend.measure_network(1)
