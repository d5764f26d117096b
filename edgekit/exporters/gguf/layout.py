"""The tensors of a GGUF artifact: which weights each holds, in which type, and in which order.

Nothing is read here: names, shapes and sizes follow from the plan of the weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.artifact import TensorEntry
from edgekit.checkpoint.gguf.weights import stored_rows
from edgekit.dtypes import I64Array
from edgekit.errors import ExportError
from edgekit.exporters.gguf.blocks import type_of
from edgekit.exporters.gguf.graphs import Graph
from edgekit.families.spec import DecoderSpec
from edgekit.formats.gguf_writer import TensorHeader, block_type
from edgekit.scheme import Scheme


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A weight inside a tensor of the file.

    Attributes:
        entry: The weight, by its canonical name.
        tensor: Name of the tensor.
        first_row: The row of the tensor that its row 0 is, or would be.
        head_width: Its rows are moved inside heads of that width, because llama.cpp rotates
            neighbours and Hugging Face the halves of a head; None: they are in place.
        shift: Added to every value.
    """

    entry: TensorEntry
    tensor: str
    first_row: int
    head_width: int | None
    shift: float

    @property
    def scheme(self) -> Scheme:
        """How it is stored."""
        return Scheme.parse(self.entry.scheme)

    def order(self) -> I64Array | None:
        """Give for each row of the tensor the weight's row that lies there; None: its own."""
        if self.head_width is None:
            return None
        n_rows = self.entry.shape[0]
        order = np.empty(n_rows, np.int64)
        order[stored_rows(np.arange(n_rows), self.head_width)] = np.arange(n_rows)
        return order

    def places(self) -> I64Array | None:
        """Give for each row of the weight its row of the tensor; the inverse of ``order``."""
        if self.head_width is None:
            return None
        return stored_rows(np.arange(self.entry.shape[0]), self.head_width)


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """All tensors of a file and the weights in them.

    Attributes:
        headers: In the order of the file.
        weights: Canonical name to where the weight is.
    """

    headers: tuple[TensorHeader, ...]
    weights: dict[str, StoredWeight]


def plan_tensors(graph: Graph, spec: DecoderSpec, entries: Iterable[TensorEntry]) -> TensorLayout:
    """Plan the tensors of a decoder.

    Args:
        graph: The architecture that names them.
        spec: The decoder.
        entries: Its weights with their schemes.

    Raises:
        ExportError: Weights that llama.cpp keeps in one tensor have different schemes.
        FormatError: A weight that the architecture does not have.
    """
    parts: dict[str, list[TensorEntry]] = {}
    for entry in entries:
        parts.setdefault(graph.tensor_name(entry.name), []).append(entry)
    weights: dict[str, StoredWeight] = {}
    headers: list[TensorHeader] = []
    for name, held in parts.items():
        held.sort(key=lambda entry: len(graph.names.parts_above(entry.name)))
        kinds = {type_of(Scheme.parse(e.scheme), e.shape) for e in held}
        if len(kinds) > 1:
            raise ExportError(
                f"llama.cpp's {graph.name} holds {_named(held)} in one tensor of one type",
                got=", ".join(entry.scheme for entry in held),
                wanted="one scheme for them",
                do="Export with one scheme for these, or leave GGUF out.",
            )
        first_row = 0
        for entry in held:
            weights[entry.name] = _place(graph, spec, entry, name, first_row)
            first_row += entry.shape[0]
        headers.append(TensorHeader(name, (first_row, *held[0].shape[1:]), kinds.pop()))
    tables = [
        TensorHeader(name, table.shape, block_type("F32"))
        for name, table in graph.tables(spec).items()
    ]
    return TensorLayout((*tables, *headers), weights)


def _place(
    graph: Graph, spec: DecoderSpec, entry: TensorEntry, tensor: str, first_row: int
) -> StoredWeight:
    module = tensor.removeprefix("blk.").partition(".")[2].rpartition(".")[0]
    undo = graph.architecture.undo(module or tensor.rpartition(".")[0], spec.head_width, 1.0)
    return StoredWeight(entry, tensor, first_row, undo.head_width, undo.shift)


def _named(entries: Sequence[TensorEntry]) -> str:
    return " and ".join(entry.name for entry in entries)
