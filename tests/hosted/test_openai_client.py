"""The official client, unmodified, against the hosted server."""

from __future__ import annotations

import json
import threading

import openai
import pytest

from edgekit.hosted.http_server import ModelServer
from edgekit.runtime.base import Finish
from tests.hosted.scripted_model import CALL, TOOL, ScriptedModel

ASK = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def hosted():
    model = ScriptedModel()
    with (
        ModelServer(model, model_name="letters") as server,
        openai.OpenAI(base_url=server.url, api_key="any", max_retries=0, timeout=5) as client,
    ):
        yield model, client


@pytest.fixture
def model(hosted):
    model, _ = hosted
    model.__init__()
    return model


@pytest.fixture
def client(hosted, model):
    return hosted[1]


def chat(client, **fields):
    return client.chat.completions.create(model="letters", messages=ASK, **fields)


def test_chat_gives_text_usage_and_names(client):
    answer = chat(client)
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert (answer.model, answer.system_fingerprint) == ("letters", "scripted-7")
    assert answer.choices[0].message.content == "Hi é🙂"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].logprobs is None
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (5, 5, 10)


def test_stream_is_role_then_text_then_finish_then_usage(client):
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    assert {c.object for c in chunks} == {"chat.completion.chunk"}
    assert len({c.id for c in chunks}) == 1
    deltas = [c.choices[0].delta for c in chunks[:-1]]
    assert (deltas[0].role, deltas[0].content) == ("assistant", "")
    assert [d.content for d in deltas[1:]] == ["H", "i", " ", "é", "🙂", None]
    assert all(d.role is None for d in deltas[1:])
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * 6 + ["stop"]
    assert [c.usage for c in chunks[:-1]] == [None] * 7
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == 10


def test_stream_without_usage_option_has_no_usage_chunk(client):
    chunks = list(chat(client, stream=True))
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(c.usage is None for c in chunks)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_max_tokens_cuts_the_answer(client, name):
    answer = chat(client, **{name: 2})
    assert answer.choices[0].message.content == "Hi"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 2


def test_options_reach_the_model(client, model):
    chat(
        client, temperature=0.5, top_p=0.9, seed=11, stop="x", max_tokens=9, extra_body={"top_k": 3}
    )
    options = model.asked[-1][1]
    assert (options.temperature, options.top_p, options.top_k) == (0.5, 0.9, 3)
    assert (options.seed, options.stop, options.max_tokens) == (11, ("x",), 9)
    assert (options.ignore_eos, options.n_logprobs) == (False, 0)


def test_defaults_are_openai_s_and_the_answer_may_fill_the_context(client, model):
    chat(client, stop=["a", "b"])
    options = model.asked[-1][1]
    assert (options.temperature, options.top_p, options.seed) == (1.0, 1.0, None)
    assert options.stop == ("a", "b")
    assert options.max_tokens == 128 - 5


def test_max_tokens_is_cut_to_what_the_context_leaves(client, model):
    chat(client, max_tokens=1000)
    assert model.asked[-1][1].max_tokens == 128 - 5


