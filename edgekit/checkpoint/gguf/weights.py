"""Answer one question: which weights do the tensors of a GGUF file stand for?

llama.cpp turns pairs of neighbouring lanes in its rope where Hugging Face turns the two halves of
a head, so its llama files hold the rows of q and k in another order; ``rope_order`` undoes it.

Source: https://github.com/ggml-org/llama.cpp, convert_hf_to_gguf.py (``LlamaModel.permute``), and
the block layouts of ggml-common.h.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from edgekit.checkpoint.prequantized.tensor import PrequantizedTensor
from edgekit.dtypes import Bits, DType, F32Array, I64Array, U8Array
from edgekit.formats.floats import to_float32
from edgekit.formats.gguf import GgufTensor
from edgekit.tensors import LazyTensor, TensorInfo

_FLOATS: Final[Mapping[str, DType]] = {
    "F32": DType.FP32,
    "F16": DType.FP16,
    "BF16": DType.BF16,
    "Q6_K": DType.FP16,
}
_CODES: Final[Mapping[str, Bits]] = {"Q4_0": 4, "Q8_0": 8}
_STORED: Final[Mapping[str, str]] = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_N_SCALE_BYTES: Final = 2


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """The rows of a stored matrix, in another order if one is given."""

    stored: GgufTensor
    order: I64Array | None

    def raw(self, start: int, stop: int) -> U8Array:
        """Give bytes of rows, (stop - start, bytes of a row)."""
        if self.order is None:
            return self.stored.raw_rows(start, stop)
        return self.stored.raw()[self.order[start:stop]]


@dataclass(frozen=True, slots=True, eq=False)
class _Blocks:
    """Q4_0 or Q8_0 rows: blocks of an fp16 scale and 32 codes."""

    rows: _Rows
    bits: Bits

    def _blocks(self, start: int, stop: int) -> U8Array:
        raw = self.rows.raw(start, stop)
        return raw.reshape(len(raw), -1, self.rows.stored.kind.n_bytes)

    def codes(self, start: int, stop: int) -> U8Array:
        stored = self._blocks(start, stop)[:, :, _N_SCALE_BYTES:]
        if self.bits == 8:
            # Signed codes; flipping the sign bit moves zero to the middle.
            codes: U8Array = stored ^ np.uint8(128)
        else:
            # The low halves of the 16 bytes are codes 0 .. 15, the high halves 16 .. 31.
            codes = np.concatenate([stored & np.uint8(15), stored >> np.uint8(4)], axis=2)
        return codes.reshape(len(codes), -1)

    def scales(self, start: int, stop: int) -> F32Array:
        stored = np.ascontiguousarray(self._blocks(start, stop)[:, :, :_N_SCALE_BYTES])
        return to_float32(stored.view("<f2")[:, :, 0], DType.FP16)

    def biases(self, start: int, stop: int) -> F32Array | None:
        return None


@dataclass(frozen=True, slots=True, eq=False)
class _Floats:
    """A tensor that is read as floats, a ``LazyTensor``."""

    info: TensorInfo
    rows: _Rows

    def read(self) -> F32Array:
        """Read the whole tensor as float32, shape ``info.shape``."""
        if len(self.info.shape) == 1:
            values: F32Array = _widen(self.rows.stored, self.rows.stored.raw())[0]
            if self.rows.order is not None:
                values = values[self.rows.order]
            return values
        return self.read_rows(0, self.info.shape[0])

    def read_rows(self, start: int, stop: int) -> F32Array:
        """Read rows ``start:stop`` of the first axis as float32."""
        if len(self.info.shape) == 1:
            return self.read()[start:stop]
        return _widen(self.rows.stored, self.rows.raw(start, stop))


def open_weight(stored: GgufTensor, name: str, order: I64Array | None = None) -> LazyTensor:
    """Give a tensor under another name, with its rows in another order.

    Args:
        stored: The tensor in the file.
        name: Its name from now on.
        order: The stored row that each row is; None for the same.
    """
    rows, kind = _Rows(stored, order), stored.kind.name
    if kind in _CODES and len(stored.shape) == 2:
        info = TensorInfo(name, stored.shape, DType.FP16)
        bits = _CODES[kind]
        group = stored.kind.n_values
        return PrequantizedTensor(info, bits, group, f"gguf {kind}", _Blocks(rows, bits))
    return _Floats(TensorInfo(name, stored.shape, _FLOATS.get(kind, DType.FP32)), rows)


def rope_order(n_heads: int, head_width: int) -> I64Array:
    """Give the stored row of each row of q or k: lane pairs become the halves of a head."""
    stored: I64Array = np.arange(n_heads * head_width, dtype=np.int64)
    return stored.reshape(n_heads, head_width // 2, 2).swapaxes(1, 2).reshape(-1)


def _widen(stored: GgufTensor, raw: U8Array) -> F32Array:
    kind = stored.kind.name
    if kind == "Q6_K":
        return _widen_q6_k(raw.reshape(len(raw), -1, stored.kind.n_bytes)).reshape(len(raw), -1)
    if kind in _CODES:
        blocks = _Blocks(_Rows(stored, None), _CODES[kind])
        values = blocks.codes(0, len(raw)).astype(np.float32)
        values -= np.float32(1 << (_CODES[kind] - 1))
        values *= blocks.scales(0, len(raw)).repeat(stored.kind.n_values, axis=1)
        return values
    return to_float32(np.ascontiguousarray(raw).view(_STORED[kind]), _FLOATS[kind])


def _widen_q6_k(blocks: U8Array) -> F32Array:
    """Widen blocks of 256 codes of 6 bits: (n, B, 210) bytes to (n, B, 256) floats.

    Each half of a block has 64 bytes with the low four bits of 128 codes, 32 bytes with the high
    two, and eight scales, one for 16 codes; the block has one scale of those.
    """
    n_rows, n_blocks, _ = blocks.shape
    low = blocks[..., :128].reshape(n_rows, n_blocks, 2, 2, 32)
    high = blocks[..., 128:192].reshape(n_rows, n_blocks, 2, 1, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    codes = np.concatenate([low & np.uint8(15), low >> np.uint8(4)], axis=3)
    codes = codes | ((high >> shifts & np.uint8(3)) << np.uint8(4))
    signed = codes.reshape(n_rows, n_blocks, 16, 16).astype(np.float32) - np.float32(32)
    inner = blocks[..., 192:208].view(np.int8).astype(np.float32)
    outer = np.ascontiguousarray(blocks[..., 208:]).view("<f2").astype(np.float32)
    values: F32Array = signed * (outer * inner)[..., None]
    return values.reshape(n_rows, n_blocks, 256)
