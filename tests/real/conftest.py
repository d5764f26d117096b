"""The real model, SmolLM2-135M-Instruct, as a GGUF file, a folder and artifacts.

It comes from the package index (`make real-model`). Where it is not installed these tests are
skipped, and the end of the run says that they were not run.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import edgekit
from edgekit.artifact import Artifact
from edgekit.paths import packaged_file
from scripts.real_model import GGUF_NAME, PACKAGE, write_folder

GOLDEN = Path(__file__).parent.parent / "golden" / "real" / "smollm2-135m-instruct.json"
MARK = "real_model"
WHY_NOT = f"{PACKAGE} is not installed in this environment (make real-model)"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything in this folder, and skip it where the model is not there."""
    is_here = packaged_file(PACKAGE, GGUF_NAME) is not None
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(getattr(pytest.mark, MARK))
            if not is_here:
                item.add_marker(pytest.mark.skip(reason=f"{MARK}: {WHY_NOT}"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say in a line of its own that tests of the real model were not run."""
    skipped = terminalreporter.stats.get("skipped", [])
    n_skipped = sum(MARK in report.keywords for report in skipped)
    if n_skipped:
        terminalreporter.write_line(f"real model: {n_skipped} tests not run: {WHY_NOT}")


@pytest.fixture(scope="session")
def real_gguf() -> Path:
    """The GGUF file of the package, Q4_1; read only."""
    found = packaged_file(PACKAGE, GGUF_NAME)
    assert found is not None
    return found


@pytest.fixture(scope="session")
def real_folder(real_gguf, tmp_path_factory) -> Iterator[Path]:
    """The weights of that file in bfloat16 with the published config and tokenizer; read only."""
    folder = tmp_path_factory.mktemp("real") / "SmolLM2-135M-Instruct"
    yield write_folder(real_gguf, folder)
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def real_artifacts(real_folder, tmp_path_factory) -> Iterator[dict[str, Artifact]]:
    """The folder as int8 and int4 in every format and fp32 ONNX, by ``format-kind``; read only."""
    out = tmp_path_factory.mktemp("real-artifacts")
    wanted = (("all", "int8"), ("all", "int4"), ("onnx", "fp32"))
    yield {
        f"{artifact.format.value}-{artifact.manifest.scheme.partition('-')[0]}": artifact
        for formats, scheme in wanted
        for artifact in edgekit.export(real_folder, formats, scheme, out)
    }
    shutil.rmtree(out)  # 1.2 GB


@pytest.fixture(scope="session")
def golden(real_folder) -> dict[str, Any]:
    """What transformers computed from that folder (scripts/golden_real_model.py)."""
    found: dict[str, Any] = json.loads(GOLDEN.read_text(encoding="utf-8"))
    weights = hashlib.sha256((real_folder / "model.safetensors").read_bytes()).hexdigest()
    assert weights == found["weights_sha256"], "run scripts/golden_real_model.py again"
    return found
