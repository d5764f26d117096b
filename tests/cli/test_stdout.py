"""Claims about stdout: it is edgekit's own, whatever a library prints, and may be closed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

import edgekit
from tests.builders import write_tiny_checkpoint

ROOT = Path(edgekit.__file__).parent.parent
# What a library may do: print from Python, from C with and without a buffer, and in a child.
PRINTS = """
import ctypes, os, subprocess, sys
from edgekit.cli.output import Output

output = Output(is_json=%s)
print("from Python")
sys.stdout.write("from sys.stdout\\n")
sys.stdout.buffer.write(b"from its buffer\\n")
sys.__stdout__.write("from the first stdout\\n")
os.write(1, b"from a descriptor\\n")
ctypes.CDLL(None).puts(b"from C")
subprocess.run(["echo", "from a child"], check=True)
output.write("an answer")
output.result({"a": "caf\\u00e9 \\U0001f600"}, lambda console: console.print("a table"))
Output(is_json=%s).write(" and more")
print("from Python again")
"""
SAID = {
    "from Python", "from sys.stdout", "from its buffer", "from the first stdout",
    "from a descriptor", "from C", "from a child", "from Python again",
}  # fmt: skip


def run_child(*arguments: object, **options) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "edgekit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=300, cwd=ROOT, **options)


@pytest.mark.parametrize("is_json", [True, False])
def test_what_a_library_prints_goes_to_stderr(is_json):
    done = subprocess.run(
        [sys.executable, "-c", PRINTS % (is_json, is_json)],
        capture_output=True, text=True, encoding="utf-8", check=True, cwd=ROOT,
        env=os.environ | {"PYTHONUTF8": "1"},
    )  # fmt: skip
    assert set(done.stderr.splitlines()) == SAID
    if is_json:
        assert json.loads(done.stdout) == {"a": "café 😀"}
    else:
        assert done.stdout == "an answera table\n and more"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "utf-16"])
def test_json_parses_in_every_encoding(encoding):
    done = subprocess.run(
        [sys.executable, "-c", PRINTS % (True, True)],
        capture_output=True, check=True, cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
    )  # fmt: skip
    assert json.loads(done.stdout.decode(encoding)) == {"a": "café 😀"}


@pytest.fixture(scope="module")
def damaged(tiny_artifacts, tmp_path_factory) -> Path:
    """An ONNX artifact whose graph names a node by bytes that are no text."""
    folder = tmp_path_factory.mktemp("damaged") / "tiny"
    shutil.copytree(tiny_artifacts["onnx-int4"].path, folder)
    graph = folder / "model.onnx"
    data = bytearray(graph.read_bytes())
    data[data.index(b"layers.0")] = 0xF4
    graph.write_bytes(data)
    return folder


@pytest.mark.parametrize(
    "command",
    [
        ("run", "ARTIFACT", "hi", "--max-tokens", 2),
        ("verify", "ARTIFACT", "--tokens", 8),
        ("profile", "ARTIFACT", "--prompt", 8, "--new", 2),
        ("evaluate", "ARTIFACT", "--items", 1),
        ("compare", "ARTIFACT", "--server", "http://127.0.0.1:9", "--server-model", "x"),
        ("devices", "host", "--artifact", "ARTIFACT"),
    ],
    ids=lambda command: command[0],
)  # fmt: skip
@pytest.mark.parametrize("is_damaged", [False, True], ids=["healthy", "damaged"])
def test_stdout_is_one_document(command, is_damaged, damaged, tiny_artifacts):
    artifact = damaged if is_damaged else tiny_artifacts["onnx-int4"].path
    line = [str(artifact) if part == "ARTIFACT" else part for part in command]
    done = run_child(*line, "--json", env=os.environ | {"OPENAI_API_KEY": "none"})
    found = json.loads(done.stdout)
    assert b"Traceback" not in done.stderr
    # The suites need more positions than the tiny model has, and nobody listens on port 9.
    is_good = not is_damaged and command[0] in ("run", "verify", "profile", "devices")
    assert (done.returncode == 0) == (is_good or command[0] == "devices")
    if "error" in found:
        assert done.returncode != 0
        assert set(found) == {"error", "what", "got", "wanted", "do"}


@pytest.mark.parametrize("name", ["inspect", "export", "report"])
def test_the_other_commands_give_one_document(name, tmp_path, tiny_artifacts):
    model = write_tiny_checkpoint(tmp_path / "m")
    options = {
        "inspect": (model, "--no-measure"),
        "export": (model, "--scheme", "fp16", "--out", tmp_path / "out"),
        "report": (model / "config.json", "--out", tmp_path / "page"),
    }
    done = run_child(name, *options[name], "--json")
    found = json.loads(done.stdout)
    assert ("error" in found) == (name == "report")


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (["run", "--json"], "Missing argument"),
        (["profile", "x", "--repeats", "two", "--json"], "Invalid value for '--repeats'"),
        (["export", "x", "--no-such-option", "--json"], "No such option"),
        (["no-such-command", "--json"], "No such command"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_wrong_command_line_is_a_document_too(line, what, edgekit_cli):
    said = edgekit_cli(*line)
    assert said.code == 2
    assert said.data["error"] == "UsageError"
    assert what in said.data["what"]
    assert "Usage: " in said.err


def test_a_prompt_that_reads_like_the_option_is_a_prompt(edgekit_cli):
    said = edgekit_cli("run", "no-such-folder", "--", "--json")
    assert (said.code != 0, said.out) == (True, "")


@pytest.mark.parametrize(
    "line",
    [
        ("devices",),
        ("devices", "--json"),
        ("run", "ARTIFACT", "hi"),
        ("run", "ARTIFACT", "hi", "--json"),
        ("verify", "ARTIFACT", "--weights-only"),
    ],
    ids=" ".join,
)
def test_a_closed_pipe_ends_the_command_as_sigpipe_would(line, tiny_artifacts):
    path = str(tiny_artifacts["onnx-int4"].path)
    command = [sys.executable, "-m", "edgekit", *(path if p == "ARTIFACT" else p for p in line)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as child:
        child.stdout.close()
        assert child.stderr.read() == ""
    assert child.returncode == 141


def test_a_closed_pipe_of_messages_ends_the_command_too(tiny_artifacts):
    path = str(tiny_artifacts["onnx-int4"].path)
    with subprocess.Popen(
        [sys.executable, "-m", "edgekit", "serve", path, "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    ) as child:  # fmt: skip
        child.stderr.close()
        assert child.stdout.read() == ""
    assert child.returncode == 141


def test_a_server_goes_on_when_nobody_reads_its_log(tiny_artifacts):
    path = str(tiny_artifacts["onnx-int4"].path)
    with subprocess.Popen(
        [sys.executable, "-m", "edgekit", "serve", path, "--port", "0", "--raw"],
        stderr=subprocess.PIPE, text=True, cwd=ROOT,
    ) as child:  # fmt: skip
        url = re.search(r"http://\S+", child.stderr.readline())[0]
        child.stderr.close()
        for _ in range(3):
            with urllib.request.urlopen(f"{url}/models", timeout=60) as answer:  # noqa: S310
                assert answer.status == 200
        child.terminate()
    assert child.returncode == 143


def test_closed_streams_are_no_fault(tiny_artifacts):
    line = f'"{sys.executable}" -m edgekit devices >&- 2>&-'
    done = subprocess.run(["sh", "-c", line], cwd=ROOT)  # noqa: S607
    assert done.returncode == 0
