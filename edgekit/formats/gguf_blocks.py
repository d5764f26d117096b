"""The tensor types of GGUF: the size of their blocks, and their values as floats.

A tensor is stored in blocks of a fixed number of values along its rows. The ``gguf`` package, which
llama.cpp's own converter uses, turns the blocks of nearly all types into floats. It is imported
only in this module, and only when a block is read.

Source: https://github.com/ggml-org/ggml, include/ggml.h (``ggml_type``) and ggml-common.h (blocks).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from edgekit.dtypes import DType, F32Array, U8Array
from edgekit.errors import FormatError
from edgekit.formats.floats import to_float32
from edgekit.lazy import require


@dataclass(frozen=True, slots=True)
class BlockType:
    """A tensor type: how many values one block holds, in how many bytes."""

    name: str
    n_values: int
    n_bytes: int


BLOCK_TYPES: Final[Mapping[int, BlockType]] = {
    number: BlockType(name, n_values, n_bytes)
    for number, name, n_values, n_bytes in (
        (0, "F32", 1, 4), (1, "F16", 1, 2), (28, "F64", 1, 8), (30, "BF16", 1, 2),
        (2, "Q4_0", 32, 18), (3, "Q4_1", 32, 20), (6, "Q5_0", 32, 22), (7, "Q5_1", 32, 24),
        (8, "Q8_0", 32, 34), (9, "Q8_1", 32, 40),
        (10, "Q2_K", 256, 84), (11, "Q3_K", 256, 110), (12, "Q4_K", 256, 144),
        (13, "Q5_K", 256, 176), (14, "Q6_K", 256, 210), (15, "Q8_K", 256, 292),
        (16, "IQ2_XXS", 256, 66), (17, "IQ2_XS", 256, 74), (18, "IQ3_XXS", 256, 98),
        (19, "IQ1_S", 256, 50), (20, "IQ4_NL", 32, 18), (21, "IQ3_S", 256, 110),
        (22, "IQ2_S", 256, 82), (23, "IQ4_XS", 256, 136), (29, "IQ1_M", 256, 56),
        (34, "TQ1_0", 256, 54), (35, "TQ2_0", 256, 66),
        (39, "MXFP4", 32, 17), (40, "NVFP4", 64, 36), (41, "Q1_0", 128, 18),
        (24, "I8", 1, 1), (25, "I16", 1, 2), (26, "I32", 1, 4), (27, "I64", 1, 8),
    )
}  # fmt: skip
# Types that were withdrawn and occur in old files, or that only llama.cpp's working memory uses.
WITHDRAWN: Final[Mapping[int, str]] = {
    4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8",
}  # fmt: skip
_STORED: Final[Mapping[str, tuple[str, DType]]] = {
    "F32": ("<f4", DType.FP32),
    "F16": ("<f2", DType.FP16),
    "BF16": ("<u2", DType.BF16),
}
# The package knows the sizes of these but not their values; no weights are stored in them.
NOT_FLOATS: Final = ("Q8_1", "Q8_K", "Q1_0", "I8", "I16", "I32", "I64")


def dequantize(kind: BlockType, raw: U8Array) -> F32Array:
    """Turn stored rows into floats.

    Args:
        kind: The type of the tensor.
        raw: (N, bytes of a row).

    Returns:
        float32, (N, values of a row). The same values as the ``gguf`` package gives; F64 is rounded
        to float32, and values beyond its range become infinite.

    Raises:
        FormatError: The type has no floats (``NOT_FLOATS``).
        MissingExtraError: The ``gguf`` package cannot be imported.
    """
    raw = np.ascontiguousarray(raw)
    if kind.name in _STORED:
        layout, dtype = _STORED[kind.name]
        return to_float32(raw.view(layout), dtype)
    with np.errstate(all="ignore"):  # the caller checks for NaN and infinity
        if kind.name == "F64":
            return raw.view("<f8").astype(np.float32)
        if kind.name in NOT_FLOATS:
            raise FormatError(
                f"tensor of type {kind.name}",
                wanted="a type whose values are floats",
                do="Use another file of this model, or the original checkpoint.",
            )
        package = require("gguf")
        values: F32Array = package.quants.dequantize(
            raw, package.GGMLQuantizationType[kind.name]
        ).astype(np.float32, copy=False)
    return values
