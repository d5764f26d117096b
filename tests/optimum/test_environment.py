"""Claims about optimum's environment: whole or not there, made once, and never out of reach."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

import edgekit
from edgekit.errors import ExportError
from edgekit.families.other_types import OPTIMUM_TYPES
from edgekit.optimum import environment as optimum_env
from edgekit.optimum.environment import (
    REQUIREMENTS,
    child_variables,
    environment_dir,
    open_environment,
)
from edgekit.paths import cache_dir
from tests.optimum.test_child import is_running, wait_until

ROOT = Path(edgekit.__file__).parent.parent
MARKER = "edgekit-environment.json"
# Models that also read another text or are code of their authors: not what edgekit runs.
NO_DECODERS = {
    "bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "internlm2", "marian", "mbart",
    "pegasus",
}  # fmt: skip


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A cache folder of its own, with a space in its name, and pip without any source."""
    empty = tmp_path / "no wheels"
    empty.mkdir()
    monkeypatch.setenv("EDGEKIT_HOME", str(tmp_path / "edgekit home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(empty))
    return tmp_path / "edgekit home"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_cached_environment_holds_the_pinned_versions(optimum_environment):
    pinned = dict(line.split("==") for line in REQUIREMENTS)
    found = {name: optimum_environment.versions[name].partition("+")[0] for name in pinned}
    assert found == pinned
    assert set(optimum_environment.tool_versions) == {
        "optimum-onnx", "optimum", "transformers", "torch", "onnx",
    }  # fmt: skip
    assert optimum_environment.tool_versions["transformers"] == "4.57.6"


def test_the_list_of_model_types_is_optimums_own(optimum_environment):
    program = (
        "from optimum.exporters.tasks import TasksManager\n"
        "import optimum.exporters.onnx.model_configs, json\n"
        "print(json.dumps([kind for kind, by in TasksManager._SUPPORTED_MODEL_TYPE.items()"
        " if 'text-generation-with-past' in by.get('onnx', {})]))"
    )
    done = subprocess.run(
        [optimum_environment.python, "-I", "-c", program],
        capture_output=True, text=True, check=True, env=child_variables(),
    )  # fmt: skip
    found = set(json.loads(done.stdout.splitlines()[-1]))
    assert found - NO_DECODERS == set(OPTIMUM_TYPES)
    assert list(OPTIMUM_TYPES) == sorted(OPTIMUM_TYPES)


def test_a_failed_install_says_what_to_do_and_leaves_only_its_log(home):
    told: list[str] = []
    with pytest.raises(ExportError) as caught:
        open_environment(told.append)
    error = caught.value
    assert error.what == "pip could not install the environment of optimum"
    assert "No matching distribution found for" in error.got
    assert error.wanted == ", ".join(REQUIREMENTS)
    folder = environment_dir()
    assert folder.parent == home / "envs"
    assert error.do.endswith(f"Full log: {folder.with_suffix('.log')}")
    assert names(home / "envs") == sorted([f"{folder.name}.lock", f"{folder.name}.log"])
    log = folder.with_suffix(".log").read_text(encoding="utf-8")
    assert "No matching distribution found for" in log
    (announcement,) = told
    assert str(folder) in announcement
    assert "286.1 MiB to download and 1.07 GiB on disk" in announcement
    assert "torch==2.13.0" in announcement
    assert ("CUDA build of torch, several GB more" in announcement) is (sys.platform == "linux")


def test_a_full_disk_is_refused_before_anything_is_told_or_made(home, monkeypatch):
    usage = shutil.disk_usage(Path.cwd())._replace(free=10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    told: list[str] = []
    with pytest.raises(ExportError, match=r"not enough space.*got 953\.7 MiB free") as caught:
        open_environment(told.append)
    assert "EDGEKIT_HOME" in caught.value.do
    assert told == []
    assert not environment_dir().exists()


def test_a_home_that_cannot_be_written_is_an_error_with_advice(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("EDGEKIT_HOME", str(tmp_path / "file"))
    with pytest.raises(ExportError, match="cannot write to") as caught:
        open_environment(print)
    assert caught.value.do == "Set EDGEKIT_HOME to another folder."


@pytest.mark.parametrize("damage", ["no marker", "no json", "no interpreter", "no modules"])
def test_what_is_not_whole_is_not_taken(home, damage):
    folder = environment_dir()
    folder.mkdir(parents=True)
    (folder / "left over").write_text("by an interrupted creation")
    if damage == "no modules":
        subprocess.run(
            [sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True
        )  # fmt: skip
    if damage != "no marker":
        text = "{" if damage == "no json" else json.dumps({"versions": {}})
        (folder / MARKER).write_text(text)
    with pytest.raises(ExportError, match="the environment of optimum does not exist"):
        open_environment(print, may_create=False)
    if damage != "no modules":
        return
    # Making it anew starts from nothing; here pip then fails, and nothing half-made is left.
    with pytest.raises(ExportError, match="pip could not install"):
        open_environment(lambda text: None)
    assert not folder.exists()


def test_a_killed_creation_leaves_nothing_that_looks_finished(home, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        variables = {**os.environ, "PIP_INDEX_URL": url}
        del variables["PIP_NO_INDEX"]
        with subprocess.Popen(
            [sys.executable, str(ROOT / "scripts" / "optimum_env.py")],
            env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            silent.settimeout(60)
            connection, _ = silent.accept()  # pip asks, and waits for an answer
            children = [p.pid for p in psutil.Process(process.pid).children(recursive=True)]
            process.send_signal(signal.SIGKILL)
            process.wait()
            connection.close()
    assert children
    assert wait_until(lambda: not any(map(is_running, children)))
    assert environment_dir().is_dir()
    with pytest.raises(ExportError, match="nothing complete"):
        open_environment(print, may_create=False)


def test_one_process_makes_it_and_the_others_wait(home, optimum_environment):
    folder = environment_dir()
    found: list[object] = []

    def wait() -> None:
        found.append(open_environment(lambda text: found.append("told")))

    with optimum_env._locked(folder):
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
        folder.symlink_to(optimum_environment.folder)  # as if it had been made meanwhile
    thread.join(60)
    (made,) = found
    assert (made.folder, made.versions) == (folder, optimum_environment.versions)


def test_without_a_network_the_cached_environment_is_enough(home, optimum_environment, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    environment_dir().parent.mkdir(parents=True)
    environment_dir().symlink_to(optimum_environment.folder)
    told: list[str] = []
    assert open_environment(told.append).versions == optimum_environment.versions
    assert told == []


def test_variables_that_would_break_it_are_left_out_and_those_of_the_index_are_kept(monkeypatch):
    for name in ("PIP_CONSTRAINT", "PIP_TARGET", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
        monkeypatch.setenv(name, "x")
    for name in ("PIP_INDEX_URL", "PIP_FIND_LINKS", "HTTPS_PROXY", "PIP_CERT"):
        monkeypatch.setenv(name, "y")
    variables = child_variables()
    assert "x" not in variables.values()
    assert all(variables[n] == "y" for n in ("PIP_INDEX_URL", "PIP_FIND_LINKS", "HTTPS_PROXY"))
    assert (variables["PIP_USER"], variables["PIP_NO_INPUT"]) == ("0", "1")


def test_the_folder_depends_on_the_requirements_and_the_interpreter(monkeypatch):
    first = environment_dir()
    assert first == environment_dir()
    monkeypatch.setattr(optimum_env, "REQUIREMENTS", (*REQUIREMENTS, "more==1"))
    second = environment_dir()
    monkeypatch.setattr(sys.implementation, "cache_tag", "cpython-399")
    assert len({first, second, environment_dir()}) == 3


def test_the_cache_folder_is_the_chosen_one_else_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("EDGEKIT_HOME", str(tmp_path / "home"))
    assert cache_dir() == tmp_path / "home"
    monkeypatch.setenv("EDGEKIT_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_dir() == tmp_path / "Library" / "Caches" / "edgekit"
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_dir() == tmp_path / "cache" / "edgekit"
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_dir() == tmp_path / ".cache" / "edgekit"
