"""One view of all text files: where an answer ends, and which tokens have no row."""

from __future__ import annotations

import json

import pytest

from edgekit.errors import CheckpointError
from edgekit.text.chat import ChatTemplate
from edgekit.text.files import TextFiles
from edgekit.text.tokenizer import Tokenizer
from edgekit.text.view import TEMPLATE_ORIGIN, TOKENIZER_ORIGIN, find_turn_end, read_text_view
from tests.text.token_families import FAMILY_TOKENIZERS, write_family
from tests.text.token_parts import write_json

TURN_END = {
    "mistral-v1": "</s>", "mistral-v3": "</s>", "mistral-nemo": "</s>", "ministral3": "</s>",
    "llama2": "</s>", "code-llama": "</s>", "llama3": "<|eot_id|>", "qwen2.5": "<|im_end|>",
    "qwen3": "<|im_end|>", "gemma3": "<end_of_turn>", "phi3": "<|end|>", "phi4-mini": "<|end|>",
    "smollm3": "<|im_end|>", "granite": "<|end_of_text|>", "olmo2": "<|endoftext|>",
}  # fmt: skip
LOOP = "{% for m in messages %}"
OPENS = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML = LOOP + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" + OPENS


def view_of(folder, n_rows=1 << 20, **stated):
    names = {"config": "config.json", "generation": "generation_config.json"}
    return read_text_view(
        TextFiles.of_folder(folder), n_rows, {names[key]: ids for key, ids in stated.items()}
    )


def refusal(folder, n_rows):
    with pytest.raises(CheckpointError) as caught:
        view_of(folder, n_rows)
    return caught.value


def with_template(folder, template, **config):
    write_family("qwen3", folder)
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content.pop("chat_template", None)
    write_json(path, content | config)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def turn_end(folder):
    tokenizer = Tokenizer.open(folder)
    end = find_turn_end(tokenizer, ChatTemplate.open(folder))
    return None if end is None else tokenizer.token_text(end)


@pytest.mark.parametrize("name", FAMILY_TOKENIZERS)
def test_the_turn_end_of_each_family_is_found_in_its_template(tmp_path, name):
    assert turn_end(write_family(name, tmp_path)) == TURN_END[name]


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHATML, "<|im_end|>"),
        ("{% set x = 'y' %}" + CHATML, "<|im_end|>"),
        # After white space, and before the token that ends the whole text.
        (LOOP + "{{ m.content }}\n\n<|im_end|>{% endfor %}<|endoftext|>", "<|im_end|>"),
        # The last answer is left open to be continued.
        (LOOP + "[{{ m.role }}]{{ m.content }}{% if not loop.last %}<|im_end|>{% endif %}"
         "{% endfor %}", "<|im_end|>"),
        (LOOP + "{{ m.content }}{% if m.role == 'assistant' and not loop.last %}<|im_end|>"
         "{% endif %}{% endfor %}", "<|im_end|>"),
        # What only begins the next turn ends nothing.
        (LOOP + "<|im_start|>{{ m.role }}\n{{ m.content }}\n{% endfor %}", None),
        # No token at all.
        (LOOP + "{{ m.role }}: {{ m.content }}\n\n{% endfor %}", None),
        (LOOP + "{{ m.role }}: {{ m.content }}<|eot|>{% endfor %}", None),
        # It refuses such a chat, changes what was said, or says only the question.
        ("{% if messages | length > 1 %}{{ raise_exception('one') }}{% endif %}"
         "{{ messages[0].content }}", None),
        (LOOP + "{{ m.content | upper }}<|im_end|>{% endfor %}", None),
        (LOOP + "{% if m.role == 'user' %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}", None),
    ],
)  # fmt: skip
def test_a_turn_end_is_the_token_after_what_the_assistant_said(tmp_path, template, end):
    assert turn_end(with_template(tmp_path, template)) == end


