"""``profile_artifact``: measures speed and memory of an artifact on this machine.

Every load is a new child process: cold loads, which start with the artifact's files dropped from
the page cache, alternate with warm loads. One more child opens the artifact once and times runs
while the parent reads its memory. docs/method.md defines the formula ids. A failure is a result
too: it is in the record, with its reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from edgekit.artifact import MANIFEST_NAME, Artifact
from edgekit.devices.facts import facts_of
from edgekit.devices.profile import HOST_ID, DeviceProfile
from edgekit.errors import MeasureError
from edgekit.profiler import memory
from edgekit.profiler.isolate import Failed, Finished, Job, run_isolated
from edgekit.profiler.memory import MemoryPeak, MemoryUse
from edgekit.profiler.metrics import load_metrics, memory_metrics, speed_metrics
from edgekit.profiler.pagecache import drop_from_cache
from edgekit.profiler.projected import memory_budget
from edgekit.profiler.roofline import roofline_metrics
from edgekit.profiler.speed import RunTimes, check_workload
from edgekit.progress import Progress, ignore_progress
from edgekit.records import (
    EngineInfo,
    HostFacts,
    Kind,
    Metric,
    ProfileRecord,
    Workload,
    from_data,
    to_data,
)
from edgekit.statistics import mad, median

DEFAULT_WORKLOAD: Final = Workload(n_prompt_tokens=64, n_new_tokens=32, n_repeats=5, n_warmup=1)
DEFAULT_N_LOADS: Final = 5
N_OPENS: Final = 5
_LOAD_TASK: Final = "edgekit.profiler.tasks:load_task"
_SPEED_TASK: Final = "edgekit.profiler.tasks:speed_task"
NOISY_SPREAD: Final = 0.1
"""Median absolute deviation over median of the time per token, from which a note says so."""


@dataclass(slots=True)
class _Loads:
    """Raw load times; one child adds its times after another."""

    cold_s: list[float] = field(default_factory=list)
    warm_s: list[float] = field(default_factory=list)
    opens_s: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Seen:
    """Raw readings of all children."""

    info: EngineInfo
    loads: _Loads
    runs: tuple[RunTimes, ...]
    baseline: MemoryUse
    loaded: MemoryUse
    peak: MemoryPeak


def profile_artifact(
    artifact: Artifact,
    *,
    engine: str,
    n_threads: int | None,
    host: HostFacts,
    workload: Workload = DEFAULT_WORKLOAD,
    n_loads: int = DEFAULT_N_LOADS,
    device: str = HOST_ID,
    profile: DeviceProfile | None = None,
    context_length: int | None = None,
    progress: Progress = ignore_progress,
    timeout_s: float = 600.0,
) -> ProfileRecord:
    """Measure one artifact on one engine of this machine.

    Args:
        artifact: What to run.
        engine: Engine name, as in ``edgekit.runtime.ENGINES``.
        n_threads: Threads of the engine; None for one that chooses its own. BLAS and OpenMP get
            the same number, or else the physical cores.
        host: Facts of this machine, for the record.
        workload: Token counts and repeats.
        n_loads: Cold and warm loads, each in a new child.
        device: Name of the device for the record.
        profile: Profile of that device; adds its memory limit and the share of its bandwidth. On
            a machine of another system or architecture the numbers are *emulated*.
        context_length: Positions of the cache; None takes the artifact's own.
        progress: Called at every run.
        timeout_s: Limit for each child.

    Returns:
        The record; ``failure`` says what went wrong if anything did.

    Raises:
        MeasureError: The workload cannot be timed, or is longer than the context.
    """
    check_workload(workload, context_length or artifact.manifest.context_length)
    if n_loads < 1:
        raise MeasureError("number of loads", got=n_loads, wanted="at least 1")
    arguments = {
        "artifact": str(artifact.path.resolve()),
        "engine": engine,
        "n_threads": n_threads,
        "context_length": context_length,
        "workload": to_data(workload),
    }
    n_blas_threads = n_threads or host.n_physical_cores or host.n_cores
    seen = _look(artifact, arguments, n_loads, n_blas_threads, progress, timeout_s)
    info = EngineInfo(engine, host.engines.get(engine, ""), artifact.name, n_threads)
    metrics: tuple[Metric, ...] = ()
    notes: tuple[str, ...] = ()
    failure = ""
    if isinstance(seen, _Seen):
        info = seen.info
        stand_in = _stand_in(seen.info, host, profile)
        kind = Kind.EMULATED if stand_in else Kind.MEASURED
        metrics = (
            *_measured(seen, workload, kind),
            *_against(seen, artifact, workload, kind, profile, context_length),
        )
        notes = (*stand_in, *_notes(seen, host))
    else:
        failure = f"{seen.kind.value}: {seen.reason}"
    return ProfileRecord(
        candidate=artifact.name,
        format=artifact.format.value,
        scheme=artifact.manifest.scheme,
        artifact_bytes=artifact.n_bytes,
        device=device,
        engine=info,
        host=host,
        workload=workload,
        metrics=metrics,
        notes=notes,
        failure=failure,
    )


def _look(
    artifact: Artifact,
    arguments: Mapping[str, Any],
    n_loads: int,
    n_blas_threads: int,
    progress: Progress,
    timeout_s: float,
) -> _Seen | Failed:
    """Run all children and read their answers; the first failure ends it."""
    title = f"profile {artifact.name} on {arguments['engine']}"
    workload = arguments["workload"]
    n_steps = 2 * n_loads + 1 + workload["n_warmup"] + workload["n_repeats"]
    loads = _Loads()
    names = [MANIFEST_NAME, *(entry.path for entry in artifact.manifest.files)]
    paths = [artifact.path / name for name in names]
    # Cold and warm in turn, so that a drift of the machine affects both.
    for i in range(2 * n_loads):
        progress(title, i, n_steps)
        wants_cold = i % 2 == 0
        if wants_cold and not drop_from_cache(paths):
            continue
        n_opens = N_OPENS if i == 2 * n_loads - 1 else 0
        job = Job(_LOAD_TASK, {**arguments, "n_opens": n_opens}, n_blas_threads)
        outcome = run_isolated(job, timeout_s=timeout_s)
        if isinstance(outcome, Failed):
            return outcome
        (loads.cold_s if wants_cold else loads.warm_s).append(outcome.result["load_s"])
        loads.opens_s += outcome.result["opens_s"]

    def on_event(event: str, fields: Mapping[str, Any]) -> None:
        if event in ("loaded", "run"):
            progress(title, 2 * n_loads + 1 + int(fields.get("n_done", 0)), n_steps)

    progress(title, 2 * n_loads, n_steps)
    job = Job(_SPEED_TASK, arguments, n_blas_threads)
    speed = run_isolated(job, timeout_s=timeout_s, on_event=on_event)
    return speed if isinstance(speed, Failed) else _read(loads, speed)


def _read(loads: _Loads, speed: Finished) -> _Seen:
    result = speed.result
    return _Seen(
        info=from_data(EngineInfo, result["engine"]),
        loads=loads,
        runs=tuple(from_data(RunTimes, run) for run in result["runs"]),
        baseline=from_data(MemoryUse, result["baseline"]),
        loaded=from_data(MemoryUse, result["loaded"]),
        peak=speed.peak,
    )


def _stand_in(info: EngineInfo, host: HostFacts, profile: DeviceProfile | None) -> tuple[str, ...]:
    """Say why the numbers are not the device's own; empty when they are."""
    reasons = []
    if info.is_emulated:
        reasons.append(f"{info.engine} emulates the device; its times are not the device's")
    if profile is not None and (profile.os, profile.arch) != (host.os, host.arch):
        reasons.append(
            f"ran on this machine ({host.cpu}), with the threads and the limit of {profile.name};"
            " its times are not that device's"
        )
    return tuple(reasons)


