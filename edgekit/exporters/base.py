"""The ``Exporter`` and ``Sink`` protocols: what every export format provides, and its results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgekit.artifact import Artifact, Format, TensorEntry
from edgekit.decision import Decision
from edgekit.encoding import Encoding
from edgekit.exporters.context import ContextRange
from edgekit.families.spec import DecoderSpec
from edgekit.quantize.model import ModelOutline, ModelTensor, QuantizedModel
from edgekit.text.files import TextFiles


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """Choices of one export.

    Attributes:
        context_length: Positions the artifact holds; None takes the format's default (context.py).
        exact_activations: Whether an ONNX artifact spends speed on activations that are as good as
            floats (onnx/activations.py); other formats leave that to what runs them.
    """

    context_length: int | None = None
    exact_activations: bool = False


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
        memory_bytes: Arrays of the artifact, besides weights, that are in memory together.
    """

    disk_bytes: int
    memory_bytes: int


class Sink(Protocol):
    """An artifact that is being written: it takes every tensor of a model once, in any order."""

    def put(self, tensor: ModelTensor, first_row: int = 0) -> None:
        """Write a tensor, or some of its rows; several threads may call this at the same time.

        Args:
            tensor: The tensor, or some of its rows.
            first_row: The row of the whole tensor that its first row is, an even number.

        Raises:
            ExportError: It is not what the model's entries say, or the format cannot hold it.
            OSError: A file cannot be written.
        """
        ...

    def finish(self, entries: tuple[TensorEntry, ...]) -> Written:
        """Write what is left, once every tensor was put.

        Args:
            entries: All tensors with their hashes.

        Raises:
            ExportError: Tensors are missing, or a library refuses the artifact.
            OSError: A file cannot be written.
        """
        ...

    def discard(self) -> None:
        """Close what is open, after an error; the caller removes the folder."""
        ...


class Exporter(Protocol):
    """One file format.

    A model goes through ``open`` and then through the sink. The caller does the staging, the
    manifest and the atomic rename (exporters/staging.py).
    """

    format: Format

    def supports(self, spec: DecoderSpec, encodings: Mapping[str, Encoding]) -> Decision:
        """Tell whether this format can hold the model, before any work.

        Args:
            spec: The decoder.
            encodings: How each canonical tensor is to be stored.
        """
        ...

    def supports_text(self, files: TextFiles, spec: DecoderSpec) -> Decision:
        """Tell whether this format can hold the tokenizer of a model, before any work.

        Args:
            files: The text files as an artifact holds them.
            spec: The decoder, with all its end tokens.
        """
        ...

    def positions(self, spec: DecoderSpec) -> ContextRange:
        """Tell how many positions an artifact of a supported model can hold, before any work."""
        ...

    def predict(self, model: ModelOutline, options: ExportOptions) -> SizeEstimate:
        """Give the size of an artifact before any work; reads no tensor.

        Tolerance: disk within 1 % beyond 20 MB of weights; the graph is estimated per layer.
        """
        ...

    def open(self, model: QuantizedModel, folder: Path, options: ExportOptions) -> Sink:
        """Begin an artifact in an empty folder.

        Args:
            model: The model. Only tensors that stay floats beside codes are read from it here.
            folder: Where all files of the artifact except the manifest go.
            options: Choices of this export.

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
