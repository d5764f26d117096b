"""Reader of 8-bit integer codes that are stored unpacked, with their scales.

``X.weight`` holds int8 codes, ``X.weight_scale`` a scale for the tensor, for each row or for each
group of a row, ``X.weight_zero_point`` zero points of the same shape where codes are not symmetric,
and ``X.weight_g_idx`` the group of each input where inputs were moved:
``w = (code - zero point) * scale``. compressed-tensors (int-quantized, naive-quantized), torchao
and quanto use this layout; the names of the latter two are replaced by these first (method.py).

Source: https://github.com/vllm-project/compressed-tensors (compressors/naive_quantized),
https://github.com/pytorch/ao (quantize_/workflows: Int8Tensor, IntxUnpackedToInt8Tensor),
https://github.com/huggingface/optimum-quanto (tensor/weights/qbytes).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgekit.checkpoint.prequantized.tensor import (
    DecodedTensor,
    PrequantizedTensor,
    make_prequantized,
    read_order,
    take_part,
    whole_groups,
)
from edgekit.dtypes import DType, F32Array, U8Array
from edgekit.formats.floats import to_float32
from edgekit.formats.safetensors import SafetensorsTensor
from edgekit.tensors import LazyTensor, TensorInfo

_SCALE = "_scale"
_ZERO = "_zero_point"
_ORDER = "_g_idx"


@dataclass(frozen=True, slots=True, eq=False)
class _Bytes:
    """int8 codes with scales, and zero points where they are not all 0."""

    stored: SafetensorsTensor
    stored_scales: SafetensorsTensor
    stored_zeros: SafetensorsTensor | None

    def codes(self, start: int, stop: int) -> U8Array:
        # Flipping the sign bit moves zero to the middle.
        codes: U8Array = self.stored.raw_rows(start, stop).view(np.uint8) ^ np.uint8(128)
        return codes

    def scales(self, start: int, stop: int) -> F32Array:
        return _rows(self.stored_scales, start, stop)

    def biases(self, start: int, stop: int) -> F32Array | None:
        return None

    def zeros(self, start: int, stop: int) -> F32Array | None:
        if self.stored_zeros is None:
            return None
        return _rows(self.stored_zeros, start, stop) + np.float32(128)


def _rows(tensor: SafetensorsTensor, start: int, stop: int) -> F32Array:
    """Read the rows of scales or zero points that are some for each row, or one for all."""
    is_one = tensor.info.n_elements == 1
    stored = tensor.raw().reshape(1, 1) if is_one else tensor.raw_rows(start, stop)
    is_integer = tensor.info.dtype is DType.INT8
    values = stored.astype(np.float32) if is_integer else to_float32(stored, tensor.info.dtype)
    return np.broadcast_to(values.reshape(len(values), -1), (stop - start, values[:1].size))


def join_int8(
    tensors: Mapping[str, LazyTensor], origin: str, *, reads: bool
) -> tuple[dict[str, LazyTensor], set[str]]:
    """Join int8 codes and their scales.

    Args:
        tensors: Checkpoint tensors by their own names.
        origin: The source's format, for labels.
        reads: Whether the tensors can be read; if not, inputs count as in order.

    Returns:
        Weights by name, and the names of the tensors that they are made of.

    Raises:
        CheckpointError: Parts do not fit together.
    """
    stored = {n: t for n, t in tensors.items() if isinstance(t, SafetensorsTensor)}
    joined: dict[str, LazyTensor] = {}
    used: set[str] = set()
    for name, tensor in stored.items():
        is_codes = tensor.info.dtype is DType.INT8 and name.endswith(".weight")
        if is_codes and f"{name}{_SCALE}" in stored:
            joined[name] = _join(name, stored, origin, reads=reads)
            used |= {name, f"{name}{_SCALE}", f"{name}{_ZERO}", f"{name}{_ORDER}"}
    return joined, used


def _join(
    weight: str, tensors: Mapping[str, SafetensorsTensor], origin: str, *, reads: bool
) -> PrequantizedTensor | DecodedTensor:
    stored = take_part(tensors, weight, "I8", (None, None))
    n_rows, n_cols = stored.info.shape
    shape = tensors[f"{weight}{_SCALE}"].info.shape
    # One scale for all, for each row, or for each group of a row.
    n_groups = shape[1] if len(shape) == 2 else 1
    group = whole_groups(n_cols, n_groups)
    fits = shape in ((), (1,), (1, 1), (n_rows,), (n_rows, n_groups)) and group > 0
    scales = take_part(tensors, f"{weight}{_SCALE}", "floats", shape if fits else (n_rows, 1))
    zeros = None
    if f"{weight}{_ZERO}" in tensors:
        zeros = take_part(
            tensors, f"{weight}{_ZERO}", "I8 or F32 or F16 or BF16", scales.info.shape
        )
        if reads and not zeros.raw().any():
            zeros = None
    columns = None
    if reads and f"{weight}{_ORDER}" in tensors:
        columns = read_order(
            take_part(tensors, f"{weight}{_ORDER}", "I32 or I64", (n_cols,)), n_groups, group
        )
    reasons = ["inputs in another order (actorder)"] if columns is not None else []
    reasons += ["zero points of their own (asymmetric)"] if zeros is not None else []
    return make_prequantized(
        TensorInfo(weight, (n_rows, n_cols), scales.info.dtype),
        bits=8,
        group=group,
        origin=origin,
        rows=_Bytes(stored, scales, zeros),
        columns=columns,
        reason=", ".join(reasons),
    )
