"""Answer one question: how much memory do the weights of a model take while they are handled?

Weights come one at a time, so the largest one counts. What is counted are the arrays that live
together at the worst moment, read off the code that makes them; tests/quantize compares with what
numpy really allocated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

from edgekit.artifact import TensorEntry
from edgekit.errors import QuantError
from edgekit.families.spec import DecoderSpec
from edgekit.quantize.model import ModelTensor, Source
from edgekit.quantize.recipe import TensorPlan
from edgekit.scheme import Scheme

# A scale is there as float32, and once more as the fp16 that is written or was read.
_SCALE_BYTES: Final = 4 + 2
# 4-bit codes lie unpacked, packed, and once more half packed.
_BYTES_OF_A_VALUE: Final[Mapping[str, float]] = {"int4": 2, "int8": 1, "fp16": 4 + 2, "fp32": 4}


def handled_bytes(
    shape: tuple[int, ...], scheme: Scheme, *, scale_bytes: int = _SCALE_BYTES
) -> int:
    """Give the memory of one weight while it is quantized, read or written.

    Args:
        shape: (N, M), or (N,).
        scheme: How it is stored.
        scale_bytes: What a scale takes at the worst moment.
    """
    n_values = prod(shape)
    n_scales = 0 if scheme.group is None else n_values // scheme.group
    return int(n_values * _BYTES_OF_A_VALUE[scheme.kind]) + n_scales * scale_bytes


def largest_handled_bytes(weights: Iterable[TensorEntry], **more: int) -> int:
    """Give ``handled_bytes`` of the weight that takes most."""
    sizes = (handled_bytes(w.shape, Scheme.parse(w.scheme), **more) for w in weights)
    return max(sizes, default=0)


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """A ``QuantizedModel`` before it is quantized: everything but the values."""

    spec: DecoderSpec
    scheme: Scheme
    source: Source
    entries: tuple[TensorEntry, ...]
    assets: Mapping[str, Path]
    config: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        spec: DecoderSpec,
        scheme: Scheme,
        plans: Iterable[TensorPlan],
        assets: Mapping[str, Path],
        config: Mapping[str, Any],
    ) -> PlannedModel:
        """Describe what the plans will give."""
        entries = tuple(
            TensorEntry(
                name=item.name,
                shape=item.shape,
                scheme=str(item.scheme),
                reason=item.reason,
                sha256="" if item.scheme.is_quantized else None,
                imported=item.imported,
            )
            for item in plans
        )
        return cls(spec, scheme, Source("planned", "", ""), entries, assets, config)

    def get(self, name: str) -> ModelTensor:
        """Refuse: no weight was read yet.

        Raises:
            QuantError: Always.
        """
        raise QuantError(f"{name} is planned and not quantized", do="Quantize the model first.")
