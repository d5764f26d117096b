"""Claims about the Core ML engine that can be checked without a Mac.

``MLModel`` runs on macOS only; a stand-in with its two methods executes the same package in the
interpreter, so that what the engine passes and takes back is checked against a real program.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.artifact import Artifact
from edgekit.errors import EngineCrashError, EngineLoadError, UsageError
from edgekit.formats.mlpackage import PACKAGE_NAME
from edgekit.records import EngineInfo
from edgekit.runtime import default_engine
from edgekit.runtime.coreml import CoremlDecoder, stateful_step
from edgekit.runtime.mil import MilDecoder
from edgekit.runtime.mil_machine import MilMachine
from edgekit.runtime.mil_program import read_program
from tests.exporters.coreml.coreml_edit import export
from tests.exporters.memory_model import memory_model


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return export(memory_model(), tmp_path_factory.mktemp("coreml"))


class InterpretedModel:
    """``MLModel`` as far as the engine uses it: types are as strict as Core ML's."""

    def __init__(self, package: Path) -> None:
        program = read_program(package, rounds=True)
        self.machine = MilMachine(program, rounds=True, max_kept_bytes=1 << 30)

    def make_state(self) -> MilMachine:
        return self.machine

    def predict(self, data: dict[str, Any], state: MilMachine) -> dict[str, Any]:
        assert data["inputIds"].dtype == np.int32
        assert data["causalMask"].dtype == np.float16
        if data["inputIds"][0, 0] == 13:
            raise RuntimeError("the GPU hung")
        feeds = {**data, "causalMask": data["causalMask"].astype(np.float32)}
        return {"logits": state.run(feeds).astype(np.float16)}


def test_engine_drives_the_model_as_the_interpreter_does(artifact: Artifact) -> None:
    model = InterpretedModel(artifact.path / PACKAGE_NAME)
    info = EngineInfo("coreml", "stand-in", artifact.name)
    decoder = CoremlDecoder(stateful_step(model), info, 96, 64)
    mil = MilDecoder.open(artifact)
    for ids, n_past, n_logits in (([3, 1, 4], 0, 3), ([1], 3, 1), ([5, 9], 2, 2)):
        got = decoder.forward(ids, n_past=n_past, n_logits=n_logits)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, mil.forward(ids, n_past=n_past, n_logits=n_logits))


def test_a_failing_prediction_is_a_crash(artifact: Artifact) -> None:
    model = InterpretedModel(artifact.path / PACKAGE_NAME)
    info = EngineInfo("coreml", "stand-in", artifact.name)
    decoder = CoremlDecoder(stateful_step(model), info, 96, 64)
    decoder.forward([1, 2], n_past=0)
    with pytest.raises(EngineCrashError, match="the GPU hung"):
        decoder.forward([13], n_past=2)
    decoder.forward([3], n_past=2)


@pytest.mark.parametrize(
    ("system", "release"), [("Linux", ""), ("Windows", ""), ("Darwin", "14.7.1")]
)
def test_other_systems_are_sent_to_mil(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch, system: str, release: str
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "mac_ver", lambda: (release, ("", "", ""), ""))
    with pytest.raises(EngineLoadError, match="macOS 15 or later") as caught:
        CoremlDecoder.open(artifact)
    assert "--engine mil" in str(caught.value)
    assert caught.value.got is not None


def test_unknown_compute_units_are_a_usage_error(artifact: Artifact) -> None:
    with pytest.raises(UsageError, match="CPU_AND_GPU"):
        CoremlDecoder.open(artifact, options={"compute_units": "TPU"})


def test_coreml_is_the_default_on_a_mac_and_mil_elsewhere(artifact: Artifact) -> None:
    assert default_engine(artifact.format, "Darwin") == "coreml"
    assert default_engine(artifact.format, "Linux") == "mil"
