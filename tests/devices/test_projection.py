"""Projections: worked by hand, held against published runs, refused without figures."""

from __future__ import annotations

import dataclasses

import pytest

from edgekit.artifact import Format
from edgekit.devices.facts import ArtifactFacts
from edgekit.devices.profile import SourcedValue, ValueKind, load_profile
from edgekit.devices.projection import project, project_decode, project_prefill, project_ttft
from edgekit.records import Kind

MAC = load_profile("macbook-air-m4")
PI = load_profile("raspberry-pi-5")


def facts(streamed_bytes, n_parameters=1_000_000_000, kv=0):
    return ArtifactFacts(
        "m", Format.MLX, "int4-g32", streamed_bytes, streamed_bytes, kv, 4096, n_parameters
    )


def test_decode_is_t0_plus_bytes_over_reached_bandwidth():
    # 4.7 ms + 1.02e9 / (0.85 * 120e9) = 4.7 ms + 10 ms
    metric = project_decode(MAC, "mlx", facts(1_020_000_000))
    assert metric.value == pytest.approx(1 / 0.0147, rel=1e-12)
    assert metric.low == pytest.approx(metric.value / 1.5, rel=1e-12)
    assert metric.high == pytest.approx(metric.value * 1.5, rel=1e-12)
    assert (metric.kind, metric.formula) == (Kind.PROJECTED, "decode-t0-bytes-eta-bandwidth")
    assert "4167" in metric.source
    assert "llama.cpp" in metric.note
    assert metric.name == "decode_tok_per_s"


def test_the_cache_is_streamed_too():
    # 2000 positions of 51 000 bytes are one more millisecond.
    metric = project_decode(MAC, "mlx", facts(1_020_000_000, kv=51_000), n_cached=2000)
    assert metric.value == pytest.approx(1 / 0.0157, rel=1e-12)


@pytest.mark.parametrize(
    ("streamed_bytes", "published"),
    [(13.213e9, 7.43), (7.023e9, 13.54), (3.749e9, 24.11)],
)
def test_the_m4_fit_gives_back_the_three_runs_it_was_made_from(streamed_bytes, published):
    # Source: github.com/ggml-org/llama.cpp/discussions/4167, Llama-2-7B on the 10-core M4.
    metric = project_decode(MAC, "mlx", facts(int(streamed_bytes)))
    assert metric.value == pytest.approx(published, rel=0.03)


@pytest.mark.parametrize(
    ("streamed_bytes", "published"),
    [(2.02e9, 4.88), (0.352e9, 33.84), (3.75e9, 3.35)],
)
def test_published_pi_runs_lie_inside_the_range(streamed_bytes, published):
    # Sources: geerlingguy/ai-benchmarks issue 70, llama.cpp discussion 30069, microsoft/T-MAC.
    metric = project_decode(PI, "onnxruntime", facts(int(streamed_bytes)))
    assert metric.low < published < metric.high


def test_prefill_is_flops_over_two_per_parameter():
    metric = project_prefill(MAC, "mlx", facts(1, n_parameters=1_500_000_000))
    assert metric.value == pytest.approx(1000.0, rel=1e-12)
    assert metric.formula == "prefill-flops-2p"


def test_time_to_first_token_is_prefill_and_one_pass():
    metric = project_ttft(
        MAC, "mlx", facts(1_020_000_000, n_parameters=1_500_000_000), n_prompt_tokens=500
    )
    assert metric.value == pytest.approx(0.5 + 0.0147, rel=1e-12)
    assert metric.low < metric.value < metric.high


def test_weak_figures_are_named_in_the_note():
    assert (
        "depends on analogy and assumed figures" in project_decode(PI, "onnxruntime", facts(1)).note
    )
    assert "depends on" not in project_decode(MAC, "mlx", facts(1)).note


@pytest.mark.parametrize("engine", ["coreml", "no-such-engine"])
def test_without_parameters_there_is_no_number(engine):
    for metric in project(MAC, engine, facts(1), n_prompt_tokens=8):
        assert (metric.value, metric.low, metric.high) == (None, None, None)
        assert (
            metric.note
            == f"not projected: macbook-air-m4: no published runs to project {engine} from"
        )
        assert metric.kind is Kind.PROJECTED


def test_an_unknown_bandwidth_or_rate_is_refused():
    blind = dataclasses.replace(
        MAC,
        memory=dataclasses.replace(
            MAC.memory, bandwidth_bytes_per_s=SourcedValue(ValueKind.UNKNOWN, "nobody says")
        ),
    )
    decode, prefill, ttft = project(blind, "mlx", facts(1), n_prompt_tokens=8)
    assert decode.value is None
    assert prefill.value is not None
    assert ttft.value is None
    decode, prefill, ttft = project(MAC, "onnxruntime", facts(1), n_prompt_tokens=8)
    assert decode.value is not None
    assert (prefill.value, ttft.value) == (None, None)
    assert "no published CPU prefill" in prefill.note
