"""Answer one question: what is in a model, and which formats can hold it?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgekit.artifact import Format
from edgekit.decision import Accepted, Decision
from edgekit.export import open_exporter
from edgekit.families import open_model
from edgekit.families.inspect import SCHEMES, ModelSummary, summarize


@dataclass(frozen=True, slots=True)
class Inspection:
    """A model before any weight is read.

    Attributes:
        summary: What config and headers say.
        support: Format -> scheme -> whether an export is possible, and why not.
    """

    summary: ModelSummary
    support: Mapping[Format, Mapping[str, Decision]]


def inspect(model: str | Path) -> Inspection:
    """Look at a model and ask every format about it; reads no weights.

    Args:
        model: Folder, a name under ``models/``, or Hub id.

    Raises:
        CheckpointError: No such model, or it is damaged or not supported.
        FormatError: A weight file is damaged.
    """
    source = open_model(model, headers_only=True)
    try:
        summary, spec = summarize(source), source.spec
    finally:
        source.close()
    support = {
        form: {str(scheme): open_exporter(form).supports(spec, scheme) for scheme in SCHEMES}
        for form in Format
    }
    return Inspection(summary, support)


def describe_support(by_scheme: Mapping[str, Decision]) -> list[str]:
    """Put what one format says into lines: schemes with the same answer share one."""
    lines: dict[str, list[str]] = {}
    for scheme, decision in by_scheme.items():
        if isinstance(decision, Accepted):
            text = "; ".join(("yes", *decision.notes))
        else:
            text = f"no: {decision.reason}"
        lines.setdefault(text, []).append(scheme)
    return [f"{', '.join(schemes)}: {text}" for text, schemes in lines.items()]
