"""``evaluate``: quality of an artifact against its float model and on the task suites."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.artifact import MANIFEST_NAME, Artifact
from edgekit.dtypes import F32Array
from edgekit.errors import UsageError
from edgekit.families import open_model
from edgekit.pipeline.run import HOST, load
from edgekit.progress import Progress, ignore_progress
from edgekit.quality.corpus import make_documents
from edgekit.quality.divergence import ReferenceRun, measure_divergence, run_reference
from edgekit.quality.evaluate import NO_TOOLS_NOTE, SuitePlan, run_suites
from edgekit.quality.suites import Item
from edgekit.records import Divergence, QualityRecord
from edgekit.runtime import open_decoder
from edgekit.runtime.base import Decoder
from edgekit.runtime.reference import ReferenceDecoder

if TYPE_CHECKING:
    from edgekit.runtime.session import Session

DOCUMENTS_PER_SUITE = 12
MAX_DOCUMENT_TOKENS = 700


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
            documents = session_documents(session)
            with_reference = run_float_model(
                reference,
                documents,
                n_threads,
                progress,
                adapter=adapter,
                ignore_config_keys=ignore_config_keys,
            )
            divergence = measure_session(session, with_reference, progress)
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


def run_float_model(
    reference: str | Path,
    documents: Sequence[Sequence[int]],
    n_threads: int | None = None,
    progress: Progress = ignore_progress,
    *,
    adapter: str | Path | None = None,
    ignore_config_keys: Iterable[str] = (),
) -> ReferenceRun:
    """Run the float model once over the documents: a float artifact, or a checkpoint in numpy.

    ``adapter`` and ``ignore_config_keys`` are those of ``open_model``, for a checkpoint.

    Raises:
        UsageError: The reference is a quantized artifact, or an adapter or keys are given for an
            artifact.
        CheckpointError: The checkpoint cannot be read.
        EngineError: The engine failed.
    """
    decoder: Decoder
    source = None
    if (Path(reference) / MANIFEST_NAME).is_file():
        if adapter is not None or tuple(ignore_config_keys):
            raise _only_with_checkpoint(adapter, f"the artifact {reference}")
        artifact = Artifact.open(reference)
        if artifact.is_quantized:
            raise UsageError(
                f"{reference} is not a float model",
                got=artifact.manifest.scheme,
                wanted="fp32 or fp16",
            )
        decoder = open_decoder(artifact, n_threads=n_threads)
    else:
        source = open_model(
            reference, adapter=adapter, ignore_config_keys=ignore_config_keys, progress=progress
        )
        decoder = ReferenceDecoder.from_source(source)
    try:
        return run_reference(_counted(decoder, "float model", len(documents), progress), documents)
    finally:
        decoder.close()
        if source is not None:
            source.close()


def _only_with_checkpoint(adapter: str | Path | None, got: str) -> UsageError:
    return UsageError(
        "--adapter" if adapter is not None else "--ignore-config-key",
        got=got,
        wanted="a --reference that is a model, whose weights and config are read",
        do="Name the model that the artifact was exported from as --reference.",
    )


def measure_session(
    session: Session, reference: ReferenceRun, progress: Progress = ignore_progress
) -> Divergence:
    """Compare an open session with the float model."""
    n_documents = len(reference.documents)
    return measure_divergence(
        _counted(session.decoder, f"divergence {session.info.model}", n_documents, progress),
        reference,
    )


def _counted(
    decoder: Decoder, what: str, n_total: int, progress: Progress
) -> Callable[[Sequence[int]], F32Array]:
    n_done = 0

    def logits(token_ids: Sequence[int]) -> F32Array:
        nonlocal n_done
        progress(what, n_done, n_total)
        n_done += 1
        return decoder.forward(token_ids, n_past=0, n_logits=len(token_ids))

    return logits
