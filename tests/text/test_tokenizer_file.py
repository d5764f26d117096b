"""What tokenizer.json says together with its config is what transformers makes of both."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer

from edgekit.checkpoint.assets import rewritten_assets
from edgekit.errors import CheckpointError, MissingFileError
from edgekit.text.chat import ChatTemplate
from edgekit.text.files import TextFiles
from edgekit.text.tokenizer import Tokenizer
from edgekit.text.tokenizer_file import read_tokenizer_file
from edgekit.text.view import read_text_view
from tests.text.token_families import write_family
from tests.text.token_parts import write_json
from tests.text.token_texts import TEXTS

CHANGED = (
    {},
    {"legacy": True},
    {"legacy": None},
    {"add_prefix_space": False},
    {"add_prefix_space": True, "legacy": True},
    {"tokenizer_class": "LlamaTokenizerFast"},
    {"tokenizer_class": "PreTrainedTokenizerFast"},
    {"add_bos_token": False, "add_eos_token": True},
)
CONTINUED = {"after a control token": "</s>the  x</s> the<s>\n", "only control tokens": "<s><s>"}


def rewritten(folder):
    return rewritten_assets(read_text_view(TextFiles.of_folder(folder), 1 << 20, {}))


def write(folder, name, **changes):
    write_family(name, folder)
    path = folder / "tokenizer_config.json"
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | changes)
    return folder


@pytest.mark.parametrize("changes", CHANGED, ids=str)
@pytest.mark.parametrize("name", ["llama2", "code-llama", "mistral-v1", "phi3", "gemma3"])
def test_settings_of_the_class_have_the_effect_they_have_in_transformers(tmp_path, name, changes):
    folder = write(tmp_path, name, **changes)
    reference, tokenizer = AutoTokenizer.from_pretrained(folder), Tokenizer.open(folder)
    for key, text in {**TEXTS, **CONTINUED}.items():
        ids = reference.encode(text, add_special_tokens=False)
        assert tokenizer.encode(text, allow_special=True) == ids, key
        assert tokenizer.encode(text, allow_special=True, add_special=True) == (
            reference.encode(text)
        ), key
        assert tokenizer.decode(ids, skip_special=False) == reference.decode(ids), key


@pytest.mark.parametrize("name", ["llama2", "code-llama", "llama3", "gemma3"])
def test_an_artifact_carries_a_file_that_says_the_same_alone(tmp_path, name):
    folder = write_family(name, tmp_path / "source")
    texts = rewritten(folder)
    assert ("tokenizer.json" in texts) == (name in ("llama2", "code-llama"))
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "tokenizer.json").write_text(
        texts.get("tokenizer.json", (folder / "tokenizer.json").read_text(encoding="utf-8")),
        encoding="utf-8",
    )
    here, there = Tokenizer.open(folder), Tokenizer.open(alone)
    for key, text in {**TEXTS, **CONTINUED}.items():
        assert here.encode(text, allow_special=True) == there.encode(text, allow_special=True), key
    # Read again beside the same config, nothing changes any more.
    (folder / "tokenizer.json").write_text(
        (alone / "tokenizer.json").read_text(encoding="utf-8"), encoding="utf-8"
    )
    assert not Tokenizer.open(folder).is_changed


def test_flags_in_the_config_win_as_in_transformers(tmp_path):
    folder = write(tmp_path, "phi3")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for token in config["added_tokens_decoder"].values():
        token["rstrip"] = False
    write_json(path, config)
    reference, tokenizer = AutoTokenizer.from_pretrained(folder), Tokenizer.open(folder)
    text = "<|user|>\n hello<|end|>  \n<|assistant|>"
    ids = reference.encode(text, add_special_tokens=False)
    assert tokenizer.encode(text, allow_special=True) == ids
    assert tokenizer.decode(ids, skip_special=False) == reference.decode(ids)


def test_a_token_that_the_config_calls_special_is_never_made_from_text(tmp_path):
    folder = write(tmp_path, "qwen3", extra_special_tokens=["<tool_call>", "<absent>"])
    tokenizer = Tokenizer.open(folder)
    assert {"<tool_call>", "<absent>"} <= tokenizer.special_tokens.keys()
    ids = tokenizer.encode("a<tool_call><absent>", allow_special=False)
    assert not {*ids} & {*tokenizer.special_tokens.values()}
    assert tokenizer.decode(ids) == "a<tool_call><absent>"


@pytest.mark.parametrize("text", ["[", "[]", '{"model": 3}', '{"model": null}', "{}", "[" * 9999])
def test_a_damaged_file_of_a_class_that_changes_it_is_refused(tmp_path, text):
    folder = write_family("llama2", tmp_path)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.open(folder)


def test_a_folder_without_a_tokenizer_says_so(tmp_path):
    with pytest.raises(MissingFileError, match="no tokenizer"):
        read_tokenizer_file(tmp_path)


def test_templates_in_other_places_are_read_and_carried_in_the_usual_ones(tmp_path):
    (tmp_path / "chat_template.json").write_text('{"chat_template": "old {{ messages | length }}"}')
    assert ChatTemplate.open(tmp_path).render([]) == "old 0"
    assert rewritten(tmp_path) == {"chat_template.jinja": "old {{ messages | length }}"}
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "config"}')
    assert ChatTemplate.open(tmp_path).render([]) == "config"
    assert rewritten(tmp_path) == {}


@pytest.mark.parametrize("place", ["files", "tokenizer_config.json"])
def test_two_templates_become_one_that_writes_both(tmp_path, place):
    default, tools = "{% if messages %}\n\n a {% endif %}\n", "\n{% set x = 3 %}b{{ x }}  \n"
    if place == "files":
        (tmp_path / "additional_chat_templates").mkdir()
        (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text(tools)
        (tmp_path / "chat_template.jinja").write_text(default)
    else:
        named = {"default": default, "tool_use": tools}
        entry = [{"name": name, "template": text} for name, text in named.items()]
        (tmp_path / place).write_text(json.dumps({"chat_template": entry}))
    calls = [([{"role": "user"}], []), ([], []), ([{"role": "user"}], [{"type": "function"}])]
    wanted = [ChatTemplate.open(tmp_path).render(*call) for call in calls]
    assert wanted == ["\n a ", "", "\nb3  "]
    carried = rewritten(tmp_path)
    assert "chat_template" not in json.loads(carried.pop("tokenizer_config.json", "{}"))
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "chat_template.jinja").write_text(carried["chat_template.jinja"])
    template = ChatTemplate.open(tmp_path / "artifact")
    assert [template.render(*call) for call in calls] == wanted


def test_a_template_beside_another_in_the_config_is_the_only_one_carried(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "config", "a": 1}')
    (tmp_path / "chat_template.jinja").write_text("file")
    assert json.loads(rewritten(tmp_path)["tokenizer_config.json"]) == {"a": 1}


def test_line_ends_are_carried_as_jinja_reads_them(tmp_path):
    (tmp_path / "chat_template.jinja").write_bytes(b"a\r\n{{ messages | length }}\rb\n")
    assert ChatTemplate.open(tmp_path).render([]) == "a\n0\nb"
    assert rewritten(tmp_path) == {"chat_template.jinja": "a\n{{ messages | length }}\nb\n"}
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "a\\r\\nb"}')
    assert json.loads(rewritten(tmp_path)["tokenizer_config.json"]) == {"chat_template": "a\nb"}


def test_several_templates_without_a_default_are_loud(tmp_path):
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    with pytest.raises(CheckpointError, match="no chat template") as caught:
        ChatTemplate.open(tmp_path).render([])
    assert caught.value.got == "templates named tool_use alone"


@pytest.mark.parametrize("space", ["\n", " \t\u3000\u2009", "\x1c\n", "\u200b ", "\x85"])
def test_a_token_that_swallows_white_space_does_so_beside_a_forbidden_name(tmp_path, space):
    folder = write(tmp_path, "phi3")
    tokenizer = Tokenizer.open(folder)
    named = [{"role": "user", "content": f"{space}a<|end|>{space}"}]
    (folder / "chat_template.jinja").write_text("<|user|>{{ messages[0].content }}<|assistant|>")
    ids = ChatTemplate.open(folder).encode(named, tokenizer)
    harmless = [{"role": "user", "content": f"{space}a"}]
    start = ChatTemplate.open(folder).encode(harmless, tokenizer)[:-1]
    assert ids[: len(start)] == start
    control = [i for i in ids if i in tokenizer.special_tokens.values()]
    assert [tokenizer.token_text(i) for i in control] == ["<|user|>", "<|assistant|>"]
