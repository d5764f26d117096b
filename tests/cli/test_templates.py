"""A chat template that is missing or wrong ends each command in an error that says so."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import re
import shutil
import subprocess
import sys

import pytest

from tests.builders import write_tiny_checkpoint

GOOD = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
WRONG = {
    "missing": (None, "no chat template"),
    "syntax": ("{% for m in messages %}{{ m.content }}", "chat template failed"),
    "raises": ("{{ raise_exception('never') }}", "chat template failed"),
    "undefined": ("{{ messages[0].content.nothing.more }}", "chat template failed"),
    "endless": (
        "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
        "chat template failed",
    ),
    "ignores the question": ("{{ bos_token }}[user]hi[assistant]", "leaves out the user's message"),
    "no opening": (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}",
        "does not open the assistant's answer",
    ),
}
JSON = {"Content-Type": "application/json"}
COMMANDS = {
    "run": ("run", "Hello there"),
    "chat": ("chat",),
    "serve": ("serve", "--port", 0),
    "evaluate": ("evaluate", "--suite", "multi_step", "--items", 1),
}


def put_template(folder, template):
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


@pytest.fixture
def artifact(tiny_artifacts, tmp_path):
    return shutil.copytree(tiny_artifacts["onnx-int8"].path, tmp_path / "artifact")


def put_into_artifact(artifact, template):
    """Change the template, and the manifest so that it knows the file as it is."""
    put_template(artifact, template)
    path = artifact / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    names = {entry["path"] for entry in manifest["files"]}
    names |= {"chat_template.jinja"} if template is not None else set()
    manifest["files"] = [
        {
            "path": name,
            "n_bytes": (artifact / name).stat().st_size,
            "sha256": hashlib.sha256((artifact / name).read_bytes()).hexdigest(),
        }
        for name in sorted(names)
    ]
    path.write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.parametrize("command", list(COMMANDS))
@pytest.mark.parametrize("case", list(WRONG))
def test_a_wrong_template_is_loud(edgekit_cli, monkeypatch, artifact, command, case):
    template, what = WRONG[case]
    put_into_artifact(artifact, template)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello there\n\n"))
    name, *options = COMMANDS[command]
    said = edgekit_cli(name, artifact, *options)
    assert said.code == 1
    assert said.out == ""
    (message,) = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert what in message


@pytest.mark.parametrize("case", [case for case in WRONG if case != "missing"])
def test_a_model_with_a_wrong_template_is_not_exported(edgekit_cli, tmp_path, case):
    template, what = WRONG[case]
    model = put_template(write_tiny_checkpoint(tmp_path / "model"), template)
    said = edgekit_cli("export", model, "--format", "onnx", "--out", tmp_path / "out")
    assert said.code == 1
    assert what in said.parts()["what"]
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_template_is_exported_and_continues_text(edgekit_cli, tmp_path):
    model = put_template(write_tiny_checkpoint(tmp_path / "model"), None)
    out = tmp_path / "out"
    assert edgekit_cli("export", model, "--format", "onnx", "--out", out).code == 0
    (artifact,) = out.iterdir()
    assert edgekit_cli("run", artifact, "Hello", "--raw", "--max-tokens", 2).code == 0


def test_a_model_without_a_template_serves_completions_where_that_is_asked_for(artifact):
    put_into_artifact(artifact, None)
    command = [sys.executable, "-m", "edgekit", "serve", str(artifact), "--port", "0", "--raw"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
        try:
            port = int(re.search(r"127\.0\.0\.1:(\d+)", child.stderr.readline())[1])
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            body = json.dumps({"model": artifact.name, "prompt": "Hello", "max_tokens": 2})
            connection.request("POST", "/v1/completions", body, JSON)
            answer = json.load(connection.getresponse())
            connection.close()
            assert answer["usage"]["completion_tokens"] == 2, answer
        finally:
            child.terminate()


def test_a_template_that_leaves_out_the_tools_is_loud_where_tools_are_asked_for(
    edgekit_cli, artifact, tiny_model
):
    put_into_artifact(artifact, GOOD.replace("{% if tools %}{{ tools | tojson }}{% endif %}", ""))
    asked = ("evaluate", artifact, "--items", 1, "--json", "--suite")
    said = edgekit_cli(*asked, "tool_calls")
    assert said.code == 1
    assert "leaves out the tools" in said.parts()["what"]
    said = edgekit_cli(*asked, "multi_step", "--reference", tiny_model)
    assert said.code == 0
    assert edgekit_cli("verify", artifact, "--greedy", 1).code == 0


def test_the_same_commands_work_with_a_right_template(edgekit_cli, monkeypatch, artifact):
    put_into_artifact(artifact, GOOD)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello there\n\n"))
    assert edgekit_cli("chat", artifact, "--max-tokens", 1).code == 0
    assert edgekit_cli("run", artifact, "Hello there", "--max-tokens", 1).code == 0
