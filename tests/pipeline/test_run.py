"""Claims about opening an artifact on a device: engine, threads and limits come from a profile."""

from __future__ import annotations

import numpy as np
import pytest

import edgekit
from edgekit.devices.match import RunConstraints
from edgekit.devices.probe import probe_host
from edgekit.devices.profile import load_profile
from edgekit.errors import ArtifactError, NoFitError, ProfileError
from edgekit.pipeline.devices import describe_profile, list_devices, match_tables
from edgekit.pipeline.run import open_profile, plan_run


def test_a_session_gives_logits_and_tokens(tiny_artifacts):
    with edgekit.load(tiny_artifacts["onnx-int4"].path) as session:
        logits = session.logits([1, 2, 3])
        assert logits.shape == (3, 384)
        assert logits.dtype == np.float32
        events = list(session.generate("the ", max_tokens=4))
    assert sum(event.token_id is not None for event in events) <= 4
    assert events[-1].finish is not None


def test_the_engine_fits_the_format_and_threads_are_the_hosts(tiny_artifacts):
    facts = probe_host()
    plan = plan_run(tiny_artifacts["onnx-int4"])
    assert plan.engine == "onnxruntime"
    assert 1 <= plan.n_threads <= facts.n_cores
    assert plan.need_bytes < plan.memory_limit_bytes <= facts.memory_bytes
    assert (
        plan_run(tiny_artifacts["onnx-int4"], constraints=RunConstraints(n_threads=1)).n_threads
        == 1
    )


def test_a_profile_of_another_device_brings_its_own_limits(tiny_artifacts):
    profile = load_profile("raspberry-pi-5")
    plan = plan_run(tiny_artifacts["onnx-int4"], "raspberry-pi-5")
    bound = profile.memory.app_limit_bytes.value or profile.memory.total_bytes.value // 2
    assert plan.memory_limit_bytes <= bound
    assert plan.n_threads <= (profile.cpu.n_threads.value or profile.cpu.n_big_cores.value)


def test_what_does_not_fit_is_refused_with_every_reason(tiny_artifacts):
    with pytest.raises(NoFitError) as caught:
        edgekit.load(tiny_artifacts["coreml-int4"], "raspberry-pi-5")
    assert list(caught.value.reasons) == ["tiny coreml int4-g32"]
    with pytest.raises(NoFitError, match="context of 4096 asked for, the artifact holds 256"):
        edgekit.load(tiny_artifacts["onnx-int4"], context_length=4096)


def test_no_artifact_and_no_profile_are_their_own_errors(tiny_artifacts, tmp_path):
    with pytest.raises(ArtifactError):
        edgekit.load(tmp_path)
    with pytest.raises(ProfileError):
        edgekit.load(tiny_artifacts["onnx-int4"], "toaster")


def test_the_host_has_a_profile_like_any_device():
    facts = probe_host()
    assert open_profile("host", facts).id == "host"
    data, (table,) = list_devices()
    assert data[0]["id"] == "host"
    assert [row[0].text for row in table.rows] == [profile["id"] for profile in data]


def test_a_profile_shows_every_figure_with_its_source():
    data, (table,) = describe_profile("iphone-16-pro")
    assert data["id"] == "iphone-16-pro"
    assert len(table.rows) > 10
    for name, value, kind, source in ([cell.text for cell in row] for row in table.rows):
        assert name
        assert value
        assert kind
        assert source, name


def test_every_artifact_gets_an_answer_on_a_device(tiny_artifacts):
    artifacts = list(tiny_artifacts.values())
    data, tables = match_tables(artifacts, "raspberry-pi-5")
    shown = {row[0].text for table in tables for row in table.rows}
    assert shown == {artifact.name for artifact in artifacts}
    assert len(data) >= len(artifacts)
    runs, refused = tables
    assert {row[0].text for row in runs.rows} >= {"tiny onnx int4-g32", "tiny onnx int8-g32"}
    for row in refused.rows:
        assert len(row[2].text) > 10
    for row in runs.rows:
        assert all(cell.text and cell.text != "None" for cell in row)
