"""Claims about the network: no command and no library under it speaks to anybody on its own.

Every command runs where each packet that it tries to send is seen, with an empty home.
"""

from __future__ import annotations

import ast
import json
import os
import sys
from pathlib import Path

import pytest

import edgekit
from edgekit.lazy import TELEMETRY_OFF, quiet_variables, require
from edgekit.optimum.environment import child_variables
from edgekit.paths import cache_dir, models_dir
from scripts.cli_reference import command_names, help_text
from tests.contract.sealed import SOMEWHERE, Command, Seen, run_sealed, why_not

ROOT = Path(edgekit.__file__).parent.parent
EDGEKIT = (sys.executable, "-m", "edgekit")
# What edgekit itself keeps in a home, under the folder that XDG says: rates, stored float models.
OWN = "home/.cache/edgekit/"
TALKS_TO_ALL = """
import pathlib, socket
for host, port in (("telemetry.example.org", 443), ("2001:db8::7", 80)):
    try:
        socket.create_connection((host, port), 2)
    except OSError:
        pass
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 9999))
cache = pathlib.Path.home() / ".cache" / "other"
cache.mkdir(parents=True)
(cache / "deviceid").write_text("1")
"""
WITHOUT_JSON = {"chat", "serve"}
# Commands that talk by purpose, to whom, and to nobody else.
ASKED_FOR = {
    "compare with one elsewhere": (
        "name server asked for models.example.org",
        f"connection to {SOMEWHERE} port 8000",
    ),
    "inspect from the Hub": (
        "name server asked for huggingface.co",
        f"connection to {SOMEWHERE} port 443",
    ),
}
AS_LIBRARY = """
import sys
import edgekit
model, out = sys.argv[1:]
for artifact in edgekit.export(model, ["onnx", "coreml"], "int8", out):
    with edgekit.load(artifact) as session:
        assert [event.text for event in session.generate("Set a", max_tokens=2)]
"""


def commands(work: Path, tiny_model: Path) -> list[Command]:
    """Every command, on artifacts of the bundled model that the first one writes."""
    model = models_dir() / "pocket"
    out = work / "artifacts"
    onnx, mlx, coreml = (out / f"pocket-{form}-int4-g32" for form in ("onnx", "mlx", "coreml"))
    one = ("--items", "1", "--suite", "tool_calls")
    record, report = work / "answers.jsonl", work / "report"
    listed = [
        ("export", "--scheme", "int4", "--out", out, model),
        ("inspect", "--no-measure", model),
        ("verify", "--tokens", "8", onnx, mlx, coreml),
        ("run", "--max-tokens", "2", onnx, "hi"),
        ("run", "--max-tokens", "2", mlx, "hi"),
        ("run", "--max-tokens", "2", coreml, "hi"),
        ("chat", onnx),
        ("profile", "--prompt", "8", "--new", "2", onnx),
        ("evaluate", *one, "--reference", model, onnx),
        ("quality-cost", "--schemes", "int8", "--tokens", "20", "--out", work / "cost", model),
        ("compare", *one, "--replay", record, "--out", report, onnx),
        ("report", "--out", work / "page", report / "report.json"),
        ("devices", "host", "--artifact", onnx),
        ("serve", "--port", "0", onnx),
        ("demo", "--items", "1", "--out", work / "demo"),
    ]
    # These two do not end by themselves, or only after minutes.
    limits = {"serve": 12.0, "demo": 15.0}
    found = []
    for line in listed:
        argv = [str(part) for part in line]
        command = [*EDGEKIT, *argv, *(["--json"] if argv[0] not in WITHOUT_JSON else [])]
        found.append(Command(" ".join(argv), command, limit_s=limits.get(argv[0], 300.0)))
    asks_server = ("compare", *one, "--server", "{url}", "--server-model", onnx.name)
    found.insert(
        9,
        Command(
            "compare with a server",
            [*EDGEKIT, *asks_server, "--record", str(record), str(onnx), "--json"],
            server=[*EDGEKIT, "serve", str(onnx), "--port", "0"],
            variables={"OPENAI_API_KEY": "none"},
        ),
    )
    elsewhere = ("--server", "http://models.example.org:8000/v1", "--server-model", "x")
    for name, *line in (
        ("compare with one elsewhere", "compare", *one, *elsewhere, onnx),
        ("inspect from the Hub", "inspect", "owner/name"),
    ):
        argv = [*EDGEKIT, *map(str, line), "--json"]
        found.append(Command(name, argv, variables={"OPENAI_API_KEY": "none"}))
    # Its child is a Python of another environment, which lies in the real cache.
    traced = ("export", "--via", "optimum", "--scheme", "fp32", "--out", out, tiny_model, "--json")
    found.append(
        Command(
            "export by way of optimum",
            [*EDGEKIT, *map(str, traced)],
            variables={"EDGEKIT_HOME": str(cache_dir())},
        )
    )
    library = [sys.executable, "-c", AS_LIBRARY, str(model), str(work / "by-library")]
    return [*found, Command("edgekit as a library", library)]


