"""The tokenizer of a GGUF file gives the ids of the encoder that its vocabulary came from."""

from __future__ import annotations

import json
import random
import struct

import gguf
import pytest

from edgekit.checkpoint.gguf import tokenizer as tokenizer_module
from edgekit.checkpoint.gguf.splits import SPLITS
from edgekit.checkpoint.gguf.tokenizer import has_tokenizer, text_contents, why_unreadable
from edgekit.errors import CheckpointError, FormatError
from edgekit.formats.gguf import GgufFile
from edgekit.text.chat import ChatTemplate
from edgekit.text.files import TextFiles
from edgekit.text.tokenizer import Tokenizer
from tests.checkpoint.gguf.vocab import (
    CUTS,
    byte_level_vocabulary,
    encode_byte_level,
    sentencepiece_arrays,
    sentencepiece_model,
    spell,
    write_vocabulary,
)
from tests.formats.gguf_writer import text as gguf_text

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5
TOKENS, MERGES = byte_level_vocabulary()
TYPES = [CONTROL] * 3 + [NORMAL] * (len(TOKENS) - 3)
PARTS = [
    "the cat", "and the", "they're", "THE", "I'LL", "don't", "naïve café", "привет мир", "中文测试",
    "日本語", "한국어", "हिन्दी", "e\u0301", "１２３", "½ ²", "1", "12", "2026", "3.14", "1,000",
    " ", "  ", "    ", "\n", "\n\n", " \n ", "\t", "\r\n", "\u00a0", "\u3000", "x == 10:",
    "    return y",
    "{\"a\": [1, 2]}", "😀", "👩‍👩‍👧", "!!!", "...", "?", "/", "``", "<|im_end", "|>", "a_b.c",
]  # fmt: skip


def some_texts(n=120, seed=5):
    rng = random.Random(seed)
    texts = ["", *PARTS]
    while len(texts) < n:
        parts = [rng.choice(PARTS) for _ in range(rng.randint(2, 9))]
        texts.append("".join(part + rng.choice(["", " "]) for part in parts))
    return texts


def byte_level(tmp_path, **keys):
    wanted = {
        "model": "gpt2", "pre": "gpt-2", "tokens": TOKENS, "token_type": TYPES,
        "merges": [" ".join(merge) for merge in MERGES], "bos_token_id": 0, "eos_token_id": 1,
        "padding_token_id": 2,
    }  # fmt: skip
    return write_vocabulary(tmp_path / "v.gguf", **{**wanted, **keys})


def sentencepiece(tmp_path, architecture="llama", processor=None, **keys):
    tokens, scores, types = sentencepiece_arrays(processor or sentencepiece_model())
    wanted = {
        "model": "llama", "tokens": tokens, "scores": scores, "token_type": types,
        "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0,
    }  # fmt: skip
    return write_vocabulary(tmp_path / "v.gguf", architecture, **{**wanted, **keys})


def contents_of(path):
    with GgufFile(path) as file:
        return text_contents(file)


def open_tokenizer(path):
    return Tokenizer.open(TextFiles.of_contents(path, contents_of(path)))


def ids_of(tokenizer, text, **options):
    return tokenizer.encode(text, allow_special=True, **options)


@pytest.mark.parametrize("pre", CUTS)
def test_byte_level_ids_are_those_of_llama_cpp(tmp_path, pre):
    tokenizer = open_tokenizer(byte_level(tmp_path, pre=pre))
    split, texts = SPLITS[pre], some_texts()
    if split.is_composed:  # the model's own tokenizer composes Unicode first, llama.cpp does not
        texts = [text for text in texts if "\u0301" not in text]
    for text in texts:
        wanted = encode_byte_level(text, TOKENS, MERGES, pre, ignores_merges=split.ignores_merges)
        assert ids_of(tokenizer, text) == wanted, (pre, text)
        assert tokenizer.decode(wanted) == text


def test_a_file_without_the_key_is_cut_as_llama_cpp_cuts_it(tmp_path):
    tokenizer = open_tokenizer(byte_level(tmp_path, pre=None))
    text = "the 2026 and 12345!"
    assert ids_of(tokenizer, text) == encode_byte_level(text, TOKENS, MERGES, "default")


def test_qwen_composes_unicode_first(tmp_path):
    tokenizer = open_tokenizer(byte_level(tmp_path, pre="qwen2"))
    assert ids_of(tokenizer, "e\u0301") == ids_of(tokenizer, "é")
    plain = open_tokenizer(byte_level(tmp_path, pre="smollm"))
    assert ids_of(plain, "e\u0301") != ids_of(plain, "é")


