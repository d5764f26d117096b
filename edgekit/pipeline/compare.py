"""``compare``: an artifact against a server-hosted model on the same items, with a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from statistics import median

from edgekit import __version__
from edgekit.artifact import Artifact
from edgekit.devices.facts import facts_of
from edgekit.devices.match import RunConstraints
from edgekit.devices.probe import probe_host
from edgekit.errors import MeasureError
from edgekit.hosted.latency import split_latency
from edgekit.hosted.recording import RecordingBackend
from edgekit.pipeline.profile import profile
from edgekit.pipeline.run import HOST, load, open_profile, plan_run
from edgekit.profiler.measure import DEFAULT_WORKLOAD
from edgekit.profiler.projected import memory_budget
from edgekit.progress import Progress, ignore_progress
from edgekit.quality.evaluate import NO_TOOLS_NOTE, SuitePlan, run_suites
from edgekit.quality.pairing import pair_suites
from edgekit.quality.suites import Item
from edgekit.quality.suites.base import TOOL_CALLS_TAG
from edgekit.quality.verdict import Rule, decide
from edgekit.records import (
    ComparisonRecord,
    Kind,
    Metric,
    ProfileRecord,
    QualityRecord,
    ReportData,
    SuiteRecord,
    Workload,
)
from edgekit.runtime.base import ChatBackend
from edgekit.runtime.request_stats import RequestStats
from edgekit.runtime.server import ServerBackend


@dataclass(frozen=True, slots=True)
class ServerRun:
    """A server's answers, and its times as its user saw them."""

    quality: QualityRecord
    metrics: tuple[Metric, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything one comparison measured."""

    record: ComparisonRecord
    profile: ProfileRecord
    device_quality: QualityRecord
    server_quality: QualityRecord


def compare(
    artifact: Artifact,
    server: ChatBackend,
    *,
    plan: SuitePlan | None = None,
    rule: Rule | None = None,
    device: str = HOST,
    engine: str | None = None,
    n_threads: int | None = None,
    workload: Workload = DEFAULT_WORKLOAD,
    progress: Progress = ignore_progress,
) -> Comparison:
    """Ask an artifact and a server the same items, measure both, and decide by the rule.

    Args:
        artifact: The device candidate.
        server: A server, or a recording of one.
        plan: Suites, items and seed.
        rule: Thresholds; a memory limit of None is taken from the device profile.
        device: Device profile.
        engine: Only this engine on the device side.
        n_threads: Threads on the device side.
        workload: Speed run of the device side.
        progress: Called as ``progress(what, n_done, n_total)``.

    Raises:
        ServerError: The server failed; the message says how.
        NoFitError: No engine can run the artifact here.
    """
    chosen = plan or SuitePlan()
    with load(artifact, device, engine=engine, n_threads=n_threads) as session:
        items = chosen.make_items(session.count_tokens, offers_tools=session.offers_tools)
        notes = () if session.offers_tools or chosen.suites else (NO_TOOLS_NOTE,)
        # The server first: if it cannot be reached, no other measurement is useful.
        asked = ask_server(server, items, progress)
        device_suites = run_suites(session, items, _labelled("device", progress))
        device_quality = QualityRecord(artifact.name, session.info, None, device_suites, notes)
    measured = profile(
        artifact,
        device=device,
        engine=engine,
        n_threads=n_threads,
        workload=workload,
        progress=progress,
    )
    return join(
        artifact,
        measured,
        device_quality,
        asked,
        rule or Rule(),
        device=device,
        engine=engine,
    )


def join(
    artifact: Artifact,
    measured: ProfileRecord,
    device_quality: QualityRecord,
    asked: ServerRun,
    rule: Rule,
    *,
    device: str = HOST,
    engine: str | None = None,
) -> Comparison:
    """Pair two finished runs and decide."""
    facts = probe_host()
    device_profile = open_profile(device, facts)
    budget = memory_budget(facts_of(artifact), device_profile, measured.engine.engine)
    if rule.memory_limit_bytes is None:
        limit = plan_run(artifact, device, RunConstraints(engine=engine)).memory_limit_bytes
        rule = replace(rule, memory_limit_bytes=limit)
    pairs = pair_suites(device_quality.suites, asked.quality.suites)
    record = ComparisonRecord(
        candidate=artifact.name,
        server=asked.quality.engine,
        pairs=pairs,
        metrics=(*asked.metrics, *budget),
        verdict=decide(measured, pairs, asked.metrics, rule),
        notes=_notes(asked.quality),
    )
    return Comparison(record, measured, device_quality, asked.quality)


def comparison_report(artifact: Artifact, found: Comparison) -> ReportData:
    """Collect one comparison as the data of a report."""
    return ReportData(
        title=f"{artifact.manifest.model_name}: on the device or on a server?",
        model=artifact.manifest.model_name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        edgekit_version=__version__,
        host=found.profile.host,
        profiles=(found.profile,),
        qualities=(found.device_quality, found.server_quality),
        comparisons=(found.record,),
    )


def ask_server(
    server: ChatBackend, items: Mapping[str, Sequence[Item]], progress: Progress
) -> ServerRun:
    """Ask a server every item; measure the network too when it is a live one."""
    requests: list[RequestStats] = []
    suites = run_suites(server, items, _labelled("server", progress), requests)
    quality = QualityRecord(f"server {server.info.model}", server.info, None, suites)
    live = server.inner if isinstance(server, RecordingBackend) else server
    if not isinstance(live, ServerBackend):
        return ServerRun(quality, _reply_metrics(suites))
    try:
        return ServerRun(quality, split_latency(requests, live.measure_network()))
    except MeasureError:
        # Only tool calls, or a server without HEAD: the plain times are still valid.
        return ServerRun(quality, _reply_metrics(suites))


def _reply_metrics(suites: Sequence[SuiteRecord]) -> tuple[Metric, ...]:
    """Speed of the server as its user saw it, over all answers; medians."""
    # Servers hold a tool call back until it is complete, so its first text is not the first token.
    outcomes = [o for s in suites for o in s.outcomes if not o.answer.startswith(TOOL_CALLS_TAG)]
    rates = [
        (o.n_output_tokens - 1) / (o.e2e_s - o.ttft_s)
        for o in outcomes
        if o.e2e_s is not None
        and o.ttft_s is not None
        and o.n_output_tokens is not None
        and o.n_output_tokens >= 2
        and o.e2e_s > o.ttft_s
    ]
    return (
        _median("ttft_s", [o.ttft_s for o in outcomes if o.ttft_s is not None], "ttft-first-text"),
        _median("decode_tok_per_s", rates, "decode-first-text-to-end"),
        _median("e2e_s", [o.e2e_s for o in outcomes if o.e2e_s is not None], "e2e-request-to-end"),
    )


def _median(name: str, samples: Sequence[float], formula: str) -> Metric:
    value = median(samples) if samples else None
    note = "" if samples else "no answer had it"
    return Metric(name, value, Kind.MEASURED, formula, tuple(samples), note=note)


def _notes(server: QualityRecord) -> tuple[str, ...]:
    notes = ["The server's times come from suite answers, the device's from the fixed workload."]
    if server.engine.settings.get("replayed"):
        notes.append("The server's answers and times were replayed from a recording.")
    return tuple(notes)


def _labelled(side: str, progress: Progress) -> Progress:
    return lambda what, done, total: progress(f"{side}: {what}", done, total)
