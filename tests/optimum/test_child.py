"""Claims about programs of another environment: isolated, logged, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

import edgekit
from edgekit.optimum.child import last_error, run_python

ROOT = Path(edgekit.__file__).parent.parent
PYTHON = Path(sys.executable)


def write(folder: Path, text: str) -> str:
    path = folder / "program with a space.py"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return str(path)


def run(program: str, *arguments: str, log: Path, environment=None) -> tuple[int, list[str]]:
    return run_python(
        PYTHON,
        program,
        arguments,
        log=log,
        environment=dict(os.environ) if environment is None else environment,
        on_line=lambda line: None,
    )


def wait_until(is_so, seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if is_so():
            return True
        time.sleep(0.05)
    return False


def test_a_program_gets_its_arguments_and_its_lines_are_told_and_logged(tmp_path):
    program = write(tmp_path, "import sys; print('got', sys.argv[1:]); print('x', file=sys.stderr)")
    told: list[str] = []
    code, lines = run_python(
        PYTHON, program, ["a b", "ü"], log=tmp_path / "log", environment=dict(os.environ),
        on_line=told.append,
    )  # fmt: skip
    assert code == 0
    assert sorted(lines) == ["got ['a b', 'ü']", "x"]
    assert told == lines
    assert (tmp_path / "log").read_text(encoding="utf-8").splitlines() == lines


def test_a_module_runs_by_its_name(tmp_path):
    code, lines = run("json.tool", str(tmp_path / "absent"), log=tmp_path / "log")
    assert code != 0
    assert "FileNotFoundError" in last_error(lines) or "No such file" in last_error(lines)


def test_the_caller_decides_the_variables_and_python_takes_none_of_them(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "of the caller")
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    program = write(tmp_path, "import os, json; print(os.environ.get('SECRET'), json.dumps(1))")
    code, lines = run(program, log=tmp_path / "log", environment={"PYTHONPATH": str(tmp_path)})
    assert (code, lines) == (0, ["None 1"])


def test_an_exit_code_and_a_signal_are_given_back(tmp_path):
    assert run(write(tmp_path, "raise SystemExit(7)"), log=tmp_path / "log")[0] == 7
    program = write(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert run(program, log=tmp_path / "log")[0] == -signal.SIGKILL


def test_an_interrupted_caller_ends_the_program_and_what_it_started(tmp_path):
    program = write(
        tmp_path,
        """
        import subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print(child.pid, flush=True)
        time.sleep(600)
        """,
    )
    pids: list[int] = []

    def interrupt(line: str) -> None:
        pids.append(int(line))
        pids.append(psutil.Process(pids[0]).ppid())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_python(
            PYTHON, program, [], log=tmp_path / "log", environment=dict(os.environ),
            on_line=interrupt,
        )  # fmt: skip
    assert len(pids) == 2
    assert wait_until(lambda: not any(map(is_running, pids)))


def test_a_killed_caller_takes_the_program_with_it(tmp_path):
    sleeper = write(tmp_path, "import os, time; print(os.getpid(), flush=True); time.sleep(600)")
    caller = textwrap.dedent(
        f"""
        from pathlib import Path
        from edgekit.optimum.child import run_python
        run_python(Path({str(PYTHON)!r}), {sleeper!r}, [], log=Path({str(tmp_path / "log")!r}),
                   environment={{}}, on_line=lambda line: print(line, flush=True))
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", caller], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        pid = int(process.stdout.readline())
        assert is_running(pid)
        process.kill()
    assert wait_until(lambda: not is_running(pid))


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        ([], "no output"),
        (["", "working", " "], "working"),
        (["Traceback", "  raise X", "ValueError: no", "hint: wait"], "ValueError: no"),
        (["ERROR: one", "a.b.SomeError: two", "later"], "a.b.SomeError: two"),
        (["Error in words", "OSError: x" + "y" * 700], "OSError: x" + "y" * 590 + "..."),
    ],
)
def test_the_last_error_is_the_one_that_is_passed_on(lines, wanted):
    assert last_error(lines) == wanted
