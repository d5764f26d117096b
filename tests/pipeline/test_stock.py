"""Claims about the stock runtimes: what only they read is found when it says another thing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import onnxruntime_genai
import pytest

from edgekit.artifact import Artifact
from edgekit.pipeline.agreement import Reference, compare_run, make_prompts, run_by_default
from edgekit.pipeline.stock import check_stock
from edgekit.pipeline.verify import VerifyPlan, verification_tokens, verify
from edgekit.progress import ignore_progress
from edgekit.records import VerifyRecord, WeightsCheck
from edgekit.runtime import stock
from edgekit.runtime.stock import StockRuntime
from tests.pipeline.test_verify import repair

PLAN = VerifyPlan(n_tokens=8, n_prompts=2, n_new_tokens=24, asks_stock=True)
RUNTIMES = {"onnx": "onnxruntime-genai", "mlx": "mlx-lm"}


def check(artifact: Artifact, *, is_whole: bool = False):
    """Verify an artifact that is whole; of a planted one ask the stock runtime alone.

    What is planted may be a false claim too, which verify refuses before it asks anybody.
    """
    if is_whole:
        (record,) = verify([artifact], PLAN)
        assert record.weights.is_met
        assert record.logits.is_met
        assert record.run.is_met
        return record
    prompts = make_prompts(PLAN.n_prompts)
    ids = verification_tokens(artifact, PLAN.n_tokens)
    n_new, n_positions = PLAN.n_new_tokens, artifact.manifest.context_length
    run = run_by_default(artifact, ids, prompts, n_new, n_positions, ignore_progress)
    reference = Reference(artifact, ids)
    stock_check = check_stock(artifact, run, prompts, n_new, reference, ignore_progress)
    weights = WeightsCheck("", "", 0, 0, 0, 0)
    checked = compare_run(run, reference, {a.prompt: a.prompt_ids for a in run.answers})
    return VerifyRecord(
        "planted", artifact.format.value, "int8", weights, None, checked, stock_check
    )


def changed(artifact: Artifact, folder: Path, file: str, change) -> Artifact:
    """Copy an artifact, change a JSON file in it, and make its manifest agree."""
    shutil.copytree(artifact.path, folder)
    content = json.loads((folder / file).read_text(encoding="utf-8"))
    change(content)
    (folder / file).write_text(json.dumps(content), encoding="utf-8")
    return repair(folder, tensors=False)


@pytest.mark.parametrize("form", RUNTIMES)
@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_the_bundled_model_says_the_same_in_stock_runtimes(form, kind, pocket_artifacts):
    record = check(pocket_artifacts[f"{form}-{kind}"], is_whole=True)
    found = record.stock
    assert found.runtime == f"{RUNTIMES[form]} {version(RUNTIMES[form])}"
    assert (found.problems, found.failure, found.not_run) == ((), "", "")
    assert found.is_met
    assert found.n_prompts == len(found.answers) == 2
    assert [a.text for a in found.answers] == [a.text for a in record.run.answers]
    assert [a.ids for a in found.answers] == [a.ids for a in record.run.answers]


def test_end_tokens_that_only_the_stock_runtime_reads(pocket_artifacts, tmp_path):
    """onnxruntime-genai takes them from its own config."""

    def never(config):
        config["model"]["eos_token_id"] = [0]

    artifact = changed(pocket_artifacts["onnx-int8"], tmp_path / "a", "genai_config.json", never)
    record = check(artifact)
    ours = sorted(artifact.manifest.decoder["eos_token_ids"])
    assert record.stock.problems[0] == f"end tokens [0], in edgekit {ours}"
    assert any("ended after 24 tokens (length)" in text for text in record.stock.problems[1:])
    assert record.stock.is_met is False
    assert not record.is_met


def test_end_tokens_that_mlx_lm_adds(pocket_artifacts, tmp_path):
    """It takes the tokenizer's own beside those of generation_config.json."""

    def other(config):
        config["eos_token"] = "[INST]"

    artifact = changed(pocket_artifacts["mlx-int8"], tmp_path / "a", "tokenizer_config.json", other)
    record = check(artifact)
    ours = sorted(artifact.manifest.decoder["eos_token_ids"])
    (problem,) = record.stock.problems
    assert problem.startswith("end tokens [")
    assert problem.endswith(f"], in edgekit {ours}")
    assert not record.is_met


