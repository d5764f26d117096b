"""Tensors of the common grid as blocks of GGUF, and back.

Q4_0, Q4_1 and Q8_0 have blocks of 32 values along a row, each with an fp16 scale; a scale of a
larger block is repeated. Q4_0: w = (code - 8) * d. Q4_1: w = code * d + m, with m = -zero point *
d, which the grid makes exact in fp16. Q8_0: w = code * d with signed codes.

Source:
    https://github.com/ggml-org/ggml, ggml-common.h (``block_q4_0``, ``block_q4_1``,
    ``block_q8_0``) and ggml-quants.c (the order of the nibbles).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgekit.dtypes import Bits, DType, F32Array, U8Array
from edgekit.errors import ExportError, FormatError
from edgekit.formats.floats import to_float32
from edgekit.formats.gguf_blocks import BlockType
from edgekit.formats.gguf_writer import block_type
from edgekit.quantize.model import FloatTensor, ModelTensor, QuantizedTensor
from edgekit.scheme import FP16, Scheme

BLOCK: Final = 32
_N_SCALE_BYTES: Final = 2
_CODES: Final[Mapping[str, str]] = {"int4": "Q4_0", "int8": "Q8_0"}


def type_of(scheme: Scheme, shape: tuple[int, ...]) -> BlockType:
    """Give the type that holds a tensor of a scheme; vectors are float32, as llama.cpp needs."""
    if len(shape) == 1:
        return block_type("F32")
    if scheme.is_quantized:
        return block_type(_CODES[scheme.kind])
    return block_type("F16" if scheme == FP16 else "F32")


def encode(tensor: ModelTensor) -> NDArray[Any]:
    """Give the bytes of a tensor, (N, bytes of a row); of a vector, its float32 values.

    Raises:
        ExportError: A scale is not exact in fp16.
    """
    if isinstance(tensor, FloatTensor):
        is_half = type_of(tensor.scheme, tensor.shape).name == "F16"
        return tensor.values.astype("<f2" if is_half else "<f4", copy=False)
    scales = _halves(tensor.scales, tensor.name)
    n_rows, n_cols = tensor.shape
    scales = np.repeat(scales, tensor.group // BLOCK, axis=1)
    codes = tensor.codes.reshape(n_rows, -1, BLOCK)
    if tensor.bits == 8:
        stored = codes ^ np.uint8(128)  # signed: flipping the top bit moves zero from the middle
    else:
        stored = codes[:, :, : BLOCK // 2] | (codes[:, :, BLOCK // 2 :] << np.uint8(4))
    blocks = np.empty((n_rows, n_cols // BLOCK, _N_SCALE_BYTES + stored.shape[2]), np.uint8)
    blocks[:, :, :_N_SCALE_BYTES] = scales.view(np.uint8).reshape(n_rows, -1, _N_SCALE_BYTES)
    blocks[:, :, _N_SCALE_BYTES:] = stored
    return blocks.reshape(n_rows, -1)


def decode(raw: U8Array, name: str, scheme: Scheme, where: str) -> QuantizedTensor:
    """Undo ``encode`` for codes.

    Args:
        raw: (N, bytes of a row).
        name: Canonical name of the tensor.
        scheme: Its scheme, which says how many blocks share a scale.
        where: The file, for messages.

    Raises:
        FormatError: Blocks that share a scale have different ones.
    """
    bits: Bits = 4 if scheme.bits == 4 else 8
    group = scheme.group or BLOCK
    n_block_bytes = block_type(_CODES[scheme.kind]).n_bytes
    blocks = raw.reshape(len(raw), -1, n_block_bytes)
    stored = blocks[:, :, _N_SCALE_BYTES:]
    if bits == 8:
        codes = stored ^ np.uint8(128)
    else:
        codes = np.concatenate([stored & np.uint8(15), stored >> np.uint8(4)], axis=2)
    halves = np.ascontiguousarray(blocks[:, :, :_N_SCALE_BYTES]).view("<f2")[:, :, 0]
    shared = to_float32(halves, DType.FP16).reshape(len(raw), -1, group // BLOCK)
    if not (shared == shared[:, :, :1]).all():
        raise FormatError(
            f"{where}: {name}: scales", wanted=f"one for every {group} values, as {scheme} says"
        )
    scales: F32Array = np.ascontiguousarray(shared[:, :, 0])
    return QuantizedTensor(name, bits, group, codes.reshape(len(raw), -1), scales)


def _halves(values: F32Array, name: str) -> NDArray[np.float16]:
    """Give float32 as fp16, which must hold it exactly."""
    with np.errstate(over="ignore"):
        halves = values.astype("<f2")
    if not np.array_equal(halves.astype(np.float32), values):
        raise ExportError(
            f"{name}: a scale is not exact in fp16, the type of GGUF's scales",
            do="Export with scheme fp16 or another format.",
        )
    return halves
