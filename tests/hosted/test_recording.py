"""A recording answers like the server it was taken from, and says so."""

from __future__ import annotations

import json

import pytest

from edgekit.errors import FormatError, MeasureError, ServerError, UsageError
from edgekit.hosted.http_server import ModelServer
from edgekit.hosted.recording import RecordingBackend, hash_request
from edgekit.hosted.replay import ReplayBackend
from edgekit.records import EngineInfo
from edgekit.runtime.base import Finish, GenerateOptions, TokenEvent, TokenLogprob
from edgekit.runtime.server import ServerBackend
from tests.hosted.scripted_model import CALL, TOOL, ScriptedModel

KEY = "sk-very-secret"
OPTIONS = GenerateOptions(max_tokens=9, temperature=0.0)


class Local:
    """A backend without a network: what it says, and when, is given."""

    def __init__(self, *answers: tuple[TokenEvent, ...], model: str = "m") -> None:
        self._answers = iter(answers)
        self.info = EngineInfo("local", "1", model, settings={"threads": 2})
        self.n_closed = 0

    def stream_chat(self, messages, options, tools=()):
        yield from next(self._answers)

    def close(self) -> None:
        self.n_closed += 1


def said(text: str, **last) -> tuple[TokenEvent, ...]:
    top = (TokenLogprob(7, "é", -0.5), TokenLogprob(8, "e", -1.5))
    return (
        TokenEvent(0, 7, text, 1e9 + 0.25, -0.5, top),
        TokenEvent(1, None, "", 1e9 + 0.5, finish=Finish.LENGTH, **last),
    )


def ask(text: str = "hello") -> list[dict]:
    return [{"role": "user", "content": text}]


def record(path, *answers, model="m", text="hello"):
    with RecordingBackend(Local(*answers, model=model), path) as backend:
        return [list(backend.stream_chat(ask(text), OPTIONS)) for _ in answers]


def shape(events, start_s: float) -> list[tuple]:
    return [
        (e.index, e.token_id, e.text, round(e.time_s - start_s, 9), e.logprob, e.top, e.finish)
        for e in events
    ]


def test_a_replay_gives_the_same_events_and_times_as_the_server(tmp_path):
    path = tmp_path / "new" / "server.jsonl"
    model = ScriptedModel()
    requests = [(ask("hello"), OPTIONS, ()), (ask("time me"), OPTIONS, (TOOL,))]
    with ModelServer(model, model_name="letters", api_key=KEY) as server:
        inner = ServerBackend.open(server.url, "letters", api_key=KEY, timeout_s=5)
        with RecordingBackend(inner, path) as backend:
            taken = []
            for (messages, options, tools), text in zip(requests, ("Hi é🙂", CALL), strict=True):
                model.text, options = text, GenerateOptions(max_tokens=99, n_logprobs=2)
                events = list(backend.stream_chat(messages, options, tools))
                taken.append((messages, options, tools, events, backend.last_request_stats))
            info = backend.info
    with ReplayBackend.open(path) as replay:
        for messages, options, tools, events, facts in reversed(taken):
            again = list(replay.stream_chat(messages, options, tools))
            replayed = replay.last_request_stats
            assert shape(again, replayed.start_s) == shape(events, facts.start_s)
            assert (replayed.ttft_s, replayed.e2e_s) == (facts.ttft_s, facts.e2e_s)
            assert replayed.n_output_tokens == facts.n_output_tokens
        assert replay.info.settings == {**info.settings, "replayed": True}
        assert (replay.info.engine, replay.info.model) == ("server", "letters")
    text = path.read_text()
    assert KEY not in text
    # The names of schema version 1, which older recordings hold too.
    assert {"refused", "finish_reason", "ttft_s"} <= json.loads(text.splitlines()[0])[
        "exchange"
    ].keys()
    assert "time me" not in text
    assert text.count("\n") == 2


def test_a_line_holds_what_a_report_needs(tmp_path):
    path = tmp_path / "r.jsonl"
    record(path, said("é"))
    line = json.loads(path.read_text())
    assert line["schema_version"] == 1
    assert line["request_sha256"] == hash_request("m", ask(), OPTIONS, ())
    assert (line["model"], line["text"], line["exchange"]) == ("m", "é", None)
    assert line["server"]["settings"] == {"threads": 2}


def test_requests_are_the_same_only_when_everything_is():
    base = hash_request("m", ask(), OPTIONS, [TOOL])
    assert base == hash_request("m", [dict(reversed(ask()[0].items()))], OPTIONS, (TOOL,))
    others = [
        hash_request("n", ask(), OPTIONS, [TOOL]),
        hash_request("m", ask("hullo"), OPTIONS, [TOOL]),
        hash_request("m", ask(), GenerateOptions(max_tokens=10), [TOOL]),
        hash_request("m", ask(), OPTIONS, []),
    ]
    assert len({base, *others}) == 5


def test_repeated_requests_are_answered_in_order_and_then_again(tmp_path):
    path = tmp_path / "r.jsonl"
    record(path, said("one"), said("two"))
    with ReplayBackend.open(path) as replay:
        texts = [next(iter(replay.stream_chat(ask(), OPTIONS))).text for _ in range(3)]
    assert texts == ["one", "two", "one"]


def test_a_second_run_adds_to_the_file(tmp_path):
    path = tmp_path / "r.jsonl"
    record(path, said("one"))
    record(path, said("two"), text="other")
    with ReplayBackend.open(path) as replay:
        assert next(iter(replay.stream_chat(ask("other"), OPTIONS))).text == "two"


