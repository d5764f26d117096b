"""``edgekit demo``: every step of edgekit on one model, with a report at the end.

Export, verify, profile, evaluate, compare with a server, decide, report: each step is one call of
the function that a user would call, in the same order. How much each step does depends on the size
of the model, so that a demo on two cores ends within ten minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from edgekit import __version__
from edgekit.artifact import Artifact, Format
from edgekit.devices.probe import probe_host
from edgekit.hosted.recording import RecordingBackend
from edgekit.pipeline.compare import Comparison, ServerRun, ask_server, join
from edgekit.pipeline.evaluate import (
    DOCUMENTS_PER_SUITE,
    MAX_DOCUMENT_TOKENS,
    float_model,
    measure_session,
    session_documents,
)
from edgekit.pipeline.export import export
from edgekit.pipeline.hosting import hosted
from edgekit.pipeline.profile import profile
from edgekit.pipeline.run import load
from edgekit.pipeline.verify import VerifyPlan, verify
from edgekit.profiler.measure import DEFAULT_WORKLOAD
from edgekit.progress import Progress
from edgekit.quality.evaluate import NO_TOOLS_NOTE, SuitePlan, run_suites
from edgekit.quality.verdict import Rule
from edgekit.records import (
    Divergence,
    EngineInfo,
    ProfileRecord,
    QualityRecord,
    ReportData,
    VerifyRecord,
    Workload,
)
from edgekit.runtime.server import ServerBackend

SCHEMES: Final = ("int4", "int8")
FLOAT_SCHEME: Final = "fp32"
# A load starts a fresh process, seconds for some engines; `edgekit profile` repeats it 5 times.
DEMO_LOADS: Final = 1
_SMALL: Final = 20_000_000


@dataclass(frozen=True, slots=True)
class DemoSize:
    """How much of each step a demo does.

    Attributes:
        n_items: Items of each suite.
        n_documents: Documents from each suite that are compared with the float model.
        max_document_tokens: Longer documents are left out.
        parity_step: MLX and the Core ML interpreter, which are slow on a CPU, get only every so
            many-th of these; they hold the same codes as ONNX.
        n_verify: Tokens on which the formats are compared.
        workload: The speed run.
        minutes: Duration on a 2-core virtual machine, rounded up; measured with one model for
            each size.
    """

    n_items: int
    n_documents: int
    max_document_tokens: int
    parity_step: int
    n_verify: int
    workload: Workload
    minutes: int


FULL: Final = DemoSize(100, DOCUMENTS_PER_SUITE, MAX_DOCUMENT_TOKENS, 4, 192, DEFAULT_WORKLOAD, 2)
_FORMATS: Final = (Format.ONNX, Format.MLX, Format.COREML)
SHORT: Final = DemoSize(12, 2, 320, 2, 32, Workload(64, 16, 3, 1), 10)


def run_demo(
    model: str,
    out: Path,
    *,
    n_items: int | None = None,
    size: DemoSize | None = None,
    rule: Rule,
    progress: Progress,
    tell: Callable[[str], None],
) -> ReportData:
    """Run every step on a model and return all results.

    Args:
        model: Folder, GGUF file, bundled name, name of a recipe, or Hub id.
        out: Folder for the artifacts and the recorded server answers.
        n_items: Items of each suite; None: as many as ``size`` says.
        size: How much to do; None: chosen by the number of parameters.
        rule: Decision thresholds, fixed before anything runs.
        progress: Called as ``progress(what, n_done, n_total)``.
        tell: Gets a line of text when a step begins.

    Raises:
        EdgekitError: See ``export``, ``verify``, ``profile``, ``evaluate`` and ``compare``.
    """
    folder = out / "artifacts"
    tell("1 of 5: export to ONNX, MLX and Core ML")
    small = [
        artifact
        for scheme in SCHEMES
        for artifact in export(model, _FORMATS, scheme, folder, progress=progress)
    ]
    (big,) = export(model, Format.ONNX, FLOAT_SCHEME, folder, progress=progress)
    for note in dict.fromkeys(big.manifest.notes):
        tell(f"  {note}")
    if size is None:
        size = FULL if big.manifest.n_parameters < _SMALL else SHORT
    plan = SuitePlan(n_items=n_items or size.n_items)
    tell(
        f"2 of 5: verify; {big.manifest.n_parameters:,} parameters, {plan.n_items} items of each "
        f"suite: all of it takes about {size.minutes} minutes on two cores"
    )
    verifications = verify(small, VerifyPlan(size.n_verify, n_prompts=0), progress=progress)
    tell("3 of 5: measure speed and memory")
    profiles = [
        profile(artifact, workload=size.workload, n_loads=DEMO_LOADS, progress=progress)
        for artifact in (*small, big)
    ]
    tell("4 of 5: compare with the float model, token by token")
    distances = _distances(small, big, size, progress)
    tell("5 of 5: run the suites, on the device and on a server")
    shipped = [artifact for artifact in small if artifact.format is Format.ONNX]
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
    artifacts: Sequence[Artifact], big: Artifact, size: DemoSize, progress: Progress
) -> dict[str, Divergence]:
    """Measure how far each artifact is from the float model, on the engine that ships."""
    with load(big) as session:
        documents = session_documents(session, size.n_documents, size.max_document_tokens)
    found = {}
    with float_model(big.path, documents, progress=progress) as reference:
        for artifact in artifacts:
            step = 1 if artifact.format is Format.ONNX else size.parity_step
            with load(artifact) as session:
                found[artifact.name] = measure_session(
                    session, reference, step=step, progress=progress
                )
    return found


def _ask_device(
    artifact: Artifact, plan: SuitePlan, divergence: Divergence, progress: Progress
) -> QualityRecord:
    with load(artifact) as session:
        items = plan.make_items(session.count_tokens, offers_tools=session.offers_tools)
        suites = run_suites(session, items, progress)
        notes = () if session.offers_tools else (NO_TOOLS_NOTE,)
        return QualityRecord(artifact.name, session.info, divergence, suites, notes)


def _ask_server(
    artifact: Artifact, plan: SuitePlan, recording: Path, progress: Progress
) -> ServerRun:
    """Host the float model in a process of its own, ask it over HTTP, and record the answers."""
    with load(artifact) as session:
        items = plan.make_items(session.count_tokens, offers_tools=session.offers_tools)
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
