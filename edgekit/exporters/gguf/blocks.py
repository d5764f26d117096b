"""Tensors of the common grid as blocks of GGUF, and back.

Q4_0, Q4_1 and Q8_0 have blocks of 32 values along a row, each with an fp16 scale d; the scale of a
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

from edgekit.dtypes import DType, F32Array, U8Array
from edgekit.encoding import Encoding
from edgekit.errors import ExportError, FormatError
from edgekit.formats.floats import to_bf16, to_float32
from edgekit.formats.gguf_blocks import BlockType
from edgekit.formats.gguf_writer import block_type
from edgekit.quantize.model import EncodedTensor, FloatTensor, ModelTensor

BLOCK: Final = 32
_HALF_BYTES: Final = 2
_TOP_BIT: Final = np.uint8(128)
_TYPES: Final[Mapping[str, str]] = {"int4": "Q4_0", "uint4": "Q4_1", "int8": "Q8_0"}
_FLOATS: Final[Mapping[str, str]] = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}


def type_of(encoding: Encoding, shape: tuple[int, ...]) -> BlockType | None:
    """Give the type that holds a tensor; None where GGUF has none.

    Vectors are float32, as llama.cpp needs them.
    """
    if len(shape) == 1:
        return block_type("F32")
    if encoding.is_quantized:
        name = _TYPES.get(encoding.kind)
        return None if name is None else block_type(name)
    return block_type(_FLOATS[encoding.kind])


def encode(tensor: ModelTensor) -> NDArray[Any]:
    """Give the bytes of a tensor, (N, bytes of a row); of a vector, its float32 values.

    Raises:
        ExportError: A scale, or a scale times its zero point, is not exact in fp16; or GGUF has no
            such blocks.
    """
    kind = type_of(tensor.encoding, tensor.shape)
    if kind is None:
        raise ExportError(f"{tensor.name}: GGUF has no blocks for {tensor.encoding}")
    if isinstance(tensor, FloatTensor):
        if kind.name == "BF16":
            return to_bf16(tensor.values)
        return tensor.values.astype("<f2" if kind.name == "F16" else "<f4", copy=False)
    n_rows, n_cols = tensor.shape
    n_blocks = n_cols // BLOCK
    codes = np.ascontiguousarray(tensor.packed).reshape(n_rows, n_blocks, -1)
    stored = codes ^ _TOP_BIT if tensor.encoding.bits == 8 else _halves_apart(codes)
    headers = [tensor.scales, *([tensor.biases()] if tensor.encoding.has_zero_points else [])]
    blocks = np.empty((n_rows, n_blocks, kind.n_bytes), np.uint8)
    for place, values in enumerate(headers):
        repeated = np.repeat(_halves(values, tensor.name), n_blocks // values.shape[1], axis=1)
        part = slice(_HALF_BYTES * place, _HALF_BYTES * (place + 1))
        blocks[:, :, part] = repeated.view(np.uint8).reshape(n_rows, n_blocks, _HALF_BYTES)
    blocks[:, :, _HALF_BYTES * len(headers) :] = stored
    return blocks.reshape(n_rows, -1)


def decode(raw: U8Array, name: str, encoding: Encoding, where: str) -> EncodedTensor:
    """Undo ``encode`` for codes.

    Args:
        raw: (N, bytes of a row).
        name: Canonical name of the tensor.
        encoding: Its encoding, which says how many blocks share a scale.
        where: The file, for messages.

    Raises:
        FormatError: Blocks that share a scale have different ones, or a minimum is no whole
            multiple of its scale.
    """
    kind = block_type(_TYPES[encoding.kind])
    n_shared = (encoding.block or BLOCK) // BLOCK
    blocks = raw.reshape(len(raw), -1, kind.n_bytes)
    n_headers = 2 if encoding.has_zero_points else 1
    stored = blocks[:, :, _HALF_BYTES * n_headers :]
    codes = stored ^ _TOP_BIT if encoding.bits == 8 else _halves_together(stored)
    headers: list[F32Array] = []
    for place in range(n_headers):
        part = np.ascontiguousarray(blocks[:, :, _HALF_BYTES * place : _HALF_BYTES * (place + 1)])
        values = to_float32(part.view("<f2")[:, :, 0], DType.FP16)
        shared = values.reshape(len(raw), -1, n_shared)
        if not (shared == shared[:, :, :1]).all():
            raise FormatError(
                f"{where}: {name}: scales",
                wanted=f"one for every {encoding.block} values, as {encoding} says",
            )
        headers.append(np.ascontiguousarray(shared[:, :, 0]))
    zeros: U8Array | None = None
    if encoding.has_zero_points:
        scales, minima = headers
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            zeros = np.nan_to_num(np.rint(-minima / scales)).clip(0, 255).astype(np.uint8)
        if not np.array_equal(-zeros.astype(np.float32) * scales, minima):
            raise FormatError(
                f"{where}: {name}: minima", wanted="a whole number of scales, 0 to 255 of them"
            )
    return EncodedTensor(name, encoding, codes.reshape(len(raw), -1), headers[0], zeros)


def _halves_apart(packed: U8Array) -> U8Array:
    """Give the 16 bytes of each block: codes 0 .. 15 in the low halves, 16 .. 31 in the high.

    In ``packed``, neighbours share a byte; nothing is unpacked on the way.
    """
    # Eight bytes at a time, as one number each.
    first, second = packed.view("<u8").reshape(-1, 2).T
    low, high = np.uint64(0x0F0F0F0F0F0F0F0F), np.uint64(0xF0F0F0F0F0F0F0F0)
    four = np.uint64(4)
    stored = np.empty(packed.size, np.uint8)
    stored[0::2] = ((first & low) | ((second & low) << four)).view(np.uint8)
    stored[1::2] = (((first >> four) & low) | (second & high)).view(np.uint8)
    return stored.reshape(packed.shape)


def _halves_together(stored: U8Array) -> U8Array:
    """Undo ``_halves_apart``."""
    even, odd = stored[:, :, 0::2], stored[:, :, 1::2]
    packed = np.empty_like(stored)
    packed[:, :, :8] = (even & np.uint8(15)) | (odd << np.uint8(4))
    packed[:, :, 8:] = (even >> np.uint8(4)) | (odd & np.uint8(0xF0))
    return packed


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