def test_a_chat_template_that_mlx_lm_puts_in_place_of_the_models(pocket_artifacts, tmp_path):
    def its_own(config):
        config["chat_template_type"] = "deepseek_v32"

    file = "tokenizer_config.json"
    record = check(changed(pocket_artifacts["mlx-int8"], tmp_path / "a", file, its_own))
    assert len(record.stock.problems) == 2
    assert all("token ids, in edgekit" in problem for problem in record.stock.problems)
    assert not record.is_met


def test_a_template_that_the_stock_runtime_renders_otherwise(pocket_artifacts, tmp_path):
    """Half a message is 0.5 in Jinja and 0 in the template engine of onnxruntime-genai."""

    def halve(config):
        config["chat_template"] = "{{ 1 / 2 }}" + config["chat_template"]

    file = "tokenizer_config.json"
    record = check(changed(pocket_artifacts["onnx-int8"], tmp_path / "a", file, halve))
    assert len(record.stock.problems) == 2
    for problem, answer in zip(record.stock.problems, record.run.answers, strict=True):
        n_ids = len(answer.prompt_ids)
        assert problem.startswith(
            f"prompt {answer.prompt}: {n_ids - 2} token ids, in edgekit {n_ids}"
        )
    assert record.stock.differences == ()  # continued from the same ids
    assert not record.is_met


def test_a_template_that_the_stock_runtime_cannot_render(pocket_artifacts, tmp_path):
    def shout(config):
        config["chat_template"] = "{{ 'a' | upper }}" + config["chat_template"]

    file = "tokenizer_config.json"
    record = check(changed(pocket_artifacts["onnx-int8"], tmp_path / "a", file, shout))
    assert record.stock.failure.startswith("refused: onnxruntime-genai; got ")
    assert "Value is not callable" in record.stock.failure
    assert record.stock.is_met is False
    assert not record.is_met


def test_a_runtime_that_is_not_installed_is_said_to_be_so(
    pocket_artifacts, monkeypatch, edgekit_cli
):
    missing = {f: replace(r, package="no-such-runtime") for f, r in stock.STOCK_RUNTIMES.items()}
    monkeypatch.setattr("edgekit.pipeline.stock.STOCK_RUNTIMES", missing)
    record = check(pocket_artifacts["onnx-int8"], is_whole=True)
    assert (record.stock.runtime, record.stock.not_run) == ("no-such-runtime", "not installed")
    assert record.stock.is_met is None
    assert record.is_met
    said = edgekit_cli(
        "verify", pocket_artifacts["onnx-int8"].path, "--stock", "--tokens", 8, "--prompts", 1
    )
    assert said.code == 0
    assert "not run: not installed" in said.out
    assert "verified (not run: no-such-runtime: not installed)" in said.out


def die(request, report):
    """Stand for a runtime that takes its process with it."""
    del request
    report("answer", index=0)
    os.kill(os.getpid(), signal.SIGSEGV)


def chatter(request, report):
    """Stand for a runtime that prints where results go."""
    os.write(1, b'{"result": 1}\n')
    sys.stdout.write("a banner\n")
    return stock.ask_genai(request, report)


def test_a_runtime_that_crashes_or_prints_harms_nobody(pocket_artifacts, monkeypatch, edgekit_cli):
    artifact = pocket_artifacts["onnx-int8"]
    for job, is_met in (("die", False), ("chatter", True)):
        runtime = StockRuntime("onnxruntime-genai", f"{__name__}:{job}")
        monkeypatch.setattr("edgekit.pipeline.stock.STOCK_RUNTIMES", {artifact.format: runtime})
        arguments = ("--stock", "--tokens", 8, "--prompts", 1, "--json")
        said = edgekit_cli("verify", artifact.path, *arguments)
        assert said.code == (0 if is_met else 1)
        found = said.data["records"][0]["stock"]
        assert found["failure"].startswith("" if is_met else "killed: ")
        assert said.data["is_verified"] is is_met


def test_the_version_is_that_of_the_module_that_runs():
    assert onnxruntime_genai.__version__ == version("onnxruntime-genai")
