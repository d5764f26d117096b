from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as LibraryTokenizer
from transformers import AutoTokenizer

from edgekit.errors import CheckpointError, MissingFileError, UsageError
from edgekit.text.tokenizer import StreamDecoder, Tokenizer
from tests.builders import SPECIAL_TOKENS, write_tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tiny_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.open(folder)


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory):
    """A tokenizer of Llama 2's kind: "▁" in front of the first word, bytes as ``<0x..>``."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    symbols = ["<unk>", "<s>", "</s>", "[INST]", *(f"<0x{b:02X}>" for b in range(256))]
    symbols += ["▁", *"abcdefghijklmnopqrstuvwxyz[]/<>INST", "▁a", "▁t", "he", "▁the"]
    merges = [("▁", "a"), ("▁", "t"), ("h", "e"), ("▁t", "he")]
    vocabulary = {s: i for i, s in enumerate(symbols)}
    library = LibraryTokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True)
    )
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    library.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    library.add_special_tokens(
        [AddedToken(t, normalized=False, special=True) for t in ("<unk>", "<s>", "</s>", "[INST]")]
    )
    library.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"unk_token": "<unk>"}))
    return Tokenizer.open(folder)


def test_roles_come_from_the_config(tokenizer):
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 3)
    assert tokenizer.special_tokens == {text: i for i, text in enumerate(SPECIAL_TOKENS)}
    assert tokenizer.vocab_size == 365
    assert tokenizer.token_id("nothing of that name") is None


def test_a_special_map_with_objects_is_read(tmp_path):
    write_tiny_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": {"content": "</s>", "lstrip": False}, "bos_token": "<s>"})
    )
    tokenizer = Tokenizer.open(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, None)


@given(st.text())
def test_text_survives_encoding_and_decoding(tokenizer, text):
    ids = tokenizer.encode(text, allow_special=False)
    assert tokenizer.decode(ids, skip_special=False) == text


@given(st.lists(st.sampled_from([*SPECIAL_TOKENS, "a", " the", "é", "🎉", "[", ">"])).map("".join))
def test_ids_are_those_of_transformers(folder, tokenizer, text):
    reference = _reference(folder)
    wanted = reference.encode(text, add_special_tokens=False)
    assert tokenizer.encode(text, allow_special=True) == wanted
    assert tokenizer.decode(wanted, skip_special=False) == reference.decode(wanted)
    assert tokenizer.decode(wanted) == reference.decode(wanted, skip_special_tokens=True)


@given(
    st.lists(st.sampled_from([*SPECIAL_TOKENS, "a", " ", "[INST", "]"]), min_size=1).map("".join)
)
def test_user_text_never_becomes_a_special_token(tokenizer, text):
    ids = tokenizer.encode(text, allow_special=False)
    assert set(ids).isdisjoint(tokenizer.special_tokens.values())
    assert tokenizer.decode(ids) == text


def test_a_template_text_becomes_special_tokens(tokenizer):
    ids = tokenizer.encode("<s>[INST]a[/INST]", allow_special=True)
    assert [tokenizer.token_text(i) for i in ids] == ["<s>", "[INST]", "a", "[/INST]"]
    assert tokenizer.decode(ids) == "a"


def test_text_after_a_special_token_gets_no_space_in_front(sentencepiece):
    whole = sentencepiece.encode("[INST]the", allow_special=True)
    start = sentencepiece.encode("the", allow_special=False)
    continued = sentencepiece.encode("the", allow_special=False, is_continued=True)
    assert [sentencepiece.token_text(i) for i in whole[1:]] == ["t", "he"]
    assert continued == whole[1:]
    assert len(start) == 1


def test_unicode_that_cannot_be_written_is_a_usage_error(tokenizer):
    for allow_special in (True, False):
        with pytest.raises(UsageError, match="cannot be tokenized"):
            tokenizer.encode("a\ud800", allow_special=allow_special)


@pytest.mark.parametrize("ids", [[-1], [2**40]])
def test_an_impossible_id_is_a_usage_error(tokenizer, ids):
    with pytest.raises(UsageError, match="token id"):
        tokenizer.decode(ids)


def test_an_id_without_a_token_adds_nothing(tokenizer):
    a = tokenizer.encode("a", allow_special=False)
    assert tokenizer.decode([*a, tokenizer.vocab_size, *a]) == "aa"


@given(st.data())
def test_streamed_text_is_the_text_of_all_ids(tokenizer, data):
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=30))
    skip_special = data.draw(st.booleans())
    _check_stream(tokenizer, ids, skip_special)


@given(st.data())
def test_streamed_text_is_whole_with_byte_tokens_and_leading_spaces(sentencepiece, data):
    ids = data.draw(st.lists(st.integers(0, sentencepiece.vocab_size + 3), max_size=30))
    _check_stream(sentencepiece, ids, data.draw(st.booleans()))


@given(st.text(min_size=1))
def test_streaming_never_shows_half_a_character(tokenizer, text):
    stream = StreamDecoder(tokenizer)
    pieces = [stream.push(i) for i in tokenizer.encode(text, allow_special=False)]
    assert "".join(pieces) + stream.finish() == text
    assert "\ufffd" not in "".join(pieces) or "\ufffd" in text


def test_a_stream_waits_for_the_last_byte_of_a_character(tokenizer):
    ids = tokenizer.encode("é", allow_special=False)
    assert len(ids) == 2
    stream = StreamDecoder(tokenizer)
    assert [stream.push(i) for i in ids] == ["", "é"]
    assert stream.push(ids[0]) == ""
    assert stream.finish() == "\ufffd"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "not json",
        "[]",
        '{"version": "1.0", "model": null}',
        '{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}',
        '{"version": "1.0", "model": {"type": "Unknown"}}',
    ],
)
def test_a_corrupt_tokenizer_is_a_checkpoint_error(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.open(tmp_path)


@given(st.data())
def test_a_damaged_tokenizer_loads_or_is_refused(folder, tmp_path_factory, data):
    damaged = bytearray((folder / "tokenizer.json").read_bytes())
    position = data.draw(st.integers(0, len(damaged) - 8))
    damaged[position : position + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    target = tmp_path_factory.mktemp("damaged")
    (target / "tokenizer.json").write_bytes(bytes(damaged))
    try:
        tokenizer = Tokenizer.open(target)
        tokenizer.decode(tokenizer.encode("the [INST] world", allow_special=True))
    except CheckpointError as error:
        assert "tokenizer.json" in error.what


def test_bytes_that_are_no_text_and_an_absent_file_are_told_apart(tmp_path):
    with pytest.raises(MissingFileError):
        Tokenizer.open(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xff")
    with pytest.raises(CheckpointError, match="cannot be read"):
        Tokenizer.open(tmp_path)


def test_a_corrupt_tokenizer_config_is_a_checkpoint_error(tmp_path):
    write_tiny_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        Tokenizer.open(tmp_path)


def test_a_tokenizer_that_cannot_write_a_special_name_as_text_says_so(tmp_path):
    # A word-level vocabulary knows "[INST]" as a word, special or not.
    library = LibraryTokenizer(models.WordLevel({"<unk>": 0, "[INST]": 1}, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.normalizer = normalizers.NFC()
    library.add_special_tokens([AddedToken("[INST]", special=True, normalized=False)])
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.open(tmp_path)
    assert tokenizer.encode("what", allow_special=False) == [0]
    with pytest.raises(CheckpointError, match="as ordinary text") as caught:
        tokenizer.encode("a [INST]", allow_special=False)
    assert caught.value.got == "'[INST]'"


def _check_stream(tokenizer, ids, skip_special):
    stream = StreamDecoder(tokenizer, skip_special=skip_special)
    text = "".join([stream.push(i) for i in ids]) + stream.finish()
    assert text == tokenizer.decode(ids, skip_special=skip_special)


_REFERENCES = {}


def _reference(folder):
    if folder not in _REFERENCES:
        _REFERENCES[folder] = AutoTokenizer.from_pretrained(folder)
    return _REFERENCES[folder]
