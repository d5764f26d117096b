"""Claims about imports of foreign packages: which versions were checked, what is said of others."""

from __future__ import annotations

import re
import sys
import tomllib
import warnings
from itertools import chain
from pathlib import Path

import mlx_lm
import onnxruntime
import pytest

import edgekit
from edgekit.errors import MissingExtraError
from edgekit.lazy import TESTED, UntestedVersionWarning, _check_version, load_object, require

ROOT = Path(edgekit.__file__).parent.parent


@pytest.fixture(autouse=True)
def _nothing_is_remembered():
    """A process looks at a version once; here each test has its own."""
    _check_version.cache_clear()
    yield
    _check_version.cache_clear()


def test_the_bounds_of_pip_are_those_that_were_checked():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    bounded = {}
    for line in lines:
        name, bounds = re.match(r"([\w-]+)(?:\[\w+\])?([^;]*)", line).groups()
        if "<" in bounds:
            bounded[name] = bounds.strip()
    assert bounded == {name: str(tested) for name, tested in TESTED.items()}


@pytest.mark.parametrize("version", ["1.30.0", "1.32.0", "1.32.1.dev3"])
def test_a_checked_version_is_taken_without_a_word(version, monkeypatch):
    monkeypatch.setattr(onnxruntime, "__version__", version)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert require("onnxruntime").__name__ == "onnxruntime"


@pytest.mark.parametrize("version", ["1.29.0", "1.24.4", "0.9"])
def test_an_older_version_is_refused(version, monkeypatch):
    monkeypatch.setattr(onnxruntime, "__version__", version)
    with pytest.raises(MissingExtraError) as caught:
        require("onnxruntime.capi")
    assert caught.value.what == f"onnxruntime {version} is too old"
    assert caught.value.do == "Run: pip install 'onnxruntime>=1.30,<1.33'"


@pytest.mark.parametrize("version", ["1.33.0", "2.0"])
def test_a_newer_version_is_used_with_a_warning(version, monkeypatch):
    monkeypatch.setattr(onnxruntime, "__version__", version)
    with pytest.warns(UntestedVersionWarning) as caught:
        require("onnxruntime")
    (warning,) = caught
    assert str(warning.message).startswith(f"onnxruntime {version} is newer than what edgekit was")
    assert "pip install 'onnxruntime>=1.30,<1.33'" in str(warning.message)


def test_a_module_is_found_by_the_name_of_its_distribution(monkeypatch):
    monkeypatch.setattr(mlx_lm, "__version__", "0.30.7")
    with pytest.raises(MissingExtraError, match=r"mlx-lm 0\.30\.7 is too old"):
        require("mlx_lm.utils")


@pytest.mark.filterwarnings("default::edgekit.lazy.UntestedVersionWarning")
def test_the_command_line_says_it_in_one_line(monkeypatch, edgekit_cli, tiny_artifacts):
    monkeypatch.setattr(onnxruntime, "__version__", "1.40.0")
    said = edgekit_cli("run", tiny_artifacts["onnx-int4"].path, "hi", "--max-tokens", "1", "--json")
    assert said.code == 0
    assert said.data["n_tokens"] == 1
    (line,) = said.err.splitlines()
    assert line.startswith("warning: onnxruntime 1.40.0 is newer than ")


@pytest.mark.parametrize(
    "module",
    ["coremltools", "huggingface_hub", "mlx.core", "mlx_lm.utils", "onnxruntime", "openai"],
)
def test_every_package_of_the_table_says_its_version(module):
    require(module)
    top = sys.modules[module.partition(".")[0]]
    version = getattr(top, "__version__", getattr(sys.modules[module], "__version__", ""))
    assert re.match(r"\d+\.\d+", version)


def test_a_version_that_is_no_number_is_taken(monkeypatch):
    monkeypatch.setattr(onnxruntime, "__version__", "main")
    assert require("onnxruntime") is onnxruntime


def test_an_absent_package_is_named():
    with pytest.raises(MissingExtraError) as caught:
        require("no_such_kit.part")
    assert (caught.value.package, caught.value.do) == (
        "no-such-kit",
        "Run: pip install no-such-kit",
    )


def test_an_object_is_loaded_by_its_name():
    assert load_object("edgekit.lazy:require") is require