def test_chat_logprobs_list_every_token_with_alternatives(client):
    content = chat(client, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert [e.token for e in content] == ["H", "i", " ", "é", "🙂"]
    assert [e.logprob for e in content] == [-0.25] * 5
    assert content[3].bytes == [0xC3, 0xA9]
    assert [(t.token, t.logprob) for t in content[1].top_logprobs] == [("i", -0.25), ("I", -2.5)]


def test_logprobs_without_alternatives_list_none(client):
    content = chat(client, logprobs=True).choices[0].logprobs.content
    assert [e.top_logprobs for e in content] == [[]] * 5


def test_streamed_logprobs_equal_whole_ones(client):
    whole = chat(client, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    streamed = []
    for chunk in chat(client, logprobs=True, top_logprobs=2, stream=True):
        if chunk.choices[0].logprobs:
            streamed += chunk.choices[0].logprobs.content
    assert streamed == whole


def test_tool_calls_are_parsed(client, model):
    model.text = CALL
    answer = chat(client, tools=[TOOL])
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "set_timer")
    assert json.loads(call.function.arguments) == {"minutes": 7}
    assert model.asked[-1][2] == (TOOL,)


def test_streamed_tool_calls_never_show_as_text(client, model):
    model.text = CALL
    chunks = list(chat(client, tools=[TOOL], stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == ""
    ((call,),) = [d.tool_calls for d in (c.choices[0].delta for c in chunks) if d.tool_calls]
    assert (call.index, call.function.name) == (0, "set_timer")
    assert json.loads(call.function.arguments) == {"minutes": 7}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        '[TOOL_CALLS][{"name": "set_timer", "arguments": {"minutes": 7}',
        '[TOOL_CALLS][{"name": 3, "arguments": {}}]',
        '[TOOL_CALLS][{"name": "f", "arguments": [1]}]',
        "[TOOL_CALLS]",
        "[TOOL",
        "[TOOLS are nice",
        "no [TOOL_CALLS][] at the start",
        "[TOOL_CALLS][]",
    ],
)
def test_malformed_calls_stay_content(client, model, text, is_stream):
    model.text, model.last, model.context_length = text, Finish.TOOL_CALLS, 500
    if is_stream:
        chunks = list(chat(client, tools=[TOOL], stream=True))
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == text
        assert chunks[-1].choices[0].finish_reason == "stop"
    else:
        choice = chat(client, tools=[TOOL]).choices[0]
        assert (choice.message.content, choice.message.tool_calls) == (text, None)
        assert choice.finish_reason == "stop"


def test_tag_is_text_when_no_tools_were_offered(client, model):
    model.text = CALL
    assert chat(client).choices[0].message.content == CALL
    assert chat(client, tools=[TOOL], tool_choice="none").choices[0].message.content == CALL
    assert model.asked[-1][2] == ()


def test_logprobs_of_held_back_text_are_not_lost(client, model):
    model.text = "[TOOLS]"
    got = []
    for chunk in chat(client, tools=[TOOL], logprobs=True, stream=True):
        if chunk.choices[0].logprobs:
            got += [e.token for e in chunk.choices[0].logprobs.content]
    assert "".join(got) == "[TOOLS]"


def test_completions_with_logprobs_and_echo(client):
    answer = client.completions.create(model="letters", prompt="ab", logprobs=2, echo=True)
    choice = answer.choices[0]
    assert (answer.object, choice.text, choice.finish_reason) == (
        "text_completion",
        "abHi é🙂",
        "stop",
    )
    assert choice.logprobs.tokens == ["H", "i", " ", "é", "🙂"]
    assert choice.logprobs.token_logprobs == [-0.25] * 5
    assert choice.logprobs.text_offset == [2, 3, 4, 5, 6]
    assert choice.logprobs.top_logprobs[0] == {"H": -2.5}  # upper case of H is H again
    assert choice.logprobs.top_logprobs[1] == {"i": -0.25, "I": -2.5}
    assert answer.usage.prompt_tokens == 2


def test_streamed_completions(client):
    options = {"include_usage": True}
    chunks = list(
        client.completions.create(
            model="letters", prompt="ab", stream=True, echo=True, logprobs=0, stream_options=options
        )
    )
    assert "".join(c.choices[0].text for c in chunks[:-1]) == "abHi é🙂"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], 5)
    parts = [c.choices[0].logprobs for c in chunks[:-1]]
    assert [at for part in parts if part for at in part.text_offset] == [2, 3, 4, 5, 6]


def test_plain_completion_defaults_to_sixteen_tokens(client, model):
    model.text = "x" * 40
    answer = client.completions.create(model="letters", prompt="ab")
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("x" * 16, "length")


def test_models_are_listed(client):
    (card,) = client.models.list().data
    assert (card.id, card.object, card.owned_by) == ("letters", "model", "edgekit")
    assert card.max_model_len == 128
    assert client.models.retrieve("letters").id == "letters"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_messages_reach_the_template_as_plain_text(client, model):
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    client.chat.completions.create(
        model="letters",
        messages=[
            {"role": "developer", "content": "be brief"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "7", "tool_call_id": "c1"},
        ],
    )
    assert model.asked[-1][0] == (
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "ab"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "7", "tool_call_id": "c1"},
    )


def test_two_clients_at_once_both_get_their_whole_answer(client, model):
    both = threading.Barrier(2)
    answers = []

    def ask():
        both.wait(5)
        chunks = chat(client, stream=True)
        answers.append("".join(c.choices[0].delta.content or "" for c in chunks))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert answers == ["Hi é🙂"] * 2
