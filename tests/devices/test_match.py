"""Matching, from hand-made facts: every candidate answered, the order known, reasons in words."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from edgekit.artifact import Format
from edgekit.decision import Accepted, Rejected
from edgekit.devices.facts import ArtifactFacts
from edgekit.devices.host import host_profile
from edgekit.devices.match import RunConstraints, choose, match, memory_limit, need_bytes
from edgekit.devices.profile import SourcedValue, ValueKind, load_profile
from edgekit.errors import NoFitError, UsageError
from edgekit.records import HostFacts

GIB = 1 << 30
LINUX = HostFacts(
    os="linux", os_version="6", arch="x86_64", cpu="test", n_cores=2, n_physical_cores=2,
    memory_bytes=8 * GIB, memory_limit_bytes=None, python="3.11",
    engines={"onnxruntime": "1.32.0", "mlx": "0.32.2", "mil": "9.0"},
)  # fmt: skip
MAC = dataclasses.replace(
    LINUX, os="macos", arch="arm64", n_cores=10, n_physical_cores=10,
    engines={"onnxruntime": "1.32.0", "mlx": "0.32.2", "mil": "9.0", "coreml": "9.0"},
)  # fmt: skip
PHONE = load_profile("iphone-16-pro")
PI = load_profile("raspberry-pi-5")


def facts(fmt, scheme="int4-g32", weight_bytes=2 * GIB, context_length=4096, kv=100_000):
    name = f"m {fmt.value} {scheme}"
    return ArtifactFacts(
        name, fmt, scheme, weight_bytes, weight_bytes, kv, context_length, 3_000_000_000
    )


ALL = [
    facts(fmt, scheme, weight_bytes)
    for fmt in (Format.ONNX, Format.MLX, Format.COREML)
    for scheme, weight_bytes in (("int8-g32", 4 * GIB), ("int4-g32", 2 * GIB))
]


def reasons(candidates):
    return {c.name: c.decision.reason for c in candidates if isinstance(c.decision, Rejected)}


@pytest.mark.parametrize("profile", [PHONE, PI, load_profile("macbook-air-m4"), host_profile(MAC)])
@pytest.mark.parametrize("host", [None, LINUX, MAC])
@pytest.mark.parametrize(
    "constraints",
    [RunConstraints(), RunConstraints(format=Format.MLX), RunConstraints(engine="coreml")],
)
def test_every_artifact_gets_one_answer_per_engine(profile, host, constraints):
    candidates = match(ALL, profile, host, constraints)
    wanted = [
        (a.name, engine)
        for a in ALL
        for engine in ([e.id for e in profile.engines if a.format in e.formats] or [""])
    ]
    assert sorted((c.artifact.name, c.engine) for c in candidates) == sorted(wanted)
    for c in candidates:
        assert isinstance(c.decision, Accepted) == (c.plan is not None)
        if isinstance(c.decision, Rejected):
            assert c.decision.reason
    accepted = [c.plan is not None for c in candidates]
    assert accepted == sorted(accepted, reverse=True)


def test_the_order_of_the_artifacts_does_not_change_the_choice():
    plans = {choose(match(order, PHONE)) for order in itertools.permutations(ALL, 6)}
    assert len(plans) == 1


def test_a_pi_runs_onnx_only_and_says_so():
    candidates = match(ALL, PI)
    assert reasons(candidates)["m mlx int4-g32"] == (
        "no engine on Raspberry Pi 5 (8 GB) runs mlx; it runs onnx"
    )
    plan = choose(candidates)
    assert (plan.artifact, plan.engine, plan.n_threads) == ("m onnx int4-g32", "onnxruntime", 4)
    assert plan.memory_limit_bytes == int(7.5 * GIB)
    assert plan.context_length == 4096


def test_ranking_is_engine_order_then_need_and_emulated_last():
    order = [(c.engine, c.artifact.scheme) for c in match(ALL, host_profile(MAC), MAC)]
    assert order == [
        ("mlx", "int4-g32"), ("mlx", "int8-g32"),
        ("coreml", "int4-g32"), ("coreml", "int8-g32"),
        ("onnxruntime", "int4-g32"), ("onnxruntime", "int8-g32"),
        ("mil", "int4-g32"), ("mil", "int8-g32"),
    ]  # fmt: skip


def test_an_optional_engine_that_is_not_installed_says_what_installs_it():
    found = reasons(match([facts(Format.GGUF)], host_profile(LINUX), LINUX))
    assert found["m gguf int4-g32 on llama_cpp"] == (
        "engine llama_cpp is not installed: pip install 'edgekit[llama]'"
    )
    here = dataclasses.replace(LINUX, engines={**LINUX.engines, "llama_cpp": "0.3.36"})
    assert choose(match([facts(Format.GGUF)], host_profile(here), here)).engine == "llama_cpp"


def test_an_emulated_plan_carries_a_warning():
    plan = choose(match(ALL, host_profile(LINUX), LINUX, RunConstraints(engine="mil")))
    assert any("its speed means nothing" in note for note in plan.notes)


def test_need_is_weights_cache_and_overhead():
    engine = PI.engine("onnxruntime")
    # 1.2 x 1000 + 10 x 7 + the profile's overhead
    a = facts(Format.ONNX, weight_bytes=1000, kv=7)
    assert need_bytes(a, engine, 10) == 1200 + 70 + engine.overhead_bytes.value
    blank = dataclasses.replace(
        engine,
        overhead_bytes=SourcedValue(ValueKind.UNKNOWN, "x"),
        weights_factor=SourcedValue(ValueKind.UNKNOWN, "x"),
    )
    assert need_bytes(a, blank, 10) == 1070
    # A copy that would be too large is not made: the weights count once.
    shy = dataclasses.replace(engine, max_copy_bytes=1199)
    assert need_bytes(a, shy, 10) == 1000 + 70 + engine.overhead_bytes.value


def test_the_limit_is_exact_to_the_byte():
    engine = PHONE.engine("mlx")
    limit = PHONE.memory.app_limit_bytes.value
    room = limit - engine.overhead_bytes.value - 4096 * 100_000
    fits, over = facts(Format.MLX, weight_bytes=room), facts(Format.MLX, weight_bytes=room + 1)
    assert choose(match([fits], PHONE)).need_bytes == limit
    with pytest.raises(NoFitError) as caught:
        choose(match([over], PHONE))
    reason = caught.value.reasons["m mlx int4-g32 on mlx"]
    assert "the limit is 2.79 GiB" in reason
    assert "rtabmap" in reason  # the limit's own source


def test_a_shorter_context_or_the_raised_limit_makes_it_fit():
    big = [facts(Format.COREML, weight_bytes=2 * GIB, kv=200_000, context_length=8192)]
    with pytest.raises(NoFitError):
        choose(match(big, PHONE))
    assert (
        choose(match(big, PHONE, None, RunConstraints(context_length=1024))).context_length == 1024
    )
    assert choose(
        match(big, PHONE, None, RunConstraints(use_raised_limit=True))
    ).memory_limit_bytes == (6_000_000_000)


def test_a_longer_context_than_the_artifact_holds_is_refused():
    found = reasons(match([facts(Format.ONNX)], PI, None, RunConstraints(context_length=4097)))
    assert found["m onnx int4-g32 on onnxruntime"] == (
        "context of 4097 asked for, the artifact holds 4096"
    )


def test_a_constraint_rejects_the_rest_with_itself_as_the_reason():
    candidates = match(ALL, PHONE, None, RunConstraints(format=Format.ONNX, context_length=1024))
    assert choose(candidates).engine == "onnxruntime"
    others = [c.decision for c in candidates if c.artifact.format is not Format.ONNX]
    assert set(others) == {Rejected("format onnx was asked for")}
    candidates = match(ALL, PHONE, None, RunConstraints(engine="mlx"))
    assert choose(candidates).engine == "mlx"
    assert "engine mlx was asked for" in reasons(candidates).values()


def test_an_engine_that_is_not_installed_or_too_old_is_refused_here():
    old = dataclasses.replace(LINUX, engines={"onnxruntime": "1.9.10"})
    found = reasons(match([facts(Format.ONNX), facts(Format.MLX)], PHONE, old))
    assert found["m mlx int4-g32 on mlx"] == (
        "engine mlx is not available on this machine (linux x86_64)"
    )
    found = reasons(match([facts(Format.ONNX)], PI, old))
    assert found == {
        "m onnx int4-g32 on onnxruntime": "onnxruntime 1.9.10 is installed, 1.24 or newer is needed"
    }
    new = dataclasses.replace(LINUX, engines={"onnxruntime": "1.100.0rc1"})
    assert choose(match([facts(Format.ONNX)], PI, new)).engine == "onnxruntime"


def test_this_machine_bounds_the_plan_of_another_device():
    small = dataclasses.replace(LINUX, n_cores=1, memory_limit_bytes=3 * GIB)
    plan = choose(match([facts(Format.ONNX, weight_bytes=GIB)], PI, small))
    assert (plan.n_threads, plan.memory_limit_bytes) == (1, 3 * GIB)
    assert "memory limit: the limit of this machine" in plan.notes


def test_threads_follow_the_constraints_then_the_profile():
    one = [facts(Format.ONNX)]
    assert choose(match(one, PI, None, RunConstraints(n_threads=3))).n_threads == 3
    assert choose(match(one, PI)).n_threads == 4


def test_an_unknown_limit_falls_back_to_half_of_memory_and_says_so():
    unknown = dataclasses.replace(
        PHONE,
        memory=dataclasses.replace(
            PHONE.memory, app_limit_bytes=SourcedValue(ValueKind.UNKNOWN, "nobody measured it")
        ),
    )
    assert memory_limit(unknown) == (
        4 * GIB,
        "assumed: half of memory; no limit is known",
    )


@pytest.mark.parametrize("wrong", [{"n_threads": 0}, {"context_length": -1}])
def test_a_constraint_to_nothing_is_refused(wrong):
    with pytest.raises(UsageError, match="at least 1"):
        RunConstraints(**wrong)


def test_a_raised_limit_that_nobody_knows_cannot_be_counted_on():
    with pytest.raises(UsageError, match="no raised memory limit is known"):
        memory_limit(PI, use_raised=True)


def test_nothing_to_run_is_no_fit():
    with pytest.raises(NoFitError) as caught:
        choose(match([], PI))
    assert caught.value.reasons == {"artifacts": "none given"}
    assert caught.value.exit_code == 4
