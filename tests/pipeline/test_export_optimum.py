"""Claims about the optimum route: any architecture it knows becomes an artifact like the others.

Everything here runs the real optimum-cli in its real environment.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file, save_file

import edgekit
from edgekit.artifact import MANIFEST_NAME, Artifact, Format
from edgekit.devices.facts import facts_of
from edgekit.errors import CheckpointError, ExportError, UnsupportedArchError, UsageError
from edgekit.exporters.work_folder import PARTIAL_PREFIX
from edgekit.paths import cache_dir
from edgekit.pipeline.export_optimum import export_by_route, export_via_optimum
from edgekit.runtime import open_decoder
from tests.builders import write_tiny_checkpoint
from tests.foreign_models import VOCAB, write_foreign_checkpoint
from tests.optimum.test_child import is_running, wait_until

WEIGHTS = "model.safetensors"
LOGS = "logs"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def no_logs(home: Path) -> bool:
    return not (home / LOGS).is_dir() or names(home / LOGS) == []


@pytest.fixture
def home(tmp_path, monkeypatch, optimum_environment) -> Path:
    """A cache folder of its own that holds the finished environment."""
    folder = tmp_path / "edgekit home"
    (folder / "envs").mkdir(parents=True)
    environment = optimum_environment.folder
    (folder / "envs" / environment.name).symlink_to(environment)
    monkeypatch.setenv("EDGEKIT_HOME", str(folder))
    return folder


def test_a_mixture_that_edgekit_refuses_becomes_an_artifact(moe_model, moe_artifact, edgekit_cli):
    said = edgekit_cli("export", moe_model)
    assert said.code == 1
    assert said.parts()["do"].endswith("edgekit export MODEL --via optimum")
    manifest = moe_artifact.manifest
    assert moe_artifact.path.name == "moe-onnx-fp32-optimum"
    assert (manifest.format, manifest.scheme) == (Format.ONNX, "fp32")
    assert moe_artifact.name == "moe onnx fp32 optimum"
    assert manifest.decoder == {
        "model_type": "qwen3_moe",
        "vocab_size": VOCAB,
        "context_length": 1024,
        "eos_token_ids": [2],
        "n_layers": 2,
        "n_kv_heads": 2,
        "head_width": 16,
        "is_tied": False,
    }
    assert (manifest.model_type, manifest.context_length) == ("qwen3_moe", 1024)
    assert manifest.weights_sha256 == ""
    assert len(manifest.source_sha256) == 64
    assert manifest.source == str(moe_model)
    weights = load_file(moe_model / WEIGHTS)
    assert manifest.n_parameters == sum(values.size for values in weights.values())
    assert manifest.tool_versions["optimum-onnx"] == "0.1.0"
    assert manifest.tool_versions["transformers"] == "4.57.6"
    checked = manifest.settings["checked_against_transformers"]
    assert checked["n_tokens"] == 192
    assert 0 < checked["max_logit_error"] < 2e-4 * checked["logit_std"]
    assert checked["top1_agreement"] == 1.0
    moe_artifact.check_files()
    assert names(moe_artifact.path) == [
        "config.json", "generation_config.json", MANIFEST_NAME, "model.onnx", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    assert names(moe_artifact.path.parent) == ["moe-onnx-fp32-optimum"]


def test_its_weights_are_counted_once_each(moe_artifact):
    facts = facts_of(moe_artifact)
    manifest = moe_artifact.manifest
    assert facts.weight_bytes == pytest.approx(4 * manifest.n_parameters, rel=0.02)
    embed_bytes = 4 * VOCAB * 64
    assert facts.streamed_bytes == facts.weight_bytes - embed_bytes + embed_bytes // VOCAB
    assert facts.kv_bytes_per_token == 2 * 2 * 2 * 16 * 4
    assert facts.n_parameters == manifest.n_parameters - VOCAB * 64


def test_every_command_that_runs_an_artifact_runs_it(moe_artifact, edgekit_cli, tmp_path):
    path = moe_artifact.path
    said = edgekit_cli("run", path, "hello", "--max-tokens", 4)
    assert said.code == 0, said.err
    said = edgekit_cli("devices", "host", "--artifact", path, "--json")
    assert "moe onnx fp32 optimum" in json.dumps(said.data)
    said = edgekit_cli("profile", path, "--new", 4, "--json")
    assert said.code == 0, said.err
    said = edgekit_cli(
        "evaluate", path, "--reference", path, "--suite", "multi_step", "--items", 1, "--json"
    )
    assert said.code == 0, said.err
    assert said.data[0]["candidate"] == "moe onnx fp32 optimum"
    assert said.data[0]["divergence"]["top1_agreement"] == 1


def test_verify_says_why_it_cannot_compare_weights(moe_artifact, edgekit_cli):
    for more in ((), ("--oracle", "optimum")):
        said = edgekit_cli("verify", moe_artifact.path, *more)
        assert said.code == 2
        assert said.parts()["what"].endswith("the graph is optimum's")
        assert "checked_against_transformers" in said.parts()["do"]


def test_fp16_has_half_the_bytes_and_a_cache_of_its_own_width(home, tmp_path, edgekit_cli):
    model = write_tiny_checkpoint(tmp_path / "small one")
    said = edgekit_cli(
        "export", model, "--via", "optimum", "--scheme", "fp16", "--context", 100,
        "--out", tmp_path / "out put", "--json",
    )  # fmt: skip
    assert said.code == 0, said.err
    artifact = Artifact.open(said.data[0]["path"])
    assert artifact.path == tmp_path / "out put" / "small one-onnx-fp16-optimum"
    settings = artifact.manifest.settings
    assert (settings["activations"], settings["cache_type"]) == ("fp16", "fp16")
    assert artifact.manifest.context_length == 100
    assert artifact.manifest.decoder["is_tied"] is True
    assert facts_of(artifact).kv_bytes_per_token == 2 * 2 * 2 * 32 * 2
    # optimum leaves one matrix a layer, that after attention, in float32; the manifest says so.
    wide = [t.shape for t in artifact.manifest.tensors if t.encoding == "fp32"]
    assert wide == [(128, 128)] * 2
    n_bytes = 2 * artifact.manifest.n_parameters + 2 * 2 * 128 * 128
    assert facts_of(artifact).weight_bytes == n_bytes
    decoder = open_decoder(artifact, n_threads=1)
    ids = [(31 * i) % VOCAB for i in range(100)]
    whole = decoder.forward(ids, n_past=0, n_logits=100)
    decoder.forward(ids[:40], n_past=0)
    rest = decoder.forward(ids[40:], n_past=40, n_logits=60)
    decoder.close()
    assert whole.dtype == np.float32
    assert np.abs(rest - whole[40:]).max() / whole.std() < 5e-2
    assert no_logs(home)
    # What it did is said in progress and not on stderr; the environment was there already.
    assert said.err == ""


def test_what_optimum_cannot_write_in_half_precision_is_refused_with_the_way_out(home, tmp_path):
    model = write_foreign_checkpoint(tmp_path / "m", "gpt2")
    with pytest.raises(ExportError, match="Type parameter") as caught:
        export_via_optimum(model, "fp16", tmp_path / "out")
    assert caught.value.do.startswith("Try --scheme fp32")
    assert names(tmp_path / "out") == []


def test_a_tied_embedding_is_stored_once_and_the_graph_is_the_reference(tmp_path, home):
    model = write_tiny_checkpoint(tmp_path / "m", "llama-yarn")
    (ours,) = edgekit.export(model, "onnx", "fp32", tmp_path)
    theirs = export_via_optimum(model, "fp32", tmp_path)
    assert theirs.manifest.decoder["is_tied"] is True
    n_floats = sum(np.prod(t.shape) for t in theirs.manifest.tensors)
    assert n_floats == pytest.approx(theirs.manifest.n_parameters, rel=0.01)
    # yarn stands under rope_parameters, which transformers 4.57 alone would pass over.
    ids = [(31 * i + 7) % VOCAB for i in range(200)]
    logits = []
    for artifact in (ours, theirs):
        decoder = open_decoder(artifact, n_threads=1)
        logits.append(decoder.forward(ids, n_past=0, n_logits=200))
        decoder.close()
    assert np.abs(logits[0] - logits[1]).max() / logits[0].std() < 2e-4


def test_weights_that_are_missing_are_an_error_although_optimum_makes_them_up(home, tmp_path):
    model = write_tiny_checkpoint(tmp_path / "m", dtype="fp32")
    tensors = load_file(model / WEIGHTS)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, model / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="1 weights that the model needs") as caught:
        export_via_optimum(model, "fp32", tmp_path / "out")
    assert caught.value.got == "model.layers.1.mlp.up_proj.weight"
    assert names(tmp_path / "out") == []


def test_a_graph_that_does_not_give_the_models_logits_is_refused(home, tmp_path):
    model = write_tiny_checkpoint(tmp_path / "m", dtype="fp32")
    tensors = load_file(model / WEIGHTS)
    tensors["model.norm.weight"][3] = np.nan
    save_file(tensors, model / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ExportError, match="does not give the logits of the model") as caught:
        export_via_optimum(model, "fp32", tmp_path / "out")
    assert "nan standard deviations over 192 tokens" in caught.value.got
    assert names(tmp_path / "out") == []


def test_what_optimum_fails_on_is_passed_on_with_its_log_and_an_earlier_artifact_stays(
    home, moe_artifact, tmp_path, edgekit_cli
):
    kept = shutil.copytree(moe_artifact.path, tmp_path / "out" / "m-onnx-fp32-optimum")
    model = write_foreign_checkpoint(tmp_path / "m", "phi")
    said = edgekit_cli("export", model, "--via", "optimum", "--out", tmp_path / "out")
    assert said.code == 1
    parts = said.parts()
    assert parts["what"] == "optimum-cli export failed with exit code 1"
    assert parts["got"].startswith("RuntimeError: Sizes of tensors must match")
    log = Path(re.fullmatch(r"Full log: (.+)", parts["do"])[1])
    assert log.parent == home / LOGS
    assert "Traceback (most recent call last)" in log.read_text(encoding="utf-8")
    Artifact.open(kept).check_files()
    assert names(tmp_path / "out") == ["m-onnx-fp32-optimum"]


def test_what_optimum_does_not_know_is_refused_before_the_environment_is_made(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("EDGEKIT_HOME", str(tmp_path / "home"))
    model = write_foreign_checkpoint(tmp_path / "m", "mixtral")
    with pytest.raises(UnsupportedArchError, match=r"got 'mixtral'.*qwen3_moe"):
        export_via_optimum(model, "fp32", tmp_path / "out")
    known = write_foreign_checkpoint(tmp_path / "k", "gpt2")
    with pytest.raises(UsageError, match=r"got int4-g32; wanted fp32 or fp16"):
        export_via_optimum(known, "int4", tmp_path / "out")
    with pytest.raises(UsageError, match=r"optimum's graph; got 257; wanted 2 \.\. 256"):
        export_via_optimum(known, "fp32", tmp_path / "out", context_length=257)
    turning = write_tiny_checkpoint(
        tmp_path / "r", "llama-yarn", rope_parameters={"full_attention": {}}
    )
    with pytest.raises(UnsupportedArchError, match="by kind of layer"):
        export_via_optimum(turning, "fp32", tmp_path / "out")
    long = write_tiny_checkpoint(tmp_path / "l", "phi3")
    with pytest.raises(UsageError, match=r"optimum's graph; got 65; wanted 2 \.\. 64") as caught:
        export_via_optimum(long, "fp32", tmp_path / "out", context_length=65)
    assert "LongRoPE" in caught.value.wanted
    coded = write_foreign_checkpoint(
        tmp_path / "q", "gpt2", quantization_config={"quant_method": "gptq"}
    )
    with pytest.raises(UsageError, match="quantized weights; got gptq"):
        export_via_optimum(coded, "fp32", tmp_path / "out")
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(UsageError, match="a GGUF file"):
        export_via_optimum(tmp_path / "m.gguf", "fp32", tmp_path / "out")
    assert not (tmp_path / "home").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--via", "magic"], "unknown value of --via"),
        (["--via", "optimum", "--format", "mlx"], "--via optimum cannot write this format"),
        (["--via", "optimum", "--format", "all"], "--via optimum cannot write this format"),
        (["--via", "optimum", "--method", "rtn"], "--method cannot be used with --via optimum"),
        (["--via", "optimum", "--no-fold"], "--no-fold cannot be used with --via optimum"),
        (["--via", "optimum", "--scheme", "int8"], "--via optimum cannot write this scheme"),
    ],
)
def test_a_request_that_the_route_does_not_offer_is_a_usage_error(
    options, what, tiny_model, tmp_path, edgekit_cli
):
    said = edgekit_cli("export", tiny_model, *options, "--out", tmp_path / "out")
    assert (said.code, said.parts()["what"]) == (2, what)
    assert not (tmp_path / "out").exists()


def test_a_disk_that_is_too_small_is_refused_and_leaves_nothing(
    home, tiny_model, tmp_path, monkeypatch
):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ExportError, match=r"not enough space for the export.*got 1000 B free"):
        export_via_optimum(tiny_model, "fp32", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("way", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_an_export_that_is_ended_takes_optimum_with_it(way, home, moe_model, tmp_path):
    out = tmp_path / "out"
    with subprocess.Popen(
        [sys.executable, "-m", "edgekit", "export", moe_model, "--via", "optimum", "--out", out],
        env=dict(os.environ), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        # A shell that starts this in the background has its children ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        assert wait_until(lambda: tracing(process.pid), 60)
        children = tracing(process.pid)
        process.send_signal(way)
        code = process.wait()
    assert code != 0
    assert wait_until(lambda: not any(map(is_running, children)))
    left = names(out)
    if way is signal.SIGKILL:
        assert all(name.startswith(PARTIAL_PREFIX) for name in left)
    else:
        assert left == []


def tracing(pid: int) -> list[int]:
    children = psutil.Process(pid).children(recursive=True)
    return [p.pid for p in children if "optimum.commands.optimum_cli" in p.cmdline()]


def test_the_default_route_is_edgekits_own(tiny_model, tmp_path):
    told: list[str] = []
    (artifact,) = export_by_route(
        "edgekit", tiny_model, ["onnx"], None, tmp_path,
        context_length=None, method=None, tell=told.append, progress=lambda *step: None,
    )  # fmt: skip
    assert artifact.manifest.scheme == "int4-g32"
    assert not artifact.is_traced
    assert told == ["no --scheme was named: int4. Recommended: --scheme balanced (calibrated)"]


def test_the_cache_of_these_tests_is_not_the_users(home):
    assert cache_dir() == home
