"""The weights of a GGUF file, under Hugging Face's names and in their original form.

A weight is a stored tensor under another name; changes by llama.cpp's converter are undone. Codes
of Q4_0 and Q8_0 are kept; every other type is read as floats, some rows at a time.

Source: https://github.com/ggml-org/llama.cpp, conversion/llama.py (``LlamaModel.permute``),
conversion/gemma.py (norms), and the block layouts of ggml-common.h.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from edgekit.checkpoint.prequantized.tensor import DecodedTensor, PrequantizedTensor
from edgekit.dtypes import Bits, DType, F32Array, I64Array, U8Array
from edgekit.errors import CheckpointError
from edgekit.formats.floats import to_float32
from edgekit.formats.gguf import GgufTensor
from edgekit.formats.gguf_blocks import NOT_FLOATS, dequantize
from edgekit.tensors import LazyTensor, TensorInfo

CODES: Final[Mapping[str, Bits]] = {"Q4_0": 4, "Q8_0": 8}
FLOATS: Final[Mapping[str, DType]] = {
    "F32": DType.FP32,
    "F16": DType.FP16,
    "BF16": DType.BF16,
}
_N_SCALE_BYTES: Final = 2
# How many vectors are read to find out in which type a model was published, and how long ones.
_MAX_VECTORS: Final = 256
_MAX_VECTOR: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Undo:
    """Changes of llama.cpp's converter to a tensor, which are undone while it is read.

    Attributes:
        head_width: Rows of a head of q or k, whose rotary pairs lie beside each other; llama.cpp
            rotates neighbours, Hugging Face the two halves of a head. None: the rows are in place.
        shift: Number that was added to every value.
        factor: Multiplies every value; llama.cpp keeps it apart (NVFP4's second scale).
    """

    head_width: int | None = None
    shift: float = 0.0
    factor: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """The rows of a stored tensor in Hugging Face's order; a vector's values are its rows."""

    stored: GgufTensor
    head_width: int | None

    def raw(self, start: int, stop: int) -> U8Array:
        """Give the bytes of rows, (stop - start, bytes of a row)."""
        if self.head_width is None:
            return self.stored.raw_rows(start, stop)
        # Rows change places inside a head only, so whole heads are enough.
        first = start // self.head_width * self.head_width
        last = -(-stop // self.head_width) * self.head_width
        return self.stored.raw_rows(first, last)[
            stored_rows(np.arange(start, stop), self.head_width) - first
        ]


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
    undo: Undo

    def read(self) -> F32Array:
        """Read the whole tensor as float32, shape ``info.shape``."""
        if len(self.info.shape) > 1:
            return self.read_rows(0, self.info.shape[0])
        values: F32Array = dequantize(self.rows.stored.kind, self.rows.stored.raw())[0]
        if self.undo.head_width is not None:
            values = values[stored_rows(np.arange(len(values)), self.undo.head_width)]
        return self._changed(values)

    def read_rows(self, start: int, stop: int) -> F32Array:
        """Read rows ``start:stop`` of the first axis as float32."""
        if len(self.info.shape) == 1:
            return self.read()[start:stop]
        n_inner = self.rows.stored.n_rows // self.info.shape[0]  # 1 for a matrix
        values = dequantize(
            self.rows.stored.kind, self.rows.raw(start * n_inner, stop * n_inner)
        ).reshape(stop - start, *self.info.shape[1:])
        return self._changed(values)

    def _changed(self, values: F32Array) -> F32Array:
        # NaN and infinity are found by the reader (families/base.py); numpy need not warn.
        with np.errstate(invalid="ignore", over="ignore"):
            if self.undo.shift:
                values -= np.float32(self.undo.shift)
            if self.undo.factor != 1:
                values *= np.float32(self.undo.factor)
        return values


@dataclass(frozen=True, slots=True, eq=False)
class _FloatRows:
    """The same values by rows; satisfies ``FloatRows``."""

    floats: _Floats

    def read(self, start: int, stop: int) -> F32Array:
        """Read rows ``start:stop`` as float32."""
        return self.floats.read_rows(start, stop)


def _bits_of(kind: str) -> int:
    """Give the bits of a value, which the names of ggml's types state: ``Q4_1``, ``IQ2_XS``."""
    return int(next(char for char in kind if char.isdigit()))


_AS_IT_IS: Final = Undo()
# Why codes are read as floats.
_OTHER_CODES: Final = f"edgekit keeps the codes of {' and '.join(CODES)}"
_CHANGED_CODES: Final = "llama.cpp's converter changed the values before it quantized them"


def open_weight(stored: GgufTensor, name: str, undo: Undo = _AS_IT_IS) -> LazyTensor:
    """Give a tensor under another name, with the changes of llama.cpp's converter undone.

    Args:
        stored: The tensor in the file.
        name: Its name from now on.
        undo: What the converter did to it.

    Raises:
        CheckpointError: Its type has no floats, or its rows are not whole heads.
    """
    kind = stored.kind.name
    if kind in NOT_FLOATS:
        raise CheckpointError(
            f"{stored.file.path}: tensor {stored.name}: type",
            got=kind,
            wanted="a type whose values are floats",
            do="Use another file of this model, or the original checkpoint.",
        )
    if undo.head_width is not None and (
        undo.head_width < 2 or undo.head_width % 2 or stored.shape[0] % undo.head_width
    ):
        raise CheckpointError(
            f"{stored.file.path}: tensor {stored.name}: rows",
            got=stored.shape[0],
            wanted=f"heads of {undo.head_width} rows, an even number",
            do="Download the model again.",
        )
    rows = _Rows(stored, undo.head_width)
    is_plain = undo.shift == 0 and undo.factor == 1
    if kind in CODES and len(stored.shape) == 2 and is_plain:
        info = TensorInfo(name, stored.shape, DType.FP16)
        bits = CODES[kind]
        group = stored.kind.n_values
        return PrequantizedTensor(info, bits, group, f"gguf {kind}", _Blocks(rows, bits))
    info = TensorInfo(name, stored.shape, FLOATS.get(kind, DType.FP32))
    floats = _Floats(info, rows, undo)
    if kind in FLOATS or len(stored.shape) != 2:
        return floats
    reason = _OTHER_CODES if is_plain else _CHANGED_CODES
    return DecodedTensor(info, f"gguf {kind}", reason, _bits_of(kind), _FloatRows(floats))


def original_float_type(weights: Iterable[LazyTensor]) -> str | None:
    """Find the type in which a model was published, as config.json names it; None for float32.

    llama.cpp writes norms and biases as float32, whatever their type was. If all their values fit a
    shorter type, they came from it. (A norm to which 1 was added was rounded at 1's last digit.)
    """
    vectors = [w for w in weights if len(w.info.shape) == 1 and w.info.n_elements <= _MAX_VECTOR]
    fits = dict.fromkeys(_ROUNDING, bool(vectors))
    for weight in vectors[:_MAX_VECTORS]:
        values = weight.read()
        with np.errstate(all="ignore"):
            for name, rounded in _ROUNDING.items():
                moved = np.abs(rounded(values) - values)
                fits[name] &= bool((moved <= np.finfo(np.float32).epsneg).all())
    return next((name for name, is_so in fits.items() if is_so), None)


def _to_bfloat16(values: F32Array) -> F32Array:
    """Round float32 to bfloat16, ties away from zero."""
    bits = values.view(np.uint32) + np.uint32(0x8000)
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)


def _to_float16(values: F32Array) -> F32Array:
    return values.astype(np.float16).astype(np.float32)


# The first type that fits is used.
_ROUNDING: Final[Mapping[str, Callable[[F32Array], F32Array]]] = {
    "bfloat16": _to_bfloat16,
    "float16": _to_float16,
}


def stored_rows(rows: I64Array, head_width: int) -> I64Array:
    """Give the place in the file of each row of q or k: pairs there are the halves of a head."""
    in_head = rows % head_width
    half, channel = np.divmod(in_head, head_width // 2)
    stored: I64Array = rows - in_head + 2 * channel + half
    return stored
