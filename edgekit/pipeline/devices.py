"""Tables of device profiles, and of which artifacts fit a device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgekit.artifact import Artifact
from edgekit.decision import Accepted, Rejected
from edgekit.devices.match import Candidate, Plan
from edgekit.devices.probe import probe_host
from edgekit.devices.profile import DeviceProfile, SourcedValue, list_profiles
from edgekit.pipeline.run import HOST, match_artifacts, open_profile
from edgekit.profiler.measure import DEFAULT_WORKLOAD
from edgekit.profiler.projected import project_artifact
from edgekit.records import ProfileRecord, to_data
from edgekit.report.sections import format_metric
from edgekit.report.table import Cell, Table, make_table
from edgekit.units import format_bytes


def list_devices() -> tuple[Any, list[Table]]:
    """Give every profile as JSON data and as a table; the host is probed."""
    facts = probe_host()
    profiles = [open_profile(name, facts) for name in (HOST, *list_profiles())]
    rows = [
        (
            profile.id,
            profile.name,
            profile.soc,
            _bytes(profile.memory.total_bytes),
            _bytes(profile.memory.app_limit_bytes),
            ", ".join(
                engine.id + (" (emulated)" if engine.is_emulated else "")
                for engine in profile.engines
            ),
        )
        for profile in profiles
    ]
    table = make_table(
        "devices",
        "Device profiles",
        ("id", "device", "chip", "memory", "app limit", "engines"),
        rows,
        notes=("edgekit devices ID shows every figure with its source.",),
    )
    return [to_data(profile) for profile in profiles], [table]


def describe_profile(device: str) -> tuple[Any, list[Table]]:
    """Give one profile as JSON data and as a table of figures with their sources."""
    profile = open_profile(device, probe_host())
    rows = [
        (name, _value(name, sourced), sourced.kind.value, sourced.source)
        for name, sourced in _sourced_values(profile)
    ]
    table = make_table(
        f"device-{profile.id}",
        profile.name,
        ("figure", "value", "kind", "source"),
        rows,
        caption=f"{profile.soc}, {profile.os}",
        notes=profile.notes,
    )
    return to_data(profile), [table]


def match_tables(artifacts: Sequence[Artifact], device: str) -> tuple[Any, list[Table]]:
    """Give the answer for every artifact and engine of a device: what runs, best first."""
    candidates = match_artifacts(list(artifacts), device)
    by_name = {artifact.name: artifact for artifact in artifacts}
    host = probe_host()
    profile = open_profile(device, host)
    accepted: list[tuple[Cell | str, ...]] = []
    refused: list[tuple[Cell | str, ...]] = []
    data = []
    for candidate in candidates:
        plan, decision, record = candidate.plan, candidate.decision, None
        if isinstance(decision, Rejected) or plan is None:
            reason = decision.reason if isinstance(decision, Rejected) else "no plan"
            refused.append((candidate.artifact.name, candidate.engine or "none", reason))
        else:
            record = project_artifact(
                by_name[candidate.artifact.name],
                profile,
                engine=plan.engine,
                host=host,
                workload=DEFAULT_WORKLOAD,
            )
            accepted.append(_plan_row(plan, record))
        metrics = () if record is None else record.metrics
        data.append({**to_data(candidate), "projected": to_data(metrics)})
    runs = make_table(
        f"match-{profile.id}",
        f"What runs on {profile.name}",
        ("artifact", "engine", "threads", "needs", "limit", "decode", "first token"),
        accepted,
        notes=(
            "Best first. Projected speeds are ranges from published runs, not measurements; the "
            f"first token follows a prompt of {DEFAULT_WORKLOAD.n_prompt_tokens} tokens.",
            *dict.fromkeys(note for c in candidates for note in _notes(c)),
        ),
    )
    runs_not = make_table(
        f"refused-{profile.id}",
        "What does not run, and why",
        ("artifact", "engine", "reason"),
        refused,
    )
    return data, [table for table in (runs, runs_not) if table.rows]


def _notes(candidate: Candidate) -> list[str]:
    decision = candidate.decision
    notes = decision.notes if isinstance(decision, Accepted) else ()
    return [f"{candidate.engine}: {note}" for note in notes]


def _plan_row(plan: Plan, record: ProfileRecord) -> tuple[Cell | str, ...]:
    return (
        record.candidate,
        plan.engine,
        "engine's own" if plan.n_threads is None else str(plan.n_threads),
        format_bytes(plan.need_bytes),
        format_bytes(plan.memory_limit_bytes),
        _range(record, "decode_tok_per_s"),
        _range(record, "ttft_s"),
    )


def _range(record: ProfileRecord, name: str) -> Cell:
    """Show a projection as a range."""
    metric = record.metric(name)
    if metric is None or metric.low is None or metric.high is None:
        return Cell("-" if metric is None else metric.note)
    low, high = (format_metric(name, bound) for bound in (metric.low, metric.high))
    return Cell(f"{low} to {high}", metric.kind)


def _sourced_values(profile: DeviceProfile) -> list[tuple[str, SourcedValue[Any]]]:
    parts: list[tuple[str, object]] = [
        ("cpu", profile.cpu),
        ("memory", profile.memory),
        ("storage", profile.storage),
        ("gpu", profile.gpu),
        ("npu", profile.npu),
        *[(f"engine {engine.id}", engine) for engine in profile.engines],
        *[(f"projection {item.engine}", item) for item in profile.projections],
    ]
    return [
        (f"{name} {field}", value)
        for name, part in parts
        if part is not None
        for field in getattr(part, "__slots__", ())
        if isinstance(value := getattr(part, field), SourcedValue)
    ]


def _value(name: str, sourced: SourcedValue[Any]) -> str:
    if sourced.value is None:
        return "unknown"
    if name.endswith("_bytes"):
        return format_bytes(sourced.value)
    if name.endswith("_bytes_per_s"):
        return f"{sourced.value / 1e9:.1f} GB/s"
    return f"{sourced.value:g}"


def _bytes(sourced: SourcedValue[int]) -> str:
    return "unknown" if sourced.value is None else format_bytes(sourced.value)
