"""Matching of artifacts with a device: which can run, with which engine and limits, and why.

It decides from facts and never looks at the host. Every pair of artifact and engine gets an answer,
``Accepted`` or ``Rejected(reason)``. It does not know whether a model is good enough; the report
decides that from measured quality.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.artifact import Format
from edgekit.decision import Accepted, Decision, Rejected
from edgekit.devices.facts import ArtifactFacts
from edgekit.devices.profile import (
    OPTIONAL_ENGINES,
    DeviceProfile,
    EngineSupport,
    SourcedValue,
    ValueKind,
)
from edgekit.errors import NoFitError, UsageError
from edgekit.records import HostFacts
from edgekit.units import format_bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """How to run an artifact on a device; ``n_threads`` None when the engine chooses its own."""

    artifact: str
    engine: str
    n_threads: int | None
    memory_limit_bytes: int
    need_bytes: int
    context_length: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Candidate:
    """One artifact on one engine, and the answer; ``plan`` is None when rejected.

    ``engine`` is empty when no engine of the device runs the format.
    """

    artifact: ArtifactFacts
    engine: str
    decision: Decision
    plan: Plan | None = None

    @property
    def name(self) -> str:
        """Artifact and engine, for tables."""
        return f"{self.artifact.name} on {self.engine}" if self.engine else self.artifact.name


@dataclass(frozen=True, slots=True)
class RunConstraints:
    """What the caller asks for; None leaves the choice to ``match``.

    Attributes:
        format: Only this format.
        engine: Only this engine.
        context_length: Positions to reserve cache for; default the artifact's own.
        n_threads: Threads; default the profile's number. Has no effect on an engine that chooses
            its own; the plan then says so.
        use_raised_limit: Use the memory limit that needs an entitlement or a setting.
    """

    format: Format | None = None
    engine: str | None = None
    context_length: int | None = None
    n_threads: int | None = None
    use_raised_limit: bool = False

    def __post_init__(self) -> None:
        for name in ("context_length", "n_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(name, got=value, wanted="at least 1")


def match(
    artifacts: Sequence[ArtifactFacts],
    profile: DeviceProfile,
    host: HostFacts | None = None,
    constraints: RunConstraints = RunConstraints(),
) -> list[Candidate]:
    """Answer for every artifact on every engine of the device that runs its format.

    Accepted candidates come first. Their order: engines that really run before emulated ones,
    then the order of engines in the profile, then the smaller memory need (on one device fewer
    bytes per token decode faster), then the name. Rejected ones keep the order of the artifacts.

    Args:
        artifacts: The artifacts to choose from.
        profile: The device to decide for.
        host: Given when the plan is to run on this machine: the engine must then be installed,
            and the host's cores and memory limit the plan too.
        constraints: What the caller asks for.
    """
    candidates = [
        _answer(facts, engine, profile, host, constraints)
        for facts in artifacts
        for engine in _engines_for(facts, profile)
    ]
    order = {engine.id: (engine.is_emulated, i) for i, engine in enumerate(profile.engines)}

    def rank(candidate: Candidate) -> tuple[object, ...]:
        if candidate.plan is None:
            return (True,)
        return (
            False,
            order[candidate.engine],
            candidate.plan.need_bytes,
            candidate.artifact.name,
        )

    return sorted(candidates, key=rank)


def choose(candidates: Sequence[Candidate]) -> Plan:
    """Take the first accepted candidate's plan.

    Raises:
        NoFitError: None is accepted; ``reasons`` holds one reason per candidate.
    """
    for candidate in candidates:
        if candidate.plan is not None:
            return candidate.plan
    reasons = {c.name: c.decision.reason for c in candidates if isinstance(c.decision, Rejected)}
    raise NoFitError(
        "no artifact can run on this device",
        reasons=reasons or {"artifacts": "none given"},
        do="Try a smaller scheme, a shorter context, or another format.",
    )


def need_bytes(facts: ArtifactFacts, engine: EngineSupport, context_length: int) -> int:
    """Estimate the memory that the system cannot take back while an artifact runs.

    Formula ``need-weights-kv-overhead``: ``weights_factor * weight_bytes + kv_bytes_per_token *
    context_length + overhead_bytes``; an unknown factor counts as 1, an unknown overhead as 0.
    """
    factor = engine.weights_factor.value
    weights = facts.weight_bytes * (1.0 if factor is None else factor)
    if engine.max_copy_bytes is not None and weights > engine.max_copy_bytes:
        weights = facts.weight_bytes
    cache = facts.kv_bytes_per_token * context_length
    return int(weights) + cache + (engine.overhead_bytes.value or 0)


def memory_limit(
    profile: DeviceProfile, host: HostFacts | None = None, *, use_raised: bool = False
) -> tuple[int, str]:
    """Give the memory that one app may use on the device, and where the number comes from.

    Raises:
        UsageError: The raised limit was asked for and is not known.
    """
    sourced = sourced_limit(profile, use_raised=use_raised)
    limit, basis = sourced.value or 0, f"{sourced.kind.value}: {sourced.source}"
    if host is not None:
        bound = host.memory_limit_bytes or host.memory_bytes
        if bound < limit:
            limit, basis = bound, "the limit of this machine"
    return limit, basis


def sourced_limit(profile: DeviceProfile, *, use_raised: bool = False) -> SourcedValue[int]:
    """Give the memory limit of one app with its source; never unknown.

    Raises:
        UsageError: The raised limit was asked for and is not known.
    """
    memory = profile.memory
    sourced = memory.app_limit_raised_bytes if use_raised else memory.app_limit_bytes
    if sourced.value is not None:
        return sourced
    if use_raised:
        raise UsageError(f"{profile.id}: no raised memory limit is known", got=sourced.source)
    # Half of memory is what phones give an app without an entitlement.
    half = (memory.total_bytes.value or 0) // 2
    return SourcedValue(ValueKind.ASSUMED, "half of memory; no limit is known", half)


def _engines_for(facts: ArtifactFacts, profile: DeviceProfile) -> Sequence[EngineSupport | None]:
    found = [engine for engine in profile.engines if facts.format in engine.formats]
    return found or [None]


def _answer(
    facts: ArtifactFacts,
    engine: EngineSupport | None,
    profile: DeviceProfile,
    host: HostFacts | None,
    constraints: RunConstraints,
) -> Candidate:
    if engine is None:
        runs = ", ".join(sorted({f.value for e in profile.engines for f in e.formats})) or "nothing"
        reason = f"no engine on {profile.name} runs {facts.format.value}; it runs {runs}"
        return Candidate(facts, "", Rejected(reason))
    reason = _unwanted(facts, engine, constraints) or _not_here(engine, host)
    if reason:
        return Candidate(facts, engine.id, Rejected(reason))
    context_length = constraints.context_length or facts.context_length
    if context_length > facts.context_length:
        reason = f"context of {context_length} asked for, the artifact holds {facts.context_length}"
        return Candidate(facts, engine.id, Rejected(reason))
    limit, basis = memory_limit(profile, host, use_raised=constraints.use_raised_limit)
    need = need_bytes(facts, engine, context_length)
    if need > limit:
        reason = (
            f"needs about {format_bytes(need)} at {context_length} tokens,"
            f" the limit is {format_bytes(limit)} ({basis})"
        )
        return Candidate(facts, engine.id, Rejected(reason))
    notes: tuple[str, ...] = (f"memory limit: {basis}",)
    if engine.is_emulated:
        notes += (f"{engine.id} only emulates the device here; its speed means nothing",)
    if engine.chooses_threads and constraints.n_threads is not None:
        notes += (f"{engine.id} chooses its own threads",)
    if engine.note:
        notes += (engine.note,)
    plan = Plan(
        artifact=facts.name,
        engine=engine.id,
        n_threads=_n_threads(engine, profile, host, constraints),
        memory_limit_bytes=limit,
        need_bytes=need,
        context_length=context_length,
        notes=notes,
    )
    return Candidate(facts, engine.id, Accepted(notes), plan)


def _unwanted(facts: ArtifactFacts, engine: EngineSupport, constraints: RunConstraints) -> str:
    if constraints.format is not None and facts.format is not constraints.format:
        return f"format {constraints.format.value} was asked for"
    if constraints.engine is not None and engine.id != constraints.engine:
        return f"engine {constraints.engine} was asked for"
    return ""


def _not_here(engine: EngineSupport, host: HostFacts | None) -> str:
    if host is None:
        return ""
    version = host.engines.get(engine.id)
    if version is None and engine.id in OPTIONAL_ENGINES:
        return f"engine {engine.id} is not installed: {OPTIONAL_ENGINES[engine.id]}"
    if version is None:
        return f"engine {engine.id} is not available on this machine ({host.os} {host.arch})"
    if _version_key(version) < _version_key(engine.min_version):
        return f"{engine.id} {version} is installed, {engine.min_version} or newer is needed"
    return ""


def _n_threads(
    engine: EngineSupport,
    profile: DeviceProfile,
    host: HostFacts | None,
    constraints: RunConstraints,
) -> int | None:
    if engine.chooses_threads:
        return None
    if constraints.n_threads is not None:
        return constraints.n_threads
    cpu = profile.cpu
    n_threads = cpu.n_threads.value or cpu.n_big_cores.value or 1
    return n_threads if host is None else min(n_threads, host.n_cores)


def _version_key(text: str) -> tuple[int, ...]:
    """Order versions by their first three numbers; an empty text is older than any."""
    return tuple(int(part) for part in re.findall(r"[0-9]+", text)[:3])