def test_sentencepiece_ids_are_those_of_sentencepiece(tmp_path):
    processor = sentencepiece_model()
    tokenizer = open_tokenizer(sentencepiece(tmp_path))
    for text in some_texts():
        # SentencePiece puts one space in front of every text, transformers only before words.
        wanted = processor.EncodeAsIds(text)
        if not text.startswith(" "):
            assert ids_of(tokenizer, text) == wanted, text
    assert tokenizer.decode(processor.EncodeAsIds("naïve 中文 😀")) == "naïve 中文 😀"


def test_sentencepiece_without_a_space_in_front(tmp_path):
    processor = sentencepiece_model(add_dummy_prefix=False)
    tokenizer = open_tokenizer(sentencepiece(tmp_path, processor=processor, add_space_prefix=False))
    for text in some_texts():
        assert ids_of(tokenizer, text) == processor.EncodeAsIds(text), text
        assert tokenizer.decode(processor.EncodeAsIds(text)) == text


def test_gemma_has_runs_of_spaces_and_new_lines_of_its_own(tmp_path):
    runs = ["  ", "   ", "\n\n"]
    processor = sentencepiece_model(
        add_dummy_prefix=False, user_defined_symbols=tuple(r.replace(" ", "▁") for r in runs)
    )
    tokens, scores, types = sentencepiece_arrays(processor)
    for i, token in enumerate(tokens):
        if token.replace("▁", " ") in runs:
            tokens[i], scores[i], types[i] = token.replace("▁", " "), -1000.0, USER_DEFINED
    path = sentencepiece(
        tmp_path, "gemma2", tokens=tokens, scores=scores, token_type=types, add_space_prefix=False
    )
    tokenizer = open_tokenizer(path)
    for text in [*some_texts(), "a  b", "a   b", "a\n\nb", "x    y"]:
        wanted = processor.EncodeAsIds(text)
        if "     " not in text and "\n\n" not in text.replace("\n\n", "", 1):
            assert ids_of(tokenizer, text) == wanted, text
        assert tokenizer.decode(wanted) == text


def test_phi_3_takes_the_space_after_its_special_tokens(tmp_path):
    tokens, scores, types = sentencepiece_arrays(sentencepiece_model())
    tokens += ["<|user|>", "<|end|>"]
    keys = {"tokens": tokens, "scores": [*scores, -1e4, -1e4], "token_type": [*types, 3, 3]}
    tokenizer = open_tokenizer(sentencepiece(tmp_path, "phi3", **keys))
    user = tokenizer.token_id("<|user|>")
    assert ids_of(tokenizer, "<|user|>\n the") == [user, *ids_of(tokenizer, "the")]
    other = open_tokenizer(sentencepiece(tmp_path, "llama", **keys))
    assert len(ids_of(other, "<|user|>\n the")) > 2


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({}, ""), ({"pre": "llama-bpe"}, "b"), ({"pre": "tekken"}, "b"),
        ({"pre": "llama-bpe", "add_bos_token": False}, ""), ({"add_bos_token": True}, "b"),
        ({"add_eos_token": True}, "e"), ({"add_bos_token": True, "add_eos_token": True}, "be"),
        ({"add_bos_token": True, "bos_token_id": None}, ""),
    ],
)  # fmt: skip
def test_what_stands_around_a_text_of_its_own(tmp_path, keys, wanted):
    tokenizer = open_tokenizer(byte_level(tmp_path, **keys))
    inner = ids_of(tokenizer, "the")
    around = {"b": [0], "e": [1]}
    before = around["b"] if "b" in wanted else []
    after = around["e"] if "e" in wanted else []
    assert ids_of(tokenizer, "the", add_special=True) == [*before, *inner, *after]


def test_sentencepiece_begins_with_the_begin_token_unless_told_not_to(tmp_path):
    tokenizer = open_tokenizer(sentencepiece(tmp_path, bos_token_id=None, eos_token_id=None))
    assert ids_of(tokenizer, "the", add_special=True)[0] == 1
    assert tokenizer.named_tokens["eos_token"] == "</s>"  # llama.cpp's ids where none are given
    tokenizer = open_tokenizer(sentencepiece(tmp_path, add_bos_token=False))
    assert ids_of(tokenizer, "the", add_special=True)[0] != 1


def with_tail(*tail):
    """Give tokens and types with some more behind them."""
    return {
        "tokens": [*TOKENS, *(text for text, _ in tail)],
        "token_type": [*TYPES, *(kind for _, kind in tail)],
    }


