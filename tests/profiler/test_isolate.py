"""A measurement gets a process of its own, and whatever happens there comes back as a value."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil
import pytest

from edgekit.profiler.isolate import Failed, FailureKind, Finished, Job, run_isolated

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _child_tasks(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def run(task, timeout_s=60.0, on_event=None, n_threads=1, **arguments):
    job = Job(f"child_tasks:{task}", arguments, n_threads)
    return run_isolated(job, timeout_s=timeout_s, on_event=on_event)


def wait_until_gone(pid: int) -> bool:
    """A killed orphan is reaped by init a moment later, so look for a while."""
    for _ in range(200):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.01)
    return False


def test_result_events_and_environment_come_from_a_fresh_child():
    events = []
    began_s = time.monotonic()
    done = run("echo", on_event=lambda *event: events.append(event), n_threads=3, say="hi")
    assert isinstance(done, Finished)
    assert done.result["said"] == "hi"
    assert done.result["pid"] != os.getpid()
    assert done.result["parent"] == os.getpid()
    assert done.result["omp"] == "3"
    # One clock for parent and child: the spawn lies between our two readings.
    assert began_s <= done.result["spawn_s"] <= done.result["now_s"] <= time.monotonic()
    assert [(name, fields.get("n")) for name, fields in events] == [
        ("started", None),
        ("hello", 1),
        ("hello", 2),
    ]


def test_what_a_runtime_prints_cannot_forge_a_result():
    done = run("chatter")
    assert isinstance(done, Finished)
    assert done.result == {"said": "the truth"}


def test_an_edgekit_error_comes_back_with_its_text():
    failed = run("refuse")
    assert isinstance(failed, Failed)
    assert failed.kind is FailureKind.REFUSED
    assert failed.reason == "UsageError: no such layer; got 7; wanted 0 .. 5"


@pytest.mark.parametrize(
    ("task", "kind", "text"),
    [
        ("fail", FailureKind.CRASHED, "status 1; last output: RuntimeError: the bits fell out"),
        ("leave", FailureKind.CRASHED, "exit status 7"),
        ("no_such_task", FailureKind.CRASHED, "has no attribute 'no_such_task'"),
        ("bad_number", FailureKind.CRASHED, "not JSON compliant"),
        ("kill_itself", FailureKind.KILLED, "ended by SIGKILL, often because memory ran out"),
        ("abort", FailureKind.KILLED, "ended by SIGABRT"),
    ],
)
def test_a_child_that_breaks_is_a_failure_with_its_reason(task, kind, text):
    failed = run(task)
    assert isinstance(failed, Failed)
    assert failed.kind is kind
    assert text in failed.reason


def test_a_child_that_hangs_is_ended_with_all_it_started(tmp_path):
    pid_file, grandchild_file = tmp_path / "pid", tmp_path / "grandchild"
    failed = run(
        "hang", timeout_s=1.5, pid_file=str(pid_file), grandchild_file=str(grandchild_file)
    )
    assert isinstance(failed, Failed)
    assert failed.kind is FailureKind.TIMED_OUT
    assert "so it was ended" in failed.reason
    assert wait_until_gone(int(pid_file.read_text()))
    assert wait_until_gone(int(grandchild_file.read_text()))


def test_an_interrupted_caller_leaves_no_child_behind(tmp_path):
    def interrupt(event, fields):
        raise KeyboardInterrupt

    pid_file, grandchild_file = tmp_path / "pid", tmp_path / "grandchild"
    with pytest.raises(KeyboardInterrupt):
        run("hang", 60.0, interrupt, pid_file=str(pid_file), grandchild_file=str(grandchild_file))
    # A process that was killed is gone a moment later.
    _, alive = psutil.wait_procs(psutil.Process().children(recursive=True), timeout=20)
    assert alive == []


def test_a_child_imports_neither_numpy_nor_an_engine_before_its_task():
    done = run("do_nothing", hold_s=0.0)
    assert isinstance(done, Finished)
    heavy = {"numpy", "onnx", "onnxruntime", "mlx", "mlx_lm", "coremltools", "psutil"}
    assert heavy.isdisjoint(done.result["modules"])


def test_anonymous_memory_is_seen_as_anonymous(tmp_path):
    idle = run("do_nothing", hold_s=0.2)
    full = run("allocate", n_bytes=64 * MIB, hold_s=0.2)
    assert isinstance(full, Finished)
    assert isinstance(idle, Finished)
    grown = full.peak.anon_bytes - idle.peak.anon_bytes
    assert 63 * MIB < grown < 72 * MIB
    assert abs(full.peak.file_bytes - idle.peak.file_bytes) < 8 * MIB
    assert full.peak.n_samples >= 5


def test_mapped_memory_is_seen_as_file_backed(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"w" * (64 * MIB))
    idle = run("do_nothing", hold_s=0.2)
    full = run("map_file", path=str(path), hold_s=0.2)
    assert isinstance(full, Finished)
    assert isinstance(idle, Finished)
    grown = full.peak.file_bytes - idle.peak.file_bytes
    assert 63 * MIB < grown < 72 * MIB
    assert abs(full.peak.anon_bytes - idle.peak.anon_bytes) < 8 * MIB


def test_the_parent_sleeps_while_the_child_works():
    began_s = time.process_time()
    done = run("do_nothing", hold_s=1.0)
    assert isinstance(done, Finished)
    # A spinning parent would burn the whole second that the child sleeps.
    assert time.process_time() - began_s < 0.5
