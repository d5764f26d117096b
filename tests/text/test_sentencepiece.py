"""A tokenizer.model alone gives the ids of transformers, and those of sentencepiece itself."""

from __future__ import annotations

import contextlib

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from edgekit.errors import CheckpointError
from edgekit.text.sentencepiece import read_sentencepiece
from edgekit.text.tokenizer import Tokenizer
from tests.text.sentencepiece_model import train
from tests.text.token_parts import write_json
from tests.text.token_texts import TEXTS

SYMBOLS = {"user_defined_symbols": ["<x>", "<|im_end|>"], "control_symbols": ["<ctl>"]}
ROLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def write(folder, data, model_type="llama", **config):
    (folder / "tokenizer.model").write_bytes(data)
    write_json(folder / "config.json", {"model_type": model_type})
    write_json(folder / "tokenizer_config.json", ROLES | config)
    return folder


@pytest.fixture(scope="module")
def models():
    return {"plain": train(), "symbols": train(**SYMBOLS), "bare": train(add_dummy_prefix=False)}


@pytest.mark.parametrize("name", ["plain", "symbols"])
@pytest.mark.parametrize(
    "config",
    [{}, {"legacy": True}, {"add_prefix_space": False}, {"add_bos_token": True},
     {"add_bos_token": True, "add_eos_token": True}],
    ids=str,
)  # fmt: skip
def test_ids_flags_and_text_are_those_of_transformers(tmp_path, models, name, config):
    folder = write(tmp_path, models[name], tokenizer_class="LlamaTokenizer", **config)
    reference, tokenizer = AutoTokenizer.from_pretrained(folder), Tokenizer.open(folder)
    assert tokenizer.named_tokens == reference.special_tokens_map
    assert {i: (t.content, t.special) for i, t in reference.added_tokens_decoder.items()} == {
        i: (text, text in tokenizer.special_tokens) for text, i in tokenizer.added_tokens.items()
    }
    for key, text in {**TEXTS, "symbols": "a<x> b<|im_end|><ctl></s>c"}.items():
        ids = reference.encode(text)
        assert tokenizer.encode(text, allow_special=True, add_special=True) == ids, key
        assert tokenizer.decode(ids, skip_special=False) == reference.decode(ids), key


@pytest.mark.parametrize("model_type", ["mistral", "gemma", "llama"])
@pytest.mark.parametrize("name", ["plain", "bare"])
def test_without_the_class_of_llama_ids_are_those_of_sentencepiece(
    tmp_path, models, name, model_type
):
    tokenizer = Tokenizer.open(write(tmp_path, models[name], model_type))
    reference = sentencepiece.SentencePieceProcessor(model_proto=models[name])
    for key, text in TEXTS.items():
        ids = reference.encode(text)
        # A text that begins with a space gets no other in front; sentencepiece gives it one.
        if name == "bare" or not text.startswith(" "):
            assert tokenizer.encode(text, allow_special=False) == ids, key
        assert tokenizer.decode(ids) == reference.decode(ids), key


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"model_type": "unigram"}, "unigram pieces"),
        ({"byte_fallback": False}, "unknown characters without bytes"),
        ({"normalization_rule_name": "nmt_nfkc"}, "text that is normalized first"),
        ({"remove_extra_whitespaces": True}, "text that is normalized first"),
    ],
)
def test_a_model_that_the_library_would_read_otherwise_is_refused(tmp_path, changes, fault):
    with pytest.raises(CheckpointError, match=r"tokenizer\.model") as caught:
        Tokenizer.open(write(tmp_path, train(**changes)))
    assert caught.value.got == fault
    assert "save_pretrained" in caught.value.do


@pytest.mark.parametrize("data", [b"", b"\x0a", b"\x0a\x7f", b"\xff" * 20, b"[]", b"\x0b\x0c"])
def test_a_file_that_is_none_is_refused(tmp_path, data):
    with pytest.raises(CheckpointError, match=r"tokenizer\.model: sentencepiece model"):
        Tokenizer.open(write(tmp_path, data))


@given(st.binary(max_size=200), st.integers(0, 5000))
def test_a_damaged_file_is_read_or_refused(models, junk, place):
    data = models["plain"]
    with contextlib.suppress(ValueError, IndexError):
        read_sentencepiece(data[:place] + junk + data[place + len(junk) :])
