"""Claims about the comparison: a real server, its recording, and the recording without it."""

from __future__ import annotations

import json
import urllib.request
from dataclasses import replace

import pytest

from edgekit.artifact import Artifact
from edgekit.errors import ServerError, UsageError
from edgekit.pipeline import compare as module
from edgekit.pipeline.compare import compare, comparison_report
from edgekit.pipeline.hosting import hosted, open_server
from edgekit.quality.evaluate import SuitePlan
from edgekit.quality.verdict import Rule
from edgekit.records import Choice, Workload
from edgekit.report.write import write_report

PLAN = SuitePlan(("multi_step", "structured_output"), n_items=3)
WORKLOAD = Workload(n_prompt_tokens=16, n_new_tokens=4, n_repeats=5, n_warmup=1)


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    return tmp_path_factory.mktemp("recording") / "answers.jsonl"


@pytest.fixture(scope="module")
def live(pocket_artifacts, recording):
    """The whole comparison, against the float model in a process of its own."""
    with (
        hosted(pocket_artifacts["onnx-fp32"]) as endpoint,
        open_server(
            endpoint.url, endpoint.model, api_key_env="OPENAI_API_KEY", timeout_s=60,
            record=recording, replay=None,
        ) as server,
    ):  # fmt: skip
        return compare(pocket_artifacts["onnx-int4"], server, plan=PLAN, workload=WORKLOAD)


def test_both_sides_answer_the_same_items_and_are_paired(live):
    device, server = live.device_quality, live.server_quality
    assert [s.suite for s in device.suites] == [s.suite for s in server.suites] == list(PLAN.suites)
    for ours, theirs in zip(device.suites, server.suites, strict=True):
        assert [o.item_id for o in ours.outcomes] == [o.item_id for o in theirs.outcomes]
    assert [(p.suite, p.n_items) for p in live.record.pairs] == [(s, 3) for s in PLAN.suites]
    assert server.candidate.startswith("server pocket-onnx-fp32")


def test_the_verdict_names_every_criterion_and_the_limit_of_this_machine(live):
    names = [criterion.name for criterion in live.record.verdict.criteria]
    assert names == [
        "memory", "time to first token", "decode speed", "multi step", "structured output",
    ]  # fmt: skip
    limit = next(m for m in live.record.metrics if m.name == "memory_limit_bytes")
    assert limit.value > 0
    assert limit.source
    assert live.record.verdict.choice in Choice
    assert live.profile.failure == ""


def test_the_server_was_measured_as_its_user_sees_it(live):
    by_name = {metric.name: metric for metric in live.record.metrics}
    ttft = next(metric for name, metric in by_name.items() if name.startswith("ttft"))
    assert ttft.value is not None
    assert all(sample > 0 for sample in ttft.samples)


def test_a_replay_gives_the_same_answers_without_a_server(
    live, recording, pocket_artifacts, monkeypatch
):
    monkeypatch.setattr(module, "profile", lambda *_, **__: live.profile)  # measured once already
    with open_server(
        None, None, api_key_env="OPENAI_API_KEY", timeout_s=1, record=None, replay=recording
    ) as server:
        again = compare(pocket_artifacts["onnx-int4"], server, plan=PLAN, workload=WORKLOAD)
    for was, now in zip(live.server_quality.suites, again.server_quality.suites, strict=True):
        assert [(o.item_id, o.answer, o.is_correct) for o in was.outcomes] == [
            (o.item_id, o.answer, o.is_correct) for o in now.outcomes
        ]
    assert again.record.pairs == live.record.pairs
    assert again.record.verdict.choice is live.record.verdict.choice
    assert any("replayed" in note for note in again.record.notes)


def test_the_command_replays_writes_the_report_and_prints_one_document(
    live, recording, pocket_artifacts, edgekit_cli, monkeypatch, tmp_path
):
    monkeypatch.setattr(module, "profile", lambda *_, **__: live.profile)
    arguments = [
        "compare", pocket_artifacts["onnx-int4"].path, "--replay", recording, "--items", 3,
        "--suite", "multi_step", "--suite", "structured_output", "--out", tmp_path / "page",
    ]  # fmt: skip
    said = edgekit_cli(*arguments, "--json")
    assert said.code == 0, said.err
    written = json.loads((tmp_path / "page" / "report.json").read_text(encoding="utf-8"))
    assert said.data == written
    assert written["comparisons"][0]["verdict"]["sentence"]
    shown = edgekit_cli(*arguments).out
    assert str(tmp_path / "page" / "index.html") in shown


def test_a_replay_of_other_items_says_that_they_were_not_recorded(
    recording, live, pocket_artifacts
):
    del live  # only its recording is needed
    with (
        open_server(
            None, None, api_key_env="OPENAI_API_KEY", timeout_s=1, record=None, replay=recording
        ) as server,
        pytest.raises(ServerError, match="holds no answer to this request"),
    ):
        compare(pocket_artifacts["onnx-int4"], server, plan=replace(PLAN, seed=99))


def test_a_recording_of_several_models_needs_a_name(recording, live, tmp_path):
    lines = recording.read_text(encoding="utf-8").splitlines(keepends=True)
    other = lines[0].replace("pocket-onnx-fp32", "another-model")
    assert other != lines[0]
    both = tmp_path / "both.jsonl"
    both.write_text("".join([*lines, other]), encoding="utf-8")
    options = {"api_key_env": "OPENAI_API_KEY", "timeout_s": 1, "record": None, "replay": both}
    with pytest.raises(UsageError, match="several models"), open_server(None, None, **options):
        pass
    with open_server(None, "another-model", **options) as server:
        assert server.info.model


def test_a_comparison_becomes_a_report(live, pocket_artifacts, tmp_path):
    data = comparison_report(pocket_artifacts["onnx-int4"], live)
    written = write_report(data, tmp_path)
    page = written[0].read_text(encoding="utf-8")
    assert "pocket: on the device or on a server?" in page
    assert len(data.qualities) == 2


def test_a_stated_memory_limit_is_the_rule(live, pocket_artifacts):
    asked = module.ServerRun(live.server_quality, live.record.metrics)
    joined = module.join(
        pocket_artifacts["onnx-int4"], live.profile, live.device_quality, asked,
        Rule(memory_limit_bytes=1),
    )  # fmt: skip
    assert joined.record.verdict.choice is Choice.SERVER
    assert "memory: " in joined.record.verdict.sentence


def test_a_hosted_model_is_gone_after_its_block(pocket_artifacts):
    with (
        hosted(pocket_artifacts["onnx-int4"]) as endpoint,
        urllib.request.urlopen(f"{endpoint.url}/models", timeout=10) as reply,  # noqa: S310
    ):
        assert endpoint.model in reply.read().decode()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{endpoint.url}/models", timeout=10)  # noqa: S310


def test_a_server_that_does_not_start_says_why(pocket_artifacts, tmp_path):
    nowhere = Artifact(tmp_path / "gone", pocket_artifacts["onnx-int4"].manifest)
    with pytest.raises(ServerError, match=r"did not start.*is not an artifact"), hosted(nowhere):
        pass
