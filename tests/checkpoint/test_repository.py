from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.checkpoint import repository
from edgekit.checkpoint.reader import open_checkpoint
from edgekit.checkpoint.repository import locate, model_name, resolve_model
from edgekit.errors import CheckpointError
from edgekit.hub.http import HubRepo
from tests.builders import write_tiny_checkpoint


@pytest.fixture
def bundled(tmp_path, monkeypatch):
    for name in ("pocket", "marble"):
        write_tiny_checkpoint(tmp_path / "models" / name)
    (tmp_path / "models" / "notes").mkdir()
    monkeypatch.setattr(repository, "models_dir", lambda: tmp_path / "models")
    return tmp_path / "models"


def test_a_folder_is_taken_as_it_is(tmp_path):
    assert resolve_model(tmp_path) == tmp_path
    assert resolve_model(str(tmp_path)) == tmp_path


def test_a_bundled_name_is_found(bundled):
    assert resolve_model("pocket") == bundled / "pocket"
    with open_checkpoint("pocket") as checkpoint:
        assert (checkpoint.name, checkpoint.origin) == ("pocket", "pocket")


def test_an_unknown_name_lists_the_bundled_ones_and_guesses(bundled):
    with pytest.raises(CheckpointError) as caught:
        resolve_model("poket")
    assert caught.value.do == "Did you mean 'pocket'? Bundled models: marble, pocket."


@pytest.mark.parametrize(
    "model",
    [
        "./nothing",
        "a/b/c",
        "../x",
        "/no/such/folder",
        "-a/b",
        "a/b@c d",
        "a/b@",
        "ä/b",
        "a/..",
        "a/b@../../x",
        "a/b@x/../y",
        "a/b@/x",
        "a/b@x/",
        "a/b@.x",
        "a--b/c",
        "a/b@x//y",
    ],
)
def test_what_is_neither_folder_nor_hub_id_is_refused(bundled, model):
    with pytest.raises(CheckpointError, match="no model folder"):
        resolve_model(model)


def test_a_path_is_never_taken_for_a_hub_id(bundled):
    with pytest.raises(CheckpointError, match="no model folder"):
        resolve_model(Path("owner/name"))


def test_a_weight_file_is_refused_with_the_folder_to_use(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "m")
    with pytest.raises(CheckpointError) as caught:
        resolve_model(folder / "model.safetensors")
    assert caught.value.do == f"Use {folder}."


@pytest.mark.parametrize(
    ("model", "folder", "name"),
    [
        ("owner/model-1.5B", "cache/snapshots/0123", "model-1.5B"),
        ("owner/model@v1.0", "cache/snapshots/0123", "model"),
        ("some/where/model", "some/where/model", "model"),
    ],
)
def test_the_name_for_tables_is_short(model, folder, name):
    assert model_name(model, Path(folder)) == name


@pytest.mark.parametrize(
    ("model", "source"),
    [
        ("owner/name", HubRepo("owner/name")),
        ("owner/name@v1.0", HubRepo("owner/name", "v1.0")),
        ("owner/name@refs/pr/7", HubRepo("owner/name", "refs/pr/7")),
        ("Owner-1/a.B_c-1.5B@main", HubRepo("Owner-1/a.B_c-1.5B", "main")),
    ],
)
def test_a_hub_id_is_told_from_a_folder_without_asking_anybody(bundled, model, source):
    assert locate(model) == source


def test_a_folder_is_preferred_to_a_hub_id_of_the_same_name(bundled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert locate("owner/name") == Path("owner/name")


def test_a_recipe_gives_its_repository_and_revision():
    found = locate("mistral-7b-instruct-v0.3")
    assert found == HubRepo("mistralai/Mistral-7B-Instruct-v0.3", "main")


@pytest.mark.parametrize("name", ["not-here.gguf", "folder/not-here.gguf"])
def test_a_gguf_file_that_is_not_there_is_no_name_of_a_model(name):
    with pytest.raises(CheckpointError, match=rf"^{name}: no such file; wanted a GGUF file"):
        repository.locate(name)
