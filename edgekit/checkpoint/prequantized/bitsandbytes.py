"""Reader of bitsandbytes checkpoints: nf4, fp4 and int8.

4 bits: ``X.weight`` holds two codes to a byte, the first in the high half, of the whole matrix
read row by row; ``X.weight.quant_map`` the value of each of the 16 codes; ``X.weight.absmax`` the
scale of each block of (mostly 64) values, and ``X.weight.quant_state.bitsandbytes__nf4`` (or
``__fp4``) a JSON text of bytes with shape and sizes. Scales may be codes themselves (double
quantization): ``nested_quant_map[absmax] * nested_absmax + nested_offset``.

8 bits: ``X.weight`` is int8 and ``X.SCB`` the largest magnitude of each row:
``w = code * SCB / 127``.

Source: https://github.com/bitsandbytes-foundation/bitsandbytes (functional.py: QuantState,
dequantize_4bit, dequantize_blockwise, int8_vectorwise_dequant).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from edgekit.checkpoint.config import RawConfig
from edgekit.checkpoint.prequantized.tensor import (
    DOWNLOAD_AGAIN,
    DecodedTensor,
    NotRead,
    take_part,
)
from edgekit.dtypes import DType, F32Array, U8Array
from edgekit.errors import CheckpointError, FormatError
from edgekit.formats.safetensors import SafetensorsTensor
from edgekit.strict_json import parse_object
from edgekit.tensors import LazyTensor, TensorInfo

METHOD: Final = "bitsandbytes"
_STATE: Final = ".quant_state.bitsandbytes__"
_KINDS: Final = ("nf4", "fp4")
_PARTS: Final = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
_MAX_STATE_BYTES: Final = 1 << 16
_LARGEST_CODE: Final = np.float32(127)


@dataclass(frozen=True, slots=True, eq=False)
class _FourBits:
    """Codes of a whole matrix, row by row, with a scale for each block of values."""

    packed: SafetensorsTensor
    values: F32Array
    absmax: SafetensorsTensor
    block: int
    nested: _Nested | None
    n_cols: int

    def read(self, start: int, stop: int) -> F32Array:
        begin, end = start * self.n_cols, stop * self.n_cols
        # Whole blocks, which are whole bytes.
        first, last = begin // self.block, -(-end // self.block)
        n_stored = 2 * self.packed.info.n_bytes
        stored = self.packed.raw_bytes(
            first * self.block // 2, min(last * self.block, n_stored) // 2
        )
        codes = np.empty((len(stored), 2), np.uint8)
        codes[:, 0] = stored >> np.uint8(4)
        codes[:, 1] = stored & np.uint8(15)
        flat = self.values[codes.reshape(-1)]
        n_whole = len(flat) // self.block
        scales = self._scales(first, last)
        whole = flat[: n_whole * self.block].reshape(n_whole, self.block)
        whole *= scales[:n_whole, None]
        flat[n_whole * self.block :] *= scales[n_whole:]
        begin -= first * self.block
        return flat[begin : begin + (stop - start) * self.n_cols].reshape(-1, self.n_cols)

    def _scales(self, first: int, last: int) -> F32Array:
        if self.nested is None:
            return self.absmax.read_rows(first, last)
        return self.nested.read(self.absmax.raw_rows(first, last), first)


@dataclass(frozen=True, slots=True, eq=False)
class _Nested:
    """Scales that are codes themselves."""

    values: F32Array
    absmax: F32Array
    block: int
    offset: np.float32

    def read(self, codes: U8Array, first: int) -> F32Array:
        """Give the scales of codes, of which the first is the scale of block ``first``."""
        scales = self.values[codes]
        scales *= self.absmax[np.arange(first, first + len(codes)) // self.block]
        scales += self.offset
        return scales


@dataclass(frozen=True, slots=True, eq=False)
class _EightBits:
    """int8 codes with the largest magnitude of each row."""

    stored: SafetensorsTensor
    largest: SafetensorsTensor

    def read(self, start: int, stop: int) -> F32Array:
        values = self.stored.raw_rows(start, stop).astype(np.float32)
        values *= self.largest.read_rows(start, stop)[:, None] / _LARGEST_CODE
        return values


def account_for_bitsandbytes(section: RawConfig) -> None:
    """Account for the keys of ``quantization_config``; the tensors alone are enough to read."""
    section.ignore(
        key
        for key in section
        if key.startswith(("bnb_4bit_", "llm_int8_", "load_in_", "_load_in_"))
    )


def join_bitsandbytes(
    tensors: Mapping[str, LazyTensor], *, reads: bool
) -> tuple[dict[str, LazyTensor], set[str]]:
    """Join codes and scales.

    Args:
        tensors: Checkpoint tensors by their own names.
        reads: Whether the tensors can be read; without reading, no shape is known.

    Returns:
        Weights by name, and the names of the tensors that they are made of.

    Raises:
        CheckpointError: Parts are missing or do not fit together.
    """
    stored = {n: t for n, t in tensors.items() if isinstance(t, SafetensorsTensor)}
    joined: dict[str, LazyTensor] = {}
    used: set[str] = set()
    for name in stored:
        weight, found, kind = name.partition(_STATE)
        module = name.removesuffix(".SCB")
        if found:
            joined[weight] = _join_four_bits(weight, kind, stored, reads=reads)
            used |= {name, weight, *(f"{weight}.{part}" for part in _PARTS)}
        elif name != module:
            weight = f"{module}.weight"
            joined[weight] = _join_eight_bits(weight, name, stored)
            used |= {name, weight, f"{weight}_format", f"{module}.weight_format"}
    return joined, used


def _join_eight_bits(
    weight: str, name: str, tensors: Mapping[str, SafetensorsTensor]
) -> DecodedTensor:
    stored = take_part(tensors, weight, "I8", (None, None))
    n_rows, n_cols = stored.info.shape
    largest = take_part(tensors, name, "floats", (n_rows,))
    info = TensorInfo(weight, (n_rows, n_cols), DType.FP16)
    reason = "scales of whole rows over 127"
    return DecodedTensor(info, f"{METHOD} int8", reason, 8, _EightBits(stored, largest))


def _join_four_bits(
    weight: str, kind: str, tensors: Mapping[str, SafetensorsTensor], *, reads: bool
) -> LazyTensor:
    state_name = f"{weight}{_STATE}{kind}"
    packed = tensors.get(weight)
    if packed is None or kind not in _KINDS:
        wanted = weight if kind in _KINDS else " or ".join(f"{_STATE}{kind}" for kind in _KINDS)
        raise CheckpointError(state_name, got="no such tensor", wanted=wanted, do=DOWNLOAD_AGAIN)
    label, reason = f"{METHOD} {kind}", "a codebook of 16 values"
    if not reads:
        # The shape is in the state, which was not downloaded.
        info = TensorInfo(weight, (2 * packed.info.n_bytes,), DType.BF16)
        return DecodedTensor(info, label, reason, 4, NotRead(), has_shape=False)
    state = _State.open(state_name, tensors)
    n_values = state.n_rows * state.n_cols
    if not n_values <= 2 * packed.info.n_bytes < n_values + 2:
        raise CheckpointError(
            f"{weight}: packed codes",
            got=f"{packed.info.n_bytes} bytes",
            wanted=f"two codes in a byte for shape {[state.n_rows, state.n_cols]}",
            do=DOWNLOAD_AGAIN,
        )
    n_blocks = -(-n_values // state.block)
    values = take_part(tensors, f"{weight}.quant_map", "floats", (16,)).read()
    nested = None
    if state.is_nested:
        absmax = take_part(tensors, f"{weight}.absmax", "U8", (n_blocks,))
        n_nested = -(-n_blocks // state.nested_block)
        nested = _Nested(
            take_part(tensors, f"{weight}.nested_quant_map", "floats", (256,)).read(),
            take_part(tensors, f"{weight}.nested_absmax", "floats", (n_nested,)).read(),
            state.nested_block,
            np.float32(state.nested_offset),
        )
    else:
        absmax = take_part(tensors, f"{weight}.absmax", "floats", (n_blocks,))
    rows = _FourBits(packed, values, absmax, state.block, nested, state.n_cols)
    info = TensorInfo(weight, (state.n_rows, state.n_cols), DType.BF16)
    return DecodedTensor(info, label, reason, 4, rows)


@dataclass(frozen=True, slots=True)
class _State:
    """The content of a weight's JSON text."""

    n_rows: int
    n_cols: int
    block: int
    is_nested: bool
    nested_block: int
    nested_offset: float

    @classmethod
    def open(cls, name: str, tensors: Mapping[str, SafetensorsTensor]) -> _State:
        tensor = take_part(tensors, name, "U8", (None,))
        if tensor.info.n_bytes > _MAX_STATE_BYTES:
            raise CheckpointError(
                name, got=f"{tensor.info.n_bytes} bytes", wanted=f"at most {_MAX_STATE_BYTES}"
            )
        try:
            state = parse_object(tensor.raw().tobytes(), name)
        except FormatError as error:
            raise CheckpointError(name, got=error.got, do=DOWNLOAD_AGAIN) from error
        match state.get("shape"):
            case [int(n_rows), int(n_cols)] if n_rows > 0 and n_cols > 0:
                shape = n_rows, n_cols
            case other:
                raise CheckpointError(
                    f"{name}: shape", got=str(other)[:80], wanted="two positive integers"
                )
        offset = state.get("nested_offset", 0.0)
        if not isinstance(offset, int | float) or not abs(offset) < np.inf:
            raise CheckpointError(f"{name}: nested_offset", got=str(offset)[:80], wanted="a number")
        is_nested = state.get("nested_blocksize") is not None
        block = _read_block(name, "blocksize", state)
        nested_block = _read_block(name, "nested_blocksize", state) if is_nested else 1
        return cls(*shape, block, is_nested, nested_block, float(offset))


def _read_block(name: str, key: str, state: Mapping[str, Any]) -> int:
    """Read how many values share a scale: a power of two, so that blocks are whole bytes."""
    value: Any = state.get(key)
    is_count = isinstance(value, int) and not isinstance(value, bool)
    if is_count and 2 <= value <= 1 << 20 and value & (value - 1) == 0:
        return int(value)
    raise CheckpointError(f"{name}: {key}", got=str(value)[:80], wanted="a power of two")
