from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from edgekit.errors import CheckpointError
from edgekit.text.chat import ChatTemplate
from edgekit.text.tokenizer import Tokenizer
from tests.builders import CHAT_TEMPLATE, SPECIAL_TOKENS, write_tiny_tokenizer

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "set_timer",
            "description": "Start a <b>timer</b> & 'ring' für n \"seconds\"",
            "parameters": {"type": "object", "properties": {"seconds": {"type": "integer"}}},
        },
    }
]
CALL = {"type": "function", "function": {"name": "set_timer", "arguments": {"seconds": 5}}}
CHATS = {
    "one": [{"role": "user", "content": "Hello the wörld 🎉"}],
    "system": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "  hi  "}],
    "turns": [
        {"role": "user", "content": "five seconds"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": '{"ok": true}'},
        {"role": "assistant", "content": "Done."},
        {"role": "user", "content": "thanks"},
    ],
}


def write_template(folder, template):
    write_tiny_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return ChatTemplate.open(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    write_tiny_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.open(folder)


@pytest.fixture(scope="module")
def template(folder):
    return ChatTemplate.open(folder)


@pytest.fixture(scope="module")
def reference(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("tools", [[], TOOLS])
@pytest.mark.parametrize("chat", list(CHATS))
def test_text_and_ids_are_those_of_transformers(template, tokenizer, reference, chat, tools):
    def theirs(**options):
        return reference.apply_chat_template(
            CHATS[chat], tools=tools or None, add_generation_prompt=True, **options
        )

    assert template.render(CHATS[chat], tools) == theirs(tokenize=False)
    assert template.encode(CHATS[chat], tokenizer, tools) == theirs(
        tokenize=True, return_dict=False
    )


def test_a_worked_prompt(template, tokenizer):
    ids = template.encode([{"role": "user", "content": "a"}], tokenizer)
    assert [tokenizer.token_text(i) for i in ids] == ["<s>", "[INST]", "a", "[/INST]"]


def test_special_names_in_a_message_stay_text(template, tokenizer):
    messages = [{"role": "user", "content": "say [/INST] and </s> please"}]
    ids = template.encode(messages, tokenizer)
    special = [i for i in ids if i in tokenizer.special_tokens.values()]
    assert [tokenizer.token_text(i) for i in special] == ["<s>", "[INST]", "[/INST]"]
    assert tokenizer.decode(ids, skip_special=False) == template.render(messages)


_PIECES = st.lists(st.sampled_from([*SPECIAL_TOKENS, "[", "IN", "ST]", "</", "s>", " ", "a", "é"]))
_CONTENT = _PIECES.map("".join)


@given(st.lists(st.tuples(st.sampled_from(["user", "system", "tool"]), _CONTENT), max_size=4))
def test_whatever_messages_say_only_the_template_writes_special_tokens(template, tokenizer, chat):
    messages = [{"role": role, "content": content} for role, content in chat]
    ids = template.encode(messages, tokenizer)
    harmless = [{"role": role, "content": "x"} for role, _ in chat]
    wanted = template.encode(harmless, tokenizer)
    special = set(tokenizer.special_tokens.values())
    assert [i for i in ids if i in special] == [i for i in wanted if i in special]
    assert tokenizer.decode(ids, skip_special=False) == template.render(messages)


@given(_CONTENT, _CONTENT)
def test_special_names_in_tools_and_calls_stay_text(template, tokenizer, one, other):
    tools = [{"type": "function", "function": {"name": one, "description": other, other: [one]}}]
    call = {"type": "function", "function": {"name": one, "arguments": {other: one}}}
    messages = [{"role": "assistant", "content": other, "tool_calls": [call]}]
    ids = template.encode(messages, tokenizer, tools)
    special = [tokenizer.token_text(i) for i in ids if i in tokenizer.special_tokens.values()]
    assert special == ["<s>", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "</s>"]
    assert tokenizer.decode(ids, skip_special=False) == template.render(messages, tools)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_a_message_without_special_names_gives_the_ids_of_the_whole_text(template, tokenizer, text):
    messages = [{"role": "user", "content": text}]
    whole = tokenizer.encode(template.render(messages), allow_special=True)
    if not tokenizer.special_pattern.search(text):
        assert template.encode(messages, tokenizer) == whole


def test_a_name_put_together_from_parts_stays_text(tmp_path):
    template = write_template(
        tmp_path, "[INST]{% for p in messages[0].content %}{{ p.text }}{% endfor %}[/INST]"
    )
    tokenizer = Tokenizer.open(tmp_path)
    parts = [{"type": "text", "text": "[IN"}, {"type": "text", "text": "ST]"}]
    ids = template.encode([{"role": "user", "content": parts}], tokenizer)
    special = [tokenizer.token_text(i) for i in ids if i in tokenizer.special_tokens.values()]
    assert special == ["[INST]", "[/INST]"]


def test_a_name_put_together_from_two_messages_stays_text(tmp_path):
    template = write_template(tmp_path, "{% for m in messages %}{{ m.content }}{% endfor %}</s>")
    tokenizer = Tokenizer.open(tmp_path)
    ids = template.encode([{"role": "user", "content": text} for text in ("</", "s>")], tokenizer)
    assert [i for i in ids if i in tokenizer.special_tokens.values()] == [ids[-1]]
    assert tokenizer.decode(ids, skip_special=False) == "</s></s>"


def test_a_template_that_trims_still_protects(tmp_path):
    template = write_template(tmp_path, "[INST]{{ messages[0]['content'] | trim }}[/INST]")
    tokenizer = Tokenizer.open(tmp_path)
    ids = template.encode([{"role": "user", "content": "  a</s>b \n"}], tokenizer)
    assert tokenizer.decode(ids, skip_special=False) == "[INST]a</s>b[/INST]"
    assert tokenizer.special_tokens["</s>"] not in ids


@pytest.mark.parametrize("change", ["upper | lower", "replace('a', 'b')", "reverse"])
def test_a_template_that_transforms_a_suspect_message_is_refused_or_right(tmp_path, change):
    template = write_template(
        tmp_path, "[INST]{{ messages[0]['content'] | " + change + " }}[/INST]"
    )
    tokenizer = Tokenizer.open(tmp_path)
    messages = [{"role": "user", "content": "a </s> b"}]
    try:
        ids = template.encode(messages, tokenizer)
    except CheckpointError as error:
        assert "cannot be told apart" in error.what
        assert error.got == "</s>"
    else:
        assert tokenizer.decode(ids, skip_special=False) == template.render(messages)
        assert tokenizer.special_tokens["</s>"] not in ids


def test_a_cut_message_is_refused_not_guessed(tmp_path):
    template = write_template(tmp_path, "{{ messages[0]['content'].split('</s>')[-1] }}</s>")
    with pytest.raises(CheckpointError, match="cannot be told apart"):
        template.encode([{"role": "user", "content": "a</s>b"}], Tokenizer.open(tmp_path))


def test_the_template_file_wins(tmp_path):
    assert write_template(tmp_path, "file").render([]) == "file"


@pytest.mark.parametrize(("tools", "wanted"), [((), "plain"), (TOOLS, "with tools")])
def test_named_templates_are_picked_by_what_is_asked(tmp_path, tools, wanted):
    entry = [
        {"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "with tools"},
    ]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": entry}))
    assert ChatTemplate.open(tmp_path).render([], tools) == wanted


@pytest.mark.parametrize("config", [None, {}, {"chat_template": None}])
def test_a_missing_template_is_an_error_when_it_is_needed(tmp_path, config):
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    template = ChatTemplate.open(tmp_path)
    with pytest.raises(CheckpointError, match="no chat template"):
        template.render([])


@pytest.mark.parametrize("entry", [7, {"name": "x"}, [1], [{"name": "default"}], ["text"]])
def test_a_template_entry_of_another_form_is_refused(tmp_path, entry):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": entry}))
    with pytest.raises(CheckpointError, match="chat_template"):
        ChatTemplate.open(tmp_path)


def test_a_template_file_too_large_or_no_text_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="at most 262144 bytes"):
        write_template(tmp_path, "x" * (1 << 18) + "x")
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match="cannot be read"):
        ChatTemplate.open(tmp_path)


def test_what_the_template_refuses_is_passed_on(template):
    with pytest.raises(CheckpointError) as caught:
        template.render([{"role": "wizard", "content": "x"}])
    assert caught.value.got == "TemplateError: unknown role wizard"


def test_the_tests_use_the_template_of_the_builder(template):
    assert template.sources == {"default": CHAT_TEMPLATE}
