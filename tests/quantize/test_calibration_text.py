"""Claims: calibration text is the same everywhere, and a user's file is read strictly."""

from __future__ import annotations

import hashlib
import itertools
import json
import struct
from collections import Counter

import pytest

from edgekit.errors import UsageError
from edgekit.families import open_model
from edgekit.quantize import calibration_documents, calibration_text
from edgekit.quantize.calibration_documents import (
    Document,
    own_documents,
    own_prompts,
    read_documents,
)
from edgekit.quantize.calibration_text import (
    SEQUENCE_TOKENS,
    CalibrationText,
    built_in_text,
    own_ids,
    text_of_file,
)
from tests.builders import write_tiny_checkpoint

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there."}]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    model = open_model(write_tiny_checkpoint(tmp_path_factory.mktemp("m") / "tiny"))
    yield model
    model.close()


def made(source, **more):
    return built_in_text(source.text, n_rows=source.spec.vocab_size, context_length=256, **more)


def lines(path, *objects):
    path.write_text("".join(json.dumps(item) + "\n" for item in objects), encoding="utf-8")
    return path


def refused(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(UsageError) as caught:
        read_documents(path)
    return str(caught.value).replace(f"{path}", "FILE")


# edgekit's own documents


def test_own_documents_are_the_same_everywhere():
    said = "\n".join(repr(document) for document in itertools.islice(own_documents(), 60))
    assert hashlib.sha256(said.encode()).hexdigest()[:16] == "76e398b0accc935b"


def test_another_seed_gives_other_documents():
    first = list(itertools.islice(own_documents(0), 18))
    assert first == list(itertools.islice(own_documents(0), 18))
    other = list(itertools.islice(own_documents(1), 18))
    assert sum(a != b for a, b in zip(first, other, strict=True)) >= 8


def test_the_kinds_take_turns():
    documents = itertools.islice(own_documents(), 45)
    assert set(Counter(d.where.rpartition(" ")[0] for d in documents).values()) == {5}


def test_written_texts_come_once_before_any_comes_again():
    code = [d for d in itertools.islice(own_documents(), 9 * 12) if d.where.startswith("code")]
    assert len({d.messages[-1]["content"] for d in code}) == 12


def test_sums_are_right():
    """The numbers of every sum, read from its words and worked out here."""
    sums = [d for d in itertools.islice(own_documents(3), 9 * 40) if d.where.startswith("sum")]
    for document in sums:
        question, answer, follow, steps = (m["content"] for m in document.messages)
        words = question.replace("$", "").replace("?", "").rstrip(".").split()
        numbers = [float(w.rstrip(".")) for w in words if w.rstrip(".").replace(".", "").isdigit()]
        n_first, n_second, price, paid = numbers
        change = paid - (n_first + n_second) * price
        assert answer.endswith(f"Answer: ${change:.2f}")
        assert change >= 0
        assert steps.endswith(f"{eval(follow.removeprefix('And what is ').rstrip('?'))}.")  # noqa: S307


def test_tables_are_right():
    tables = [d for d in itertools.islice(own_documents(3), 9 * 20) if d.where.startswith("table")]
    for document in tables:
        question, answer = (m["content"] for m in document.messages)
        rows = [
            [cell.strip() for cell in line.strip("|").replace("|", ",").split(",")]
            for line in question.split("\n\n")[0].splitlines()
            if "---" not in line
        ]
        year = rows[0].index(question.split("sold most in ")[1][:4])
        cells = {row[0]: int(row[year]) for row in rows[1:]}
        best = max(cells, key=cells.get)
        assert f"{best} sold most ({cells[best]})" in answer
        assert answer.endswith(f"= {sum(cells.values())}.")


def test_json_answers_are_json():
    for document in itertools.islice(own_documents(5), 9 * 20):
        if document.where.startswith("json"):
            answer = (
                document.messages[-1]["content"].removeprefix("```json\n").removesuffix("\n```")
            )
            assert json.loads(answer)["items"][0]["quantity"] >= 1


def test_the_called_tool_is_on_offer():
    n_offered = set()
    for document in itertools.islice(own_documents(7), 9 * 40):
        if document.tools:
            offered = {tool["function"]["name"] for tool in document.tools}
            (call,) = document.messages[1]["tool_calls"]
            assert call["function"]["name"] in offered
            assert document.messages[2]["tool_call_id"] == call["id"]
            n_offered.add(len(offered))
    assert n_offered == {2, 3}


def test_prompts():
    prompts = own_prompts()
    assert len(set(prompts)) == len(prompts) == 64
    assert sorted(own_prompts(1)) == sorted(prompts)
    assert own_prompts(1) != prompts


# The built-in text


def test_the_built_in_text_has_as_many_tokens_as_asked_for(source):
    text = made(source, n_tokens=1000)
    assert text.n_tokens == 1000
    assert [len(s) for s in text.sequences] == [256, 256, 256, 232]
    assert all(0 <= i < source.spec.vocab_size for s in text.sequences for i in s)
    assert text.content == "edgekit's own text"
    assert made(source, n_tokens=1000) == text
    assert made(source, n_tokens=1000, seed=1) != text


def test_a_long_context_is_cut_to_sequences(source):
    text = built_in_text(source.text, n_rows=384, context_length=1 << 17, n_tokens=1100)
    assert [len(s) for s in text.sequences] == [SEQUENCE_TOKENS, SEQUENCE_TOKENS, 76]


def test_the_first_document_is_in_the_models_chat_form(source):
    first = next(own_documents())
    ids = own_ids(first, source.text)
    wanted = source.text.template.encode(
        first.messages, source.text.tokenizer, add_generation_prompt=False
    )
    assert ids == wanted
    assert list(made(source, n_tokens=256).sequences[0][: len(ids)]) == ids[:256]


def test_own_answers_are_spread_between_the_documents(source):
    answers = [[7] * 100, [8] * 100, [9] * 100]
    text = made(source, n_tokens=600, answers=answers)
    assert text.n_tokens == 600
    ids = [i for s in text.sequences for i in s]
    # Half of 600 tokens hold three answers of 100.
    assert text.content == "edgekit's own text, and 3 answers that the model sampled (300 tokens)"
    for token in (7, 8, 9):
        at = ids.index(token)
        assert ids[at : at + 100] == [token] * 100
    # A fourth answer has no place.
    assert made(source, n_tokens=600, answers=[*answers, [5]]) == text


def test_a_model_without_a_tokenizer(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "m")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    model = open_model(folder)
    text = made(model, n_tokens=300)
    assert (text.n_tokens, text.content) == (300, "ids evenly spread")
    with pytest.raises(UsageError, match="without a tokenizer"):
        text_of_file(
            lines(tmp_path / "a.jsonl", {"text": "x"}), model.text, n_rows=384, context_length=256
        )
    model.close()


@pytest.mark.parametrize("n_tokens", [0, 255, (1 << 20) + 1])
def test_numbers_of_tokens_out_of_range(source, n_tokens):
    with pytest.raises(UsageError, match=f"--calibration-tokens; got {n_tokens}; wanted 256 to"):
        made(source, n_tokens=n_tokens)


class Refusing:
    """A template that refuses what the test says."""

    def __init__(self, template, refuses):
        self.template, self.refuses = template, refuses

    def encode(self, messages, tokenizer, tools=(), **more):
        if self.refuses(messages, tools):
            raise calibration_text.CheckpointError("no")
        return self.template.encode(messages, tokenizer, tools, **more)


@pytest.mark.parametrize(
    ("refuses", "wanted"),
    [
        (lambda messages, tools: bool(tools), '"name": "set_timer"'),
        (lambda messages, tools: tools or messages[0]["role"] == "system", "Wake me up"),
        (lambda messages, tools: True, "Wake me up in 5 minutes, please.\n\nDone."),
    ],
)
def test_what_a_template_refuses_is_said_in_another_form(source, refuses, wanted):
    view = source.text
    call = {"function": {"name": "set_timer", "arguments": {"minutes": 5}}, "id": "a"}
    document = Document(
        "x",
        (
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Wake me up in 5 minutes, please."},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "ok", "tool_call_id": "a"},
            {"role": "assistant", "content": "Done."},
        )
        if wanted.startswith('"name')
        else (
            {"role": "user", "content": "Wake me up in 5 minutes, please."},
            {"role": "assistant", "content": "Done."},
        ),
        ({"type": "function", "function": {"name": "set_timer"}},)
        if wanted.startswith('"name')
        else (),
    )
    changed = type(view)(view.files, view.tokenizer, Refusing(view.template, refuses), (), ())
    text = view.tokenizer.decode(own_ids(document, changed), skip_special=False)
    assert wanted in text


def test_the_hash_is_that_of_the_ids():
    text = CalibrationText(((1, 2), (3,)), "x")
    wanted = hashlib.sha256(struct.pack("<5I", 2, 1, 2, 1, 3)).hexdigest()
    assert text.describe() == {
        "content": "x", "n_tokens": 3, "n_sequences": 2, "token_ids_sha256": wanted,
    }  # fmt: skip
    assert CalibrationText(((1,), (2, 3)), "x").sha256() != text.sha256()


# A user's file


def test_jsonl(tmp_path):
    tool = {"type": "function", "function": {"name": "f"}}
    path = lines(
        tmp_path / "a.jsonl",
        {"messages": CHAT, "id": 7},
        {"text": "Plain.\u2028Still the same line."},
        {"messages": CHAT, "tools": [tool]},
    )
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\n  \r\n")
    documents, data = read_documents(path)
    assert data == path.read_bytes()
    assert documents == [
        Document(f"{path}:1", tuple(CHAT)),
        Document(f"{path}:2", text="Plain.\u2028Still the same line."),
        Document(f"{path}:3", tuple(CHAT), (tool,)),
    ]


def test_plain_text_is_cut_at_line_ends(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("".join(f"line {i:03}\n" for i in range(500)))  # 9 characters each
    documents, _ = read_documents(path)
    assert [len(d.text) for d in documents] == [1998, 1998, 504]
    assert documents[1].where == f"{path}:223"
    assert documents[1].text.startswith("line 222\n")
    assert "".join(d.text for d in documents) == path.read_text()
    path.write_text("x" * 4100)
    assert [len(d.text) for d in read_documents(path)[0]] == [2000, 2000, 100]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "FILE:1: not valid JSON"),
        ("[1]", "FILE:1: outermost value; got list"),
        ("{}", 'FILE:1: keys; got none; wanted "messages" or "text"'),
        ('{"prompt": "a", "completion": "b"}', "got 'prompt', 'completion'"),
        ('{"text": "a", "messages": []}', "got both messages and text"),
        ('{"text": 5}', "FILE:1: text; got 5; wanted a text"),
        ('{"text": "  "}', "FILE:1: text; got '  '"),
        ('{"messages": []}', "FILE:1: messages; got []"),
        ('{"messages": ["a"]}', "FILE:1: message 0; got 'a'"),
        ('{"messages": [{"content": "a"}]}', "message 0: role; got nothing; wanted system"),
        ('{"messages": [{"role": "human", "content": "a"}]}', "role; got 'human'"),
        ('{"messages": [{"role": "user"}]}', "message 0: content; got nothing"),
        ('{"messages": [{"role": "user", "content": [1]}]}', "content; got [1]"),
        ('{"messages": [{"role": "user", "content": "a"}], "tools": "x"}', "tools; got 'x'"),
        ('{"text": "a", "text": "b"}', "FILE:1: not valid JSON"),
        ('{"text": "\\ud800"}', "FILE:1: not valid JSON"),
    ],
)
def test_lines_that_are_wrong_are_named(tmp_path, line, words):
    assert words in refused(tmp_path / "a.jsonl", line)


