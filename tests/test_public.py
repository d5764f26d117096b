"""Claims about what a program gets from ``import edgekit``, and what it costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import edgekit

ROOT = Path(edgekit.__file__).parent.parent
HEAVY = (
    "numpy", "onnx", "onnxruntime", "mlx", "mlx_lm", "coremltools", "openai", "tokenizers",
    "jinja2", "rich", "typer", "psutil", "safetensors", "transformers", "torch",
)  # fmt: skip


def run_python(code: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return done.stdout.split()


def test_import_edgekit_imports_nothing_heavy():
    code = f"import sys, edgekit; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    assert run_python(code) == []


def test_export_is_the_plain_function_whatever_is_imported():
    code = (
        "import inspect, edgekit\n"
        "first = edgekit.export\n"
        "import edgekit.exporters, edgekit.pipeline.export\n"
        "print(inspect.isfunction(first), edgekit.export is first)\n"
        "print(*inspect.signature(first).parameters)"
    )
    assert run_python(code) == [
        *("True", "True", "model", "formats", "scheme", "out", "context_length"),
        *(
            "exact_activations",
            "method",
            "fold",
            "budget",
            "calibration",
            "ignore_config_keys",
            "adapter",
            "progress",
            "warn",
        ),
    ]


def test_all_names_what_is_public_and_nothing_else():
    assert sorted(edgekit.__all__) == ["__version__", "export", "load"]
    for name in edgekit.__all__:
        assert getattr(edgekit, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'quantise'"):
        _ = edgekit.quantise


def test_the_version_is_that_of_the_distribution():
    from importlib.metadata import version

    assert edgekit.__version__ == version("edgekit")