@pytest.fixture(scope="module")
def seen(tmp_path_factory, tiny_model, optimum_environment) -> dict[str, Seen]:
    """What a program that talks to everybody did, and what every command of edgekit did."""
    reason = why_not()
    if reason is not None:
        pytest.skip(f"NOT RUN, so nothing is known about packets: {reason}")
    control = Command("control", [sys.executable, "-c", TALKS_TO_ALL])
    work = tmp_path_factory.mktemp("sealed")
    found = run_sealed([control, *commands(work, tiny_model)], cwd=work, pythonpath=str(ROOT))
    return {one.name: one for one in found}


def test_a_program_that_reaches_out_is_seen(seen):
    control = seen["control"]
    wanted = [
        "name server asked for telemetry.example.org",
        f"connection to {SOMEWHERE} port 443",
        "connection to 2001:db8::7 port 80",
        "packet of protocol 17 to 192.0.2.1 port 9999",
    ]
    addresses = Path("/proc/net/if_inet6")
    if not (addresses.exists() and addresses.read_text(encoding="ascii")):
        del wanted[2]  # a machine without IPv6, on which nobody can reach out by it
    assert list(control.packets) == wanted
    assert control.files == ("home/.cache/other/deviceid",)


def test_every_command_is_among_them(seen):
    assert set(command_names()) <= {name.split()[0] for name in seen}


def test_every_command_did_its_work(seen):
    stopped = {"serve": 143, "demo": 143}
    wrong = {
        name: one.said
        for name, one in seen.items()
        if one.code not in (0, stopped.get(name.split()[0])) and name not in ASKED_FOR
    }
    assert wrong == {}
    # Nobody answers there.
    assert {name: seen[name].code for name in ASKED_FOR} == dict.fromkeys(ASKED_FOR, 1)


def test_no_command_sends_a_packet_but_to_whom_it_was_told(seen):
    sent = {name: one.packets for name, one in seen.items() if one.packets and name != "control"}
    assert sent == ASKED_FOR


def test_stdout_is_one_document_of_every_command_that_has_one(seen):
    for name, one in seen.items():
        command = name.split()[0]
        if one.code in (0, 1) and command in command_names() and command not in WITHOUT_JSON:
            assert isinstance(json.loads(one.out), list | dict), name


def test_no_command_leaves_a_file_that_is_not_edgekits(seen):
    left = {
        name: [file for file in one.files if not file.startswith(OWN)]
        for name, one in seen.items()
        if name != "control"
    }
    assert {name: files for name, files in left.items() if files} == {}


def test_where_nothing_can_be_sealed_it_is_said(monkeypatch, tmp_path):
    assert why_not() is None or "namespaces" in why_not() or "unshare" in why_not()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert why_not() == "it needs Linux and the program unshare"
    refuses = tmp_path / "unshare"
    refuses.write_text("#!/bin/sh\necho 'unshare: Operation not permitted' >&2\nexit 1\n")
    refuses.chmod(0o755)
    assert why_not() == "no namespaces here: unshare: Operation not permitted"


def test_the_choice_of_the_user_stays(monkeypatch):
    for setting in TELEMETRY_OFF:
        monkeypatch.setenv(setting.variable, "0")
    assert quiet_variables() == {}
    require("json")
    assert {os.environ[setting.variable] for setting in TELEMETRY_OFF} == {"0"}
    assert {child_variables()[setting.variable] for setting in TELEMETRY_OFF} == {"0"}


def test_telemetry_is_off_before_an_import_and_in_children(monkeypatch):
    wanted = {setting.variable: setting.value for setting in TELEMETRY_OFF}
    for variable in wanted:
        monkeypatch.delenv(variable, raising=False)
    assert quiet_variables() == wanted
    assert wanted.items() <= child_variables().items()
    monkeypatch.setenv("DO_NOT_TRACK", "")  # as a shell unsets a variable for one command
    require("json")
    assert {variable: os.environ[variable] for variable in wanted} == wanted


def test_the_commands_without_json_are_those():
    without = {name for name in command_names() if "--json" not in help_text([name])}
    assert without == WITHOUT_JSON


# Packages without telemetry, imported by name where they are used: arithmetic, and what draws on
# the terminal or renders templates. ``check.py`` is a program of optimum's environment.
PLAIN = {"edgekit", "jinja2", "numpy", "rich", "typer"}
OTHER_ENVIRONMENT = {"optimum/check.py"}


def test_every_other_package_comes_in_through_require():
    package = ROOT / "edgekit"
    for path in sorted(package.rglob("*.py")):
        if path.relative_to(package).as_posix() in OTHER_ENVIRONMENT:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {
            name.partition(".")[0]
            for node in ast.walk(tree)
            for name in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
        }
        assert names <= sys.stdlib_module_names | PLAIN, path