def test_control_and_user_defined_tokens_are_whole_and_only_control_is_special(tmp_path):
    tail = (("<think>", USER_DEFINED), ("<|tool|>", CONTROL), ("<｜end▁x｜>", CONTROL))
    tokenizer = open_tokenizer(byte_level(tmp_path, pre="llama-bpe", **with_tail(*tail)))
    n = len(TOKENS)
    for i, (text, kind) in enumerate(tail):
        assert ids_of(tokenizer, f"a{text}b")[1:-1] == [n + i]
        assert (text in tokenizer.special_tokens) == (kind == CONTROL)
        assert tokenizer.decode([n + i], skip_special=False) == text
    # What a person writes never becomes a control token, even where whole words are tokens.
    assert n + 1 not in tokenizer.encode("<|tool|>", allow_special=False)


@pytest.mark.parametrize(
    "tail",
    [
        (("[PAD1]", UNUSED), ("[PAD2]", UNUSED)),
        (("<a>", CONTROL), ("[PAD1]", UNUSED), ("<b>", CONTROL), ("[PAD2]", UNUSED)),
        (("<a>", CONTROL), ("[PAD1]", UNUSED)),
        (("[PAD1]", UNUSED), ("<a>", CONTROL)),
    ],
)
def test_every_token_keeps_its_id(tmp_path, tail):
    tokenizer = open_tokenizer(byte_level(tmp_path, **with_tail(*tail)))
    for i, text in enumerate([*TOKENS, *(text for text, _ in tail)]):
        if (text, UNUSED) not in tail:
            assert tokenizer.token_id(text) == i
    text = "the [PAD1] and [PAD2]"
    assert ids_of(tokenizer, text) == encode_byte_level(text, TOKENS, MERGES, "gpt-2")


def test_types_may_be_absent_as_in_old_files(tmp_path):
    tokenizer = open_tokenizer(byte_level(tmp_path, token_type=None))
    assert ids_of(tokenizer, "a<|im_end|>b")[1:-1] == [1]
    assert tokenizer.special_tokens == {"<|bos|>": 0, "<|im_end|>": 1}


def test_a_padding_token_that_is_text_stays_text(tmp_path):
    exclamation = TOKENS.index("!")
    path = byte_level(tmp_path, padding_token_id=exclamation, unknown_token_id=exclamation)
    tokenizer = open_tokenizer(path)
    assert "!" not in tokenizer.special_tokens
    assert ids_of(tokenizer, "the!!") == encode_byte_level("the!!", TOKENS, MERGES, "gpt-2")
    assert "pad_token" not in json.loads(contents_of(path)["tokenizer_config.json"])


def test_ids_that_are_no_tokens_count_as_none(tmp_path):
    contents = contents_of(byte_level(tmp_path, padding_token_id=2**32 - 1, bos_token_id=9999))
    assert json.loads(contents["generation_config.json"]) == {"eos_token_id": 1}


N = len(TOKENS)


def control(*texts):
    return tuple((text, CONTROL) for text in texts)


# What is wanted was found by having llama.cpp itself (xllamacpp 2026.10.11549) say each token.
@pytest.mark.parametrize(
    ("tail", "keys", "wanted"),
    [
        ((), {}, 1),
        ((), {"eos_token_id": 2}, [2, 1]),  # <|im_end|> ends a turn, whatever the file names
        ((), {"eos_token_id": 2, "eot_token_id": 1}, [2, 1]),
        (control("a b"), {"eom_token_id": N}, [1, N]),
        (control("<|eot_id|>", "<|eom_id|>"), {}, [1, N, N + 1]),
        (control("<|end|>"), {}, [1, N]),
        (control("<|endoftext|>"), {}, [1, N]),
        (control("<|end_of_text|>"), {}, [1, N]),
        (control("</s>"), {}, [1, N]),
        # An answer has parts that end with <|end|> where the other ends are of that format.
        (control("<|end|>", "<|return|>"), {}, [1, N, N + 1]),
        (control("<|end|>", "<|return|>", "<|call|>"), {}, [1, N + 1, N + 2]),
        (control("<|end|>", "<|flush|>", "<|calls|>"), {}, [1, N + 2, N + 1]),
        (control("</s>", "<|tool_response>"), {}, [1, N + 1]),
        # The next file or repository ends a file that is filled in; a key goes before the name.
        (control("<reponame>", "<|file_sep|>"), {}, [1, N, N + 1]),
        (control("<fim_prefix>", "<fim_pad>"), {}, [1, N + 1]),
        (control("<fim_pad>", "other"), {"fim_pad_token_id": N + 1}, [1, N + 1]),
        # Such names are control tokens whatever type the converter gave them.
        ((("<|eot_id|>", NORMAL),), {}, [1, N]),
        ((("<|endoftext|>", USER_DEFINED),), {}, [1, N]),
    ],
)
def test_end_ids_are_those_of_llama_cpp(tmp_path, tail, keys, wanted):
    contents = contents_of(byte_level(tmp_path, **with_tail(*tail), **keys))
    assert json.loads(contents["generation_config.json"])["eos_token_id"] == wanted


