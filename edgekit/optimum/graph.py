"""Facts about a graph that optimum wrote: sizes of the decoder, and its float tensors.

They are read from the graph itself. Names of tensors are the tracer's, except that the input
embedding is found by its use and called ``embed``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgekit.artifact import TensorEntry
from edgekit.errors import ExportError
from edgekit.formats.onnx_io import (
    ATTENTION_MASK,
    INPUT_IDS,
    LOGITS,
    POSITION_IDS,
    is_past,
    is_present,
)
from edgekit.lazy import require

_REASON: Final = "as optimum wrote it"
_KNOWN_INPUTS: Final = (INPUT_IDS, ATTENTION_MASK, POSITION_IDS)
_DO: Final = "This model cannot be run through optimum's graph."


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """What the graph says about its decoder.

    Attributes:
        vocab_size: Width of the logits.
        n_layers: Pairs of key and value inputs.
        n_kv_heads: Heads of keys and values.
        head_width: Width of each.
        is_tied: Whether the input embedding is read again as the output matrix.
        cache_type: ``fp32`` or ``fp16``.
        opset: Version of the operators.
        tensors: Float tensors; ``embed`` is among them.
    """

    vocab_size: int
    n_layers: int
    n_kv_heads: int
    head_width: int
    is_tied: bool
    cache_type: str
    opset: int
    tensors: tuple[TensorEntry, ...]

    @property
    def sizes(self) -> dict[str, Any]:
        """The part that a manifest keeps as ``decoder``."""
        return {
            "vocab_size": self.vocab_size,
            "n_layers": self.n_layers,
            "n_kv_heads": self.n_kv_heads,
            "head_width": self.head_width,
            "is_tied": self.is_tied,
        }


def read_facts(path: Path) -> GraphFacts:
    """Read a graph; tensors in an external data file are not loaded.

    Raises:
        ExportError: The graph has no plain key and value inputs, or no input embedding.
    """
    onnx = require("onnx")
    model = onnx.load_model(path, load_external_data=False)
    graph = model.graph
    types = {onnx.TensorProto.FLOAT: "fp32", onnx.TensorProto.FLOAT16: "fp16"}
    inputs = {item.name: item.type.tensor_type for item in graph.input}
    past = {name: _shape(t) for name, t in inputs.items() if is_past(name)}
    odd = [name for name in inputs if name not in past and name not in _KNOWN_INPUTS]
    shapes = set(past.values())
    shape = next(iter(shapes), ())
    if odd or len(shapes) != 1 or len(shape) != 4 or None in (shape[1], shape[3]):
        raise ExportError(
            "optimum's graph has other inputs than the engine can give",
            got=", ".join(odd) or f"keys and values of shapes {sorted(map(str, shapes))}",
            wanted="token ids, mask, positions, and keys and values (batch, heads, past, width)",
            do=_DO,
        )
    cache_type = inputs[next(iter(past))].elem_type
    given = {o.name: o.type.tensor_type for o in graph.output if is_present(o.name)}
    wide = [name for name, t in given.items() if t.elem_type != cache_type]
    if wide or len(given) != len(past) or cache_type not in types:
        raise ExportError(
            "optimum's graph gives keys and values of another type than it takes",
            got=", ".join(wide[:3]) or f"{len(given)} outputs for {len(past)} inputs",
            wanted="outputs of a run that can be the inputs of the next run",
            do="Try --scheme fp32." if cache_type == onnx.TensorProto.FLOAT16 else _DO,
        )
    logits = next((o.type.tensor_type for o in graph.output if o.name == LOGITS), None)
    vocab_size = _shape(logits)[-1] if logits is not None else None
    if vocab_size is None:
        raise ExportError("optimum's graph has no logits of a fixed width", do=_DO)
    embed = _find_embedding(graph, vocab_size)
    uses = Counter(name for node in graph.node for name in node.input)
    return GraphFacts(
        vocab_size=vocab_size,
        n_layers=len(past) // 2,
        n_kv_heads=int(shape[1] or 0),
        head_width=int(shape[3] or 0),
        is_tied=uses[embed] > 1,
        cache_type=types[cache_type],
        opset=next(int(o.version) for o in model.opset_import if o.domain in ("", "ai.onnx")),
        tensors=tuple(
            TensorEntry(
                "embed" if item.name == embed else item.name,
                tuple(int(n) for n in item.dims),
                types[item.data_type],
                _REASON,
                None,
            )
            for item in graph.initializer
            if item.data_type in types and item.dims
        ),
    )


def _find_embedding(graph: Any, vocab_size: int) -> str:
    """Give the matrix whose rows the token ids select."""
    shapes = {item.name: tuple(item.dims) for item in graph.initializer}
    made_from: Mapping[str, Any] = {out: node for node in graph.node for out in node.output}
    for node in graph.node:
        if node.op_type == "Gather" and len(shapes.get(node.input[0], ())) == 2:
            name = node.input[1]
            # A reshape or a cast may come between the ids and the matrix.
            while name in made_from and made_from[name].op_type in ("Reshape", "Cast"):
                name = made_from[name].input[0]
            if name == INPUT_IDS:
                return str(node.input[0])
    raise ExportError(
        "optimum's graph has no input embedding that can be found",
        wanted=f"a matrix of {vocab_size} rows that the token ids select",
        do=_DO,
    )


def _shape(tensor_type: Any) -> tuple[int | None, ...]:
    """Give the fixed sizes of a shape; None where it is named."""
    return tuple(
        int(d.dim_value) if d.WhichOneof("value") == "dim_value" else None
        for d in tensor_type.shape.dim
    )
