"""Memory estimate: how much the weights of a model take while they are quantized or written.

Weights come one at a time, so the largest one counts. What is counted are the arrays that live
together at the worst moment, read off the code that makes them; tests/quantize compares with what
numpy really allocated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Final

from edgekit.artifact import TensorEntry
from edgekit.encoding import Encoding
from edgekit.families.spec import DecoderSpec
from edgekit.scheme import Scheme

# A scale is in memory as float32, and also as the fp16 that is written or was read.
_SCALE_BYTES: Final = 4 + 2
_BYTES_OF_A_FLOAT: Final[Mapping[str, float]] = {"fp16": 4 + 2, "fp32": 4}


def handled_bytes(
    shape: tuple[int, ...], encoding: Encoding, *, scale_bytes: int = _SCALE_BYTES
) -> int:
    """Give the memory of one weight while it is quantized, read or written.

    Args:
        shape: (N, M), or (N,).
        encoding: How it is stored.
        scale_bytes: What a scale takes at the worst moment.
    """
    n_values = prod(shape)
    if encoding.block is None:
        return int(n_values * _BYTES_OF_A_FLOAT[encoding.kind])
    block_bytes = scale_bytes + (1 if encoding.has_zero_points else 0)
    return n_values * encoding.bits // 8 + n_values // encoding.block * block_bytes


def largest_handled_bytes(weights: Iterable[TensorEntry], **more: int) -> int:
    """Give ``handled_bytes`` of the weight that takes most."""
    sizes = (handled_bytes(w.shape, Encoding.parse(w.encoding), **more) for w in weights)
    return max(sizes, default=0)


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """A model before it is quantized: its tensors can be listed; satisfies ``ModelOutline``."""

    spec: DecoderSpec
    scheme: Scheme
    entries: tuple[TensorEntry, ...]
    config: Mapping[str, Any]
