"""The bundled model's own tokenizer and template carry every item of every suite."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from edgekit.quality.suites import SUITES, load_suite

FOLDER = Path(__file__).parents[3] / "models" / "pocket"
CONFIG = json.loads((FOLDER / "config.json").read_text())
TOKENIZER = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


def _raise(message: str) -> NoReturn:
    raise ValueError(message)


def _render(messages: list[Mapping[str, Any]], tools: list[Mapping[str, Any]]) -> str:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _raise
    source = json.loads((FOLDER / "tokenizer_config.json").read_text())["chat_template"]
    template = environment.from_string(source)
    return template.render(messages=messages, tools=tools, bos_token="<s>", eos_token="</s>")


def _ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", SUITES)
def test_prompt_and_answer_fit_and_tokenize_apart(name: str) -> None:
    for item in load_suite(name).items(60, seed=1, count_tokens=lambda t: len(_ids(t))):
        prompt = _render(list(item.messages), list(item.tools))
        assert prompt.count("<s>") == 1
        assert prompt.startswith("<s>")
        ids, answer = _ids(prompt), _ids(item.target)
        assert ids[0] == CONFIG["bos_token_id"]
        assert ids + answer == _ids(prompt + item.target)
        assert TOKENIZER.decode(answer, skip_special_tokens=False) == item.target
        assert len(answer) < item.max_tokens
        assert len(ids) + item.max_tokens <= CONFIG["max_position_embeddings"]


def test_a_long_text_keeps_within_its_nominal_tokens() -> None:
    for item in load_suite("long_context").items(8, seed=1, count_tokens=lambda t: len(_ids(t))):
        n_tokens = len(_ids(item.messages[0]["content"]))
        assert int(item.meta["n_context_tokens"]) - 24 <= n_tokens
        assert n_tokens <= int(item.meta["n_context_tokens"])


def test_a_whole_talk_renders_as_the_turns_do() -> None:
    tool = load_suite("tool_calls").items(1, seed=1)[0].tools[0]
    arguments = {"minutes": 7, "label": "tea & <rice>"}
    call = {"type": "function", "function": {"name": "set_timer", "arguments": arguments}}
    as_text = {"name": "set_timer", "arguments": '{"minutes": 7}'}
    text = _render(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": None, "tool_calls": [{"function": as_text}]},
            {"role": "tool", "content": "done"},
            {"role": "assistant", "content": "It is set."},
            {"role": "user", "content": "Bye"},
        ],
        [tool],
    )
    assert text.startswith("<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][AVAILABLE_TOOLS]")
    assert text.endswith(
        "[INST]Hi[/INST]"
        '[TOOL_CALLS][{"name": "set_timer", "arguments": {"minutes": 7}}]</s>'
        "[TOOL_RESULTS]done[/TOOL_RESULTS]It is set.</s>[INST]Bye[/INST]"
    )
    assert '"minutes": 7' in _render([{"role": "assistant", "tool_calls": [call]}], [])


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown role"):
        _render([{"role": "critic", "content": "no"}], [])


@pytest.mark.parametrize("text", ["Grüße, 東京! 12.5 %", "  two  spaces\n\ttab", "ÀB cD 007"])
def test_any_text_survives_the_tokenizer(text: str) -> None:
    assert TOKENIZER.decode(_ids(text), skip_special_tokens=False) == text


def test_every_digit_is_a_token() -> None:
    assert len(_ids("2026")) == 4
    assert TOKENIZER.get_vocab_size() == CONFIG["vocab_size"]
