"""A prompt that lacks what the template was given is refused; others are not."""

from __future__ import annotations

import pytest

from edgekit.errors import CheckpointError
from edgekit.text.chat import PROBE, ChatTemplate
from edgekit.text.tokenizer import Tokenizer
from tests.builders import write_tiny_tokenizer
from tests.text.token_texts import TIMER, WEATHER

USER = [{"role": "user", "content": "Hello there"}]
ANSWERED = [*USER, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "And?"}]
ALL = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
OPENS = "{% if add_generation_prompt %}<assistant>{% endif %}"


@pytest.fixture
def encode(tmp_path):
    write_tiny_tokenizer(tmp_path)

    def run(source, messages=USER, tools=(), **options):
        (tmp_path / "chat_template.jinja").write_text(source, encoding="utf-8")
        return ChatTemplate.open(tmp_path).encode(
            messages, Tokenizer.open(tmp_path), tools, **options
        )

    return run


@pytest.mark.parametrize(
    ("source", "messages"),
    [
        ("nothing" + OPENS, USER),
        ("{{ messages[0].content }}" + OPENS, ANSWERED),
        ("{{ messages | length }}" + OPENS, USER),
        ("{% for m in messages if m.role == 'system' %}{{ m.content }}{% endfor %}" + OPENS, USER),
        ("nothing" + OPENS, [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]),
    ],
)
def test_a_question_left_out_is_refused(encode, source, messages):
    with pytest.raises(CheckpointError, match="leaves out the user's message"):
        encode(source, messages)


def asks(content):
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize(
    ("written", "messages"),
    [
        (ALL, USER),
        (ALL, ANSWERED),
        (ALL, []),
        (ALL, [{"role": "system", "content": "x"}]),
        (ALL, asks(" \n")),
        ("{{ messages[-1].content | tojson(ensure_ascii=true) }}", asks("你好")),
        ("{{ messages[-1].content | upper }}", USER),
        ("{{ messages[-1].content.split('/no')[0] }}", asks("/no /no")),
        ("{{ messages[-1].content[0].text }}", asks([{"type": "text", "text": "Hello"}])),
        ("{{ messages | tojson }}", asks([{"type": "image"}])),
    ],
)
def test_a_question_that_is_there_in_any_form_is_not(encode, written, messages):
    encode(written + OPENS, messages)


@pytest.mark.parametrize(
    "source",
    [
        ALL + OPENS,
        ALL + "{{ tools[0].function.name }}" + OPENS,
        ALL + "{% if tools %}You have tools.{% endif %}" + OPENS,
        ALL + "get_weather set_timer" + OPENS,
    ],
)
def test_tools_left_out_are_refused(encode, source):
    with pytest.raises(CheckpointError, match="leaves out the tools"):
        encode(source, tools=[WEATHER, TIMER])


@pytest.mark.parametrize(
    "tool",
    [
        "{{ tools | tojson }}",
        "{{ tools }}",
        "{% for t in tools %}{{ t.function.name }}{% endfor %}",
    ],
)
def test_tools_in_any_form_are_not(encode, tool):
    source = ALL + "{% if tools %}" + tool + "{% endif %}" + OPENS
    encode(source, tools=[WEATHER, TIMER])
    encode(source)
    odd = [{"type": "function", "function": {"name": 'a"b\\ü'}}, {"name": "bare"}]
    if "function.name" not in tool:
        encode(source, tools=odd)


@pytest.mark.parametrize(
    "source",
    [
        ALL,
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}\n{% endfor %}",
        "{% for m in messages %}{% if m.role == 'user' %}Q: {{ m.content }}\n"
        "{% else %}A: {{ m.content }}\n{% endif %}{% endfor %}",
    ],
)
def test_an_answer_that_is_not_opened_is_refused(encode, source):
    with pytest.raises(CheckpointError, match="does not open the assistant's answer") as caught:
        encode(source)
    assert caught.value.wanted.endswith("at the end when add_generation_prompt is set")
    encode(source, add_generation_prompt=False)
    encode(source, [*USER, {"role": "assistant", "content": "I"}])


@pytest.mark.parametrize(
    "source",
    [
        ALL + OPENS,
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}",
        "{% for m in messages %}{{ m.content }}\n{% endfor %}",
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if messages[-1].role != 'assistant' %}<assistant>{% endif %}",
        "{% if messages | length > 1 %}{{ raise_exception('one') }}{% endif %}"
        "{{ messages[0].content }}",
    ],
)
def test_an_answer_that_needs_no_opening_is_not(encode, source):
    encode(source)


def test_what_was_proven_is_checked_again_where_it_costs_nothing(tmp_path):
    write_tiny_tokenizer(tmp_path)
    source = ALL + "{% if tools and messages | length < 2 %}{{ tools }}{% endif %}" + OPENS
    (tmp_path / "chat_template.jinja").write_text(source, encoding="utf-8")
    template, tokenizer = ChatTemplate.open(tmp_path), Tokenizer.open(tmp_path)
    template.encode(PROBE, tokenizer, [TIMER])
    with pytest.raises(CheckpointError, match="leaves out the tools") as caught:
        template.encode(ANSWERED, tokenizer, [TIMER])
    assert caught.value.got == "a prompt without set_timer"


def test_a_template_tells_whether_it_offers_tools(tmp_path):
    write_tiny_tokenizer(tmp_path)
    tokenizer = Tokenizer.open(tmp_path)
    assert ChatTemplate.open(tmp_path).offers_tools(tokenizer)
    (tmp_path / "chat_template.jinja").write_text(ALL + OPENS, encoding="utf-8")
    assert not ChatTemplate.open(tmp_path).offers_tools(tokenizer)
