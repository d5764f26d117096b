"""The tensors of a GGUF artifact: which weights each holds, in which type, and in which order.

Nothing is read here: names, shapes and sizes follow from the plan of the weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.artifact import TensorEntry
from edgekit.checkpoint.gguf.weights import stored_rows
from edgekit.dtypes import I64Array
from edgekit.encoding import Encoding
from edgekit.errors import ExportError
from edgekit.exporters.gguf.blocks import type_of
from edgekit.exporters.gguf.graphs import Graph
from edgekit.families.spec import DecoderSpec
from edgekit.formats.gguf_writer import TensorHeader, block_type


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
    def encoding(self) -> Encoding:
        """How it is stored."""
        return Encoding.parse(self.entry.encoding)

    def pieces(self, rows: NDArray[Any], first_row: int) -> Iterator[tuple[NDArray[Any], int]]:
        """Give rows of the weight as pieces of the tensor: rows, and where the first of them lies.

        Rows of whole heads are one piece, others a piece each.

        Args:
            rows: As stored, from row ``first_row`` of the weight on.
            first_row: The row of the weight that the first of them is.
        """
        begin = self.first_row + first_row
        if self.head_width is None:
            yield rows, begin
            return
        places = stored_rows(np.arange(first_row, first_row + len(rows)), self.head_width)
        if first_row % self.head_width == 0 and len(rows) % self.head_width == 0:
            moved = np.empty_like(rows)
            moved[places - first_row] = rows
            yield moved, begin
            return
        for row, place in zip(rows, places.tolist(), strict=True):
            yield row, self.first_row + place

    def places(self) -> I64Array | None:
        """Give for each row of the weight its row of the tensor; None: they are in place."""
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
        entries: Its weights with their encodings.

    Raises:
        ExportError: A weight whose encoding GGUF has no blocks for, or weights of different types
            that llama.cpp keeps in one tensor.
        FormatError: A weight that the architecture does not have.
    """
    parts: dict[str, list[TensorEntry]] = {}
    for entry in entries:
        parts.setdefault(graph.tensor_name(entry.name), []).append(entry)
    weights: dict[str, StoredWeight] = {}
    headers: list[TensorHeader] = []
    for name, held in parts.items():
        held.sort(key=lambda entry: len(graph.names.parts_above(entry.name)))
        kinds = {type_of(Encoding.parse(e.encoding), e.shape) for e in held}
        kind = kinds.pop()
        if kinds:
            raise ExportError(
                f"llama.cpp's {graph.name} holds {_named(held)} in one tensor of one type",
                got=", ".join(entry.encoding for entry in held),
                wanted="one encoding for them",
                do="Export with one encoding for these, or leave GGUF out.",
            )
        if kind is None:
            raise ExportError(
                f"GGUF has no blocks for {held[0].encoding}",
                got=_named(held),
                wanted="int4, uint4, int8 or floats",
                do="Export with another scheme, or leave GGUF out.",
            )
        first_row = 0
        for entry in held:
            weights[entry.name] = _place(graph, spec, entry, name, first_row)
            first_row += entry.shape[0]
        headers.append(TensorHeader(name, (first_row, *held[0].shape[1:]), kind))
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
