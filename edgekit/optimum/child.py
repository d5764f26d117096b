"""Running a Python program of another environment as a child process, until it ends.

It is isolated from this environment, its output goes to a log line by line, and it never outlives
its caller: an interrupted caller ends it, and the child itself notices if its caller was killed.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

_N_KEPT: Final = 400
_WAIT_S: Final = 10
# Reads a pipe that closes only when the parent is gone, then ends the whole process group.
_BOOTSTRAP: Final = """\
import os, runpy, signal, sys, threading

def watch():
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)

threading.Thread(target=watch, daemon=True).start()
sys.argv = sys.argv[1:]
if sys.argv[0].endswith(".py"):
    runpy.run_path(sys.argv[0], run_name="__main__")
else:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
_ERROR_LINE: Final = re.compile(r"(ERROR: |error: |(\w+\.)*\w*(Error|Exception|Exit|Interrupt): )")


def run_python(
    python: Path,
    program: str,
    arguments: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str],
    on_line: Callable[[str], None],
) -> tuple[int, list[str]]:
    """Run a module or a script file and wait for its end.

    Args:
        python: Interpreter of the other environment.
        program: Module name, or path of a ``.py`` file.
        arguments: Its command line.
        log: File that gets every line; its folder exists.
        environment: All environment variables of the child.
        on_line: Called with each line of its stdout and stderr.

    Returns:
        Exit code (negative: the signal that ended it) and the last lines.

    Raises:
        OSError: The interpreter cannot be started, or the log cannot be written.
    """
    last: deque[str] = deque(maxlen=_N_KEPT)
    with log.open("a", encoding="utf-8") as stream:
        # -I: no PYTHON* variables, no user site, no folder of the caller on the path.
        process = subprocess.Popen(
            [str(python), "-I", "-X", "utf8", "-c", _BOOTSTRAP, program, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        try:
            for line in process.stdout or ():
                text = line.rstrip()
                stream.write(text + "\n")
                last.append(text)
                on_line(text)
            code = process.wait()
        finally:
            _end(process)
    return code, list(last)


def last_error(lines: Sequence[str], n_most: int = 600) -> str:
    """Give the last message of a program about its failure, in one line."""
    said = [line.strip() for line in lines if line.strip()]
    errors = [line for line in said if _ERROR_LINE.match(line)]
    text = errors[-1] if errors else said[-1] if said else "no output"
    return text if len(text) <= n_most else text[:n_most] + "..."


def _end(process: subprocess.Popen[str]) -> None:
    """End the child and the processes that it started, if it still runs."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_WAIT_S)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
