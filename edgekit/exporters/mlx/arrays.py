"""The arrays of an MLX artifact's ``model.safetensors``, and the weights that they hold.

A matrix of codes is three arrays of its module (weight, scales, biases); everything else is one
array. Where mlx-lm has one module for several canonical matrices, their rows follow one another;
where it needs a bias that the decoder does not have, there are zeros.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgekit.artifact import TensorEntry
from edgekit.dtypes import DTYPES, DType, F32Array, U8Array
from edgekit.encoding import Encoding
from edgekit.errors import ExportError, FormatError
from edgekit.exporters.arrays import Content, StoredArray, part_of
from edgekit.exporters.mlx.config import CONFIG_NAME, quantization_of
from edgekit.exporters.mlx.models import AttentionBias, ModelFile
from edgekit.formats.floats import to_bf16, to_float32
from edgekit.lazy import require
from edgekit.quantize.model import EncodedTensor, FloatTensor, ModelTensor
from edgekit.tensors import TensorInfo, row_blocks

_ATTENTION: Final = ("q", "k", "v", "o")
_LARGEST: Final[Mapping[DType, float]] = MappingProxyType(
    {
        DType.FP32: float(np.finfo(np.float32).max),
        DType.FP16: float(np.finfo(np.float16).max),
        DType.BF16: math.ldexp(255, 120),  # eight bits, the exponent of float32
    }
)


@dataclass(frozen=True, slots=True)
class Slot:
    """The arrays of one module that belong together.

    Attributes:
        module: mlx-lm's path, as in its quantization entry.
        kind: ``weight`` or ``bias``.
        shape: (N, M) or (N,), of all parts together.
        parts: The canonical weights, top to bottom; none means zeros.
    """

    module: str
    kind: str
    shape: tuple[int, ...]
    parts: tuple[TensorEntry, ...]

    @property
    def encoding(self) -> Encoding | None:
        """The encoding of a matrix of codes, None for floats."""
        first = self.parts[0] if self.parts else None
        encoding = None if first is None else Encoding.parse(first.encoding)
        return encoding if encoding is not None and encoding.is_quantized else None

    def arrays(self, dtype: DType) -> list[StoredArray]:
        """Plan the arrays that hold it; floats, scales and biases have type ``dtype``."""
        names = tuple(part.name for part in self.parts)
        if self.encoding is None:
            info = TensorInfo(f"{self.module}.{self.kind}", self.shape, dtype)
            return [StoredArray(info, Content.VALUES, names)]
        n_out, n_in = self.shape
        per_block = (n_out, self.encoding.n_blocks(n_in))
        words = (n_out, n_in * self.encoding.bits // 32)
        planned = [
            (f"{self.module}.weight", words, DType.UINT32, Content.CODES),
            (f"{self.module}.scales", per_block, dtype, Content.SCALES),
            (f"{self.module}.biases", per_block, dtype, Content.BIASES),
        ]
        return [
            StoredArray(TensorInfo(name, shape, stored), content, names)
            for name, shape, stored, content in planned
        ]

    def decode(
        self, arrays: dict[str, Any], config: Mapping[str, Any], where: str
    ) -> Iterator[ModelTensor]:
        """Rebuild the canonical tensors from the arrays that mlx loaded; used arrays are removed.

        Raises:
            FormatError: The arrays or the config are not what an export writes.
        """
        taken = [_take(arrays, stored.info, where) for stored in self.arrays(DType.FP32)]
        if not self.parts:
            if taken[0].any():
                raise FormatError(f"{where}: {self.module}.{self.kind}", wanted="zeros")
            return
        said = None if self.encoding is None else quantization_of(config, self.module)
        first = 0
        for part in self.parts:
            rows = slice(first, first + part.shape[0])
            first = rows.stop
            encoding = Encoding.parse(part.encoding)
            if not encoding.is_quantized:
                yield FloatTensor(part.name, encoding, taken[0][rows].astype(np.float32))
            elif said != Encoding(f"int{encoding.bits}", encoding.block):
                raise FormatError(
                    f"{where}: {part.name}: {CONFIG_NAME} quantization", got=said, wanted=encoding
                )
            else:
                yield _decode_codes(part, encoding, [array[rows] for array in taken], where)


def plan_slots(file: ModelFile, entries: Iterable[TensorEntry]) -> tuple[Slot, ...]:
    """Plan the arrays of a model as mlx-lm's modules need them.

    Raises:
        FormatError: A weight that the model file does not have, or an impossible shape.
    """
    parts: dict[tuple[str, str], list[TensorEntry]] = {}
    for entry in entries:
        kind = "bias" if entry.name.endswith(".bias") else "weight"
        parts.setdefault((file.module_of(entry.name), kind), []).append(entry)
    slots = [_slot(module, kind, tuple(held)) for (module, kind), held in parts.items()]
    return (*slots, *_zero_biases(file, slots))


def encode(tensor: ModelTensor, stored: StoredArray) -> NDArray[Any]:
    """Give the rows that an array holds of a tensor, in the form in which the file holds them.

    Raises:
        ExportError: A scale or bias is not exact in the type of the array, or a float is beyond
            its range.
    """
    part, dtype = part_of(tensor, stored), stored.info.dtype
    if stored.content is Content.CODES:
        return part.view("<u4")
    if isinstance(tensor, FloatTensor):
        return _narrow_finite(tensor, dtype)
    return _narrow_exactly(tensor, part, dtype)


def is_within(values: F32Array, dtype: DType) -> bool:
    """Say whether every finite value stays finite when it is rounded to ``dtype``."""
    return bool(
        all(
            np.isfinite(to_float32(narrow(values[part], dtype), dtype)).all()
            for part in row_blocks(values.shape)
        )
    )


def narrow(values: F32Array, dtype: DType) -> NDArray[Any]:
    """Round float32 to the bits of a smaller float type, ties to even; beyond it infinite."""
    if dtype is not DType.BF16:
        with np.errstate(over="ignore"):
            return values.astype(DTYPES[dtype].numpy, copy=False)
    bits: NDArray[Any] = np.empty(values.shape, "<u2")
    for part in row_blocks(values.shape):
        bits[part] = to_bf16(values[part])
    return bits


def _slot(module: str, kind: str, parts: tuple[TensorEntry, ...]) -> Slot:
    n_dims = 1 if kind == "bias" else len(parts[0].shape)
    encodings = [Encoding.parse(part.encoding) for part in parts]
    stored = {encoding if encoding.is_quantized else None for encoding in encodings}
    is_sound = n_dims in (1, 2) and all(
        len(part.shape) == n_dims
        and part.shape[1:] == parts[0].shape[1:]
        and (n_dims == 2 or not encoding.is_quantized)
        for part, encoding in zip(parts, encodings, strict=True)
    )
    if not is_sound:
        raise FormatError(
            f"{module}.{kind}: weights that do not form one matrix or vector",
            got=", ".join(f"{part.name} {part.shape} {part.encoding}" for part in parts),
        )
    if len(stored) > 1:
        raise ExportError(
            f"{module} holds {', '.join(part.name for part in parts)} in one encoding",
            got=", ".join(part.encoding for part in parts),
            do="Export with a scheme that gives them one encoding.",
        )
    n_rows = sum(part.shape[0] for part in parts)
    return Slot(module, kind, (n_rows, *parts[0].shape[1:]), parts)


def _zero_biases(file: ModelFile, slots: Sequence[Slot]) -> Iterator[Slot]:
    """Give the zero biases that attention_bias needs when the decoder has only some of them."""
    if file.attention_bias is not AttentionBias.ALL:
        return
    wanted = tuple(f".{file.modules[part]}" for part in _ATTENTION)
    attention = [slot for slot in slots if slot.module.endswith(wanted)]
    has_bias = {slot.module for slot in attention if slot.kind == "bias"}
    for slot in attention if has_bias else ():
        if slot.module not in has_bias:
            yield Slot(slot.module, "bias", slot.shape[:1], ())


def _narrow_finite(tensor: FloatTensor, dtype: DType) -> NDArray[Any]:
    """Give the values in the artifact's float type.

    Raises:
        ExportError: One of them would become infinite.
    """
    if not is_within(tensor.values, dtype):
        raise ExportError(
            f"{tensor.name} does not fit {dtype.value}, the float type of the MLX artifact",
            got=f"a value of {np.abs(tensor.values).max():g}, which would become infinite",
            wanted=f"at most {_LARGEST[dtype]:g}",
            do="Export with scheme fp32, or as ONNX, which keeps such values as they are.",
        )
    return narrow(tensor.values, dtype)


def _narrow_exactly(tensor: EncodedTensor, values: F32Array, dtype: DType) -> NDArray[Any]:
    """Give scales or biases in the artifact's float type.

    Raises:
        ExportError: One of them is not exact in it.
    """
    bits = narrow(values, dtype)
    if not all(
        np.array_equal(to_float32(bits[part], dtype), values[part])
        for part in row_blocks(values.shape)
    ):
        raise ExportError(
            f"{tensor.name}: a scale or a bias is not exact in {dtype.value}",
            wanted="eight significant bits, within its range",
            do="Export with scheme fp16 or another format.",
        )
    return bits


def _take(arrays: dict[str, Any], info: TensorInfo, where: str) -> NDArray[Any]:
    """Copy an mlx array to numpy: words stay words, every float type becomes float32."""
    array = arrays.pop(info.name, None)
    if array is None or tuple(array.shape) != info.shape:
        raise FormatError(
            f"{where}: array {info.name}",
            got="none" if array is None else tuple(array.shape),
            wanted=info.shape,
        )
    mx = require("mlx.core")
    return np.array(array if array.dtype == mx.uint32 else array.astype(mx.float32))


def _decode_codes(
    entry: TensorEntry, encoding: Encoding, arrays: Sequence[NDArray[Any]], where: str
) -> EncodedTensor:
    words, scales, biases = arrays
    if words.dtype != np.uint32:
        raise FormatError(f"{where}: {entry.name}: codes", got=words.dtype, wanted="uint32")
    zeros: U8Array | None = None
    if encoding.has_zero_points:
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = np.rint(-biases / scales)
        zeros = np.where((ratios >= 0) & (ratios < 2**encoding.bits), ratios, 0).astype(np.uint8)
    tensor = EncodedTensor(entry.name, encoding, words.view(np.uint8), scales, zeros)
    if not np.array_equal(biases, tensor.biases()):
        raise FormatError(
            f"{where}: {entry.name}: biases",
            wanted="the scales times the zero points, negative",
        )
    _check_with_mlx(tensor, arrays, where)
    return tensor


def _check_with_mlx(tensor: EncodedTensor, arrays: Sequence[NDArray[Any]], where: str) -> None:
    """Refuse codes that mlx's own ``dequantize`` turns into other weights than we do."""
    mx = require("mlx.core", package="mlx")
    for rows in row_blocks(tensor.shape):
        words, scales, biases = (mx.array(array[rows]) for array in arrays)
        theirs = mx.dequantize(words, scales, biases, tensor.encoding.block, tensor.encoding.bits)
        ours = tensor.rows(rows).dequantize()
        if not np.array_equal(np.array(theirs), ours):
            raise FormatError(
                f"{where}: {tensor.name}: mlx.core.dequantize", got="other weights than our reading"
            )
