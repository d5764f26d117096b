"""The whole way: a real artifact, its engine, the server, and our client against it."""

from __future__ import annotations

import openai
import pytest

from edgekit.errors import ServerError
from edgekit.exporters.onnx.exporter import OnnxExporter
from edgekit.exporters.staging import write_artifact
from edgekit.families import open_model
from edgekit.hosted.http_server import ModelServer
from edgekit.hosted.latency import split_latency
from edgekit.quality.suites.base import parse_tool_calls
from edgekit.quantize.encoded_model import quantize_model
from edgekit.runtime.base import GenerateOptions
from edgekit.runtime.server import ServerBackend
from edgekit.runtime.session import open_session
from edgekit.scheme import Scheme
from tests.hosted.scripted_model import TOOL

ASK = [
    {"role": "user", "content": "Which tool fits?"},
    {"role": "assistant", "content": "Tell me more."},
    {"role": "user", "content": "Set a timer for é 7 minutes 🙂"},
]


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hosted")
    source = open_model("pocket")
    store = quantize_model(source, Scheme.parse("int8"), folder / "store")
    artifact = write_artifact(OnnxExporter(), store, folder / "onnx")
    store.close()
    source.close()
    with open_session(artifact) as session:
        yield session


@pytest.fixture(scope="module")
def server(session):
    with ModelServer(session, model_name="pocket") as server:
        yield server


@pytest.fixture(scope="module")
def backend(server):
    with ServerBackend.open(server.url, "pocket", timeout_s=30) as backend:
        yield backend


@pytest.mark.parametrize("tools", [(), (TOOL,)])
def test_the_hosted_answer_is_the_local_answer(session, backend, tools):
    options = GenerateOptions(max_tokens=24)
    local = session.chat(ASK, options, tools)
    remote = backend.chat(ASK, options, tools)
    calls = parse_tool_calls(local.text) if tools else ()
    assert parse_tool_calls(remote.text) == parse_tool_calls(local.text)
    assert calls or remote.text == local.text
    assert remote.stats.n_prompt_tokens == local.n_prompt_tokens
    assert remote.stats.n_output_tokens == local.n_output_tokens


def test_sampling_follows_the_seed(session, backend):
    options = GenerateOptions(max_tokens=24, temperature=1.0, top_p=0.9, top_k=50, seed=7)
    assert backend.chat(ASK, options).text == session.chat(ASK, options).text


def test_logprobs_of_the_tokens_arrive(session, backend):
    options = GenerateOptions(max_tokens=6, n_logprobs=3)
    local = session.chat(ASK[:1], options).events
    remote = backend.chat(ASK[:1], options).events
    wanted = [e.logprob for e in local if session.decode([e.token_id])]
    assert [e.logprob for e in remote if e.logprob is not None] == pytest.approx(wanted, abs=1e-9)


def test_plain_completions_continue_the_prompt(session, server):
    with openai.OpenAI(base_url=server.url, api_key="k", max_retries=0) as client:
        answer = client.completions.create(
            model="pocket", prompt="Set a", temperature=0, max_tokens=8, stop=["\n"]
        )
    events = list(session.generate("Set a", GenerateOptions(max_tokens=8, stop=("\n",))))
    assert answer.choices[0].text == "".join(event.text for event in events)
    assert answer.usage.prompt_tokens == len(session.encode("Set a"))


def test_a_conversation_that_the_template_refuses_is_a_400(backend):
    with pytest.raises(ServerError) as caught:
        backend.chat([{"role": "user", "content": "word " * 3000}])
    assert caught.value.status == 400
    assert "context" in caught.value.got


def test_the_split_adds_up(backend):
    facts = [backend.chat(ASK, GenerateOptions(max_tokens=4, seed=i)).stats for i in range(3)]
    got = {m.name: m for m in split_latency(facts, backend.measure_network(3))}
    assert all(e.server_ttft_s <= e.ttft_s for e in facts)
    rest = got["ttft_s"].value - got["network_round_trip_s"].value
    assert got["server_ttft_s"].value == pytest.approx(rest, abs=1e-12)
