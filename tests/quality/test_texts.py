"""Claims about the texts that quality is measured on: built in, of the suites, and of a file."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import UsageError
from edgekit.families import open_model
from edgekit.quality.texts import (
    CHATS,
    PROSE,
    builtin_documents,
    read_documents,
    split_text,
    suite_documents,
    take_tokens,
)
from edgekit.quantize import calibration
from tests.builders import write_tiny_checkpoint


@pytest.fixture(scope="module")
def view(pocket_model):
    source = open_model(pocket_model)
    yield source.text
    source.close()


def test_the_built_in_text_is_chats_in_the_models_form_and_prose(view):
    found = list(builtin_documents(view))
    assert len(found) == len(CHATS) + len(PROSE) > 25
    question, answer = CHATS[0]
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    wanted = view.template.encode(messages, view.tokenizer, add_generation_prompt=False)
    assert found[0] == wanted
    assert view.tokenizer.decode(found[-1]).strip() == PROSE[-1].strip()


def test_no_part_of_it_is_in_the_calibration():
    ours = " ".join([text for pair in CHATS for text in pair] + list(PROSE)).lower().split()
    theirs = " ".join(text for _, text in calibration._CONVERSATION).lower().split()
    n = 6
    runs = [{tuple(words[i : i + n]) for i in range(len(words) - n)} for words in (ours, theirs)]
    assert not runs[0] & runs[1]


def test_the_text_of_the_suites_is_question_and_right_answer(view):
    texts = suite_documents(view)
    shown = [view.tokenizer.decode(next(texts), skip_special=False) for _ in range(4)]
    assert "[TOOL_CALLS]" in shown[0]
    assert len({text[:200] for text in shown}) == 4


def test_a_text_file_is_cut_into_pieces(view, tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("one two three\n" * 400, encoding="utf-8")
    found = list(read_documents(view, path))
    assert len(found) == 3
    words = "".join(view.tokenizer.decode(ids) for ids in found).split()
    assert words == ["one", "two", "three"] * 400


@given(st.text(alphabet="ab \n", max_size=9000))
def test_pieces_are_the_text(text):
    pieces = list(split_text(text))
    assert all(0 < len(piece) <= 2000 for piece in pieces)
    kept = "".join(pieces)
    if text.strip():
        assert kept.split() == text.split() or len(text) > 2000
    assert "".join(kept.split()) == "".join(text.split())


def test_a_file_of_documents_holds_text_messages_or_ids(view, tmp_path):
    path = tmp_path / "t.jsonl"
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    lines = [{"text": "plain words"}, {"messages": messages}, {"ids": [5, 6, 7]}]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n", encoding="utf-8")
    plain, chat, ids = read_documents(view, path)
    assert view.tokenizer.decode(plain).strip() == "plain words"
    assert chat == view.template.encode(messages, view.tokenizer, add_generation_prompt=False)
    assert ids == [5, 6, 7]


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "3", "{}", '{"text": 3}', '{"ids": [1, "x"]}', '{"ids": [true]}',
     '{"text": "a", "ids": [1]}', '{"messages": "hi"}', '{"messages": ["hi"]}', "[" * 100_000],
)  # fmt: skip
def test_a_line_that_is_no_document_is_named(view, tmp_path, line):
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "good"}\n' + line, encoding="utf-8")
    with pytest.raises(UsageError, match="line 2: not a document") as error:
        list(read_documents(view, path))
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    ("make", "got"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "not a plain file"),
        (os.mkfifo, "not a plain file"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_is_said(view, tmp_path, make, got):
    make(tmp_path / "t")
    with pytest.raises(UsageError, match=f"the text cannot be read; got .*{got}"):
        read_documents(view, tmp_path / "t")


def test_tokens_are_taken_until_there_are_enough():
    texts = [[1, 2, 3, 4], [9], [5, 6], [7, 8, 9, 10, 11]]
    assert take_tokens(iter(texts), 100, 100) == ([[1, 2, 3, 4], [5, 6], [7, 8, 9, 10, 11]], False)
    assert take_tokens(iter(texts), 4, 100) == ([[1, 2, 3, 4], [5, 6]], True)
    assert take_tokens(iter(texts), 2, 100) == ([[1, 2, 3]], True)
    assert take_tokens(iter(texts), 100, 3) == ([[1, 2, 3], [5, 6], [7, 8, 9]], True)
    assert take_tokens(iter([[1, 2, 3]]), 2, 100) == ([[1, 2, 3]], False)
    with pytest.raises(UsageError, match="no document of two tokens"):
        take_tokens(iter([[1], []]), 10, 10)


def test_a_model_without_a_tokenizer_takes_ids_only(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "m")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    source = open_model(folder)
    path = tmp_path / "t.jsonl"
    path.write_text('{"ids": [1, 2, 3]}')
    assert list(read_documents(source.text, path)) == [[1, 2, 3]]
    with pytest.raises(UsageError, match="no tokenizer"):
        list(builtin_documents(source.text))
    source.close()
