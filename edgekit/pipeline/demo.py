"""Answer one question: what does edgekit show on the bundled model, end to end?

Export, verify, profile, evaluate, compare with a server, decide, report: each step is one call
of the verbs that a user has, in the order a user would take them.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from edgekit import __version__
from edgekit.artifact import Artifact, Format
from edgekit.devices.probe import probe_host
from edgekit.export.base import Progress
from edgekit.hosted.recording import RecordingBackend
from edgekit.pipeline.compare import Comparison, ServerRun, ask_server, join
from edgekit.pipeline.evaluate import measure_session, run_float_model, session_documents
from edgekit.pipeline.export import export
from edgekit.pipeline.hosting import hosted
from edgekit.pipeline.profile import profile
from edgekit.pipeline.run import load
from edgekit.pipeline.verify import verification_tokens, verify
from edgekit.quality.evaluate import SuitePlan, run_suites
from edgekit.quality.verdict import Rule
from edgekit.records import (
    Divergence,
    EngineInfo,
    ProfileRecord,
    QualityRecord,
    ReportData,
    VerifyRecord,
)
from edgekit.runtime.server import ServerBackend

SCHEMES: Final = ("int4", "int8")
FLOAT_SCHEME: Final = "fp32"
VERIFY_TOKENS: Final = 192
# A load starts a fresh process, seconds for some engines; `edgekit profile` repeats it 5 times.
DEMO_LOADS: Final = 1
# MLX and the Core ML interpreter are slow on a CPU; they hold the same codes as ONNX.
PARITY_STEP: Final = 4


def run_demo(model: str, out: Path, *, n_items: int, rule: Rule, progress: Progress) -> ReportData:
    """Do the whole job on a model and give everything that was found.

    Args:
        model: Folder, bundled name, or Hub id.
        out: Folder for the artifacts and the recorded server answers.
        n_items: Items of each suite.
        rule: Decision thresholds, fixed before anything runs.
        progress: Called as ``progress(what, n_done, n_total)``.
    """
    folder = out / "artifacts"
    small = [a for s in SCHEMES for a in export(model, "all", s, folder, progress=progress)]
    (big,) = export(model, Format.ONNX, FLOAT_SCHEME, folder, progress=progress)
    verifications = verify(
        small, token_ids=verification_tokens(small[0], VERIFY_TOKENS), progress=progress
    )
    profiles = [
        profile(artifact, n_loads=DEMO_LOADS, progress=progress) for artifact in (*small, big)
    ]
    distances = _distances(small, big, progress)
    shipped = [artifact for artifact in small if artifact.format is Format.ONNX]
    plan = SuitePlan(n_items=n_items)
    server = _ask_server(big, plan, out / "server-answers.jsonl", progress)
    device = [_ask_device(a, plan, distances[a.name], progress) for a in shipped]
    others = [
        QualityRecord(a.name, _engine_of(profiles, a), distances[a.name], ())
        for a in small
        if a.format is not Format.ONNX
    ]
    comparisons = [
        join(artifact, _profile_of(profiles, artifact), quality, server, rule)
        for artifact, quality in zip(shipped, device, strict=True)
    ]
    return _report(model, profiles, [*device, server.quality, *others], comparisons, verifications)


def _distances(
    artifacts: Sequence[Artifact], big: Artifact, progress: Progress
) -> dict[str, Divergence]:
    """Measure how far each artifact is from the float model, on the engine that ships."""
    with load(big) as session:
        documents = session_documents(session)
    reference = run_float_model(big.path, documents, None, progress)
    found = {}
    for artifact in artifacts:
        step = 1 if artifact.format is Format.ONNX else PARITY_STEP
        with load(artifact) as session:
            found[artifact.name] = measure_session(session, reference.thin(step), progress)
    return found


def _ask_device(
    artifact: Artifact, plan: SuitePlan, divergence: Divergence, progress: Progress
) -> QualityRecord:
    with load(artifact) as session:
        suites = run_suites(session, plan.make_items(session.count_tokens), progress)
        return QualityRecord(artifact.name, session.info, divergence, suites)


def _ask_server(
    artifact: Artifact, plan: SuitePlan, recording: Path, progress: Progress
) -> ServerRun:
    """Host the float model in a process of its own and ask it over HTTP, recording it all."""
    with load(artifact) as session:
        items = plan.make_items(session.count_tokens)
    recording.unlink(missing_ok=True)
    with hosted(artifact) as endpoint:
        server = ServerBackend.open(endpoint.url, endpoint.model, api_key="local")
        with RecordingBackend(server, recording) as backend:
            return ask_server(backend, items, progress)


def _profile_of(profiles: Sequence[ProfileRecord], artifact: Artifact) -> ProfileRecord:
    return next(record for record in profiles if record.candidate == artifact.name)


def _engine_of(profiles: Sequence[ProfileRecord], artifact: Artifact) -> EngineInfo:
    return _profile_of(profiles, artifact).engine


def _report(
    model: str,
    profiles: Sequence[ProfileRecord],
    qualities: Sequence[QualityRecord],
    comparisons: Sequence[Comparison],
    verifications: Sequence[VerifyRecord],
) -> ReportData:
    return ReportData(
        title=f"{model}: on the device or on a server?",
        model=model,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        edgekit_version=__version__,
        host=probe_host(),
        profiles=tuple(profiles),
        qualities=tuple(qualities),
        comparisons=tuple(comparison.record for comparison in comparisons),
        verifications=tuple(verifications),
        notes=(
            "The server side is the float model behind `edgekit serve` on this machine, asked "
            "over HTTP: no network, no faster hardware, no bigger model.",
            "Suites ran on the ONNX artifacts; MLX and Core ML hold the same codes (see the "
            "weights table) and were compared with the float model token by token.",
        ),
    )
