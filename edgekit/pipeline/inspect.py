"""``inspect``: what is in a model, which formats can hold it, and what an export would take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgekit.artifact import Format
from edgekit.decision import Accepted, Decision, Rejected
from edgekit.encoding import Encoding
from edgekit.errors import QuantError
from edgekit.exporters import open_exporter
from edgekit.exporters.context import ContextRange
from edgekit.families import open_model
from edgekit.families.base import SourceModel
from edgekit.families.inspect import SCHEMES, ModelSummary, summarize
from edgekit.pipeline.preflight import ExportPrediction, accepting_formats, predict_export
from edgekit.pipeline.rates import Rates
from edgekit.quantize.prequantized import expected_plan
from edgekit.scheme import Scheme


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is known about a model before any weight is read.

    Attributes:
        summary: What config and headers say.
        support: Format -> scheme -> whether an export is possible, and why not.
        positions: Format -> how many positions its artifacts can hold; formats that cannot hold
            the model in any scheme are left out.
        predictions: What an export into all accepting formats will take, for each scheme that can
            hold the model.
    """

    summary: ModelSummary
    support: Mapping[Format, Mapping[str, Decision]]
    positions: Mapping[Format, ContextRange]
    predictions: tuple[ExportPrediction, ...]


def inspect(
    model: str | Path,
    find_rates: Callable[[], Rates | None] = lambda: None,
    *,
    ignore_config_keys: Iterable[str] = (),
    adapter: str | Path | None = None,
) -> Inspection:
    """Read a model's config and headers and ask every format about it; reads no weights.

    Args:
        model: Folder, a name under ``models/``, or Hub id.
        find_rates: Gives the rates of this machine for the predicted times, or None; called only
            for a model that some format can hold, because it may take half a minute.
        ignore_config_keys: Keys of config.json that pass although edgekit does not know them.
        adapter: Folder of a LoRA adapter that would be merged into the weights.

    Raises:
        CheckpointError: No such model, or it is damaged or not supported.
        FormatError: A weight file is damaged.
        UsageError: A key to ignore is not there, or edgekit computes with it.
    """
    source = open_model(
        model, headers_only=True, ignore_config_keys=ignore_config_keys, adapter=adapter
    )
    try:
        summary, spec = summarize(source), source.spec
        plans = {str(scheme): _encodings(source, scheme) for scheme in SCHEMES}
        support = {
            form: {
                name: plan
                if isinstance(plan, Rejected)
                else open_exporter(form).supports(spec, plan)
                for name, plan in plans.items()
            }
            for form in Format
        }
        positions = {
            form: open_exporter(form).positions(spec)
            for form, decisions in support.items()
            if any(isinstance(decision, Accepted) for decision in decisions.values())
        }
        predictions = tuple(_predictions(source, find_rates())) if positions else ()
    finally:
        source.close()
    return Inspection(summary, support, positions, predictions)


def _encodings(source: SourceModel, scheme: Scheme) -> Mapping[str, Encoding] | Rejected:
    """Give the encoding of each tensor, or why the scheme cannot hold the model in any format."""
    try:
        return {item.name: item.encoding for item in expected_plan(source, scheme)}
    except QuantError as error:
        return Rejected(f"{error.what} ({error.got})")


def _predictions(source: SourceModel, rates: Rates | None) -> Iterator[ExportPrediction]:
    for scheme in SCHEMES:
        formats = accepting_formats(source, scheme)
        if formats:
            yield predict_export(source, scheme, formats, rates=rates)


def describe_support(by_scheme: Mapping[str, Decision]) -> list[str]:
    """Describe in lines what one format says: schemes with the same answer share a line."""
    lines: dict[str, list[str]] = {}
    for scheme, decision in by_scheme.items():
        if isinstance(decision, Accepted):
            text = "; ".join(("yes", *decision.notes))
        else:
            text = f"no: {decision.reason}"
        lines.setdefault(text, []).append(scheme)
    return [f"{', '.join(schemes)}: {text}" for text, schemes in lines.items()]
