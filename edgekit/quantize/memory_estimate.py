"""Memory estimate: what a model's weights take in memory while they are encoded and written.

Tensors are encoded some rows at a time, and rows are gone once they are written; the scales of a
tensor stay until all of it is hashed. Codes that a source brought are read whole.
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

_SCALE_BYTES: Final = 4  # float32


def held_bytes(entry: TensorEntry) -> int:
    """Give the memory that a tensor takes besides the rows that are being encoded."""
    encoding = Encoding.parse(entry.encoding)
    if encoding.block is None:
        return 0
    n_values = prod(entry.shape)
    block_bytes = _SCALE_BYTES + (1 if encoding.has_zero_points else 0)
    codes = n_values * encoding.bits // 8 if entry.keeps_codes else 0
    return codes + n_values // encoding.block * block_bytes


def largest_held_bytes(entries: Iterable[TensorEntry]) -> int:
    """Give ``held_bytes`` of the tensor that takes most; tensors come one after another."""
    return max(map(held_bytes, entries), default=0)


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """A model before it is quantized: its tensors can be listed; satisfies ``ModelOutline``."""

    spec: DecoderSpec
    scheme: Scheme
    entries: tuple[TensorEntry, ...]
    config: Mapping[str, Any]
