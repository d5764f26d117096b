"""The ``Exporter`` protocol: what every export format provides, and its options and results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgekit.artifact import Artifact, Format
from edgekit.decision import Decision
from edgekit.encoding import Encoding
from edgekit.exporters.context import ContextRange
from edgekit.families.spec import DecoderSpec
from edgekit.progress import Progress
from edgekit.quantize.model import ModelOutline, ModelTensor, QuantizedModel


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """Choices of one export.

    Attributes:
        context_length: Positions the artifact holds; None takes the format's default (context.py).
    """

    context_length: int | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """What an exporter adds to the manifest.

    Attributes:
        context_length: Positions this artifact can hold.
        tool_versions: Packages that took part, name to version.
        settings: Facts about the format (opset, accuracy_level, activation type, ...).
        notes: Notes from writing the weights, one sentence each.
    """

    context_length: int
    tool_versions: Mapping[str, str]
    settings: Mapping[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SizeEstimate:
    """The size of an export, known before any weight is read.

    Attributes:
        disk_bytes: All files of the artifact except its manifest and the copied assets.
        memory_bytes: Arrays that are in memory together at the worst moment.
    """

    disk_bytes: int
    memory_bytes: int


class Exporter(Protocol):
    """One file format.

    ``write`` fills an empty folder that becomes the artifact once it returns. The caller does the
    staging, the manifest and the atomic rename (exporters/staging.py).
    """

    format: Format

    def supports(self, spec: DecoderSpec, encodings: Mapping[str, Encoding]) -> Decision:
        """Tell whether this format can hold the model, before any work.

        Args:
            spec: The decoder.
            encodings: How each canonical tensor is to be stored.
        """
        ...

    def positions(self, spec: DecoderSpec) -> ContextRange:
        """Tell how many positions an artifact of a supported model can hold, before any work."""
        ...

    def predict(self, model: ModelOutline, options: ExportOptions) -> SizeEstimate:
        """Estimate the size of what ``write`` writes; reads no tensor.

        Tolerance: disk within 1 % beyond 20 MB of weights; the graph is estimated per layer.
        """
        ...

    def write(
        self, model: QuantizedModel, folder: Path, options: ExportOptions, progress: Progress
    ) -> Written:
        """Write all files of the artifact except the manifest.

        Raises:
            ExportError: The format cannot hold the model.
            UsageError: ``options`` ask for positions that ``positions`` does not offer.
            OSError: A file cannot be written; staging.py turns it into an ``ExportError``.
        """
        ...

    def recover(self, artifact: Artifact) -> Iterator[ModelTensor]:
        """Re-read every tensor from the files on disk with the format's own library.

        Exact: integer tensors come back with the codes and scales that were written.

        Raises:
            FormatError: The files are not what this exporter writes.
        """
        ...
