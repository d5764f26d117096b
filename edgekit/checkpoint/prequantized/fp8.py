"""Answer one question: which weights do FP8 tensors and their scales stand for?

A weight ``X.weight`` of type E4M3 comes with ``X.weight_scale_inv``, which multiplies it despite
its name: one number for the whole tensor, or one for each block of rows and columns.

Source: the ``fp8`` quantization method of transformers 5 (finegrained FP8), and the published
Ministral 3, DeepSeek V3 and Qwen3 FP8 checkpoints' file layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from edgekit.checkpoint.config import RawConfig
from edgekit.dtypes import DType, F32Array
from edgekit.errors import CheckpointError
from edgekit.tensors import LazyTensor, TensorInfo

KEY: Final = "quantization_config"
_SCALE: Final = "_scale_inv"
# Scales of activations serve engines that compute in FP8, which none here does.
_ACTIVATION_SCALES: Final = (".activation_scale", ".input_scale")
# They say how an engine computes, or repeat what the tensors' own types say.
_IGNORED: Final = ("activation_scheme", "modules_to_not_convert", "ignored_layers", "dequantize")


@dataclass(frozen=True, slots=True)
class ScaledTensor:
    """FP8 values times their scales, a ``LazyTensor``.

    Attributes:
        stored: The E4M3 values, (N, M).
        scales: float32, (blocks of rows, blocks of columns); (1, 1) for one scale.
        block: Rows and columns of a block.
    """

    stored: LazyTensor
    scales: F32Array
    block: tuple[int, int]

    @property
    def info(self) -> TensorInfo:
        """Name, shape and stored type."""
        return self.stored.info

    def read(self) -> F32Array:
        """Read the whole tensor as float32, shape ``info.shape``."""
        return self.read_rows(0, self.info.shape[0])

    def read_rows(self, start: int, stop: int) -> F32Array:
        """Read rows ``start:stop`` of the first axis as float32."""
        values = self.stored.read_rows(start, stop)
        n_rows, n_cols = self.block
        rows = self.scales[np.arange(start, start + len(values)) // n_rows]
        values *= rows[:, np.arange(values.shape[1]) // n_cols]
        return values


def account_for_fp8(section: RawConfig) -> None:
    """Account for the keys of ``quantization_config`` with the method fp8."""
    section.expect("fmt", "e4m3", "e4m3")
    section.expect("scale_fmt", None, None)
    section.ignore([*_IGNORED, "weight_block_size"])


def join_scales(
    tensors: Mapping[str, LazyTensor], config: Mapping[str, object], *, reads: bool = True
) -> dict[str, LazyTensor]:
    """Put FP8 weights and their scales together; other tensors pass through.

    Args:
        tensors: Checkpoint tensors by their own names.
        config: config.json; a wrapper's section may lie in its ``text_config``.
        reads: Whether the tensors can be read; if not, the scales' values are not checked.

    Raises:
        CheckpointError: An FP8 weight has no scale, or one of another shape or value.
    """
    if not any(tensor.info.dtype is DType.FP8_E4M3 for tensor in tensors.values()):
        return dict(tensors)
    block = _block_size(config)
    joined: dict[str, LazyTensor] = {}
    used: set[str] = set()
    for name, tensor in tensors.items():
        if tensor.info.dtype is DType.FP8_E4M3:
            joined[name] = _scaled(name, tensor, tensors.get(name + _SCALE), block, reads)
            used.add(name + _SCALE)
    rest = {n: t for n, t in tensors.items() if n not in used and n not in joined}
    return joined | {n: t for n, t in rest.items() if not n.endswith(_ACTIVATION_SCALES)}


def _scaled(
    name: str,
    tensor: LazyTensor,
    scale: LazyTensor | None,
    block: tuple[int, int] | None,
    reads: bool,
) -> LazyTensor:
    shape = tensor.info.shape
    if scale is None or len(shape) != 2:
        raise CheckpointError(
            f"{name}: FP8 values",
            got="no scale" if scale is None else f"shape {list(shape)}",
            wanted=f"a matrix with {name}{_SCALE}",
            do="Download the model again.",
        )
    if scale.info.n_elements == 1:
        block = shape
    elif block is None or scale.info.shape != tuple(
        -(-size // step) for size, step in zip(shape, block, strict=True)
    ):
        raise CheckpointError(
            f"{name}{_SCALE}: shape",
            got=list(scale.info.shape),
            wanted="one scale, or one for each block of weight_block_size",
        )
    if not reads:
        return tensor
    scales = scale.read()
    if scales.size == 1:
        scales = scales.reshape(1, 1)
    if not (np.isfinite(scales).all() and (scales > 0).all()):
        raise CheckpointError(f"{name}{_SCALE}: scales", wanted="positive numbers")
    return ScaledTensor(tensor, scales, (max(1, block[0]), max(1, block[1])))


def _block_size(config: Mapping[str, object]) -> tuple[int, int] | None:
    inner = config.get("text_config")
    section = config.get(KEY) or (inner.get(KEY) if isinstance(inner, Mapping) else None)
    size = section.get("weight_block_size") if isinstance(section, Mapping) else None
    match size:
        case [int(rows), int(cols)] if rows > 0 and cols > 0:
            return rows, cols
        case None:
            return None
    raise CheckpointError(
        f"{KEY}.weight_block_size", got=str(size)[:40], wanted="two positive integers"
    )
