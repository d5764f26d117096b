"""A known model whose tokenizer is another one is refused before anything is exported."""

from __future__ import annotations

import json

import pytest

import edgekit
from edgekit.checkpoint import repository
from edgekit.checkpoint.recipe import check_golden, read_recipe
from edgekit.checkpoint.repository import recipe_of
from edgekit.errors import CheckpointError
from edgekit.text.chat import ChatTemplate
from edgekit.text.tokenizer import Tokenizer
from tests.builders import write_tiny_checkpoint, write_tiny_tokenizer

TEXT = "the words in here"
CHAT = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def known(tmp_path, monkeypatch):
    """A folder of recipes with one that holds the ids of the tiny tokenizer."""
    write_tiny_tokenizer(tmp_path)
    tokenizer, template = Tokenizer.open(tmp_path), ChatTemplate.open(tmp_path)
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "tiny.toml").write_text(
        f"""\
title = "Tiny"
source = "owner/name"
revision = "main"
family = "mistral"
licence = "apache-2.0"
is_gated = false
context_length = 64
n_parameters_billion = 0.1
stored_as = "bf16"
chat_template = "in the repository"

[golden]
status = "produced"
source = "the test"
texts = [{{ text = "{TEXT}", ids = {tokenizer.encode(TEXT, allow_special=False)} }}]

[golden.chat]
messages = [{{ role = "user", content = "Hello" }}]
ids = {template.encode(CHAT, tokenizer)}
""",
        encoding="utf-8",
    )
    monkeypatch.setattr(repository, "models_dir", lambda: folder)
    return folder / "tiny.toml"


def break_tokenizer(folder):
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][1:]
    path.write_text(json.dumps(tokenizer), encoding="utf-8")


@pytest.mark.parametrize("model", ["tiny", "owner/name", "owner/name@main"])
def test_a_model_by_name_is_found_by_its_recipe(known, model):
    assert recipe_of(model) == read_recipe(known)
    assert recipe_of("owner/other") is None
    assert recipe_of(known.parent) is None


@pytest.mark.parametrize("model", ["tiny", "owner/name"])
def test_the_right_tokenizer_is_exported(known, hub, tmp_path, model):
    assert len(edgekit.export(model, "onnx", "int8", tmp_path / "out")) == 1


@pytest.mark.parametrize("model", ["tiny", "owner/name"])
def test_a_wrong_tokenizer_is_refused_before_anything_is_written(known, hub, tmp_path, model):
    break_tokenizer(hub.folder)
    with pytest.raises(CheckpointError, match=f"gives other ids for {TEXT!r}") as caught:
        edgekit.export(model, "onnx", "int8", tmp_path / "out")
    assert caught.value.what.startswith("tiny: the tokenizer of owner/name")
    assert caught.value.got != caught.value.wanted
    assert not (tmp_path / "out").exists()


def test_a_wrong_template_is_refused(known, hub, tmp_path):
    template = "{{ bos_token }}[INST] {{ messages[0]['content'] }}[/INST]"
    (hub.folder / "chat_template.jinja").write_text(template)
    with pytest.raises(CheckpointError, match="gives other ids for the chat"):
        edgekit.export("tiny", "onnx", "int8", tmp_path / "out")


def test_a_folder_of_the_users_own_is_not_compared(known, tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "mine")
    break_tokenizer(folder)
    assert len(edgekit.export(folder, "onnx", "int8", tmp_path / "out")) == 1


def test_a_recipe_without_ids_compares_nothing(known, tmp_path):
    text = known.read_text()
    known.write_text(text[: text.index("[golden]")] + '[golden]\nstatus = "not produced: x"\n')
    check_golden(read_recipe(known), tmp_path / "nowhere")
