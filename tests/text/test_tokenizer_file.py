"""What tokenizer.json says together with its config is what transformers makes of both."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer

from edgekit.checkpoint.assets import rewritten_assets
from edgekit.errors import CheckpointError, MissingFileError
from edgekit.text.chat import ChatTemplate
from edgekit.text.tokenizer import Tokenizer
from edgekit.text.tokenizer_file import read_tokenizer_file
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
    texts = rewritten_assets(folder)
    assert set(texts) == ({"tokenizer.json"} if "llama2" in name or "code" in name else set())
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
    assert not read_tokenizer_file(folder).is_changed


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
    assert "<tool_call>" in tokenizer.special_tokens
    assert "<absent>" not in tokenizer.special_tokens
    ids = tokenizer.encode("a<tool_call><absent>", allow_special=False)
    assert tokenizer.special_tokens["<tool_call>"] not in ids
    assert tokenizer.decode(ids) == "a<tool_call><absent>"
    assert max(ids) < tokenizer.vocab_size


@pytest.mark.parametrize("text", ["[", "[]", '{"model": 3}', '{"model": null}', "{}", "[" * 9999])
def test_a_damaged_file_of_a_class_that_changes_it_is_refused(tmp_path, text):
    folder = write_family("llama2", tmp_path)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.open(folder)


def test_a_folder_without_a_tokenizer_says_so(tmp_path):
    with pytest.raises(MissingFileError, match=r"tokenizer\.json"):
        read_tokenizer_file(tmp_path)


def test_templates_in_other_places_are_read_and_carried_in_the_usual_ones(tmp_path):
    (tmp_path / "chat_template.json").write_text('{"chat_template": "old {{ messages | length }}"}')
    assert ChatTemplate.open(tmp_path).render([]) == "old 0"
    assert rewritten_assets(tmp_path) == {"chat_template.jinja": "old {{ messages | length }}"}
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "config"}')
    assert ChatTemplate.open(tmp_path).render([]) == "config"
    assert rewritten_assets(tmp_path) == {}
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    (tmp_path / "chat_template.jinja").write_text("file")
    template = ChatTemplate.open(tmp_path)
    assert [template.render([]), template.render([], [{"type": "function"}])] == ["file", "tools"]
    carried = rewritten_assets(tmp_path)
    assert carried["chat_template.jinja"] is None
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "tokenizer_config.json").write_text(carried["tokenizer_config.json"])
    template = ChatTemplate.open(tmp_path / "artifact")
    assert [template.render([]), template.render([], [{"type": "function"}])] == ["file", "tools"]


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
