"""Running a measurement in a process of its own.

Every job gets a new Python that imports nothing of the parent, so that caches, thread pools and
memory of an earlier run cannot influence it. The parent sleeps: one thread waits on the child's
pipe, one wakes every 20 ms to read the child's memory. A child that crashes, is killed or hangs
becomes a ``Failed`` with the reason; it never ends the caller.

Protocol: one JSON job on stdin; on stdout one JSON object per line, ``{"event": ...}`` while
running and ``{"result": ...}`` or ``{"error": ...}`` at the end. The child first moves its own
stdout to stderr, so that text printed by a runtime cannot break the protocol.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any, Final, TypeAlias, cast

from edgekit.lazy import quiet_variables
from edgekit.profiler.memory import MemoryPeak, MemorySampler

_WORKER: Final = "edgekit.profiler.worker"
_THREAD_VARIABLES: Final = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
_STDERR_TAIL_BYTES: Final = 4096
_GRACE_S: Final = 5.0
"""How long a child may take to end after its last line."""

OnEvent: TypeAlias = Callable[[str, Mapping[str, Any]], None]
"""Called with the event's name and all its fields while the child runs."""


@dataclass(frozen=True, slots=True)
class Job:
    """The job of a child process.

    Attributes:
        task: ``"module:function"``; called with the arguments and a ``report`` callable.
        arguments: JSON-ready; the task also finds ``spawn_s`` in them, the monotonic clock, which
            all processes of a machine share, at the moment before the spawn.
        n_threads: Written into the thread variables that BLAS and OpenMP read at start.
    """

    task: str
    arguments: Mapping[str, Any]
    n_threads: int


class FailureKind(enum.Enum):
    """How a child failed."""

    REFUSED = "refused"  # an edgekit error, with its reason
    CRASHED = "crashed"  # an exception, a non-zero exit, or no result
    KILLED = "killed"  # ended by a signal from elsewhere
    TIMED_OUT = "timed out"  # ended by the parent


@dataclass(frozen=True, slots=True)
class Finished:
    """The child's result, and its memory as the parent saw it."""

    result: Mapping[str, Any]
    peak: MemoryPeak
    wall_s: float


@dataclass(frozen=True, slots=True)
class Failed:
    """Why there is no result; the peak says how far memory had grown until then."""

    kind: FailureKind
    reason: str
    peak: MemoryPeak
    wall_s: float


Outcome: TypeAlias = Finished | Failed


def run_isolated(job: Job, *, timeout_s: float, on_event: OnEvent | None = None) -> Outcome:
    """Run a job in a new child process and sleep until it ends.

    Args:
        job: What to do.
        timeout_s: Time after which the child is ended.
        on_event: Called with every event line, in order.
    """
    began_s = time.monotonic()
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            [sys.executable, "-m", _WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=_environment(job.n_threads),
            start_new_session=True,
        )
        sampler = MemorySampler(child.pid)
        lines: queue.Queue[bytes | None] = queue.Queue()
        stdin, stdout = cast(IO[bytes], child.stdin), cast(IO[bytes], child.stdout)
        reader = threading.Thread(target=_read_lines, args=(stdout, lines), daemon=True)
        last: Mapping[str, Any] = {}
        was_heard = False
        try:
            sampler.start()
            reader.start()
            request = {"task": job.task, "arguments": dict(job.arguments), "spawn_s": began_s}
            # A child that died before reading its job is reported by its exit status below.
            with contextlib.suppress(BrokenPipeError), stdin:
                stdin.write(json.dumps(request).encode() + b"\n")
            last, was_heard = _follow(lines, began_s + timeout_s, on_event)
        finally:
            # Also when the caller is interrupted, so that no child outlives its measurement.
            was_ended = _end(child, is_ending=was_heard)
            peak = sampler.stop()
            reader.join()
            stdout.close()
        wall_s = time.monotonic() - began_s
        if "result" in last:
            return Finished(last["result"], peak, wall_s)
        kind, reason = _explain(child.returncode, last, was_ended, wall_s, errors)
    return Failed(kind, reason, peak, wall_s)


def _environment(n_threads: int) -> dict[str, str]:
    environment = dict(os.environ) | quiet_variables()
    environment.update(dict.fromkeys(_THREAD_VARIABLES, str(n_threads)))
    # The child finds modules where the parent does, whatever set up its path.
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    return environment


def _read_lines(stream: IO[bytes], lines: queue.Queue[bytes | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def _follow(
    lines: queue.Queue[bytes | None], deadline_s: float, on_event: OnEvent | None
) -> tuple[Mapping[str, Any], bool]:
    """Read lines until the last one, the end of the pipe or the deadline.

    Returns:
        The last message, empty without one, and whether the child is done (False: deadline).
    """
    while True:
        try:
            line = lines.get(timeout=max(0.0, deadline_s - time.monotonic()))
        except queue.Empty:
            return {}, False
        if line is None:
            return {}, True
        try:
            message = json.loads(line)
        except ValueError:
            continue  # not a message; a library wrote to the raw descriptor
        if not isinstance(message, dict):
            continue
        if "result" in message or "error" in message:
            return message, True
        if on_event is not None and "event" in message:
            on_event(str(message["event"]), message)


def _end(child: subprocess.Popen[bytes], *, is_ending: bool) -> bool:
    """Wait a moment for a child that is ending; otherwise end it and all that it started.

    Returns:
        True when it had to be ended.
    """
    if is_ending:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=_GRACE_S)
    is_alive = child.poll() is None
    if is_alive and hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    elif is_alive:
        child.kill()
    child.wait()
    return is_alive


def _explain(
    code: int, last: Mapping[str, Any], was_ended: bool, wall_s: float, errors: IO[bytes]
) -> tuple[FailureKind, str]:
    if "error" in last:
        return FailureKind.REFUSED, f"{last['error']}: {last.get('message', '')}"
    tail = _tail(errors)
    words = f"; last output: {tail}" if tail else ""
    if was_ended:
        return FailureKind.TIMED_OUT, f"no result after {wall_s:.1f} s, so it was ended{words}"
    if code < 0:
        name = signal.Signals(-code).name
        hint = ", often because memory ran out" if name == "SIGKILL" else ""
        return FailureKind.KILLED, f"ended by {name}{hint}{words}"
    return FailureKind.CRASHED, f"exit status {code}{words}"


def _tail(errors: IO[bytes]) -> str:
    """Give the last line of stderr that is not blank."""
    size = errors.seek(0, os.SEEK_END)
    errors.seek(max(0, size - _STDERR_TAIL_BYTES))
    text = errors.read().decode("utf-8", errors="replace")
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