def test_a_missing_request_is_named(tmp_path):
    path = tmp_path / "r.jsonl"
    record(path, said("one"))
    with ReplayBackend.open(path) as replay, pytest.raises(ServerError) as caught:
        list(replay.stream_chat(ask("what is new"), OPTIONS))
    key = hash_request("m", ask("what is new"), OPTIONS, ())
    assert caught.value.got == f"{key[:12]}, ending in 'what is new'"
    assert caught.value.wanted == "one of 1 recorded requests"


def test_every_cut_leaves_the_whole_lines_before_it(tmp_path):
    path, cut = tmp_path / "r.jsonl", tmp_path / "cut.jsonl"
    record(path, said("one"))
    record(path, said("two"), text="other")
    data = path.read_bytes()
    first = data.index(b"\n") + 1
    for n_bytes in range(len(data)):
        cut.write_bytes(data[:n_bytes])
        if n_bytes < first:
            with pytest.raises(FormatError, match="holds no recorded answer"):
                ReplayBackend.open(cut)
        else:
            replay = ReplayBackend.open(cut)
            assert next(iter(replay.stream_chat(ask(), OPTIONS))).text == "one"


@pytest.mark.parametrize("n_lost", [1, 30, 70_000])
def test_recording_after_a_cut_drops_the_broken_line(tmp_path, n_lost):
    path = tmp_path / "r.jsonl"
    record(path, said("one"))
    whole = path.read_bytes()
    record(path, said("x" * 100_000), text="long")
    path.write_bytes(path.read_bytes()[:-n_lost])
    record(path, said("two"), text="other")
    assert path.read_bytes().startswith(whole)
    assert path.read_bytes().count(b"\n") == 2
    with ReplayBackend.open(path) as replay:
        assert next(iter(replay.stream_chat(ask("other"), OPTIONS))).text == "two"


def test_an_answer_that_breaks_off_is_not_recorded(tmp_path):
    path = tmp_path / "r.jsonl"

    class Broken(Local):
        def stream_chat(self, messages, options, tools=()):
            yield said("one")[0]
            raise ServerError("cut")

    with RecordingBackend(Broken(), path) as backend, pytest.raises(ServerError):
        list(backend.stream_chat(ask(), OPTIONS))
    assert path.read_bytes() == b""


def test_an_answer_is_on_disk_before_its_last_event_is_given(tmp_path):
    path = tmp_path / "r.jsonl"
    with RecordingBackend(Local(said("one")), path) as backend:
        for event in backend.stream_chat(ask(), OPTIONS):
            assert (event.finish is not None) == bool(path.read_bytes())


@pytest.mark.parametrize(
    "change",
    [
        lambda line: b"{",
        lambda line: b"[]",
        lambda line: b"",
        lambda line: b"\xff",
        lambda line: b"[" * 99_999,
        lambda line: line.replace(b'"schema_version":1', b'"schema_version":2'),
        lambda line: line.replace(b'"after_s"', b'"before_s"'),
        lambda line: line.replace(b'"finish":"length"', b'"finish":"tired"'),
        lambda line: line.replace(b'"finish":"length",', b""),
        lambda line: line.replace(b'"text":"one","time', b'"text":"won","time'),
        lambda line: line.replace(b'"server":{', b'"server":{"unknown":1,'),
        lambda line: line.replace(b'"events":[', b'"events":[3,'),
        lambda line: line.replace(b'"exchange":null', b'"exchange":{}'),
        lambda line: line.replace(b'"exchange":null', b'"exchange":7'),
        lambda line: line.replace(b'"logprob":-0.5,"text":"one"', b'"logprob":"x","text":"one"'),
        lambda line: line.replace(b'"token_id":7,"top"', b'"token_id":"x","top"'),
    ],
)
def test_a_damaged_line_is_named_by_its_number(tmp_path, change):
    path = tmp_path / "r.jsonl"
    record(path, said("one"), said("one"))
    first, second, _ = path.read_bytes().split(b"\n")
    assert change(second) != second
    path.write_bytes(first + b"\n" + change(second) + b"\n")
    with pytest.raises(FormatError, match=r"r\.jsonl line 2"):
        ReplayBackend.open(path)


def test_a_file_with_several_models_needs_a_choice(tmp_path):
    path = tmp_path / "r.jsonl"
    record(path, said("one"), model="a")
    record(path, said("two"), model="b")
    with pytest.raises(UsageError, match="several models; got a, b"):
        ReplayBackend.open(path)
    with pytest.raises(UsageError, match="no such model; got c"):
        ReplayBackend.open(path, model="c")
    with ReplayBackend.open(path, model="b") as replay:
        assert next(iter(replay.stream_chat(ask(), OPTIONS))).text == "two"


def test_files_that_cannot_be_opened_are_clear_errors(tmp_path):
    with pytest.raises(FormatError, match="cannot read the recording"):
        ReplayBackend.open(tmp_path / "none.jsonl")
    with pytest.raises(MeasureError, match="cannot write the recording"):
        RecordingBackend(Local(), tmp_path)


def test_closing_closes_the_inner_backend_too(tmp_path):
    inner = Local()
    backend = RecordingBackend(inner, tmp_path / "r.jsonl")
    backend.close()
    backend.close()
    assert inner.n_closed == 2
