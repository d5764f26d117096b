"""The GGUF exporter: a quantized model as the one file that llama.cpp and Ollama open.

The codes and scales are those of the other formats (blocks.py). Which architecture the file names,
and which keys say what it computes, is in graphs.py; the tokenizer is in tokenizer.py, and
Ollama's Modelfile in modelfile.py.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgekit.artifact import Artifact, Format, TensorEntry
from edgekit.decision import Accepted, Decision, Rejected
from edgekit.encoding import Encoding
from edgekit.errors import ExportError, FormatError
from edgekit.exporters.base import ExportOptions, Sink, SizeEstimate, Written
from edgekit.exporters.context import ContextRange
from edgekit.exporters.gguf.blocks import encode
from edgekit.exporters.gguf.graphs import ChosenGraph, choose_graph, why_shorter
from edgekit.exporters.gguf.layout import TensorLayout, plan_tensors
from edgekit.exporters.gguf.modelfile import MODELFILE_NAME, make_modelfile
from edgekit.exporters.gguf.recover import recover_tensors
from edgekit.exporters.gguf.tokenizer import TextKeys, text_metadata
from edgekit.families.spec import DecoderSpec
from edgekit.formats.gguf_writer import GgufWriter, Value, plan_file
from edgekit.quantize.model import FloatTensor, ModelOutline, ModelTensor, QuantizedModel
from edgekit.text.files import TextFiles

FILE_NAME: Final = "model.gguf"
# llama.cpp's numbers of "mostly this type" (include/llama.h, llama_ftype).
_FILE_TYPES: Final[Mapping[str, int]] = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q8_0": 7,
    "BF16": 32,
}
_QUANTIZATION_VERSION: Final = 2
# A token with its type, and a merge; measured on vocabularies of 49 to 152 thousand tokens.
_TOKEN_BYTES: Final = 36


class GgufExporter:
    """Writes ``model.gguf``, the files of the tokenizer, and a ``Modelfile`` for Ollama."""

    format = Format.GGUF

    def supports(self, spec: DecoderSpec, encodings: Mapping[str, Encoding]) -> Decision:
        """Tell whether an architecture of llama.cpp computes this decoder, and GGUF has its blocks.

        Args:
            spec: The decoder.
            encodings: Blocks of 64 and 128 values are several blocks with the same scale.
        """
        chosen = choose_graph(spec)
        if isinstance(chosen, Rejected):
            return chosen
        shapes = spec.weight_shapes()
        entries = [TensorEntry(n, shapes[n], str(e), "", None) for n, e in encodings.items()]
        try:
            plan_tensors(chosen.graph, spec, entries)
        except ExportError as error:
            return Rejected(f"{error.what}: {error.got}")
        return Accepted(chosen.notes)

    def supports_text(self, files: TextFiles, spec: DecoderSpec) -> Decision:
        """Tell whether llama.cpp reads text as the same tokens."""
        try:
            return Accepted(text_metadata(files, spec).notes)
        except ExportError as error:
            return Rejected(f"{error.what}: {error.got}")

    def positions(self, spec: DecoderSpec) -> ContextRange:
        """Tell how many positions an artifact can hold; llama.cpp's cache is as long as asked."""
        chosen = _chosen_graph(spec)
        reason = ""
        if chosen.n_positions < spec.context_length:
            reason = f"llama.cpp is wrong beyond: {why_shorter(spec, chosen.graph)}"
        return ContextRange(chosen.n_positions, chosen.n_positions, reason)

    def predict(self, model: ModelOutline, options: ExportOptions) -> SizeEstimate:
        """Estimate the size of an artifact; reads no tensor.

        Exact but for the vocabulary, whose texts an outline does not have.

        Raises:
            ExportError: llama.cpp does not compute the decoder, or keeps in one tensor what has
                different schemes.
        """
        del options
        graph = _chosen_graph(model.spec).graph
        planned = plan_tensors(graph, model.spec, model.entries)
        keys = graph.metadata(model.spec, model.spec.context_length)
        n_vocabulary = _TOKEN_BYTES * model.spec.vocab_size
        return SizeEstimate(
            plan_file(keys, planned.headers).n_bytes + n_vocabulary,
            n_vocabulary,
        )

    def open(self, model: QuantizedModel, folder: Path, options: ExportOptions) -> Sink:
        """Begin an artifact.

        Raises:
            ExportError: llama.cpp does not compute the decoder, keeps in one tensor what has
                different types, or would read text as other tokens.
            UsageError: More positions than the artifact can hold.
            OSError: A file cannot be written.
        """
        n_positions = self.positions(model.spec).choose(options.context_length, self.format.value)
        missing = sorted(set(model.spec.weight_shapes()) - {entry.name for entry in model.entries})
        if missing:
            raise ExportError("the model lacks tensors", got=", ".join(missing))
        return _GgufSink(model, folder, n_positions)

    def recover(self, artifact: Artifact) -> Iterator[ModelTensor]:
        """Re-read every tensor with the ``gguf`` package, in the order of the manifest.

        Exact: integer tensors come back with the codes and scales that were written.

        Raises:
            FormatError: The file is not what this exporter writes.
        """
        return recover_tensors(artifact, artifact.path / FILE_NAME)


