"""Inputs and outputs of a decoder's ONNX graph: names, types and shapes.

The contract between the exporter that writes a graph and the engines that feed it. Names are those
of transformers' ONNX exports, which optimum, onnxruntime-genai and transformers.js know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from edgekit.dtypes import DType

GRAPH_NAME: Final = "model.onnx"
INPUT_IDS: Final = "input_ids"
ATTENTION_MASK: Final = "attention_mask"
# Only in graphs that optimum traced; edgekit's own count the mask.
POSITION_IDS: Final = "position_ids"
LOGITS: Final = "logits"
# Only in edgekit's own graphs, as inputs with a default: from which row on logits are computed
# (-1: the last one), and how many positions there are after the whole call, of which a run may be a
# part.
LOGITS_START: Final = "logits_start"
CALL_LENGTH: Final = "call_length"
CACHE_PARTS: Final = ("key", "value")
_PAST: Final = "past_key_values."
_PRESENT: Final = "present."
_BATCH: Final = "batch_size"
_TOTAL: Final = "total_sequence_length"
# onnxruntime's names of the types.
TYPE_NAMES: Final = MappingProxyType(
    {DType.INT64: "tensor(int64)", DType.FP32: "tensor(float)", DType.FP16: "tensor(float16)"}
)


def past_name(layer: int | str, part: str) -> str:
    """Give the input of a layer's keys or values (``part`` of ``CACHE_PARTS``) of earlier calls."""
    return f"{_PAST}{layer}.{part}"


def present_name(layer: int | str, part: str) -> str:
    """Give the output of a layer's keys or values after the call."""
    return f"{_PRESENT}{layer}.{part}"


def is_past(name: str) -> bool:
    """Tell whether an input holds keys or values."""
    return name.startswith(_PAST)


def is_present(name: str) -> bool:
    """Tell whether an output holds keys or values."""
    return name.startswith(_PRESENT)


def past_of(present: str) -> str:
    """Give the input of the next call that gets this output."""
    return _PAST + present.removeprefix(_PRESENT)


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of the graph.

    Attributes:
        name: Its name.
        dtype: Type of its numbers.
        shape: Sizes; a name where the caller chooses the size.
    """

    name: str
    dtype: DType
    shape: tuple[int | str, ...]

    @property
    def signature(self) -> tuple[str, tuple[int, ...]]:
        """The type name in onnxruntime and the fixed sizes, for comparison with a loaded graph."""
        return TYPE_NAMES[self.dtype], tuple(n for n in self.shape if isinstance(n, int))


@dataclass(frozen=True, slots=True)
class GraphPorts:
    """All inputs and outputs of a decoder with L layers, H kv heads of width D, V logits.

    Attributes:
        n_layers: L.
        n_kv_heads: H.
        head_width: D.
        vocab_size: V.
        cache: Type of keys and values.
        logits: Type of the logits.
        is_traced: Whether optimum traced the graph: logits of every token, no inputs with defaults.
        has_positions: Whether it takes ``POSITION_IDS``.
        has_call_length: Whether it takes ``CALL_LENGTH``.
    """

    n_layers: int
    n_kv_heads: int
    head_width: int
    vocab_size: int
    cache: DType = DType.FP32
    logits: DType = DType.FP32
    is_traced: bool = False
    has_positions: bool = False
    has_call_length: bool = False

    @property
    def inputs(self) -> tuple[Port, ...]:
        """Inputs that a caller must give, in the order of the graph."""
        ids = (_BATCH, "sequence_length")
        ports = [
            Port(INPUT_IDS, DType.INT64, ids),
            Port(ATTENTION_MASK, DType.INT64, (_BATCH, _TOTAL)),
        ]
        if self.has_positions:
            ports.append(Port(POSITION_IDS, DType.INT64, ids))
        return (*ports, *self._caches(past_name, "past_sequence_length"))

    @property
    def defaults(self) -> tuple[Port, ...]:
        """Inputs that have a default."""
        if self.is_traced:
            return ()
        names = (LOGITS_START, CALL_LENGTH) if self.has_call_length else (LOGITS_START,)
        return tuple(Port(name, DType.INT64, (1,)) for name in names)

    @property
    def outputs(self) -> tuple[Port, ...]:
        """Outputs of a call.

        edgekit's own graphs declare one row of logits, so that onnxruntime-genai sees that only the
        last is computed; a caller that gives ``LOGITS_START`` may ask for more.
        """
        rows: int | str = "sequence_length" if self.is_traced else 1
        logits = Port(LOGITS, self.logits, (_BATCH, rows, self.vocab_size))
        return (logits, *self._caches(present_name, _TOTAL))

    def _caches(self, name: Callable[[int, str], str], length: str) -> Iterator[Port]:
        for layer in range(self.n_layers):
            for part in CACHE_PARTS:
                shape = (_BATCH, self.n_kv_heads, length, self.head_width)
                yield Port(name(layer, part), self.cache, shape)