def _measured(seen: _Seen, workload: Workload, kind: Kind) -> tuple[Metric, ...]:
    return (
        *load_metrics(seen.loads.cold_s, seen.loads.warm_s, seen.loads.opens_s, kind),
        *speed_metrics(seen.runs, workload, kind),
        *memory_metrics(
            baseline=seen.baseline,
            loaded=seen.loaded,
            peak=seen.peak,
            kind=kind,
            formula=memory.FORMULA,
        ),
    )


def _against(
    seen: _Seen,
    artifact: Artifact,
    workload: Workload,
    kind: Kind,
    profile: DeviceProfile | None,
    context_length: int | None,
) -> tuple[Metric, ...]:
    """Compare the run with the profile: the limit always, bandwidth if the device itself ran."""
    if profile is None:
        return ()
    facts = facts_of(artifact)
    budget = memory_budget(facts, profile, seen.info.engine, context_length=context_length)
    if kind is Kind.EMULATED:
        return budget
    n_cached = workload.n_prompt_tokens + workload.n_new_tokens / 2
    tpot_s = median(_tpots_s(seen.runs))
    roofline = roofline_metrics(facts, profile, tpot_s, kind=kind, n_cached=n_cached)
    return (*roofline, *budget)


def _notes(seen: _Seen, host: HostFacts) -> tuple[str, ...]:
    notes = []
    if seen.info.engine == "mlx" and host.os != "macos":
        notes.append("mlx on a CPU proves correctness; its times are not those of an Apple device")
    tpots_s = _tpots_s(seen.runs)
    spread = mad(tpots_s) / median(tpots_s)
    if spread > NOISY_SPREAD:
        notes.append(f"noisy: times per token vary by {100 * spread:.0f} % (MAD over median)")
    return tuple(notes)


def _tpots_s(runs: Sequence[RunTimes]) -> list[float]:
    return [sum(run.itl_s) / len(run.itl_s) for run in runs]