def test_files_that_are_wrong(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    assert "got no text" in refused(path, "  \n ")
    assert "byte 1 that is not UTF-8" in refused(path, b"a\xff")
    monkeypatch.setattr(calibration_documents, "MAX_FILE_BYTES", 3)
    assert "a size above 3 bytes" in refused(path, "four")
    with pytest.raises(UsageError, match="No such file"):
        read_documents(tmp_path / "none.txt")
    with pytest.raises(UsageError, match="got not a plain file"):
        read_documents(tmp_path)


def test_a_line_that_is_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration_documents, "MAX_LINE_BYTES", 20)
    words = refused(tmp_path / "a.jsonl", '{"text": "a"}\n{"text": "aaaaaaaaaaaaaa"}\n')
    assert "FILE:2: length of the line; got 26 bytes; wanted at most 20" in words


def test_documents_are_drawn_where_the_file_is_longer(tmp_path, source):
    path = lines(tmp_path / "a.jsonl", *({"text": f"number {i} " * 20} for i in range(100)))
    more = {"n_rows": 384, "context_length": 256, "n_tokens": 1000}
    text = text_of_file(path, source.text, **more)
    assert text.n_tokens == 1000
    assert text == text_of_file(path, source.text, **more)
    assert text != text_of_file(path, source.text, seed=1, **more)
    described = text.describe()
    assert described["file"] == "a.jsonl"
    assert described["file_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert described["content"].endswith(" of 100 documents of a.jsonl")
    assert described["n_tokens"] == 1000


def test_all_of_a_short_file_is_read(tmp_path, source):
    path = lines(tmp_path / "a.jsonl", {"text": "word " * 400})
    text = text_of_file(path, source.text, n_rows=384, context_length=256)
    ids = source.text.tokenizer.encode("word " * 400, allow_special=False)
    assert [i for s in text.sequences for i in s] == ids
    assert text.content == "all of a.jsonl"


def test_a_file_that_is_too_short(tmp_path, source):
    path = lines(tmp_path / "a.jsonl", {"text": "word"})
    with pytest.raises(UsageError, match=r"tokens; wanted at least 256, better 8192"):
        text_of_file(path, source.text, n_rows=384, context_length=256)


def test_a_chat_that_the_template_refuses_is_named(tmp_path, source):
    path = lines(tmp_path / "a.jsonl", {"messages": [{"role": "developer", "content": "x"}]})
    with pytest.raises(UsageError, match=r"a\.jsonl:1: the model's chat template does not take"):
        text_of_file(path, source.text, n_rows=384, context_length=256)
