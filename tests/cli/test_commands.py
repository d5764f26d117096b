"""Claims about the command line: help, one JSON document, messages, exit codes."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import edgekit
from edgekit.artifact import Artifact
from edgekit.cli import app
from edgekit.report.write import write_report
from tests.builders import write_tiny_checkpoint
from tests.report.example import example_report

ROOT = Path(edgekit.__file__).parent.parent
COMMANDS = [command.name for command in app.registered_commands]
HEAVY = ("numpy", "onnx", "onnxruntime", "mlx", "coremltools", "openai", "tokenizers", "jinja2")


def run_child(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgekit", *map(str, arguments)],
        capture_output=True, text=True, timeout=120, cwd=ROOT, **options,
    )  # fmt: skip


def test_the_commands_are_those_of_the_folder_and_of_the_contract():
    wanted = (
        "inspect export verify run chat profile evaluate quality-cost compare report devices serve "
        "demo"
    )
    assert wanted.split() == COMMANDS
    files = {path.stem for path in (ROOT / "edgekit" / "cli").glob("*.py")}
    assert {name if name == "__init__" else name.replace("_", "-") for name in files} == {
        *COMMANDS,
        "__init__",
        "options",
        "output",
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example_and_stands_in_the_readme(name, edgekit_cli):
    said = edgekit_cli(name, "--help")
    assert said.code == 0
    assert f"Example: edgekit {name}" in " ".join(said.out.split())
    assert f"`edgekit {name}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_no_help_imports_anything_heavy():
    code = (
        "import sys, contextlib, io\n"
        "from edgekit.cli import app\n"
        f"for name in {COMMANDS!r}:\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as out:\n"
        "        app([name, '--help'], standalone_mode=False)\n"
        "    assert 'Example' in out.getvalue(), name\n"
        f"print(*[m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == []


def test_without_a_command_the_commands_are_listed():
    done = run_child()
    assert done.returncode == 2
    text = done.stdout + done.stderr
    assert all(name in text for name in COMMANDS)


def test_the_version_is_printed(edgekit_cli):
    said = edgekit_cli("--version")
    assert (said.code, said.out) == (0, f"edgekit {edgekit.__version__}\n")


def test_inspect_gives_one_document(edgekit_cli, tiny_model):
    said = edgekit_cli("inspect", tiny_model, "--no-measure", "--json")
    assert (said.code, said.err) == (0, "")
    assert (said.data["name"], said.data["n_layers"]) == ("tiny", 2)
    assert "mistral" in edgekit_cli("inspect", tiny_model, "--no-measure").out


def test_a_config_key_is_ignored_when_asked_for_and_said_so(edgekit_cli, tmp_path):
    model = write_tiny_checkpoint(tmp_path / "m", "llama", trick=3, twist=[1])
    said = edgekit_cli("inspect", model, "--no-measure").parts()
    assert said["got"] == "trick = 3, twist = [1]"
    assert said["do"].endswith(": --ignore-config-key trick --ignore-config-key twist")
    options = ("--ignore-config-key", "trick", "--ignore-config-key", "twist")
    notes = [
        "config key trick = 3: ignored as asked",
        "config key twist = [1]: ignored as asked",
    ]
    found = edgekit_cli("inspect", model, "--no-measure", "--json", *options)
    assert (found.code, found.data["notes"]) == (0, notes)
    said = edgekit_cli(
        "export", model, "--format", "mlx", "--scheme", "fp16", "--out", tmp_path, "--json",
        *options,
    )  # fmt: skip
    assert said.code == 0
    assert [note for note in notes if note in said.err] == notes
    assert said.data[0]["manifest"]["notes"][:2] == notes


def test_a_config_key_that_is_used_cannot_be_ignored(edgekit_cli, tiny_model):
    said = edgekit_cli("export", tiny_model, "--ignore-config-key", "hidden_size")
    assert said.code == 2
    assert said.parts()["got"] == "hidden_size"
    said = edgekit_cli("export", tiny_model, "--via", "optimum", "--ignore-config-key", "x")
    assert said.parts()["what"] == "--ignore-config-key cannot be used with --via optimum"


def test_export_gives_the_manifests_and_writes_what_they_say(edgekit_cli, tiny_model, tmp_path):
    said = edgekit_cli(
        "export", tiny_model, "--format", "mlx", "--scheme", "int4-g64", "--scheme", "fp16",
        "--out", tmp_path, "--json",
    )  # fmt: skip
    assert (said.code, said.err) == (0, "")
    assert [Path(entry["path"]).name for entry in said.data] == [
        "tiny-mlx-int4-g64",
        "tiny-mlx-fp16",
    ]
    for entry in said.data:
        artifact = Artifact.open(entry["path"])
        written = json.loads(artifact.manifest.to_json())
        assert written.pop("manifest_sha256")  # of the file's text, not of what it says
        assert written == entry["manifest"]
        assert entry["n_bytes"] == artifact.n_bytes


def test_a_wrong_scheme_is_found_before_anything_is_written(edgekit_cli, tiny_model, tmp_path):
    said = edgekit_cli(
        "export", tiny_model, "--scheme", "int4", "--scheme", "int5", "--out", tmp_path / "out"
    )
    assert said.code == 2
    assert not (tmp_path / "out").exists()


def test_verify_says_yes_and_no_by_its_exit_code(edgekit_cli, tiny_model, tiny_artifacts, tmp_path):
    pair = [tiny_artifacts[name].path for name in ("onnx-int4", "mlx-int4")]
    said = edgekit_cli("verify", *pair, "--tokens", "16", "--json")
    assert (said.code, said.data["is_verified"]) == (0, True)
    (other,) = edgekit.export(tiny_model, "mlx", "int4", tmp_path, method="rtn")
    said = edgekit_cli("verify", pair[0], other.path, "--weights-only")
    assert said.code == 1
    assert "NOT verified" in said.out


def test_run_streams_the_answer_or_gives_one_document(edgekit_cli, tiny_artifacts):
    arguments = ("run", tiny_artifacts["onnx-int4"].path, "Hello", "--max-tokens", 5)
    said = edgekit_cli(*arguments, "--json")
    assert said.code == 0
    assert said.data["n_tokens"] == 5
    assert said.data["finish"] == "length"
    assert said.data["engine"]["engine"] == "onnxruntime"
    assert edgekit_cli(*arguments).out == said.data["text"] + "\n"
    raw = edgekit_cli(*arguments, "--raw", "--json")
    assert raw.data["n_tokens"] == 5


def test_chat_answers_every_line_until_an_empty_one(edgekit_cli, tiny_artifacts, monkeypatch):
    read, write = os.pipe()
    os.write(write, b"Hello\nAgain\n\nnever asked\n")
    os.close(write)
    with os.fdopen(read) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        said = edgekit_cli("chat", tiny_artifacts["onnx-int4"].path, "--max-tokens", 3)
    assert said.code == 0
    assert "tiny onnx int4-g32 on onnxruntime" in said.err
    assert said.out.count("\n") >= 2


def test_devices_lists_shows_and_matches(edgekit_cli, tiny_artifacts):
    ids = [profile["id"] for profile in edgekit_cli("devices", "--json").data]
    assert ids[0] == "host"
    assert {"raspberry-pi-5", "iphone-16-pro", "macbook-air-m4"} < set(ids)
    assert edgekit_cli("devices", "raspberry-pi-5", "--json").data["id"] == "raspberry-pi-5"
    paths = [tiny_artifacts[name].path for name in ("onnx-int4", "coreml-int4")]
    arguments = ["--artifact", paths[0], "--artifact", paths[1]]
    said = edgekit_cli("devices", "raspberry-pi-5", *arguments, "--json")
    assert said.code == 0
    accepted = {entry["artifact"]["name"]: entry["plan"] is not None for entry in said.data}
    assert accepted == {"tiny onnx int4-g32": True, "tiny coreml int4-g32": False}
    shown = edgekit_cli("devices", "host", *arguments).out
    assert "None" not in shown


def test_evaluate_gives_one_record_an_artifact(edgekit_cli, tiny_artifacts):
    said = edgekit_cli(
        "evaluate",
        tiny_artifacts["onnx-int4"].path,
        "--items",
        2,
        "--suite",
        "multi_step",
        "--json",
    )
    assert said.code == 0
    (record,) = said.data
    assert [suite["n_items"] for suite in record["suites"]] == [2]
    assert record["divergence"] is None


def test_evaluate_reads_the_float_model_with_its_adapter_and_its_keys(
    edgekit_cli, tiny_artifacts, tiny_model, tmp_path
):
    asked = ("evaluate", tiny_artifacts["onnx-int4"].path, "--items", 1, "--reference", tiny_model)
    said = edgekit_cli(*asked, "--adapter", tmp_path / "none").parts()
    assert str(tmp_path / "none") in said["what"]
    said = edgekit_cli(*asked, "--ignore-config-key", "hidden_size").parts()
    assert said["got"] == "hidden_size"


def test_report_writes_the_same_bytes_again(edgekit_cli, tmp_path):
    write_report(example_report(), tmp_path / "a")
    source = tmp_path / "a" / "report.json"
    said = edgekit_cli("report", source, "--out", tmp_path / "b", "--json")
    assert said.code == 0
    for path in map(Path, said.data):
        assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes()
    plain = edgekit_cli("report", source, "--out", tmp_path / "b")
    assert plain.out.splitlines() == said.data


def test_an_error_has_four_parts_and_in_json_is_the_one_document(edgekit_cli, tiny_model, tmp_path):
    arguments = ("export", tiny_model, "--format", "tflite", "--out", tmp_path)
    said = edgekit_cli(*arguments)
    assert (said.code, said.out) == (2, "")
    assert said.err == (
        "error: unknown format\n  got:    'tflite'\n  wanted: onnx, mlx, coreml, gguf or all\n"
    )
    said = edgekit_cli(*arguments, "--json")
    assert said.code == 2
    assert said.data == {
        "error": "UsageError", "what": "unknown format", "got": "'tflite'",
        "wanted": "onnx, mlx, coreml, gguf or all", "do": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [
        ["export"],
        ["exprot"],
        ["inspect", "pocket", "--no-such-option"],
        ["run", "somewhere", "hi", "--max-tokens", "0"],
        ["serve", "somewhere", "--port", "70000"],
        ["profile", "somewhere", "--repeats", "2"],
    ],
)
def test_a_command_line_that_makes_no_sense_ends_with_2(arguments, edgekit_cli):
    said = edgekit_cli(*arguments)
    assert said.code == 2
    assert "Usage: " in said.err


@pytest.mark.parametrize(
    ("arguments", "said_of"),
    [
        ([], "neither"),
        (["--server", "http://127.0.0.1:1/v1", "--replay", "f.jsonl"], "both"),
        (["--replay", "f.jsonl", "--record", "g.jsonl"], "both"),
        (["--server", "ftp://x", "--server-model", "m"], "not an http address"),
        (["--server", "http://127.0.0.1:1/v1"], "no model name"),
        (["--server", "http://127.0.0.1:1/v1", "--api-key-env", "NOT_SET_AT_ALL"], "not set"),
        (["--replay", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_compare_refuses_servers_that_make_no_sense(
    arguments, said_of, edgekit_cli, tiny_artifacts, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    said = edgekit_cli("compare", tiny_artifacts["onnx-int4"].path, *arguments)
    assert said.code in (1, 2)
    assert said_of in " ".join(said.parts().values())
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_ends_with_3_and_how_to_install_it(
    edgekit_cli, tiny_artifacts, monkeypatch
):
    monkeypatch.setitem(sys.modules, "openai", None)
    said = edgekit_cli(
        "compare", tiny_artifacts["onnx-int4"].path,
        "--server", "http://127.0.0.1:1/v1", "--server-model", "m",
    )  # fmt: skip
    assert said.code == 3
    assert said.parts()["do"] == "Run: pip install 'openai>=2.0,<4'"


@pytest.mark.parametrize("package", ["onnx", "coremltools"])
def test_an_export_without_its_library_ends_with_3_and_leaves_nothing(
    package, tiny_model, tmp_path
):
    (tmp_path / "blocked" / package).mkdir(parents=True)
    (tmp_path / "blocked" / package / "__init__.py").write_text("raise ImportError('blocked')")
    name = {"coremltools": "coreml"}.get(package, package)
    done = run_child(
        "export", tiny_model, "--format", name, "--out", tmp_path / "out",
        env={**os.environ, "PYTHONPATH": str(tmp_path / "blocked")},
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "do:     Run: pip install" in done.stderr
    assert "Traceback" not in done.stderr
    out = tmp_path / "out"
    assert not out.exists() or list(out.iterdir()) == []


def test_an_engine_that_does_not_exist_is_a_usage_error(edgekit_cli, tiny_artifacts):
    said = edgekit_cli("run", tiny_artifacts["onnx-int4"].path, "hi", "--engine", "onnxruntim")
    assert said.code == 2
    parts = said.parts()
    assert (parts["what"], parts["got"]) == ("unknown engine", "'onnxruntim'")
    assert parts["do"] == "Did you mean onnxruntime?"


def test_when_nothing_fits_it_ends_with_4_and_every_reason(edgekit_cli, tiny_artifacts, tmp_path):
    path = tiny_artifacts["onnx-int4"].path
    said = edgekit_cli("run", path, "hi", "--engine", "mlx")
    assert said.code == 4
    assert "engine mlx was asked for" in said.err
    small = (ROOT / "device_profiles" / "raspberry-pi-5.toml").read_text(encoding="utf-8")
    (tmp_path / "p.toml").write_text(small)
    said = edgekit_cli(
        "run", tiny_artifacts["coreml-int4"].path, "hi", "--device", tmp_path / "p.toml"
    )
    assert said.code == 4
    assert "runs coreml" in said.err


def test_a_closed_pipe_and_a_stopped_command_leave_no_traceback(tiny_artifacts):
    serve = [sys.executable, "-m", "edgekit", "serve", str(tiny_artifacts["onnx-int4"].path)]
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        with subprocess.Popen(
            [*serve, "--port", "0"],
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            # Tests that a shell runs in the background inherit an ignored SIGINT.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as child:
            assert "serving tiny onnx int4-g32 at http://127.0.0.1:" in child.stderr.readline()
            child.send_signal(number)
            assert "Traceback" not in child.stderr.read()
        assert child.returncode == code
    piped = f"{shlex.quote(sys.executable)} -m edgekit devices --json | head -c 1"
    done = subprocess.run(["sh", "-c", piped], capture_output=True, text=True, cwd=ROOT)  # noqa: S607
    assert (done.stdout, "Traceback" in done.stderr) == ("[", False)


def test_a_port_in_use_is_an_error_with_what_to_do(edgekit_cli, tiny_artifacts):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = edgekit_cli("serve", tiny_artifacts["onnx-int4"].path, "--port", port)
    assert said.code in (1, 2)
    assert str(port) in said.err