def file_metadata(
    name: str,
    spec: DecoderSpec,
    entries: tuple[TensorEntry, ...],
    text: TextKeys,
    n_positions: int,
) -> dict[str, Value]:
    """Give all metadata of a file, in its order.

    Args:
        name: Display name of the model.
        spec: The decoder.
        entries: Its weights with their encodings.
        text: What the file says about text.
        n_positions: Positions of the artifact.

    Raises:
        ExportError: llama.cpp does not compute the decoder.
    """
    graph = _chosen_graph(spec).graph
    planned = plan_tensors(graph, spec, entries)
    keys: dict[str, Value] = {
        "general.architecture": graph.name,
        "general.type": "model",
        "general.name": name,
        "general.file_type": _file_type(planned, entries),
        "general.quantization_version": _QUANTIZATION_VERSION,
        **graph.metadata(spec, n_positions),
        **text.metadata,
    }
    # Rounded as the file holds them.
    return {k: float(np.float32(v)) if isinstance(v, float) else v for k, v in keys.items()}


def file_settings(spec: DecoderSpec, entries: tuple[TensorEntry, ...]) -> dict[str, Any]:
    """Give what the manifest says about a file: its architecture, and how many tensors of a type.

    Raises:
        ExportError: llama.cpp does not compute the decoder.
    """
    graph = _chosen_graph(spec).graph
    kinds = Counter(header.kind.name for header in plan_tensors(graph, spec, entries).headers)
    return {"architecture": graph.name, "types": dict(sorted(kinds.items()))}


class _GgufSink:
    """A GGUF artifact that is being written; satisfies ``Sink``."""

    def __init__(self, model: QuantizedModel, folder: Path, n_positions: int) -> None:
        spec, files = model.spec, _text_files(model)
        graph = _chosen_graph(spec).graph
        text = text_metadata(files, spec)
        metadata = file_metadata(model.source.name, spec, model.entries, text, n_positions)
        self._planned = plan_tensors(graph, spec, model.entries)
        self._written = Written(
            context_length=n_positions,
            tool_versions={"numpy": np.__version__},
            settings=file_settings(spec, model.entries),
            notes=text.notes,
        )
        for name, source in model.assets.items():
            shutil.copyfile(source, folder / name)
        modelfile = make_modelfile(files, spec, FILE_NAME, n_positions)
        (folder / MODELFILE_NAME).write_text(modelfile, encoding="utf-8")
        self._writer = GgufWriter(folder / FILE_NAME, plan_file(metadata, self._planned.headers))
        try:
            for name, table in graph.tables(spec).items():
                self._writer.put(name, table)
        except BaseException:
            self._writer.discard()
            raise

    def put(self, tensor: ModelTensor, first_row: int = 0) -> None:
        """Write rows of a tensor; rows of q and k go where llama.cpp rotates neighbours."""
        weight = self._planned.weights.get(tensor.name)
        if weight is None:
            raise _not_as_planned(tensor)
        if weight.shift and isinstance(tensor, FloatTensor):
            values = tensor.values + np.float32(weight.shift)
            tensor = FloatTensor(tensor.name, tensor.encoding, values)
        is_planned = tensor.shape[1:] == weight.entry.shape[1:]
        if not is_planned or tensor.encoding != weight.encoding:
            raise _not_as_planned(tensor)
        rows = encode(tensor)
        try:
            for part, place in weight.pieces(rows, first_row):
                self._writer.put(weight.tensor, part, place)
        except FormatError as error:
            raise _not_as_planned(tensor) from error

    def finish(self, entries: tuple[TensorEntry, ...]) -> Written:
        """Close the file."""
        del entries
        try:
            self._writer.close()
        except FormatError as error:
            raise ExportError(
                "the model is not what its entries say",
                got=f"tensors {error.got} not put whole, once",
                do="Quantize the checkpoint again.",
            ) from error
        return self._written

    def discard(self) -> None:
        """Close what is open; the caller removes the folder."""
        self._writer.discard()


def _not_as_planned(tensor: ModelTensor) -> ExportError:
    return ExportError(
        f"{tensor.name} is stored as {tensor.encoding} {list(tensor.shape)}",
        wanted="what the model's entries say",
        do="Quantize the checkpoint again.",
    )


def _chosen_graph(spec: DecoderSpec) -> ChosenGraph:
    chosen = choose_graph(spec)
    if isinstance(chosen, Rejected):
        raise ExportError("GGUF cannot hold this model", got=chosen.reason)
    return chosen


def _text_files(model: QuantizedModel) -> TextFiles:
    contents = {name: path.read_bytes() for name, path in model.assets.items()}
    where = next(iter(model.assets.values()), Path(model.source.name)).parent
    return TextFiles.of_contents(where, contents)


def _file_type(planned: TensorLayout, entries: tuple[TensorEntry, ...]) -> int:
    """Give the number of the type that most values have."""
    sizes: Counter[str] = Counter()
    kinds = {header.name: header.kind.name for header in planned.headers}
    for entry in entries:
        sizes[kinds[planned.weights[entry.name].tensor]] += prod(entry.shape)
    return _FILE_TYPES[sizes.most_common(1)[0][0]]
