"""A GGUF file written without edgekit and without the gguf package."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 8, "Q4_K": 12, "Q6_K": 14, "IQ2_XS": 17,
    "I32": 26, "BF16": 30, "MXFP4": 39,
}  # fmt: skip


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def value_bytes(value: Any) -> bytes:
    """Write type and value: bool, int (uint32), float (float32), str, or a list of one of them."""
    if isinstance(value, bool):
        return struct.pack("<IB", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    items = [value_bytes(item) for item in value]
    return struct.pack("<IIQ", 9, struct.unpack("<I", items[0][:4])[0], len(items)) + b"".join(
        item[4:] for item in items
    )


def gguf_bytes(
    metadata: dict[str, Any],
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]],
    *,
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    """Write a file; a tensor is its type, its shape (rows first) and its bytes."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    for key, value in metadata.items():
        head += text(key) + value_bytes(value)
    data = b""
    for name, (kind, shape, content) in tensors.items():
        head += text(name) + struct.pack("<I", len(shape))
        head += b"".join(struct.pack("<Q", size) for size in reversed(shape))
        head += struct.pack("<IQ", TYPES[kind], len(data))
        data += content + b"\0" * (-len(content) % alignment)
    return head + b"\0" * (-len(head) % alignment) + data


def q4_0_bytes(codes: np.ndarray, scales: np.ndarray) -> bytes:
    """Write codes 0 .. 15, (N, M), and fp16 scales, (N, M // 32), one block at a time."""
    data = bytearray()
    for row, row_scales in zip(codes, scales, strict=True):
        for block, scale in enumerate(row_scales):
            part = row[32 * block : 32 * block + 32]
            data += struct.pack("<e", scale)
            data += bytes(int(part[i]) + 16 * int(part[i + 16]) for i in range(16))
    return bytes(data)


def q8_0_bytes(codes: np.ndarray, scales: np.ndarray) -> bytes:
    """Write codes 0 .. 255, of which 128 is zero, and fp16 scales."""
    data = bytearray()
    for row, row_scales in zip(codes, scales, strict=True):
        for block, scale in enumerate(row_scales):
            part = row[32 * block : 32 * block + 32].astype(int) - 128
            data += struct.pack("<e32b", scale, *part)
    return bytes(data)
