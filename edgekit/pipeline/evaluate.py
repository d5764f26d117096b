"""``evaluate``: quality of an artifact against its float model and on the task suites."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edgekit
from edgekit.artifact import MANIFEST_NAME, Artifact
from edgekit.errors import UsageError
from edgekit.families import open_model
from edgekit.families.base import SourceModel
from edgekit.pipeline.run import HOST, load
from edgekit.progress import Progress, ignore_progress
from edgekit.quality.corpus import make_documents
from edgekit.quality.divergence import LiveReference, Reference, measure_divergence
from edgekit.quality.evaluate import NO_TOOLS_NOTE, SuitePlan, run_suites
from edgekit.quality.reference_store import Facts, StoredReference, stored_reference
from edgekit.quality.suites import Item
from edgekit.records import Divergence, EngineInfo, QualityRecord
from edgekit.runtime import open_decoder
from edgekit.runtime.base import Decoder
from edgekit.runtime.reference import ReferenceDecoder

if TYPE_CHECKING:
    from edgekit.runtime.session import Session

DOCUMENTS_PER_SUITE = 12
MAX_DOCUMENT_TOKENS = 700
FLOAT_CODE = ("checkpoint", "families", "formats", "reference", "runtime")
"""The packages that decide what a float model answers."""


def evaluate(
    artifact: Artifact,
    *,
    reference: str | Path | None = None,
    adapter: str | Path | None = None,
    ignore_config_keys: Iterable[str] = (),
    plan: SuitePlan | None = None,
    device: str = HOST,
    engine: str | None = None,
    n_threads: int | None = None,
    is_exact: bool = False,
    progress: Progress = ignore_progress,
) -> QualityRecord:
    """Measure an artifact against its float model, and on the suites.

    Args:
        artifact: The artifact, on the engine that would be shipped.
        reference: Float model: a checkpoint, or a float artifact. None leaves divergence out.
        adapter: Folder of a LoRA adapter to merge into the checkpoint of ``reference``.
        ignore_config_keys: Keys of that checkpoint's config that are ignored, whatever their value.
        plan: Suites, items and seed; without suites only divergence is measured.
        device: Device profile.
        engine: Only this engine.
        n_threads: Default the profile's figure.
        is_exact: Run the float model beside the artifact and compare whole distributions; else
            what is stored of the float model is read, and it runs only if nothing is stored yet.
        progress: Called as ``progress(what, n_done, n_total)``.

    Raises:
        NoFitError: No engine of the device can run the artifact.
        CheckpointError: The float model cannot be read.
        UsageError: The float model is a quantized artifact, or an adapter or keys are given
            without a checkpoint.
        MeasureError: The float model has another vocabulary.
        EngineError: An engine failed.
    """
    chosen = plan or SuitePlan()
    if reference is None and (adapter is not None or tuple(ignore_config_keys)):
        raise _only_with_checkpoint(adapter, "no --reference")
    with load(artifact, device, engine=engine, n_threads=n_threads) as session:
        items = chosen.make_items(session.count_tokens, offers_tools=session.offers_tools)
        divergence = None
        if reference is not None:
            with float_model(
                reference,
                session_documents(session),
                n_threads=n_threads,
                adapter=adapter,
                ignore_config_keys=ignore_config_keys,
                is_exact=is_exact,
                progress=progress,
            ) as wanted:
                divergence = measure_session(session, wanted, progress=progress)
        suites = run_suites(session, items, progress)
        return QualityRecord(
            candidate=artifact.name,
            engine=session.info,
            divergence=divergence,
            suites=suites,
            notes=() if session.offers_tools or chosen.suites else (NO_TOOLS_NOTE,),
        )


def session_documents(
    session: Session,
    n_per_suite: int = DOCUMENTS_PER_SUITE,
    max_tokens: int = MAX_DOCUMENT_TOKENS,
) -> list[list[int]]:
    """Make the comparison documents with a session's own tokenizer and template.

    They have no tools if the template has no place for tools.
    """
    items: Mapping[str, Sequence[Item]] = SuitePlan(n_items=4 * n_per_suite).make_items(
        session.count_tokens
    )
    return make_documents(
        items,
        lambda messages, tools: session.encode_chat(
            messages, tools if session.offers_tools else ()
        ),
        lambda text: session.tokenizer.encode(text, allow_special=True),
        max_tokens=min(max_tokens, session.context_length),
        n_per_suite=n_per_suite,
    )


@contextlib.contextmanager
def float_model(
    reference: str | Path,
    documents: Sequence[Sequence[int]],
    *,
    n_threads: int | None = None,
    adapter: str | Path | None = None,
    ignore_config_keys: Iterable[str] = (),
    is_exact: bool = False,
    progress: Progress = ignore_progress,
) -> Iterator[Reference]:
    """Give the float model on documents, to compare artifacts with.

    What the likeliest next tokens are is stored at the first call (quality/reference_store.py);
    later calls with the same model and documents read it, and do not run the model.

    Args:
        reference: A float artifact, or a checkpoint, which runs in plain numpy.
        documents: Token ids.
        n_threads: Threads of a float artifact.
        adapter: Of the checkpoint, as for ``open_model``.
        ignore_config_keys: Of the checkpoint, as for ``open_model``.
        is_exact: Store nothing, and run the model beside each artifact.
        progress: Called as ``progress("float model", n_done, n_total)``, in tokens.

    Raises:
        UsageError: The reference is a quantized artifact, or an adapter or keys are given for an
            artifact.
        CheckpointError: The checkpoint cannot be read.
        MeasureError: No document has two tokens, or no disk has room for the store.
        EngineError: The engine failed.
    """
    if (Path(reference) / MANIFEST_NAME).is_file():
        if adapter is not None or tuple(ignore_config_keys):
            raise _only_with_checkpoint(adapter, f"the artifact {reference}")
        artifact = _float_artifact(reference)
        if not is_exact:
            yield stored_artifact(artifact, documents, n_threads, progress)
            return
        with contextlib.closing(open_decoder(artifact, n_threads=n_threads)) as decoder:
            yield LiveReference(decoder, documents)
        return
    with contextlib.closing(
        open_model(
            reference, adapter=adapter, ignore_config_keys=ignore_config_keys, progress=progress
        )
    ) as source:
        if not is_exact:
            yield stored_source(source, documents, progress)
            return
        with contextlib.closing(ReferenceDecoder.from_source(source)) as decoder:
            yield LiveReference(decoder, documents)


def stored_source(
    source: SourceModel,
    documents: Sequence[Sequence[int]],
    progress: Progress = ignore_progress,
) -> StoredReference:
    """Give what is stored of a checkpoint; it runs in plain numpy if that is nothing yet.

    Raises:
        MeasureError: No document has two tokens, or no disk has room for the store.
    """

    def opened() -> contextlib.closing[Decoder]:
        decoder: Decoder = ReferenceDecoder.from_source(source)
        return contextlib.closing(decoder)

    facts: Facts = {
        "edgekit": code_sha256(*FLOAT_CODE),
        "source_sha256": source.checkpoint.sha256(),
        "decoder": source.spec.as_dict(),
        "engine": _engine_facts(ReferenceDecoder.describe()),
    }
    return stored_reference(opened, documents, facts, progress=progress)


def stored_artifact(
    artifact: Artifact,
    documents: Sequence[Sequence[int]],
    n_threads: int | None = None,
    progress: Progress = ignore_progress,
) -> StoredReference:
    """Give what is stored of a float artifact; it runs if that is nothing yet.

    Raises:
        NoFitError: No engine of this machine can run it.
        MeasureError: No document has two tokens, or no disk has room for the store.
    """
    artifact.check_unchanged()
    with contextlib.closing(open_decoder(artifact, n_threads=n_threads)) as decoder:
        facts: Facts = {
            "edgekit": code_sha256(*FLOAT_CODE),
            "files": {entry.path: entry.sha256 for entry in artifact.manifest.files},
            "engine": _engine_facts(decoder.info),
        }
        return stored_reference(
            lambda: contextlib.nullcontext(decoder), documents, facts, progress=progress
        )


@functools.cache
def code_sha256(*packages: str) -> str:
    """Hash the code of some packages of edgekit: what another code made is not used again."""
    digest = hashlib.sha256()
    root = Path(edgekit.__file__).parent
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(f"{path.relative_to(root).as_posix()}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _engine_facts(info: EngineInfo) -> dict[str, Any]:
    return {"engine": info.engine, "version": info.version, "settings": dict(info.settings)}


def _float_artifact(path: str | Path) -> Artifact:
    artifact = Artifact.open(path)
    if artifact.is_quantized:
        raise UsageError(
            f"{path} is not a float model", got=artifact.manifest.scheme, wanted="fp32 or fp16"
        )
    return artifact


def _only_with_checkpoint(adapter: str | Path | None, got: str) -> UsageError:
    return UsageError(
        "--adapter" if adapter is not None else "--ignore-config-key",
        got=got,
        wanted="a --reference that is a model, whose weights and config are read",
        do="Name the model that the artifact was exported from as --reference.",
    )


def measure_session(
    session: Session,
    reference: Reference,
    *,
    step: int = 1,
    progress: Progress = ignore_progress,
) -> Divergence:
    """Compare an open session with the float model, on every ``step``-th document."""
    return measure_divergence(
        session.decoder,
        reference,
        step=step,
        progress=progress,
        what=f"divergence {session.info.model}",
    )
