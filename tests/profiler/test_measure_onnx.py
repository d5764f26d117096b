"""The real thing: a random checkpoint exported, planned, run by onnxruntime in children."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from edgekit.artifact import Format
from edgekit.decision import Accepted
from edgekit.devices.facts import facts_of
from edgekit.devices.host import host_profile
from edgekit.devices.match import choose, match
from edgekit.devices.probe import probe_host
from edgekit.devices.profile import load_profile
from edgekit.errors import UsageError
from edgekit.pipeline.export import export
from edgekit.profiler.measure import profile_artifact
from edgekit.profiler.projected import project_artifact
from edgekit.records import Kind, ProfileRecord, Workload, from_data, to_data


def load_builders():
    path = Path(__file__).parents[1] / "builders.py"
    spec = importlib.util.spec_from_file_location("builders_of_profiles", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("profile")
    checkpoint = load_builders().write_tiny_checkpoint(folder / "tiny", "mistral")
    (made,) = export(checkpoint, "onnx", "int4", folder / "out")
    return made


def test_facts_add_up_to_the_stored_weights(artifact):
    facts = facts_of(artifact)
    decoder = artifact.manifest.decoder
    assert facts.format is Format.ONNX
    cache = 2 * decoder["n_layers"] * decoder["n_kv_heads"] * decoder["head_width"] * 4
    assert facts.kv_bytes_per_token == cache
    stored = next(f.n_bytes for f in artifact.manifest.files if f.path == "weights.safetensors")
    # The file also holds rotary tables, fp32 scales and headers, so it is the larger one.
    assert 0.4 * stored < facts.weight_bytes < stored
    embed = decoder["vocab_size"] * decoder["hidden_width"]
    if decoder["is_tied"]:
        assert facts.streamed_bytes == facts.weight_bytes
        assert facts.n_parameters == artifact.manifest.n_parameters
    else:
        assert facts.streamed_bytes < facts.weight_bytes
        assert facts.n_parameters == artifact.manifest.n_parameters - embed


def test_a_planned_run_on_this_machine_is_measured_within_its_estimate(artifact):
    host = probe_host()
    profile = host_profile(host)
    candidates = match([facts_of(artifact)], profile, host)
    assert [type(c.decision) for c in candidates] == [Accepted]
    plan = choose(candidates)
    record = profile_artifact(
        artifact, engine=plan.engine, n_threads=plan.n_threads, host=host,
        workload=Workload(n_prompt_tokens=16, n_new_tokens=4, n_repeats=5, n_warmup=1), n_loads=1,
        profile=profile,
    )  # fmt: skip
    assert record.failure == ""
    assert record.engine.engine == "onnxruntime"
    assert record.engine.n_threads == plan.n_threads
    kinds = {m.name: m.kind for m in record.metrics}
    assert kinds.pop("need_bytes") is Kind.PROJECTED
    assert set(kinds.values()) == {Kind.MEASURED}
    assert record.metric("peak_anon_bytes").value <= plan.need_bytes
    assert record.metric("need_bytes").value == plan.need_bytes
    assert record.metric("memory_limit_bytes").value == plan.memory_limit_bytes


def test_another_device_is_projected_and_says_so(artifact):
    host = probe_host()
    workload = Workload(n_prompt_tokens=16, n_new_tokens=4, n_repeats=5, n_warmup=1)
    record = project_artifact(
        artifact, load_profile("raspberry-pi-5"), engine="onnxruntime", host=host, workload=workload
    )
    kinds = {m.name: m.kind for m in record.metrics}
    assert kinds.pop("sustained_factor") is Kind.PUBLISHED
    assert set(kinds.values()) == {Kind.PROJECTED}
    assert set(kinds) == {
        "decode_tok_per_s", "prefill_tok_per_s", "ttft_s", "need_bytes", "memory_limit_bytes",
    }  # fmt: skip
    assert record.device == "raspberry-pi-5"
    facts = facts_of(artifact)
    n_bytes = facts.streamed_bytes + 16 * facts.kv_bytes_per_token
    decode = record.metric("decode_tok_per_s")
    assert decode.value == pytest.approx(0.56 * 17.07e9 / n_bytes, rel=1e-12)
    assert decode.low < decode.value < decode.high
    assert "nothing was run on this device" in record.notes[0]
    assert from_data(ProfileRecord, to_data(record)) == record


def test_an_engine_that_the_device_lacks_cannot_be_projected(artifact):
    with pytest.raises(UsageError, match="raspberry-pi-5 has no engine mlx"):
        project_artifact(
            artifact, load_profile("raspberry-pi-5"), engine="mlx", host=probe_host(),
            workload=Workload(16, 4, 5, 1),
        )  # fmt: skip
