"""Claims about the decision: the rule alone decides, and the sentence names the cause."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgekit.quality.verdict import Rule, decide
from edgekit.records import (
    Choice,
    EngineInfo,
    HostFacts,
    Kind,
    Metric,
    PairedRecord,
    ProfileRecord,
    Workload,
)

MIB = 1024**2
RULE = Rule(memory_limit_bytes=100 * MIB)
GOOD = {"peak_anon_bytes": 60.0 * MIB, "ttft_s": 0.2, "decode_tok_per_s": 40.0}
SERVER = (
    Metric("ttft_s", 0.3, Kind.MEASURED),
    Metric("decode_tok_per_s", 90.0, Kind.MEASURED),
)


def profile(kind: Kind = Kind.MEASURED, failure: str = "", **values: float | None) -> ProfileRecord:
    metrics = tuple(Metric(name, value, kind) for name, value in {**GOOD, **values}.items())
    return ProfileRecord(
        candidate="pocket onnx int4-g32",
        format="onnx",
        scheme="int4-g32",
        artifact_bytes=1,
        device="host",
        engine=EngineInfo("onnxruntime", "1", "pocket"),
        host=HostFacts("linux", "6", "x86_64", "cpu", 2, 2, 1, None, "3.11"),
        workload=Workload(64, 32, 5, 1),
        metrics=() if failure else metrics,
        failure=failure,
    )


def pair(low: float, high: float, suite: str = "tool_calls") -> PairedRecord:
    middle = (low + high) / 2
    return PairedRecord(suite, 100, 0.9 + middle, 0.9, middle, low, high, 1, 2, 1.0)


SAME = pair(-0.02, 0.02)


def test_everything_met_ships_on_the_device():
    verdict = decide(profile(), [SAME], SERVER, RULE)
    assert verdict.choice is Choice.DEVICE
    assert verdict.sentence == ("Ship pocket onnx int4-g32 on the device: all 4 criteria are met.")
    assert [c.name for c in verdict.criteria] == [
        "memory", "time to first token", "decode speed", "tool calls",
    ]  # fmt: skip
    assert all(c.is_met for c in verdict.criteria)
    assert verdict.rule == str(RULE)


@pytest.mark.parametrize(
    ("values", "pairs", "cause"),
    [
        ({"peak_anon_bytes": 101.0 * MIB}, [SAME], "memory: 101.0 MiB, wanted at most 100.0 MiB"),
        ({"ttft_s": 1.5}, [SAME], "time to first token: 1.50 s, wanted at most 1.00 s"),
        ({"decode_tok_per_s": 9.0}, [SAME], "decode speed: 9.0 tok/s, wanted at least 10.0 tok/s"),
        ({}, [SAME, pair(-0.3, -0.06, "multi_step")], "multi step: 72.0 % (-18.0 points"),
    ],
)
def test_one_criterion_that_is_not_met_ships_on_the_server(values, pairs, cause):
    verdict = decide(profile(**values), pairs, SERVER, RULE)
    assert verdict.choice is Choice.SERVER
    assert cause in verdict.sentence
    assert f"fails 1 of {len(verdict.criteria)} criteria" in verdict.sentence
    assert [c.is_met for c in verdict.criteria].count(False) == 1


@pytest.mark.parametrize(
    ("values", "pairs", "rule", "name"),
    [
        ({}, [SAME], replace(RULE, memory_limit_bytes=None), "memory"),
        ({"peak_anon_bytes": None}, [SAME], RULE, "memory"),
        ({"ttft_s": None}, [SAME], RULE, "time to first token"),
        ({"decode_tok_per_s": None}, [SAME], RULE, "decode speed"),
        ({}, [pair(-0.1, 0.1)], RULE, "tool calls"),
        ({}, [], RULE, "quality"),
    ],
)
def test_what_cannot_be_judged_leaves_it_open(values, pairs, rule, name):
    verdict = decide(profile(**values), pairs, SERVER, rule)
    assert verdict.choice is Choice.UNDECIDED
    assert f"open: {name}." in verdict.sentence
    assert [c.name for c in verdict.criteria if c.is_met is None] == [name]


def test_a_failure_outweighs_what_is_open():
    verdict = decide(profile(ttft_s=None, decode_tok_per_s=1.0), [pair(-0.1, 0.1)], SERVER, RULE)
    assert verdict.choice is Choice.SERVER
    assert "decode speed" in verdict.sentence
    assert "tool calls" not in verdict.sentence


def test_an_emulator_judges_nothing():
    for values in ({}, {"decode_tok_per_s": 0.1, "ttft_s": 60.0, "peak_anon_bytes": 1e12}):
        verdict = decide(profile(Kind.EMULATED, **values), [SAME], SERVER, RULE)
        assert verdict.choice is Choice.UNDECIDED
        assert [c.is_met for c in verdict.criteria] == [None, None, None, True]
        assert {c.kind for c in verdict.criteria[:3]} == {Kind.EMULATED}


def test_a_run_that_failed_ships_on_the_server_and_says_why():
    verdict = decide(profile(failure="killed: signal 9"), [SAME], SERVER, RULE)
    assert verdict.choice is Choice.SERVER
    assert "runs on the device: killed: signal 9" in verdict.sentence


@pytest.mark.parametrize(
    ("low", "high", "is_met"),
    [
        (-0.05, 0.01, True),
        (-0.0501, 0.01, None),
        (-0.2, -0.05, None),
        (-0.2, -0.0501, False),
        (0.1, 0.3, True),
    ],
)
def test_a_suite_is_judged_by_the_whole_interval_against_the_margin(low, high, is_met):
    verdict = decide(profile(), [pair(low, high)], SERVER, RULE)
    assert verdict.criteria[-1].is_met is is_met


def test_thresholds_count_as_met():
    edge = profile(peak_anon_bytes=100.0 * MIB, ttft_s=1.0, decode_tok_per_s=10.0)
    assert decide(edge, [SAME], SERVER, RULE).choice is Choice.DEVICE


def test_the_rule_says_every_threshold_and_what_is_unknown():
    text = str(Rule(margin=0.025, max_ttft_s=0.5, min_decode_tok_per_s=20))
    for part in ("memory stays within unknown", "500.0 ms", "20.0 tok/s", "within 2.5 points"):
        assert part in text


def test_a_server_without_times_is_shown_as_unknown_and_judges_nothing():
    verdict = decide(profile(), [SAME], (), RULE)
    assert verdict.choice is Choice.DEVICE
    assert [c.server for c in verdict.criteria[1:3]] == ["unknown", "unknown"]