def test_ends_are_the_union_with_where_each_comes_from(tmp_path):
    write_family("phi3", tmp_path)
    tokenizer = Tokenizer.open(tmp_path)
    text_end, turn = tokenizer.eos_id, tokenizer.token_id("<|end|>")
    view = view_of(tmp_path, generation=[turn, 7], config=[text_end])
    assert [(end.id, end.origins) for end in view.ends] == [
        (turn, ("generation_config.json eos_token_id", TEMPLATE_ORIGIN)),
        (7, ("generation_config.json eos_token_id",)),
        (text_end, ("config.json eos_token_id", TOKENIZER_ORIGIN)),
    ]
    assert [end.text for end in view.ends] == ["<|end|>", tokenizer.token_text(7), "<|endoftext|>"]
    assert view.notes == ()


def test_an_end_that_no_file_states_as_an_id_is_told(tmp_path):
    view = view_of(write_family("qwen3", tmp_path), config=[2])
    end = view.tokenizer.token_id("<|im_end|>")
    assert view.end_ids == (2, end)
    assert len(view.notes) == 1
    assert f"'<|im_end|>' (id {end})" in view.notes[0]


@pytest.mark.parametrize(
    ("files", "got"),
    [
        ({"eos_token": "<|never|>"}, "eos_token '<|never|>', to which no file gives an id"),
        ({"eos_token": {"content": "<|never|>"}}, "to which no file gives an id"),
    ],
)
def test_a_named_end_token_that_is_no_token_is_refused(tmp_path, files, got):
    error = refusal(with_template(tmp_path, CHATML, **files), 1 << 20)
    assert "the named end token is not a token of the model" in error.what
    assert got in error.got
    assert "eos_token in tokenizer_config.json" in error.do


def test_a_named_end_token_without_a_row_is_refused(tmp_path):
    folder = with_template(tmp_path, LOOP + "{{ m.content }}{% endfor %}")
    end = Tokenizer.open(folder).eos_id
    assert view_of(folder, 1 << 20).end_ids == (end,)
    error = refusal(folder, end)
    assert error.got == f"eos_token '<|im_end|>' ({end})"


def test_an_end_token_that_only_the_class_names_is_not_required(tmp_path):
    folder = with_template(tmp_path, "{{ messages[0].content }}")
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "GemmaTokenizer"})
    assert "<eos>" in Tokenizer.open(folder).invented_tokens
    assert view_of(folder).ends == ()


def test_a_template_that_writes_ids_without_a_row_is_refused(tmp_path):
    folder = with_template(tmp_path, CHATML)
    start = Tokenizer.open(folder).token_id("<|im_start|>")
    error = refusal(folder, start)
    assert "the chat template writes tokens without a row in the embedding" in error.what
    assert f"'<|im_start|>' ({start}), '<|im_end|>' ({start + 1})" in error.got


def test_added_tokens_without_a_row_that_nothing_needs_are_told(tmp_path):
    folder = with_template(tmp_path, "{{ messages[0].content }}", eos_token=None, pad_token=None)
    ids = Tokenizer.open(folder).added_tokens
    n_rows = max(ids.values())
    (note,) = view_of(folder, n_rows, config=[1]).notes
    last = next(text for text, i in ids.items() if i == n_rows)
    assert note == (
        f"1 added tokens have no row in the embedding ({n_rows} rows) and cannot be used: "
        f"{last!r} ({n_rows})"
    )


def test_a_vocabulary_without_rows_is_that_of_another_model(tmp_path):
    error = refusal(write_family("qwen3", tmp_path), 500)
    assert "the tokenizer has tokens without a row in the embedding" in error.what
    assert error.wanted == "ids below 500, the rows of the embedding"


def test_a_model_without_a_tokenizer_is_said_to_be_one(tmp_path):
    view = view_of(tmp_path, config=[2, 7])
    assert view.tokenizer is None
    assert [(end.id, end.text) for end in view.ends] == [(2, ""), (7, "")]
    (note,) = view.notes
    assert note.startswith(f"no tokenizer: {tmp_path} has none of tokenizer.json, tekken.json")
    assert "vocab.json with merges.txt" in note
