"""Packing of 4-bit and 8-bit codes into bytes.

MLX (as little-endian uint32 words), ONNX MatMulNBits and Core ML's uint4 use the same bytes: codes
along the input dimension, low bits first. Core ML's int4 is those bytes XOR 0x88.
"""

from __future__ import annotations

import numpy as np

from edgekit.dtypes import Bits, U8Array
from edgekit.errors import FormatError


def pack_codes(codes: U8Array, bits: Bits) -> U8Array:
    """Pack unsigned codes along the last axis, low bits first.

    Args:
        codes: uint8, shape (N, M), values 0 .. 2**bits - 1; M even for 4 bits.
        bits: 4 or 8.

    Returns:
        uint8, shape (N, M * bits // 8).

    Raises:
        FormatError: M is odd for 4 bits, or a code does not fit.
    """
    if bits == 8:
        return codes
    if codes.shape[-1] % 2:
        raise FormatError("4-bit packing: row length", got=codes.shape[-1], wanted="an even number")
    if codes.size and int(codes.max()) > 15:
        raise FormatError("4-bit packing: code", got=int(codes.max()), wanted="0 .. 15")
    pairs = np.ascontiguousarray(codes).view("<u2")  # the first code is the low byte
    packed: U8Array = (pairs | (pairs >> np.uint16(4))).astype(np.uint8)
    return packed


def pack_rows(codes: U8Array, bits: Bits) -> U8Array:
    """Pack as ``pack_codes`` does; a row that ends within a byte is filled with zeros."""
    if bits == 4 and codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros((*codes.shape[:-1], 1), np.uint8)], axis=-1)
    return pack_codes(codes, bits)


def unpack_codes(packed: U8Array, bits: Bits) -> U8Array:
    """Undo ``pack_codes``: (N, B) bytes to (N, B * 8 // bits) codes."""
    if bits == 8:
        return packed
    codes = np.empty((*packed.shape[:-1], packed.shape[-1] * 2), dtype=np.uint8)
    codes[..., 0::2] = packed & np.uint8(15)
    codes[..., 1::2] = packed >> np.uint8(4)
    return codes
