"""Answer one question: which rope scaling does the table ``rope_freqs`` of a GGUF file stand for?

llama.cpp stores what the ``llama3`` scaling divides each frequency by instead of its four numbers.
The published models differ in ``factor`` only, which is the largest of the table; a table that does
not follow from it and the usual other three is refused.

Source: https://github.com/ggml-org/llama.cpp, convert_hf_to_gguf.py (``rope_freqs``); the Llama 3
paper's reference code for the formula.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from edgekit.dtypes import F64Array
from edgekit.errors import CheckpointError
from edgekit.tensors import LazyTensor

_LOW: Final = 1.0
_HIGH: Final = 4.0
_ORIGINAL_LENGTH: Final = 8192
_TOLERANCE: Final = 1e-5  # float32 tables, computed in float32: about 50 roundings


def read_scaling(stored: LazyTensor, head_width: int, theta: float) -> dict[str, Any]:
    """Give the ``rope_scaling`` section of config.json that the table stands for.

    Args:
        stored: The table, one number for each pair of lanes.
        head_width: Lanes of a head.
        theta: Base of the rope.

    Raises:
        CheckpointError: The table is not that of a llama3 scaling.
    """
    n_pairs = head_width // 2
    if stored.info.shape != (n_pairs,):
        raise CheckpointError(
            f"{stored.info.name}: shape", got=list(stored.info.shape), wanted=[n_pairs]
        )
    table = stored.read()
    factor = float(table.max(initial=0))
    if not (math.isfinite(factor) and factor >= 1):
        raise CheckpointError(
            f"{stored.info.name}: largest number", got=factor, wanted="a finite one, at least 1"
        )
    wanted = _factors(head_width, theta, factor)
    if not np.allclose(table, wanted, rtol=_TOLERANCE, atol=0):
        worst = int(np.abs(table / wanted - 1).argmax())
        raise CheckpointError(
            f"{stored.info.name}: number {worst}",
            got=float(table[worst]),
            wanted=f"{wanted[worst]:.6g}, as Llama 3.1 and 3.2 have it for factor {factor:g}",
            do="Take the original checkpoint of this model instead of the GGUF file.",
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": _LOW,
        "high_freq_factor": _HIGH,
        "original_max_position_embeddings": _ORIGINAL_LENGTH,
    }


def _factors(head_width: int, theta: float, factor: float) -> F64Array:
    """Give what each frequency is divided by: 1 for short waves, ``factor`` for long ones."""
    wave_lengths = 2 * math.pi * theta ** (np.arange(0, head_width, 2) / head_width)
    smooth = np.clip((_ORIGINAL_LENGTH / wave_lengths - _LOW) / (_HIGH - _LOW), 0, 1)
    factors: F64Array = 1 / ((1 - smooth) / factor + smooth)
    return factors