@pytest.mark.parametrize("name", ["<|im_end|>", "<|fim_middle|>", "<|end_of_text|>"])
def test_names_of_control_tokens_are_whole_whatever_their_type(tmp_path, name):
    types = [NORMAL if text == name else kind for text, kind in zip(TOKENS, TYPES, strict=True)]
    tail = with_tail((name, NORMAL)) if name not in TOKENS else {"token_type": types}
    tokenizer = open_tokenizer(byte_level(tmp_path, **tail))
    wanted = tokenizer.special_tokens[name]
    assert ids_of(tokenizer, f"the{name}the")[1:-1].count(wanted) == 1
    assert wanted not in tokenizer.encode(f"the{name}", allow_special=False)


def test_templates_come_out_of_the_file(tmp_path):
    keys = {
        "chat_template": "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}\r\n",
        "chat_template.tool_use": "{{ tools }}{{ messages[0].content }}",
        "chat_template../evil": "x",
    }
    contents = contents_of(byte_level(tmp_path, **keys))
    assert contents["chat_template.jinja"] == keys["chat_template"]
    assert {name for name in contents if "/" in name} == {
        "additional_chat_templates/tool_use.jinja"
    }
    template = ChatTemplate.open(TextFiles.of_contents("m.gguf", contents))
    assert template.sources.keys() == {"default", "tool_use"}
    assert template.render([{"role": "user", "content": "hi"}]) == "<|bos|>hi"


def test_a_file_may_have_no_tokenizer(tmp_path):
    for keys in ({}, {"model": "none", "tokens": ["a"]}, {"model": "gpt2"}):
        with GgufFile(write_vocabulary(tmp_path / "v.gguf", **keys)) as file:
            assert not has_tokenizer(file)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"model": "t5"}, "tokenizer.ggml.model 't5'"),
        ({"pre": "surprise"}, "tokenizer.ggml.pre 'surprise'"),
        ({"token_type": [1, 1]}, "2 items"),
        ({"merges": None}, "no such key"),
        ({"merges": ["t h", "q"]}, "merge 1 is 'q'"),
        ({"merges": ["t h", "q zz"]}, "merge 1 is 'q zz'"),
        ({"tokens": [*TOKENS[:-1], "zz"]}, "merge 119"),
        ({"tokens": [*TOKENS[:-1], TOKENS[5]]}, "are both"),
        ({"tokens": [*TOKENS[:-1], "x" * 5000]}, "longer"),
    ],
)
def test_a_vocabulary_that_makes_no_sense_is_refused(tmp_path, keys, words):
    with pytest.raises(CheckpointError, match=words):
        contents_of(byte_level(tmp_path, **keys))


def test_scores_of_another_number_are_refused(tmp_path):
    for scores in (None, [0.5, 1.5]):
        with pytest.raises(CheckpointError, match=r"tokenizer\.ggml\.scores"):
            contents_of(sentencepiece(tmp_path, scores=scores))


def test_vocabularies_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_module, "MAX_TOKENS", 300)
    with pytest.raises(CheckpointError, match="wanted 1 to 300"):
        contents_of(byte_level(tmp_path))
    monkeypatch.setattr(tokenizer_module, "MAX_TOKENS", 1 << 20)
    monkeypatch.setattr(tokenizer_module, "_MAX_SPLIT_WORK", 100)
    with pytest.raises(CheckpointError, match="too long"):
        contents_of(sentencepiece(tmp_path))


def test_tokens_that_are_not_utf_8_are_named(tmp_path):
    items = gguf_text("fine") + struct.pack("<Q", 2) + b"\xff\xfe"
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 2)
    head += gguf_text("tokenizer.ggml.model") + struct.pack("<I", 8) + gguf_text("gpt2")
    head += gguf_text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + items
    (tmp_path / "v.gguf").write_bytes(head + b"\0" * 64)
    with GgufFile(tmp_path / "v.gguf") as file, pytest.raises(FormatError, match="item 1 of"):
        text_contents(file)


def test_every_name_of_a_split_is_llama_cpps_and_is_read(tmp_path):
    assert why_unreadable(GgufFile(byte_level(tmp_path))) is None
    for name in SPLITS:
        tokenizer = open_tokenizer(byte_level(tmp_path, pre=name))
        assert tokenizer.decode(ids_of(tokenizer, "the 12 cats")) == "the 12 cats"
    assert spell("é") == "Ã©"
    assert gguf.TokenType.CONTROL == CONTROL
