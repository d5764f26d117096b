"""Claims about bad input: what, got, wanted, do; the right exit code; nothing half-written."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import edgekit
from edgekit.exporters.work_folder import PARTIAL_PREFIX
from tests.builders import write_tiny_checkpoint
from tests.cli.cli import Said
from tests.runtime.raw_server import HELLO, RawServer, Script, hang, refuse, reply, send, sse

ROOT = Path(edgekit.__file__).parent.parent
WEIGHTS = "model.safetensors"
SHARD = "model-00002-of-00003.safetensors"


def edit_config(**changes) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        path = model / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def cut(name: str, n_bytes: int) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        os.truncate(model / name, (model / name).stat().st_size - n_bytes)

    return change


def wrong_shape(model: Path) -> None:
    tensors = load_file(model / WEIGHTS)
    tensors["model.norm.weight"] = np.zeros(7, dtype=np.float32)
    save_file(tensors, model / WEIGHTS)


def without_a_tensor(model: Path) -> None:
    tensors = load_file(model / WEIGHTS)
    del tensors["model.norm.weight"]
    save_file(tensors, model / WEIGHTS)


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda model: (model / name).write_text(text)


# name: (shards, what goes wrong, words that the message must hold)
MODELS: dict[str, tuple[int, Callable[[Path], object], tuple[str, ...]]] = {
    "missing shard": (3, lambda m: (m / SHARD).unlink(), (SHARD, "download")),
    "truncated shard": (3, cut(SHARD, 64), (SHARD, "Download")),
    "truncated weights": (1, cut(WEIGHTS, 1), (WEIGHTS, "Download")),
    "empty weights": (1, write(WEIGHTS, ""), (WEIGHTS,)),
    "wrong shape": (1, wrong_shape, ("model.norm.weight", "7", "128")),
    "missing tensor": (1, without_a_tensor, ("model.norm.weight",)),
    "unknown model type": (1, edit_config(model_type="mamba"), ("mamba", "mistral")),
    "unknown config key": (1, edit_config(use_magic=True), ("use_magic",)),
    "wrong config value": (1, edit_config(hidden_size="wide"), ("hidden_size", "wide")),
    "damaged config": (1, write("config.json", "{"), ("config.json", "JSON")),
    "no config": (1, lambda m: (m / "config.json").unlink(), ("config.json",)),
    "corrupt tokenizer": (1, write("tokenizer.json", '{"model": {'), ("tokenizer.json",)),
    "no model": (1, shutil.rmtree, ("tiny",)),
}


def assert_is_clear(said: Said, code: int, *words: str) -> None:
    assert said.code == code, said.err
    parts = said.parts()
    assert parts["what"]
    # A config with several faults names got and wanted of each in one line.
    assert parts.get("got") or parts.get("wanted") or "(wanted " in parts["what"], said.err
    assert parts.get("do"), said.err
    for word in words:
        assert word in said.err
    assert said.out == ""


@pytest.mark.parametrize("name", MODELS)
def test_a_bad_model_is_refused_and_the_output_stays_as_it_was(name, edgekit_cli, tmp_path):
    shards, damage, words = MODELS[name]
    model = write_tiny_checkpoint(tmp_path / "tiny", shards=shards)
    damage(model)
    out = tmp_path / "out"
    (out / "tiny-onnx-int4-g32").mkdir(parents=True)
    said = edgekit_cli("export", model, "--format", "all", "--out", out)
    assert_is_clear(said, 1, *words)
    assert [path.relative_to(out) for path in out.rglob("*")] == [Path("tiny-onnx-int4-g32")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ("cannot read",)),
        ("id = ", ("is not TOML",)),
        ("id = 'x'", ("name", "memory")),
        ("\udcff", ("cannot read",)),
    ],
)
@pytest.mark.parametrize("command", ["devices", "run"])
def test_an_unreadable_device_profile_is_refused(
    command, text, words, edgekit_cli, tiny_artifacts, tmp_path
):
    profile = tmp_path / "p.toml"
    if text is not None:
        profile.write_bytes(text.encode("utf-8", "surrogateescape"))
    arguments = [profile]
    if command == "run":
        arguments = [tiny_artifacts["onnx-int4"].path, "hi", "--device", profile]
    assert_is_clear(edgekit_cli(command, *arguments), 1, "p.toml", *words)


def test_an_unknown_device_is_refused_with_the_nearest_name(edgekit_cli):
    assert_is_clear(edgekit_cli("devices", "raspbery-pi-5"), 1, "raspberry-pi-5")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda a: (a / "manifest.json").write_text("{"), ("is not a manifest",)),
        (lambda a: (a / "manifest.json").unlink(), ("is not an artifact", "edgekit export")),
        (lambda a: os.truncate(a / WEIGHTS, 100), (WEIGHTS, "size")),
        (shutil.rmtree, ("is not an artifact",)),
        (lambda a: flip(a / WEIGHTS), (WEIGHTS, "changed since the export")),
        (lambda a: flip(a / "tokenizer.json"), ("tokenizer.json", "changed since the export")),
        (lambda a: flip(a / "manifest.json"), ("manifest.json",)),
        (lambda a: (a / "chat_template.jinja").write_text("EVIL"), ("chat_template.jinja",)),
        (lambda a: os.mkfifo(a / "chat_template.jinja"), ("chat_template.jinja",)),
        (lambda a: os.mkfifo(a / "notes"), ("notes",)),
    ],
)
@pytest.mark.parametrize("command", ["run", "verify", "evaluate", "profile", "serve", "chat"])
def test_a_bad_artifact_is_refused_by_every_command(
    command, damage, words, edgekit_cli, tiny_artifacts, tmp_path
):
    artifact = shutil.copytree(tiny_artifacts["mlx-int4"].path, tmp_path / "a")
    damage(artifact)
    arguments = ["hi"] if command == "run" else []
    assert_is_clear(edgekit_cli(command, artifact, *arguments), 1, *words)


def flip(path: Path) -> None:
    """Change one bit."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def fault_server(case: str) -> Script:
    stream = reply(sse(HELLO), is_chunked=False)
    return {
        "refuses": refuse("401 Unauthorized", {"message": "no"}),
        "times out": hang(),
        "cuts the stream": send(stream[: stream.index(b"llo")]),
        "answers nonsense": send(reply(b"<html>hello</html>", kind="text/html")),
        "answers a broken stream": send(reply(b"data: {nonsense\n\n")),
    }[case]


