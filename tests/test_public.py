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


def test_export_is_callable_before_and_after_the_package_of_that_name_is_imported(tmp_path):
    code = (
        "import edgekit\n"
        "from edgekit.errors import UsageError\n"
        "def outcome():\n"
        "    try: edgekit.export('nowhere', ['gguf'], 'int4', 'out')\n"
        "    except UsageError as error: return error.got\n"
        "first = outcome()\n"
        "import edgekit.export as package\n"
        "from edgekit.export import open_exporter\n"
        "print(first, outcome(), edgekit.export is package, callable(open_exporter))"
    )
    assert run_python(code) == ["'gguf'", "'gguf'", "True", "True"]


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
