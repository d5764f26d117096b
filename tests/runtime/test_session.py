"""Claims about what lies between logits and text; the engine is fake, the tokenizer is real."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.artifact import Artifact
from edgekit.errors import ArtifactError, CheckpointError, EngineCrashError, UsageError
from edgekit.exporters.mlx.exporter import MlxExporter
from edgekit.exporters.staging import write_artifact
from edgekit.runtime.base import Finish, GenerateOptions
from edgekit.runtime.fake import FakeDecoder
from edgekit.runtime.sampling import log_softmax
from edgekit.runtime.session import Session, open_session, read_eos_ids
from edgekit.text.chat import ChatTemplate
from edgekit.text.tokenizer import Tokenizer
from tests.builders import write_tiny_tokenizer
from tests.exporters.memory_model import memory_model, tiny_spec
from tests.relist import relist

VOCAB = 384
BOS, EOS, TOOL_CALLS = 1, 2, 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    write_tiny_tokenizer(path, VOCAB)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.open(folder)


@pytest.fixture
def saying(folder, tokenizer):
    """Make a session whose model answers with the given text or ids, then ends."""

    def make(answer, context_length=256):
        ids = tokenizer.encode(answer, allow_special=True) if isinstance(answer, str) else answer
        decoder = FakeDecoder.saying([*ids, EOS], vocab_size=VOCAB, context_length=context_length)
        return Session(decoder, tokenizer, ChatTemplate.open(folder), {EOS})

    return make


@pytest.fixture
def noisy(folder, tokenizer):
    return Session(FakeDecoder(VOCAB, 64), tokenizer, ChatTemplate.open(folder), {EOS})


def text_of(events) -> str:
    return "".join(event.text for event in events)


def test_an_answer_is_streamed_token_by_token_and_ends_with_stop(saying, tokenizer):
    events = list(saying("the rain in spain").generate("hello"))
    assert text_of(events) == "the rain in spain"
    ids = tokenizer.encode("the rain in spain", allow_special=False)
    assert [e.token_id for e in events] == [*ids, EOS]
    assert [e.index for e in events] == list(range(len(events)))
    assert [e.finish for e in events[:-1]] == [None] * (len(events) - 1)
    assert (events[-1].finish, events[-1].text) == (Finish.STOP, "")
    times = [e.time_s for e in events]
    assert times == sorted(times)


@pytest.mark.parametrize("text", ["naïve café", "日本語 text", "👩‍🚀 in space", "a\ufffdb"])
def test_characters_of_several_tokens_never_show_in_parts(saying, text):
    pieces = [e.text for e in saying(text).generate("x")]
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_an_answer_cut_inside_a_character_shows_what_is_there(saying, tokenizer):
    ids = tokenizer.encode("é", allow_special=False)
    assert len(ids) == 2
    events = list(saying("é").generate("x", max_tokens=1))
    assert (text_of(events), events[-1].finish) == ("\ufffd", Finish.LENGTH)


def test_max_tokens_ends_with_length(saying):
    events = list(saying("one two three four").generate("x", max_tokens=3))
    assert len(events) == 3
    assert events[-1].finish is Finish.LENGTH


def test_the_context_ends_an_answer_with_length(saying):
    session = saying("one two three four five six", context_length=8)
    events = list(session.generate([BOS] * 6))
    # Positions 6 and 7 are free, and the last token needs none.
    assert len(events) == 3
    assert events[-1].finish is Finish.LENGTH


def test_a_prompt_that_fills_the_context_still_has_a_next_token(saying):
    events = list(saying("one two", context_length=4).generate([BOS] * 4))
    assert [e.finish for e in events] == [Finish.LENGTH]


def test_the_end_token_is_passed_over_when_asked(saying):
    session = saying("ab")
    events = list(session.generate("x", ignore_eos=True, max_tokens=7))
    assert (len(events), events[-1].finish) == (7, Finish.LENGTH)
    assert sum(e.token_id == EOS for e in events) == 2


def test_a_stop_string_ends_the_answer_and_is_not_in_it(saying):
    events = list(saying("first line\nUser: more").generate("x", stop=("\nUser:",)))
    assert (text_of(events), events[-1].finish) == ("first line", Finish.STOP)


def test_a_stop_string_that_never_completes_is_shown(saying):
    events = list(saying("first\nUse").generate("x", stop=("\nUser:",)))
    assert text_of(events) == "first\nUse"
    events = list(saying("first\nUse").generate("x", stop=("\nUser:",), max_tokens=5))
    assert "first\nUse".startswith(text_of(events))
    assert events[-1].finish is Finish.LENGTH


@given(
    text=st.text(alphabet="abc é\n", max_size=20), stop=st.text("abc é\n", min_size=1, max_size=3)
)
@settings(max_examples=60, deadline=None)
def test_any_stop_string_cuts_the_text_where_it_first_stands(folder, tokenizer, text, stop):
    ids = tokenizer.encode(text, allow_special=False)
    decoder = FakeDecoder.saying([*ids, EOS], vocab_size=VOCAB)
    # A fresh prompt token that no answer contains, so that the script starts at its start.
    session = Session(decoder, tokenizer, ChatTemplate.open(folder), {EOS})
    events = list(session.generate([BOS], stop=(stop,)))
    assert text_of(events) == text.split(stop)[0]
    assert events[-1].finish is Finish.STOP


def test_a_tool_call_keeps_its_marker_and_ends_with_tool_calls(saying):
    call = '[TOOL_CALLS][{"name": "set_timer", "arguments": {"minutes": 7}}]'
    events = list(saying(call).generate("x"))
    assert events[0].token_id == TOOL_CALLS
    assert (text_of(events), events[-1].finish) == (call, Finish.TOOL_CALLS)


def test_text_before_a_tool_call_is_kept_too(saying):
    events = list(saying("sure[TOOL_CALLS][]").generate("x"))
    assert (text_of(events), events[-1].finish) == ("sure[TOOL_CALLS][]", Finish.TOOL_CALLS)


def test_a_tool_call_that_was_cut_off_says_length(saying):
    events = list(saying("[TOOL_CALLS][{}]").generate("x", max_tokens=2))
    assert events[-1].finish is Finish.LENGTH


def test_other_special_tokens_are_not_text(saying):
    assert text_of(saying("a[INST]b").generate("x")) == "ab"


def test_the_same_seed_gives_the_same_answer_and_another_seed_another(noisy):
    def ids(seed):
        events = noisy.generate("hello", temperature=1.0, seed=seed, max_tokens=20)
        return [e.token_id for e in events]

    assert ids(3) == ids(3)
    assert ids(3) != ids(4)


def test_logprobs_are_those_of_the_logits(noisy, tokenizer):
    events = list(noisy.generate([BOS, 20], n_logprobs=3, max_tokens=4, ignore_eos=True))
    history = [BOS, 20]
    for event in events:
        logprobs = log_softmax(noisy.decoder.forward(history, n_past=0)[0])
        assert event.logprob == pytest.approx(logprobs[event.token_id], abs=1e-9)
        assert event.top[0].token_id == event.token_id
        assert event.top[0].text == tokenizer.token_text(event.token_id)
        assert [t.logprob for t in event.top] == sorted(
            (t.logprob for t in event.top), reverse=True
        )
        assert math.exp(event.logprob) <= 1
        history.append(event.token_id)


def test_logits_are_a_fresh_sequence(noisy):
    tokens = [BOS, 40, 41, 42]
    first = noisy.logits(tokens)
    assert (first.shape, first.dtype) == ((4, VOCAB), np.float32)
    list(noisy.generate("something else", max_tokens=3))
    np.testing.assert_array_equal(noisy.logits(tokens), first)


def test_greedy_follows_the_logits(noisy):
    ids = [e.token_id for e in noisy.generate([BOS, 40], max_tokens=5, ignore_eos=True)]
    logits = noisy.logits([BOS, 40, *ids])
    assert [int(np.argmax(row)) for row in logits[1:-1]] == ids


def test_nothing_runs_before_the_first_event_is_asked_for(folder, tokenizer):
    calls = []

    def rule(history):
        calls.append(len(history))
        return np.zeros(VOCAB, dtype=np.float32)

    session = Session(FakeDecoder(VOCAB, rule=rule), tokenizer, ChatTemplate.open(folder), {EOS})
    stream = session.generate([BOS, BOS])
    assert calls == []
    next(stream)
    assert calls == [2]


@pytest.mark.parametrize(
    ("prompt", "overrides", "match"),
    [
        ([], {}, "prompt is empty"),
        ([1] * 65, {}, "longer than the context; got 65 tokens; wanted at most 64"),
        ([1], {"max_tokens": 0}, "option max_tokens; got 0"),
        ([1], {"temprature": 1.0}, "unknown generation option; got temprature"),
    ],
)
def test_a_wrong_request_is_refused_when_it_is_made(noisy, prompt, overrides, match):
    with pytest.raises(UsageError, match=match):
        noisy.generate(prompt, **overrides)


@pytest.mark.parametrize("tokens", [[], [1] * 65, [VOCAB], [-1]])
def test_wrong_logits_requests_are_refused(noisy, tokens):
    with pytest.raises(UsageError):
        noisy.logits(tokens)


def test_an_answer_interrupted_by_another_request_says_so(noisy):
    stream = noisy.generate([BOS], max_tokens=5, ignore_eos=True)
    next(stream)
    list(noisy.generate([BOS, 30, 31, 32], max_tokens=1))
    with pytest.raises(UsageError, match="interrupted by another request"):
        next(stream)


def test_chat_counts_what_went_in_and_came_out(saying):
    session = saying("the rain")
    messages = [{"role": "user", "content": "weather?"}]
    answer = session.chat(messages)
    assert (answer.text, answer.finish) == ("the rain", Finish.STOP)
    assert answer.n_prompt_tokens == len(session.encode_chat(messages))
    assert answer.n_output_tokens == len(answer.events)
    assert session.chat(messages, max_tokens=1).n_output_tokens == 1


def test_chat_sends_the_rendered_template(folder, tokenizer):
    prompts = []

    def rule(history):
        prompts.append(list(history))
        logits = np.zeros(VOCAB, dtype=np.float32)
        logits[EOS] = 1
        return logits

    session = Session(FakeDecoder(VOCAB, rule=rule), tokenizer, ChatTemplate.open(folder), {EOS})
    list(session.stream_chat([{"role": "user", "content": "hi"}], GenerateOptions()))
    assert tokenizer.decode(prompts[0], skip_special=False) == "<s>[INST]hi[/INST]"


def test_special_names_in_user_text_stay_text(noisy):
    ids = noisy.encode_chat([{"role": "user", "content": "</s>[INST]"}])
    assert ids.count(EOS) == 0
    assert ids.count(4) == 1  # the template's own [INST]
    assert EOS not in noisy.encode("</s>")


def test_messages_that_the_template_refuses_are_an_error(noisy):
    with pytest.raises(CheckpointError, match="unknown role"):
        noisy.chat([{"role": "robot", "content": "x"}])


def test_a_model_without_template_says_so(tmp_path, folder, tokenizer):
    session = Session(FakeDecoder(VOCAB), tokenizer, ChatTemplate.open(tmp_path), {EOS})
    with pytest.raises(CheckpointError, match="no chat template"):
        session.chat([{"role": "user", "content": "x"}])


def test_plain_text_round_trips_through_ids(noisy):
    text = "the rain </s> in 日本"
    assert noisy.decode(noisy.encode(text)) == text


def test_count_tokens_adds_nothing(noisy, tokenizer):
    text = "the rain in spain </s>"
    assert noisy.count_tokens(text) == len(tokenizer.encode(text, allow_special=False))


def test_a_closed_session_says_so(noisy):
    with noisy:
        pass
    noisy.close()
    with pytest.raises(EngineCrashError, match="closed"):
        next(noisy.generate([BOS]))


class TestArtifact:
    """Claims about opening a session from an artifact folder."""

    @pytest.fixture
    def artifact(self, tmp_path, folder) -> Artifact:
        config = tmp_path / "generation_config.json"
        config.write_text('{"eos_token_id": [2, 3]}')
        names = ("tokenizer.json", "tokenizer_config.json")
        assets = {name: folder / name for name in names} | {config.name: config}
        model = memory_model(tiny_spec(vocab_size=VOCAB), assets=assets)
        return write_artifact(MlxExporter(), model, tmp_path / "a")

    def test_it_answers(self, artifact):
        with open_session(artifact) as session:
            assert session.info.engine == "mlx"
            answer = session.chat([{"role": "user", "content": "hi"}], max_tokens=4)
            assert answer.n_output_tokens in range(1, 5)

    def test_end_tokens_come_from_model_and_generation_config(self, artifact):
        assert read_eos_ids(artifact) == {2, 3}
        (artifact.path / "generation_config.json").unlink()
        assert read_eos_ids(relist(artifact.path)) == {2}

    @pytest.mark.parametrize("value", ["</s>", [True], [2, "x"], {"id": 2}, 2.0])
    def test_end_tokens_that_are_no_ids_are_an_error(self, artifact, value):
        (artifact.path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
        with pytest.raises(ArtifactError, match=r"generation_config\.json: eos_token_id"):
            open_session(relist(artifact.path), engine="fake")

    def test_a_broken_generation_config_is_an_error(self, artifact):
        (artifact.path / "generation_config.json").write_text("{")
        with pytest.raises(ArtifactError, match="cannot be read"):
            open_session(relist(artifact.path), engine="fake")

    def test_without_a_tokenizer_ids_are_answered_and_text_is_an_error(self, artifact):
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (artifact.path / name).unlink()
        with open_session(relist(artifact.path)) as session:
            assert session.logits([1, 5]).shape == (2, VOCAB)
            events = list(session.generate([1, 5], max_tokens=3, n_logprobs=2))
            assert [event.text for event in events] == [""] * len(events)
            assert all(token.text == "" for event in events for token in event.top)
            assert not session.offers_tools
            for ask in (
                lambda: session.generate("text"),
                lambda: session.chat([{"role": "user", "content": "hi"}]),
                lambda: session.count_tokens("a"),
                lambda: session.decode([1]),
            ):
                with pytest.raises(CheckpointError, match="no tokenizer") as caught:
                    ask()
                assert "Give token ids" in caught.value.do
            with pytest.raises(UsageError, match="stop strings"):
                session.generate([1], stop=("a",))
