"""Known models: every file is sound, names a family that exists, and can be asked for by name."""

from __future__ import annotations

import pytest

from edgekit.checkpoint import repository
from edgekit.checkpoint.recipe import (
    GoldenChat,
    GoldenMessage,
    GoldenText,
    read_recipe,
    recipes,
)
from edgekit.errors import CheckpointError
from edgekit.families import FAMILIES
from edgekit.paths import models_dir

SOUND = """\
title = "Some 1B"
source = "owner/some-1b"
revision = "main"
family = "llama"
licence = "mit"
is_gated = false
context_length = 4096
n_parameters_billion = 1.0
stored_as = "bf16"
chat_template = "in the repository"

[golden]
status = "not produced"
"""


def test_the_recipes_name_families_that_exist():
    known = recipes(models_dir())
    assert len(known) >= 12
    assert {recipe.family for recipe in known.values()} <= set(FAMILIES)
    for name, recipe in known.items():
        assert recipe.name == name == name.lower()
        assert recipe.source.count("/") == 1
        golden = recipe.golden
        if golden.status == "produced":
            assert len(golden.texts) >= 4
            assert all(word in golden.source for word in ("sha256", "pip"))
        else:
            assert golden.status.startswith("not produced: ")


def test_a_recipe_is_downloaded_from_where_it_says(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        repository, "download", lambda source, progress: asked.append(str(source)) or tmp_path
    )
    assert repository.resolve_model("qwen3-0.6b") == tmp_path
    assert asked == ["Qwen/Qwen3-0.6B@main"]
    assert repository.model_name("qwen3-0.6b", tmp_path / "abc123") == "qwen3-0.6b"


def test_a_misspelt_recipe_is_suggested():
    with pytest.raises(CheckpointError) as caught:
        repository.resolve_model("Qwen3-0.6")
    assert caught.value.do.startswith("Did you mean 'qwen3-0.6b'?")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("licence =", "license ="), ["licence: got nothing", "license: got an unknown key"]),
        (("4096", '"4096"'), ["context_length: got str '4096', wanted a whole number"]),
        (("is_gated = false", "is_gated = 0"), ["is_gated: got int 0, wanted true or false"]),
        (('[golden]\nstatus = "not produced"', ""), ["golden: got nothing"]),
        (("[golden]", "[other]"), ["golden: got nothing", "other: got an unknown key"]),
    ],
)
def test_a_damaged_recipe_names_the_keys(tmp_path, change, named):
    path = tmp_path / "some.toml"
    path.write_text(SOUND)
    assert read_recipe(path).source == "owner/some-1b"
    path.write_text(SOUND.replace(*change))
    with pytest.raises(CheckpointError) as caught:
        read_recipe(path)
    assert all(part in caught.value.got for part in named)


def test_a_recipe_that_is_no_toml_is_refused(tmp_path):
    path = tmp_path / "some.toml"
    path.write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_recipe(path)


PRODUCED = """\
status = "produced"
source = "some 1.0"
texts = [{ text = "Hello", ids = [1, 2] }]
chat = { messages = [{ role = "user", content = "Hi" }], ids = [3] }
"""


def test_a_recipe_holds_ids(tmp_path):
    path = tmp_path / "some.toml"
    path.write_text(SOUND.replace('status = "not produced"\n', PRODUCED))
    golden = read_recipe(path).golden
    assert (golden.status, golden.source) == ("produced", "some 1.0")
    assert golden.texts == (GoldenText("Hello", (1, 2)),)
    assert golden.chat == GoldenChat((GoldenMessage("user", "Hi"),), (3,))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('status = "produced"', 'status = "not produced"'),
        ('source = "some 1.0"\n', ""),
        ("[1, 2]", '["1"]'),
        ("[1, 2]", "[-1]"),
        ("[1, 2]", "[]"),
        ("[3]", "3"),
        ('"Hello"', "7"),
        ('role = "user", ', ""),
        ("texts =", "text ="),
        ('texts = [{ text = "Hello", ids = [1, 2] }]', ""),
    ],
)
def test_a_damaged_golden_is_refused(tmp_path, old, new):
    path = tmp_path / "some.toml"
    assert old in PRODUCED
    path.write_text(SOUND.replace('status = "not produced"\n', PRODUCED.replace(old, new)))
    with pytest.raises(CheckpointError, match="golden"):
        read_recipe(path)
