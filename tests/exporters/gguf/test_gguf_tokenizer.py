"""Claims about the text of a GGUF artifact: names, types, ends, templates, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekit.checkpoint.gguf.splits import SPLITS
from edgekit.errors import ExportError
from edgekit.exporters.gguf.tokenizer import _NAMES, _PROBES, _sections, text_metadata
from edgekit.paths import models_dir
from edgekit.text.files import TextFiles
from edgekit.text.tokenizer import cut_texts
from tests.builders import write_tiny_tokenizer
from tests.exporters.memory_model import tiny_spec

KEY = "tokenizer.ggml."
CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
BARE = CHAT.removeprefix("{{ bos_token }}")


@pytest.fixture
def files_of(tmp_path):
    """Write the tiny tokenizer with changes to tokenizer.json and tokenizer_config.json."""

    def make(config=None, **changes) -> TextFiles:
        write_tiny_tokenizer(tmp_path, 384)
        path = tmp_path / "tokenizer.json"
        parsed = json.loads(path.read_text(encoding="utf-8"))
        for key, value in changes.items():
            parsed[key] = value(parsed[key]) if callable(value) else value
        path.write_text(json.dumps(parsed), encoding="utf-8")
        config_path = Path(tmp_path / "tokenizer_config.json")
        old = json.loads(config_path.read_text(encoding="utf-8"))
        config_path.write_text(json.dumps({**old, **(config or {})}), encoding="utf-8")
        return TextFiles.of_folder(tmp_path)

    return make


def keys_of(files, **spec):
    return text_metadata(files, tiny_spec(**{"vocab_size": 384, **spec}))


def test_the_probes_tell_all_splits_apart():
    cut = {name: str(cut_texts(_sections(name), _PROBES)) for name in _NAMES}
    # The same cuts; one takes whole tokens first.
    assert cut.pop("dbrx") == cut["llama-bpe"]
    assert len(set(cut.values())) == len(cut)
    assert {SPLITS[name] for name in _NAMES} == {
        split for name, split in SPLITS.items() if name != "default"
    }


@pytest.mark.parametrize("name", _NAMES)
def test_a_split_is_found_by_what_it_does(files_of, name):
    ignores = SPLITS[name].ignores_merges
    files = files_of(**_sections(name), model=lambda model: {**model, "ignore_merges": ignores})
    assert keys_of(files).metadata[f"{KEY}pre"] == name


def test_another_spelling_of_the_same_split_is_found_too(files_of):
    section = json.loads(json.dumps(_sections("qwen2")))
    split = section["pre_tokenizer"]["pretokenizers"][0]
    # As Qwen publishes it: the contractions spelled out.
    split["pattern"]["Regex"] = split["pattern"]["Regex"].replace(
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)", "(?i:'(?:[sdmt]|ll|ve|re))"
    )
    text = keys_of(files_of(**section))
    assert text.metadata[f"{KEY}pre"] == "qwen2"
    assert any("does not compose Unicode" in note for note in text.notes)


def test_a_split_that_no_name_means_is_refused(files_of):
    odd = {"type": "Split", "pattern": {"Regex": "o"}, "behavior": "Isolated", "invert": False}
    byte_level = _sections("gpt-2")["pre_tokenizer"]
    section = {"type": "Sequence", "pretokenizers": [odd, byte_level]}
    with pytest.raises(ExportError, match=r"a way to cut text that has no name in llama\.cpp"):
        keys_of(files_of(pre_tokenizer=section))
    with pytest.raises(ExportError, match="byte-pair merges"):
        wordlevel = {"type": "WordLevel", "vocab": {"a": 0, "<unk>": 1}, "unk_token": "<unk>"}
        keys_of(files_of(model=wordlevel, added_tokens=[], pre_tokenizer=byte_level))


def test_whole_tokens_first_matters_only_where_merges_do_not_lead_to_them(files_of):
    # The last words of this vocabulary follow from no merges.
    with pytest.raises(ExportError, match=r"ignore_merges True, which matters for 7 tokens"):
        keys_of(files_of(**_sections("gpt-2"), model=lambda m: {**m, "ignore_merges": True}))
    folder = models_dir() / "pocket"
    parsed = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    n_tokens = len(parsed["model"]["vocab"])
    for ignores in (True, False):
        parsed["model"]["ignore_merges"] = ignores
        files = TextFiles.of_folder(folder).overlaid(
            TextFiles.of_contents(folder, {"tokenizer.json": json.dumps(parsed)})
        )
        assert keys_of(files, vocab_size=n_tokens).metadata[f"{KEY}pre"] == "tekken"


def test_every_row_has_a_token_and_a_type(files_of):
    files = files_of()
    found = keys_of(files, vocab_size=390).metadata
    tokens, types = found[f"{KEY}tokens"], found[f"{KEY}token_type"]
    assert len(tokens) == len(types) == len(set(tokens)) == 390
    n_own = 365
    assert tokens[n_own:] == [f"[PAD{i}]" for i in range(n_own, 390)]
    assert types[n_own:] == [5] * 25
    assert [types[tokens.index(name)] for name in ("<s>", "</s>")] == [3, 3]
    assert set(types[:n_own]) == {1, 3}


def test_an_added_token_that_is_text_is_user_defined(files_of):
    flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
    own = {"id": 365, "content": "<think>", "special": False, **flags}
    files = files_of(added_tokens=lambda tokens: [*tokens, own])
    found = keys_of(files, vocab_size=385).metadata
    assert (found[f"{KEY}tokens"][365], found[f"{KEY}token_type"][365]) == ("<think>", 4)


def test_roles_and_ends(files_of):
    text = keys_of(files_of(), eos_token_ids=(7, 2, 9, 11))
    found = {k.removeprefix(KEY): v for k, v in text.metadata.items() if k.endswith("_id")}
    assert found["eos_token_id"] == 2  # the tokenizer's own first
    assert (found["eot_token_id"], found["eom_token_id"]) == (7, 9)
    assert (found["bos_token_id"], found["padding_token_id"]) == (1, 3)
    (note,) = text.notes
    assert note.startswith("llama.cpp does not end answers at ")
    assert "(11)" in note


def test_ends_by_name_are_told(files_of):
    flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
    own = {"id": 365, "content": "<|endoftext|>", "special": True, **flags}
    text = keys_of(files_of(added_tokens=lambda tokens: [*tokens, own]), vocab_size=385)
    assert text.notes == ("llama.cpp also ends answers at '<|endoftext|>' (365), by their names",)


@pytest.mark.parametrize(("template", "wanted"), [(CHAT, True), (BARE, False), (None, True)])
def test_a_begin_token_is_added_where_prompts_have_one(files_of, template, wanted):
    around = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
        ],
        "pair": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }  # fmt: skip
    text = keys_of(files_of({"chat_template": template}, post_processor=around))
    assert text.metadata[f"{KEY}add_bos_token"] is wanted
    assert any("add_bos_token is false" in note for note in text.notes) is not wanted
    assert text.metadata.get("tokenizer.chat_template") == template


def test_named_templates_are_all_there(files_of):
    entry = [
        {"name": "default", "template": CHAT},
        {"name": "tool_use", "template": "{{ tools }}" + CHAT},
    ]
    found = keys_of(files_of({"chat_template": entry})).metadata
    assert found["tokenizer.chat_templates"] == ["tool_use"]
    assert found["tokenizer.chat_template.tool_use"] == "{{ tools }}" + CHAT
    assert found["tokenizer.chat_template"].startswith("{% if tools %}")


def test_a_model_without_a_tokenizer(tmp_path):
    assert keys_of(TextFiles.of_folder(tmp_path)).metadata == {f"{KEY}model": "none"}
