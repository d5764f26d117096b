"""``quality-cost``: what each way of quantizing a model costs, in bytes and in quality.

The model is exported once for each setting, and every artifact is compared with the float model on
the same text. The float model runs once (quality/reference_store.py). What is measured of a setting
is kept in the output folder, so that a run that was interrupted goes on where it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any, Final

from edgekit.artifact import Artifact, Format, Manifest
from edgekit.encoding import Encoding
from edgekit.errors import EdgekitError, ExportError, UsageError
from edgekit.families import open_model
from edgekit.pipeline.evaluate import FLOAT_CODE, code_sha256, measure_session, stored_source
from edgekit.pipeline.export import check_export, export
from edgekit.pipeline.run import load
from edgekit.progress import Progress, format_left, ignore_progress
from edgekit.quality.cost import pareto_front
from edgekit.quality.evaluate import SuitePlan, run_suites
from edgekit.quality.reference_store import StoredReference, describe_errors, hash_documents
from edgekit.quality.suites import load_suite
from edgekit.quality.texts import (
    builtin_documents,
    read_documents,
    suite_documents,
    take_tokens,
)
from edgekit.quantize.methods import Method
from edgekit.records import CostPoint, CostRecord, from_data, to_data
from edgekit.scheme import Scheme
from edgekit.strict_json import read_object
from edgekit.text.view import TextView

BUILTIN_TEXT: Final = "builtin"
SUITES_TEXT: Final = "suites"
DEFAULT_TOKENS: Final = 8192
MAX_DOCUMENT_TOKENS: Final = 1024
_NO_FOLD: Final = "no-fold"
_KEPT: Final = "settings"
_ARTIFACTS: Final = "artifacts"
_EDGE_TENSORS: Final = frozenset({"embed", "lm_head"})


@dataclass(frozen=True, slots=True)
class Setting:
    """One way of quantizing a model: what ``export`` is asked for.

    ``parse`` and ``str`` are inverses: a scheme, then what is not as the scheme says, such as
    ``int4-g128:rtn:no-fold``. Without a method it is the scheme's own.
    """

    scheme: Scheme
    method: Method | None = None
    fold: bool = True

    @classmethod
    def parse(cls, text: str) -> Setting:
        """Read a scheme, followed by ``:`` and a method, or by ``:no-fold``.

        Raises:
            UsageError: It names no scheme, or something unknown follows it.
        """
        name, *parts = (part.strip() for part in text.split(":"))
        scheme = Scheme.parse(name)
        method: Method | None = None
        fold = True
        for part in parts:
            if part == _NO_FOLD:
                fold = False
            elif part in {item.value for item in Method}:
                method = Method(part)
            else:
                known = ", ".join([item.value for item in Method] + [_NO_FOLD])
                raise UsageError(f"setting {text!r}", got=repr(part), wanted=known)
        return cls(scheme, method, fold)

    def __str__(self) -> str:
        parts = [str(self.scheme)]
        if self.method is not None:
            parts.append(self.method.value)
        if not self.fold:
            parts.append(_NO_FOLD)
        return ":".join(parts)


@dataclass(frozen=True, slots=True)
class CostPlan:
    """What is measured.

    Attributes:
        settings: Ways of quantizing the model.
        artifacts: Artifacts of the same model that are measured beside them, as they are.
        text: ``builtin``; ``suites``, the questions of the task suites with their answers; or a
            file (quality/texts.py).
        n_tokens: Most tokens of the text.
        suites: Task suites to ask; None: none.
        keeps_artifacts: Whether the artifacts stay in the output folder.
    """

    settings: tuple[Setting, ...]
    artifacts: tuple[Artifact, ...] = ()
    text: str | Path = BUILTIN_TEXT
    n_tokens: int = DEFAULT_TOKENS
    suites: SuitePlan | None = None
    keeps_artifacts: bool = False


def parse_settings(text: str) -> tuple[Setting, ...]:
    """Read settings separated by commas; one that is named twice counts once.

    Raises:
        UsageError: One cannot be read, or there is none.
    """
    found = dict.fromkeys(Setting.parse(part) for part in text.split(",") if part.strip())
    if not found:
        raise UsageError("no scheme given", wanted="such as int4,int8")
    return tuple(found)


def quality_cost(
    model: str | Path,
    plan: CostPlan,
    out: str | Path,
    *,
    adapter: str | Path | None = None,
    ignore_config_keys: Iterable[str] = (),
    n_threads: int | None = None,
    progress: Progress = ignore_progress,
    tell: Callable[[str], None] = lambda text: None,
) -> CostRecord:
    """Measure what each setting costs.

    Args:
        model: As for ``export``.
        plan: What is measured.
        out: Folder in which finished settings are kept.
        adapter: As for ``export``.
        ignore_config_keys: As for ``export``.
        n_threads: Threads of the engine; default the machine's.
        progress: Called as ``progress(what, n_done, n_total)``; ``what`` has the time left.
        tell: Gets a line of text when a step is done.

    Raises:
        UsageError: The text cannot be read, or the model has no tokenizer for it.
        MeasureError: An artifact has another vocabulary than the model.
        EdgekitError: See ``export`` and ``load``.
    """
    folder = Path(out)
    keys = tuple(ignore_config_keys)
    for suite in (plan.suites and plan.suites.suites) or ():
        load_suite(suite)
    schemes = list(dict.fromkeys(setting.scheme for setting in plan.settings))
    check_export(model, Format.ONNX, schemes, folder, ignore_config_keys=keys, adapter=adapter)
    _make_folder(folder / _KEPT)
    shown = _ShownProgress(progress, len(plan.settings) + len(plan.artifacts))
    with contextlib.closing(
        open_model(model, adapter=adapter, ignore_config_keys=keys, progress=progress)
    ) as source:
        texts = _documents(source.text, plan.text)
        held = [artifact.manifest.context_length for artifact in plan.artifacts]
        longest = min(MAX_DOCUMENT_TOKENS, source.spec.context_length, *held)
        documents, has_more = take_tokens(texts, plan.n_tokens, longest)
        reference = stored_source(source, documents, shown)
        source_sha256 = source.checkpoint.sha256()
        float_bytes = source.checkpoint.weights_bytes
        name = source.checkpoint.name
    n_tokens = sum(len(ids) - 1 for ids in reference.documents)
    tell(
        f"{n_tokens:,} tokens of text ({plan.text})"
        f"{', of which there is more (--tokens)' if has_more else ''}"
    )
    tell(describe_errors(reference))

    def make(setting: Setting) -> Artifact:
        (artifact,) = export(
            model,
            Format.ONNX,
            setting.scheme,
            _artifact_folder(folder, setting),
            method=setting.method,
            fold=setting.fold,
            ignore_config_keys=keys,
            adapter=adapter,
            progress=shown,
            warn=tell,
        )
        return artifact

    text_sha256 = hash_documents(reference.documents)
    facts = {
        "edgekit": code_sha256(*FLOAT_CODE, "exporters", "quality", "quantize"),
        "onnxruntime": version("onnxruntime"),
        "source_sha256": source_sha256,
        "documents": text_sha256,
        "suites": None if plan.suites is None else asdict(plan.suites),
    }
    points = []
    for setting in plan.settings:
        kept = _Kept(folder / _KEPT, str(setting), {**facts, "setting": repr(setting)})
        point = kept.read()
        is_missing = plan.keeps_artifacts and not _artifact_folder(folder, setting).is_dir()
        if point is None or is_missing:
            try:
                artifact = make(setting)
                point = _measure(str(setting), artifact, reference, plan.suites, n_threads, shown)
            finally:
                if not plan.keeps_artifacts:
                    shutil.rmtree(_artifact_folder(folder, setting), ignore_errors=True)
                    with contextlib.suppress(OSError):
                        (folder / _ARTIFACTS).rmdir()
            kept.write(point)
        points.append(point)
        shown.finish_one()
        tell(_told(point))
    for artifact in plan.artifacts:
        is_taken = any(point.name == artifact.path.name for point in points)
        shown_name = str(artifact.path) if is_taken else artifact.path.name
        points.append(_measure(shown_name, artifact, reference, plan.suites, n_threads, shown))
        shown.finish_one()
        tell(_told(points[-1]))
    return CostRecord(
        model=name,
        source_sha256=source_sha256,
        text=str(plan.text),
        n_documents=len(reference.documents),
        n_tokens=n_tokens,
        text_sha256=text_sha256,
        float_bytes=float_bytes,
        float_perplexity=points[0].divergence.reference_perplexity,
        reference=describe_errors(reference),
        points=tuple(points),
        front=tuple(point.name for point in pareto_front(points)),
        notes=tuple(
            f"{artifact.path.name} was exported from another source than {model}"
            for artifact in plan.artifacts
            if artifact.manifest.source_sha256 != source_sha256
        ),
    )


def _documents(view: TextView, text: str | Path) -> Iterator[list[int]]:
    if text == BUILTIN_TEXT:
        return builtin_documents(view)
    return suite_documents(view) if text == SUITES_TEXT else read_documents(view, Path(text))


def _measure(
    name: str,
    artifact: Artifact,
    reference: StoredReference,
    suites: SuitePlan | None,
    n_threads: int | None,
    progress: Progress,
) -> CostPoint:
    with load(artifact, n_threads=n_threads) as session:
        divergence = measure_session(session, reference, progress=progress)
        asked = (
            {}
            if suites is None
            else suites.make_items(session.count_tokens, offers_tools=session.offers_tools)
        )
        return CostPoint(
            name=name,
            artifact=artifact.name,
            engine=session.info,
            n_bytes=artifact.n_bytes,
            weight_bits=mean_bits(artifact.manifest),
            linear_bits=mean_bits(artifact.manifest, leaves_out=_EDGE_TENSORS),
            divergence=divergence,
            suites=run_suites(session, asked, progress),
        )


def mean_bits(manifest: Manifest, leaves_out: frozenset[str] = frozenset()) -> float:
    """Give the bits of a weight, scales included: the mean over the matrices of an artifact.

    Args:
        manifest: Its manifest.
        leaves_out: Names of matrices that do not count.
    """
    counted = [t for t in manifest.tensors if len(t.shape) == 2 and t.name not in leaves_out]
    n_bytes = sum(Encoding.parse(t.encoding).bytes_of(t.shape[0], t.shape[1]) for t in counted)
    return 8 * n_bytes / max(1, sum(prod(t.shape) for t in counted))


def _told(point: CostPoint) -> str:
    d = point.divergence
    return f"{point.name}: {point.linear_bits:.2f} bits, KL {d.kl_mean:.5f}"


def _artifact_folder(folder: Path, setting: Setting) -> Path:
    """Give a folder of its own: the artifacts of two settings of one scheme have the same name."""
    return folder / _ARTIFACTS / _file_name(str(setting))


def _file_name(setting: str) -> str:
    return re.sub(r"[^\w.-]", "_", setting)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(
            f"cannot write to {folder.parent}",
            got=error.strerror or str(error),
            do="Choose another --out.",
        ) from error


class _Kept:
    """The finished measurement of a setting, in a file; of use only with the same facts."""

    def __init__(self, folder: Path, setting: str, facts: dict[str, Any]) -> None:
        text = json.dumps(facts, sort_keys=True)
        self._key = hashlib.sha256(text.encode()).hexdigest()
        self._path = folder / f"{_file_name(setting)}.json"

    def read(self) -> CostPoint | None:
        """Give the measurement; None if there is none, or it is of something else."""
        if not self._path.is_file():
            return None
        with contextlib.suppress(EdgekitError, OSError, KeyError, TypeError):
            data = read_object(self._path)
            if data["key"] == self._key:
                point: CostPoint = from_data(CostPoint, data["point"])
                return point
        return None

    def write(self, point: CostPoint) -> None:
        """Keep a measurement; the file is replaced whole."""
        text = json.dumps({"key": self._key, "point": to_data(point)}, indent=1) + "\n"
        descriptor, name = tempfile.mkstemp(prefix=".edgekit-", dir=self._path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(text)
            Path(name).replace(self._path)
        finally:
            Path(name).unlink(missing_ok=True)


class _ShownProgress:
    """Puts the number of the setting, and the time left in all, before what a progress says.

    The time left is known once a setting is done: the others are taken to last as long.
    """

    def __init__(self, progress: Progress, n_settings: int) -> None:
        self._progress = progress
        self._n_settings = n_settings
        self._n_finished = 0
        self._began_s: float | None = None
        self._setting_began_s = 0.0

    def finish_one(self) -> None:
        """Count a setting as done."""
        self._n_finished += 1
        self._setting_began_s = time.monotonic()

    def __call__(self, what: str, n_done: int, n_total: int) -> None:
        now_s = time.monotonic()
        if what != "float model" and self._began_s is None:
            self._began_s = now_s
        left = ""
        if self._n_finished and self._began_s is not None:
            mean_s = (self._setting_began_s - self._began_s) / self._n_finished
            ends_s = self._setting_began_s + mean_s * (self._n_settings - self._n_finished)
            left = format_left(ends_s - now_s)
        number = f"{min(self._n_finished + 1, self._n_settings)}/{self._n_settings}"
        self._progress(f"{number}{left and f', {left} in all'}: {what}", n_done, n_total)