SERVER_FAULTS = [
    ("refuses", "401"),
    ("times out", ""),
    ("cuts the stream", ""),
    ("answers nonsense", "html"),
    ("answers a broken stream", "nonsense"),
]


@pytest.mark.parametrize(("case", "word"), SERVER_FAULTS)
def test_a_bad_server_is_refused_before_anything_is_measured(
    case, word, edgekit_cli, tiny_artifacts, tmp_path
):
    out = tmp_path / "report"
    with RawServer(fault_server(case)) as server:
        said = edgekit_cli(
            "compare", tiny_artifacts["onnx-int4"].path, "--server", server.url,
            "--server-model", "m", "--timeout", "0.3", "--items", 1, "--suite", "multi_step",
            "--record", tmp_path / "answers.jsonl", "--out", out,
        )  # fmt: skip
    assert_is_clear(said, 1, word)
    assert not out.exists()
    assert (tmp_path / "answers.jsonl").read_bytes() == b""


def test_no_server_at_all_is_refused(edgekit_cli, tiny_artifacts):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    said = edgekit_cli(
        "compare", tiny_artifacts["onnx-int4"].path, "--server", f"http://127.0.0.1:{port}/v1",
        "--server-model", "m", "--items", 1, "--suite", "multi_step", "--timeout", "0.3",
    )  # fmt: skip
    assert_is_clear(said, 1, f"127.0.0.1:{port}")


@pytest.mark.parametrize("limit_bytes", [2_000, 60_000])
def test_a_disk_that_is_too_small_is_an_error_and_nothing_stays(tiny_model, tmp_path, limit_bytes):
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "edgekit", "export", str(tiny_model), "--out", str(out)],
        capture_output=True, text=True, cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(
            resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes)
        ),
    )  # fmt: skip
    assert_is_clear(Said(done.returncode, done.stdout, done.stderr), 1, "File too large")
    assert list(out.iterdir()) == []


def test_a_place_that_cannot_be_written_is_refused(edgekit_cli, tiny_model, tmp_path):
    (tmp_path / "file").write_text("x")
    said = edgekit_cli("export", tiny_model, "--out", tmp_path / "file" / "out")
    assert_is_clear(said, 1, "--out")
    assert (tmp_path / "file").read_text() == "x"


def test_a_folder_of_somebody_else_is_not_replaced(edgekit_cli, tiny_model, tmp_path):
    mine = tmp_path / "tiny-mlx-int4-g32"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years")
    said = edgekit_cli("export", tiny_model, "--format", "mlx", "--out", tmp_path)
    assert_is_clear(said, 1, "files that edgekit did not write")
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(PARTIAL_PREFIX)]
