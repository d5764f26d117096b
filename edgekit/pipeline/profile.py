"""``profile``: speed and memory of an artifact on this machine, under a device profile."""

from __future__ import annotations

from edgekit.artifact import Artifact
from edgekit.devices.match import RunConstraints
from edgekit.devices.probe import probe_host
from edgekit.pipeline.run import HOST, open_profile, plan_run
from edgekit.profiler.measure import DEFAULT_N_LOADS, DEFAULT_WORKLOAD, profile_artifact
from edgekit.progress import Progress, ignore_progress
from edgekit.records import ProfileRecord, Workload


def profile(
    artifact: Artifact,
    *,
    device: str = HOST,
    engine: str | None = None,
    n_threads: int | None = None,
    workload: Workload = DEFAULT_WORKLOAD,
    n_loads: int = DEFAULT_N_LOADS,
    progress: Progress = ignore_progress,
) -> ProfileRecord:
    """Measure one artifact on this machine, with the threads and engine of a profile.

    Raises:
        ProfileError: No such device profile.
        NoFitError: No engine of the profile can run it here.
    """
    plan = plan_run(artifact, device, RunConstraints(engine=engine, n_threads=n_threads))
    host = probe_host()
    return profile_artifact(
        artifact,
        engine=plan.engine,
        n_threads=plan.n_threads,
        host=host,
        workload=workload,
        n_loads=n_loads,
        device=device,
        profile=open_profile(device, host),
        progress=progress,
    )
