"""A whole profile in real children, on the fake engine: every number, its kind, its failures."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from edgekit.artifact import Artifact, FileEntry, Format, Manifest, TensorEntry, hash_file
from edgekit.devices.facts import facts_of
from edgekit.devices.host import host_profile
from edgekit.devices.profile import SourcedValue, ValueKind, load_profile
from edgekit.errors import MeasureError
from edgekit.profiler.measure import profile_artifact
from edgekit.profiler.projected import project_artifact
from edgekit.profiler.roofline import roofline_metrics
from edgekit.records import HostFacts, Kind, Workload, from_data, to_data, to_json

WORKLOAD = Workload(n_prompt_tokens=8, n_new_tokens=4, n_repeats=5, n_warmup=1)
HOST = HostFacts(
    os="linux", os_version="6", arch="x86_64", cpu="test", n_cores=2, n_physical_cores=2,
    memory_bytes=8 << 30, memory_limit_bytes=None, python="3.11", engines={"fake": "1"},
)  # fmt: skip


@pytest.fixture
def artifact(tmp_path):
    weights = tmp_path / "weights.bin"
    weights.write_bytes(b"w" * 4096)
    manifest = Manifest(
        format=Format.ONNX, scheme="int4-g32", model_name="tiny", model_type="llama",
        source="tiny", source_sha256="0" * 64, weights_sha256="0" * 64, n_parameters=64 * 32,
        context_length=32,
        decoder={
            "vocab_size": 64, "n_layers": 2, "n_kv_heads": 2, "head_width": 16, "is_tied": True,
        },
        tensors=(TensorEntry("embed", (64, 32), "int4-g32", "test", None),),
        files=(FileEntry("weights.bin", 4096, hash_file(weights)),),
        tool_versions={},
    )  # fmt: skip
    (tmp_path / "manifest.json").write_text(manifest.to_json())
    return Artifact.open(tmp_path)


def run(artifact, engine="fake", **more):
    return profile_artifact(
        artifact,
        engine=engine,
        n_threads=1,
        host=HOST,
        workload=WORKLOAD,
        timeout_s=60,
        **{"n_loads": 1, **more},
    )


def test_a_profile_has_every_metric_with_kind_formula_and_raw_samples(artifact):
    steps = []
    record = run(
        artifact,
        profile=host_profile(HOST),
        n_loads=5,  # intervals need five
        progress=lambda what, n_done, n_total: steps.append((n_done, n_total)),
    )
    assert record.failure == ""
    values = {m.name: m.value for m in record.metrics}
    assert set(values) == {
        "load_cold_s", "load_warm_s", "open_s",
        "ttft_s", "prefill_tok_per_s", "decode_tok_per_s", "tpot_s",
        "itl_p50_s", "itl_p95_s", "itl_p99_s", "e2e_s",
        "peak_anon_bytes", "peak_file_bytes", "peak_rss_bytes",
        "loaded_anon_bytes", "loaded_file_bytes", "baseline_anon_bytes", "baseline_file_bytes",
        "memory_limit_bytes",
    }  # fmt: skip
    assert all(m.formula for m in record.metrics)
    kinds = {m.name: m.kind for m in record.metrics}
    assert kinds.pop("memory_limit_bytes") is Kind.MEASURED  # probed
    assert set(kinds.values()) == {Kind.EMULATED}  # the fake engine is no device
    without = {m.name for m in record.metrics if m.value is None}
    assert without <= {"load_cold_s"}  # some file systems cannot drop pages
    assert all(m.note for m in record.metrics if m.value is None)
    for name in (
        "ttft_s",
        "prefill_tok_per_s",
        "decode_tok_per_s",
        "tpot_s",
        "e2e_s",
        "open_s",
        "load_warm_s",
    ):
        metric = record.metric(name)
        assert len(metric.samples) == 5
        assert metric.low <= metric.value <= metric.high
    assert len(record.metric("itl_p50_s").samples) == 5 * 3
    assert values["tpot_s"] * values["decode_tok_per_s"] == pytest.approx(1.0)
    assert values["ttft_s"] < values["e2e_s"]
    assert values["peak_anon_bytes"] >= values["loaded_anon_bytes"] > 1 << 20
    assert record.engine.engine == "fake"
    assert record.candidate == "tiny onnx int4-g32"
    assert any("emulates" in note for note in record.notes)
    assert steps[0] == (0, 17)
    assert steps[-1] == (17, 17)
    assert steps == sorted(steps)
    assert from_data(type(record), to_data(record)) == record
    assert to_json(record) == to_json(record)


def test_streamed_bytes_count_weights_and_the_cache(artifact):
    # 64 x 32 codes at 4 bits and one fp16 scale per 32; a tied table is read whole as the head.
    weights = 64 * 32 // 2 + 64 * 1 * 2
    # fp32 cache of 2 layers x 2 heads x 16, keys and values, at 10 positions.
    cache = 2 * 2 * 2 * 16 * 4 * 10
    metrics = roofline_metrics(
        facts_of(artifact), host_profile(HOST), 0.5, kind=Kind.MEASURED, n_cached=10
    )
    streamed, rate, fraction = metrics
    assert streamed.value == weights + cache
    assert rate.value == 2 * (weights + cache)
    assert fraction.value is None
    assert "bandwidth of this machine is unknown" in fraction.note


def test_a_run_under_the_profile_of_another_machine_is_emulated_and_says_so(artifact):
    pi = load_profile("raspberry-pi-5")
    record = run(artifact, profile=pi, device=pi.id)
    assert record.metric("decode_tok_per_s").kind is Kind.EMULATED
    assert any("its times are not that device's" in note for note in record.notes)
    assert record.metric("bandwidth_fraction") is None
    limit = record.metric("memory_limit_bytes")
    assert (limit.value, limit.kind) == (8053063680, Kind.PROJECTED)


def test_every_formula_is_defined_in_the_method(artifact):
    pi = load_profile("raspberry-pi-5")
    here = run(artifact, profile=pi)
    there = project_artifact(artifact, pi, engine="onnxruntime", host=HOST, workload=WORKLOAD)
    roofline = roofline_metrics(facts_of(artifact), pi, 0.5, kind=Kind.MEASURED)
    formulas = {m.formula for m in (*here.metrics, *there.metrics, *roofline)}
    assert len(formulas) == 20
    method = (Path(__file__).parents[2] / "docs" / "method.md").read_text(encoding="utf-8")
    assert {formula for formula in formulas if f"`{formula}`" not in method} == set()


def test_a_refused_engine_is_a_failed_row_with_the_reason(artifact):
    record = run(artifact, engine="mlx")
    assert record.failure.startswith("refused: UsageError: engine mlx does not run onnx")
    assert record.metrics == ()
    assert record.engine.engine == "mlx"


def test_a_profile_without_meaning_is_refused_before_any_child(artifact):
    with pytest.raises(MeasureError, match="longer than the context; got 12 tokens"):
        run(artifact, context_length=10)
    with pytest.raises(MeasureError, match="loads; got 0"):
        run(artifact, n_loads=0)


def test_an_artifact_damaged_after_opening_is_a_failed_row(artifact):
    (artifact.path / "weights.bin").unlink()
    record = run(artifact)
    assert record.failure.startswith("refused: ArtifactError")
    assert "weights.bin" in record.failure


def test_the_share_of_bandwidth_is_hand_worked_and_doubtful_above_one(artifact):
    facts = facts_of(artifact)
    host = host_profile(HOST)

    def with_bandwidth(value):
        sourced = SourcedValue(ValueKind.PUBLISHED, "test", value)
        return dataclasses.replace(
            host, memory=dataclasses.replace(host.memory, bandwidth_bytes_per_s=sourced)
        )

    def fraction(bandwidth):
        metrics = roofline_metrics(facts, with_bandwidth(bandwidth), 0.5, kind=Kind.MEASURED)
        return {m.name: m for m in metrics}

    # 1152 bytes in half a second are 2304 bytes/s.
    slow = fraction(9216.0)
    assert slow["decode_bytes_per_s"].value == 2304.0
    assert slow["bandwidth_fraction"].value == 0.25
    assert "suspicious" not in slow["bandwidth_fraction"].note
    fast = fraction(1152.0)
    assert fast["bandwidth_fraction"].value == 2.0
    assert "suspicious" in fast["bandwidth_fraction"].note
