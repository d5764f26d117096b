"""Claims about the registries: they are what the folders hold, and cost nothing to import."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import edgekit
from edgekit.artifact import Artifact, Format
from edgekit.errors import UsageError
from edgekit.exporters import EXPORTERS, open_exporter
from edgekit.exporters.mlx.exporter import MlxExporter
from edgekit.exporters.staging import write_artifact
from edgekit.lazy import load_object
from edgekit.runtime import ENGINE_FORMATS, ENGINES, default_engine, open_decoder
from tests.exporters.memory_model import memory_model

PACKAGE = Path(edgekit.__file__).parent
HEAVY = ("onnx", "onnxruntime", "mlx", "mlx_lm", "coremltools", "openai", "tokenizers", "jinja2")
WITHOUT_AN_ARTIFACT = {
    "edgekit.runtime.reference:ReferenceDecoder",
    "edgekit.runtime.server:ServerBackend",
    "edgekit.runtime.session:Session",
}
BEHIND_ANOTHER = {
    # Opened by OnnxruntimeDecoder for artifacts whose graph optimum wrote.
    "edgekit.runtime.onnx_plain:PlainOnnxDecoder",
}
SYSTEMS = ("Linux", "Darwin", "Windows")


def classes_with(folder: str, *method_sets: set[str]) -> set[str]:
    """Find ``module:Class`` of every class that has all methods of one of the sets.

    Protocols (in base.py) and classes that others in the folder are made from do not count.
    """
    found = set()
    for path in (PACKAGE / folder).rglob("*.py"):
        name = ".".join(("edgekit", *path.relative_to(PACKAGE).with_suffix("").parts))
        if path.stem not in ("base", "__init__"):
            found |= {
                item
                for item in vars(importlib.import_module(name)).values()
                if inspect.isclass(item)
                and item.__module__ == name
                and any(wanted <= set(dir(item)) for wanted in method_sets)
            }
    bases = {base for item in found for base in item.__mro__[1:]}
    return {f"{item.__module__}:{item.__name__}" for item in found - bases}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Artifact:
    folder = tmp_path_factory.mktemp("registry") / "a"
    return write_artifact(MlxExporter(), memory_model(), folder)


def test_the_exporters_are_those_in_the_folder():
    assert classes_with("exporters", {"supports", "write", "recover"}) == set(EXPORTERS.values())


def test_the_engines_are_those_in_the_folder():
    found = classes_with("runtime", {"forward", "close"}, {"stream_chat", "close"})
    assert found == set(ENGINES.values()) | WITHOUT_AN_ARTIFACT | BEHIND_ANOTHER


def test_every_format_has_an_exporter_that_says_so():
    assert set(EXPORTERS) == set(Format)
    for artifact_format in Format:
        assert open_exporter(artifact_format).format is artifact_format


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_opens_artifacts_with_the_same_arguments(name):
    parameters = inspect.signature(load_object(ENGINES[name]).open).parameters
    assert list(parameters) == ["artifact", "n_threads", "context_length", "options"]
    for optional in ("n_threads", "context_length", "options"):
        assert parameters[optional].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters[optional].default is not inspect.Parameter.empty


def test_every_engine_says_which_formats_it_runs():
    assert set(ENGINE_FORMATS) == set(ENGINES)
    assert all(ENGINE_FORMATS.values())


@pytest.mark.parametrize("artifact_format", Format)
@pytest.mark.parametrize("system", [*SYSTEMS, "linux", "macos"])
def test_every_format_has_a_real_engine_on_every_system(artifact_format, system):
    engine = default_engine(artifact_format, system)
    assert artifact_format in ENGINE_FORMATS[engine]
    assert engine != "fake"


def test_core_ml_runs_natively_on_a_mac_only():
    assert [default_engine(Format.COREML, system) for system in SYSTEMS] == ["mil", "coreml", "mil"]


def test_an_unknown_engine_is_refused_with_the_nearest_name(artifact):
    with pytest.raises(UsageError, match=r"got 'onnxruntim'.*Did you mean onnxruntime\?"):
        open_decoder(artifact, engine="onnxruntim")
    with pytest.raises(UsageError, match="wanted onnxruntime, mlx, coreml, mil, llama_cpp, fake"):
        open_decoder(artifact, engine="zzz")


def test_an_engine_for_another_format_is_refused_with_the_right_one(artifact):
    with pytest.raises(UsageError, match=r"onnxruntime does not run mlx.*Use --engine mlx"):
        open_decoder(artifact, engine="onnxruntime")


def test_the_default_engine_opens_the_artifact(artifact):
    decoder = open_decoder(artifact)
    assert decoder.info.engine == "mlx"
    decoder.close()


def test_importing_the_registries_imports_no_runtime():
    code = (
        "import sys, edgekit.runtime, edgekit.exporters, edgekit.runtime.session\n"
        f"print(*[name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    assert done.stdout.split() == []
