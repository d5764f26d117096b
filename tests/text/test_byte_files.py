"""vocab.json with merges.txt gives the ids of transformers, or an error that says what to do."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer

from edgekit.errors import CheckpointError
from edgekit.text.tokenizer import Tokenizer
from tests.text.token_families import write_family
from tests.text.token_parts import write_json
from tests.text.token_texts import TEXTS


def write(folder, family, class_name, **changes):
    write_family(family, folder)
    built = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    (folder / "tokenizer.json").unlink()
    write_json(folder / "vocab.json", built["model"]["vocab"])
    pairs = [m if isinstance(m, str) else " ".join(m) for m in built["model"]["merges"]]
    text = "\n".join(["#version: 0.2", *pairs, ""])
    (folder / "merges.txt").write_text(text, encoding="utf-8")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, config | {"tokenizer_class": class_name} | changes)
    return folder


@pytest.mark.parametrize(
    ("family", "class_name", "changes"),
    [
        ("qwen2.5", "Qwen2Tokenizer", {}),
        ("qwen3", "Qwen2TokenizerFast", {}),
        ("llama3", "GPT2Tokenizer", {}),
        ("llama3", "GPT2Tokenizer", {"add_prefix_space": True}),
        ("smollm3", "GPT2TokenizerFast", {"add_bos_token": True}),
        ("smollm3", "Qwen2Tokenizer", {"add_bos_token": True, "add_eos_token": True}),
    ],
)
def test_ids_and_text_are_those_of_transformers(tmp_path, family, class_name, changes):
    folder = write(tmp_path, family, class_name, **changes)
    reference, tokenizer = AutoTokenizer.from_pretrained(folder), Tokenizer.open(folder)
    assert tokenizer.named_tokens == reference.special_tokens_map
    assert tokenizer.added_tokens == reference.get_added_vocab()
    for key, text in TEXTS.items():
        ids = reference.encode(text)
        assert tokenizer.encode(text, allow_special=True, add_special=True) == ids, key
        assert tokenizer.decode(ids, skip_special=False) == reference.decode(ids), key


@pytest.mark.parametrize("class_name", ["PreTrainedTokenizerFast", "CodeGenTokenizer", None])
def test_a_class_that_does_not_say_how_it_splits_is_refused(tmp_path, class_name):
    folder = write(tmp_path, "llama3", class_name)
    with pytest.raises(CheckpointError, match="a vocabulary without tokenizer") as caught:
        Tokenizer.open(folder)
    assert "save_pretrained" in caught.value.do


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("vocab.json", "[1]"), ("vocab.json", '{"a": "b"}'), ("vocab.json", '{"a": 1, "b": 1}'),
        ("vocab.json", '{"a": -1}'), ("vocab.json", "{"), ("vocab.json", "[" * 9999),
        ("merges.txt", "a b c\n"), ("merges.txt", "a\n"), ("merges.txt", "a b\n\nc d\n"),
    ],
)  # fmt: skip
def test_damage_is_refused(tmp_path, name, content):
    folder = write(tmp_path, "qwen3", "Qwen2Tokenizer")
    (folder / name).write_text(content)
    with pytest.raises(CheckpointError, match=r"vocab\.json: vocabulary"):
        Tokenizer.open(folder)


def test_a_merge_of_an_unknown_token_is_refused(tmp_path):
    folder = write(tmp_path, "qwen3", "Qwen2Tokenizer")
    (folder / "merges.txt").write_text("é ü\n")
    with pytest.raises(CheckpointError, match=r"vocab\.json: tokenizer"):
        Tokenizer.open(folder)
