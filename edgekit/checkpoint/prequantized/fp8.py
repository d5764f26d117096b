"""Reader of FP8 weights: 8-bit floats, and the scales that multiply them.

A weight ``X.weight`` of type E4M3 or E5M2 has scales in ``X.weight_scale_inv`` (which multiplies,
in spite of its name) or ``X.weight_scale``: one number for the tensor, for each row, for each group
of a row, or for each block of rows and columns. Numbers of one byte are exponents (E8M0). The
tensors alone are enough, so it is read whether or not config.json has a quantization_config.

Source: the fp8 and fbgemm_fp8 methods of transformers 5 (integrations/finegrained_fp8 and
fbgemm_fp8), compressed-tensors' float-quantized and mxfp8-quantized, NVIDIA ModelOpt's FP8, and
the file layout of published checkpoints (DeepSeek V3, Qwen3, Ministral 3, Llama 3.1 405B).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from edgekit.checkpoint.config import RawConfig
from edgekit.checkpoint.prequantized.small_floats import scale_groups
from edgekit.checkpoint.prequantized.tensor import DecodedTensor
from edgekit.dtypes import DType, F32Array
from edgekit.errors import CheckpointError
from edgekit.formats.floats import to_float32
from edgekit.formats.safetensors import SafetensorsTensor
from edgekit.tensors import LazyTensor, TensorInfo

METHODS: Final = ("fp8", "fbgemm_fp8", "mxfp8")
_TYPES: Final = {DType.FP8_E4M3: "e4m3", DType.FP8_E5M2: "e5m2"}
_SCALES: Final = ("_scale_inv", "_scale")
_USUAL_BLOCK: Final = 128
# Keys that say how an engine computes, or repeat what the tensors' own types say.
_IGNORED: Final = (
    "activation_scale_ub", "activation_scheme", "dequantize", "expert_dtype", "ignored_layers",
    "kv_cache_scheme", "modules_to_convert", "modules_to_not_convert", "scale_fmt",
    "weight_per_tensor", "act_per_tensor",
)  # fmt: skip
_FORMATS: Final = ("e4m3", "e5m2", "float8_e4m3fn", "float8_e5m2")


@dataclass(frozen=True, slots=True, eq=False)
class _Scaled:
    """FP8 values and their scales.

    Attributes:
        stored: The values, (N, M).
        scales: float32, (blocks of rows, blocks of columns); (1, 1) for one scale.
        block: Rows and columns of a block; the last ones may be cut.
    """

    stored: SafetensorsTensor
    scales: F32Array
    block: tuple[int, int]

    def read(self, start: int, stop: int) -> F32Array:
        values = self.stored.read_rows(start, stop)
        n_rows, n_cols = self.block
        # Rows of one block share their scales, so they are scaled together.
        for first in range(start - start % n_rows, stop, n_rows):
            part = values[max(first - start, 0) : first + n_rows - start]
            row = first // n_rows
            scale_groups(part, self.scales[row : row + 1], n_cols)
        return values


@dataclass(frozen=True, slots=True, eq=False)
class _RowScaled:
    """FP8 values with scales in each row: (N, groups of a row), or (N,)."""

    stored: SafetensorsTensor
    scales: LazyTensor
    group: int

    def read(self, start: int, stop: int) -> F32Array:
        values = self.stored.read_rows(start, stop)
        scales = _read_scales(self.scales, start, stop).reshape(len(values), -1)
        return scale_groups(values, scales, self.group)


def account_for_fp8(section: RawConfig) -> None:
    """Account for the keys of ``quantization_config`` of fp8 and fbgemm_fp8."""
    layout = section.take("fmt", str, _FORMATS[0])
    if layout not in _FORMATS:
        section.report(f"fmt is {layout[:40]!r} (edgekit reads {', '.join(_FORMATS)})")
    section.ignore([*_IGNORED, "weight_block_size"])


def join_fp8(
    tensors: Mapping[str, LazyTensor], section: Mapping[str, Any] | None, *, reads: bool
) -> tuple[dict[str, LazyTensor], set[str]]:
    """Join FP8 weights and their scales.

    Args:
        tensors: Checkpoint tensors by their own names.
        section: quantization_config, if there is one; it may say the size of a block.
        reads: Whether the tensors can be read; if not, the scales' values are not checked.

    Returns:
        Weights by name, and the names of the tensors that they are made of.

    Raises:
        CheckpointError: An FP8 weight has no scale, or one of another shape or value.
    """
    block = _block_size(section or {})
    joined: dict[str, LazyTensor] = {}
    used: set[str] = set()
    for name, tensor in tensors.items():
        if tensor.info.dtype not in _TYPES or not isinstance(tensor, SafetensorsTensor):
            continue
        if name.endswith(_SCALES) or len(tensor.info.shape) < 2:
            continue
        scale = next((f"{name}{end}" for end in _SCALES if f"{name}{end}" in tensors), None)
        if scale is None or len(tensor.info.shape) != 2:
            raise CheckpointError(
                f"{name}: FP8 values",
                got=f"no scale; other tensors of this module: {_beside(name, tensors)}"
                if scale is None
                else f"shape {list(tensor.info.shape)}",
                wanted=f"a matrix with {' or '.join(name + end for end in _SCALES)}",
                do="Use a checkpoint that has the scales, or the model before quantization.",
            )
        joined[name] = _scaled(name, tensor, tensors[scale], block, reads=reads)
        used |= {name, scale}
    return joined, used


def _beside(name: str, tensors: Mapping[str, LazyTensor]) -> str:
    module = name.rpartition(".")[0]
    found = [other for other in tensors if other.startswith(f"{module}.") and other != name]
    return ", ".join(found[:6]) or "none"


def _scaled(
    name: str,
    tensor: SafetensorsTensor,
    scale: LazyTensor,
    block: tuple[int, int] | None,
    *,
    reads: bool,
) -> LazyTensor:
    (n_rows, n_cols), found = tensor.info.shape, scale.info.shape
    kind = f"fp8 {_TYPES[tensor.info.dtype]}"
    if scale.info.n_elements == 1:
        sizes, label, each = (max(1, n_rows), max(1, n_cols)), kind, "tensor"
    elif found in ((n_rows,), (n_rows, 1)):
        sizes, label, each = (1, max(1, n_cols)), f"{kind} by row", "row"
    else:
        sizes = _fit_block((n_rows, n_cols), found, block, scale.info.name)
        label, each = f"{kind} by block {sizes[0]}x{sizes[1]}", "block"
    is_by_row = each != "tensor" and sizes[0] == 1
    scales = np.ones((1, 1), np.float32)
    if reads:
        scales = _read_scales(scale).reshape(-1, found[1] if len(found) == 2 else 1)
        if not (np.isfinite(scales).all() and (scales >= 0).all()):
            raise CheckpointError(
                f"{scale.info.name}: scales", wanted="finite numbers, none of them negative"
            )
    # Scales of rows may be an eighth of the weights: they are read with them.
    rows = _RowScaled(tensor, scale, sizes[1]) if is_by_row else _Scaled(tensor, scales, sizes)
    info = TensorInfo(name, (n_rows, n_cols), tensor.info.dtype)
    reason = f"8-bit floats times the {scale.info.name.rpartition('.')[2]} of their {each}"
    return DecodedTensor(info, label, reason, 8, rows)


def _read_scales(scale: LazyTensor, start: int = 0, stop: int | None = None) -> F32Array:
    """Read scales, all or those of rows ``start:stop``; bytes are exponents."""
    if scale.info.dtype is DType.UINT8 and isinstance(scale, SafetensorsTensor):
        stored = scale.raw() if stop is None else scale.raw_rows(start, stop)
        return to_float32(stored, DType.FP8_E8M0)
    return scale.read() if stop is None else scale.read_rows(start, stop)


def _fit_block(
    shape: tuple[int, ...],
    found: tuple[int, ...],
    said: tuple[int, int] | None,
    name: str,
) -> tuple[int, int]:
    """Give rows and columns of a block, from the config or else from the sizes."""
    if len(found) == 2 and all(found):
        guessed = [_guess(size, n) for size, n in zip(shape, found, strict=True)]
        for rows, cols in (said or (0, 0), (guessed[0], guessed[1])):
            if rows and cols and found == (-(-shape[0] // rows), -(-shape[1] // cols)):
                return rows, cols
    raise CheckpointError(
        f"{name}: shape",
        got=list(found),
        wanted="one scale, one for each row, or one for each block of "
        + (f"{said[0]}x{said[1]} weights (weight_block_size)" if said else "weights"),
    )


def _guess(size: int, n_blocks: int) -> int:
    """Give the usual size of a block if as many fit, else the one that divides; 0 if none."""
    if -(-size // _USUAL_BLOCK) == n_blocks and n_blocks > 1:
        return _USUAL_BLOCK
    return size // n_blocks if size % n_blocks == 0 else 0


def _block_size(section: Mapping[str, Any]) -> tuple[int, int] | None:
    """Read ``weight_block_size``, or ``block_structure`` of compressed-tensors."""
    size = section.get("weight_block_size")
    groups = section.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        size = size or (weights.get("block_structure") if isinstance(weights, Mapping) else None)
    match size:
        case [int(rows), int(cols)] if rows > 0 and cols > 0:
            return rows, cols
        case None:
            return None
    raise CheckpointError(
        "quantization_config.weight_block_size",
        got=str(size)[:40],
        wanted="two positive integers",
    )
