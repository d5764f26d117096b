"""Claims about the example scripts: they run as they stand, over the public API alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import edgekit
from edgekit.artifact import Artifact

ROOT = Path(edgekit.__file__).parent.parent


def run_script(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / f"export_{name}.py"), *map(str, arguments)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["onnx", "mlx", "coreml"])
def test_an_example_exports_and_asks_a_question(name, tiny_model, tmp_path):
    done = run_script(name, tiny_model, tmp_path, "int8")
    assert done.returncode == 0, done.stderr
    path, size, words, hint = done.stdout.splitlines()
    artifact = Artifact.open(path)
    assert (artifact.format.value, artifact.manifest.scheme) == (name, "int8-g32")
    assert size.startswith(f"{artifact.n_bytes:,} bytes")
    assert words.startswith("first words: ")
    assert hint


def test_an_example_without_arguments_shows_how_to_use_it():
    done = run_script("onnx")
    assert done.returncode == 1
    assert "python scripts/export_onnx.py MODEL OUT [SCHEME]" in done.stderr


@pytest.mark.parametrize("name", ["onnx", "mlx", "coreml"])
def test_an_example_imports_only_the_public_api(name):
    text = (ROOT / "scripts" / f"export_{name}.py").read_text(encoding="utf-8")
    imported = [line for line in text.splitlines() if line.startswith(("import ", "from "))]
    assert imported == ["from __future__ import annotations", "import sys", "import edgekit"]
