"""A projected profile: speed and memory of an artifact on a device that is not at hand.

Nothing runs. Speeds are projected from the device's numbers; memory is estimated and compared with
the device's limit; every number says so. What cannot be projected has no value, and a note why.
"""

from __future__ import annotations

from typing import Final

from edgekit.artifact import Artifact
from edgekit.devices.facts import ArtifactFacts, facts_of
from edgekit.devices.match import need_bytes, sourced_limit
from edgekit.devices.profile import DeviceProfile, ValueKind
from edgekit.devices.projection import project
from edgekit.errors import UsageError
from edgekit.records import EngineInfo, HostFacts, Kind, Metric, ProfileRecord, Workload

_KINDS: Final = {
    ValueKind.PROBED: Kind.MEASURED,
    ValueKind.PUBLISHED: Kind.PUBLISHED,
    ValueKind.MEASURED: Kind.PUBLISHED,  # by others: the profile names them
}
"""The kind that a profile's number has in a record; all other numbers are computed."""


def project_artifact(
    artifact: Artifact,
    profile: DeviceProfile,
    *,
    engine: str,
    host: HostFacts,
    workload: Workload,
    context_length: int | None = None,
) -> ProfileRecord:
    """Project speed and memory of an artifact on a device that is not at hand.

    Args:
        artifact: The artifact that would run.
        profile: The device.
        engine: Engine of that device.
        host: Facts of the machine that computes the projection, for the record.
        workload: Prompt length for the time to first token.
        context_length: Positions to reserve cache for; None takes the artifact's own.

    Raises:
        UsageError: The device has no such engine.
    """
    support = profile.engine(engine)
    if support is None:
        raise UsageError(
            f"{profile.id} has no engine {engine}",
            wanted=", ".join(e.id for e in profile.engines) or "no engine is known",
        )
    facts = facts_of(artifact)
    notes: tuple[str, ...] = (
        "nothing was run on this device: speeds are projected, memory is estimated",
    )
    if support.note:
        notes += (support.note,)
    return ProfileRecord(
        candidate=artifact.name,
        format=artifact.format.value,
        scheme=artifact.manifest.scheme,
        artifact_bytes=artifact.n_bytes,
        device=profile.id,
        engine=EngineInfo(engine, "", artifact.name, settings={"projected": True}),
        host=host,
        workload=workload,
        metrics=(
            *project(profile, engine, facts, n_prompt_tokens=workload.n_prompt_tokens),
            *memory_budget(facts, profile, engine, context_length=context_length),
            sustained_metric(profile, engine),
        ),
        notes=notes,
    )


def memory_budget(
    facts: ArtifactFacts,
    profile: DeviceProfile,
    engine: str,
    *,
    context_length: int | None = None,
) -> tuple[Metric, ...]:
    """Give the estimated need and its limit, for the report to compare."""
    support = profile.engine(engine)
    sourced = sourced_limit(profile)
    limit = Metric(
        "memory_limit_bytes",
        sourced.value,
        _KINDS.get(sourced.kind, Kind.PROJECTED),
        "app-memory-limit",
        source=sourced.source,
        note=sourced.kind.value,
    )
    if support is None:
        return (limit,)
    n_tokens = context_length or facts.context_length
    need = Metric(
        "need_bytes",
        need_bytes(facts, support, n_tokens),
        Kind.PROJECTED,
        "need-weights-kv-overhead",
        note=f"weights, cache of {n_tokens} tokens, engine",
    )
    return (need, limit)


def sustained_metric(profile: DeviceProfile, engine: str) -> Metric:
    """Give the fraction of the burst speed that is left after ten minutes, 0..1."""
    support = profile.engine(engine)
    if support is None or support.sustained_factor.value is None:
        reason = "no such engine" if support is None else support.sustained_factor.source
        return Metric("sustained_factor", None, Kind.PUBLISHED, "sustained-10min", note=reason)
    sourced = support.sustained_factor
    return Metric(
        "sustained_factor",
        sourced.value,
        _KINDS.get(sourced.kind, Kind.PROJECTED),
        "sustained-10min",
        source=sourced.source,
        note=sourced.kind.value,
    )
