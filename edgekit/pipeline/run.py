"""``load``: open an artifact for inference on this machine, under a device profile."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.artifact import Artifact
from edgekit.devices.facts import facts_of
from edgekit.devices.host import host_profile
from edgekit.devices.match import Candidate, Plan, RunConstraints, choose, match
from edgekit.devices.probe import probe_host
from edgekit.devices.profile import DeviceProfile, load_profile
from edgekit.records import HostFacts
from edgekit.runtime import check_engine_name

if TYPE_CHECKING:
    from edgekit.runtime.session import Session

HOST = "host"


def load(
    artifact: str | Path | Artifact,
    device: str = HOST,
    *,
    engine: str | None = None,
    n_threads: int | None = None,
    context_length: int | None = None,
) -> Session:
    """Open an artifact for inference under a device profile.

    The session runs on this machine, with the threads and within the memory limit of the
    profile; a profile of another device is refused when its engine is not installed here.

    Args:
        artifact: The artifact, or its folder.
        device: ``host``, a profile's name, or a TOML file.
        engine: Only this engine; default the profile's first that fits.
        n_threads: Default the profile's number.
        context_length: Default the artifact's own.

    Raises:
        ArtifactError: The folder is not an artifact.
        ProfileError: No such device profile.
        UsageError: Impossible threads or positions.
        NoFitError: No engine of the device can run it, with every reason.
        EngineLoadError: The engine refused the artifact.
    """
    from edgekit.runtime.session import open_session

    opened = artifact if isinstance(artifact, Artifact) else Artifact.open(artifact)
    chosen = plan_run(
        opened,
        device,
        RunConstraints(engine=engine, n_threads=n_threads, context_length=context_length),
    )
    return open_session(
        opened,
        engine=chosen.engine,
        n_threads=chosen.n_threads,
        context_length=chosen.context_length,
    )


def plan_run(
    artifact: Artifact, device: str = HOST, constraints: RunConstraints | None = None
) -> Plan:
    """Choose engine, threads and memory limit for one artifact on this machine.

    Raises:
        UsageError: No engine has the name that is asked for.
        ProfileError: No such device profile.
        NoFitError: Nothing fits, with every reason.
    """
    if constraints is not None and constraints.engine is not None:
        check_engine_name(constraints.engine)
    facts = probe_host()
    profile = open_profile(device, facts)
    return choose(match([facts_of(artifact)], profile, facts, constraints or RunConstraints()))


def match_artifacts(
    artifacts: list[Artifact], device: str, constraints: RunConstraints | None = None
) -> list[Candidate]:
    """Answer for every artifact and engine of a device; ``host`` also needs them installed.

    Raises:
        ProfileError: No such device profile.
    """
    facts = probe_host()
    profile = open_profile(device, facts)
    host = facts if device == HOST else None
    return match(
        [facts_of(artifact) for artifact in artifacts],
        profile,
        host,
        constraints or RunConstraints(),
    )


def open_profile(device: str, facts: HostFacts) -> DeviceProfile:
    """Give the probed profile of this machine, or a named one.

    Raises:
        ProfileError: No such device profile.
    """
    return host_profile(facts) if device == HOST else load_profile(device)
