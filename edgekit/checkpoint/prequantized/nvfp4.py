"""Reader of NVFP4 and MXFP4 weights, 4-bit floats as NVIDIA ModelOpt writes them.

``X.weight`` holds E2M1 floats, two to a byte along the input, low half first. NVFP4:
``X.weight_scale`` is E4M3, one for 16 weights, and ``X.weight_scale_2`` one number that multiplies
them. MXFP4: ``X.weight_scale`` are exponents (E8M0), one for 32 weights. ``X.pre_quant_scale``,
if there, multiplies the inputs, hence the columns of the weight. The tensors alone are enough.

Source: https://github.com/NVIDIA/Model-Optimizer (modelopt/torch/export/quant_utils,
modelopt/torch/quantization/qtensor/nvfp4_tensor).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from edgekit.checkpoint.config import RawConfig
from edgekit.checkpoint.prequantized.small_floats import e2m1_values, read_scales, scale_groups
from edgekit.checkpoint.prequantized.tensor import (
    DOWNLOAD_AGAIN,
    DecodedTensor,
    take_part,
    whole_groups,
)
from edgekit.dtypes import DType, F32Array
from edgekit.errors import CheckpointError
from edgekit.formats.safetensors import SafetensorsTensor
from edgekit.tensors import LazyTensor, TensorInfo

METHOD: Final = "modelopt"
_SECOND: Final = "_scale_2"
# Keys that repeat what the tensors show; quantized activations and caches are the engine's matter.
_IGNORED: Final = (
    "config_groups", "exclude_modules", "group_size", "ignore", "kv_cache_quant_algo",
    "kv_cache_scheme", "producer", "quantization", "quantized_layers", "quant_algo",
)  # fmt: skip
_ALGORITHMS: Final = (
    "FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "NVFP4", "W4A16_NVFP4", "MXFP4", "MXFP8",
    "MIXED_PRECISION",
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class _SmallFloats:
    packed: SafetensorsTensor
    stored_scales: SafetensorsTensor
    second: SafetensorsTensor | None
    columns: SafetensorsTensor | None
    group: int

    def read(self, start: int, stop: int) -> F32Array:
        values = e2m1_values(self.packed.raw_rows(start, stop))
        scales = read_scales(self.stored_scales, start, stop)
        if self.second is not None:
            scales = scales * self.second.read().reshape(())
        scale_groups(values, scales, self.group)
        if self.columns is not None:
            values *= self.columns.read()
        return values


def account_for_modelopt(section: RawConfig) -> None:
    """Account for the keys of ``quantization_config`` that ModelOpt writes."""
    inner = section.get("quantization")
    algorithm = (inner if isinstance(inner, Mapping) else section).get("quant_algo")
    if algorithm is not None and str(algorithm) not in _ALGORITHMS:
        section.report(f"quant_algo is {algorithm!r} (edgekit reads {', '.join(_ALGORITHMS)})")
    section.ignore(_IGNORED)


def join_nvfp4(tensors: Mapping[str, LazyTensor]) -> tuple[dict[str, LazyTensor], set[str]]:
    """Join 4-bit floats and their scales.

    Args:
        tensors: Checkpoint tensors by their own names.

    Returns:
        Weights by name, and the names of the tensors that they are made of.

    Raises:
        CheckpointError: Parts are missing or do not fit together.
    """
    stored = {n: t for n, t in tensors.items() if isinstance(t, SafetensorsTensor)}
    joined: dict[str, LazyTensor] = {}
    used: set[str] = set()
    for name, tensor in stored.items():
        if tensor.info.dtype is not DType.UINT8 or not name.endswith(".weight"):
            continue
        scale = stored.get(f"{name}_scale")
        if scale is None or scale.info.dtype not in (DType.FP8_E4M3, DType.UINT8, DType.FP8_E8M0):
            continue
        joined[name] = _join(name, stored)
        module = name.removesuffix(".weight")
        used |= {name, f"{name}_scale", f"{name}{_SECOND}", f"{module}.pre_quant_scale"}
    return joined, used


def _join(name: str, tensors: Mapping[str, SafetensorsTensor]) -> DecodedTensor:
    packed = take_part(tensors, name, "U8", (None, None))
    n_rows, n_cols = packed.info.shape[0], 2 * packed.info.shape[1]
    scales = take_part(tensors, f"{name}_scale", "F8_E4M3 or U8 or F8_E8M0", (n_rows, None))
    is_nvfp4 = scales.info.dtype is DType.FP8_E4M3
    group = whole_groups(n_cols, scales.info.shape[1])
    if group != (16 if is_nvfp4 else 32):
        raise CheckpointError(
            f"{name}: group size",
            got=f"{scales.info.shape[1]} scales for a row of {n_cols} weights",
            wanted="a scale for each 16 weights (nvfp4) or 32 (mxfp4)",
            do=DOWNLOAD_AGAIN,
        )
    second = None
    if is_nvfp4:
        second = tensors.get(f"{name}{_SECOND}")
        if second is None or second.info.n_elements != 1:
            second = take_part(tensors, f"{name}{_SECOND}", "floats", (1,))
    columns = None
    before = f"{name.removesuffix('.weight')}.pre_quant_scale"
    if before in tensors:
        columns = take_part(tensors, before, "floats", (n_cols,))
    kind = "nvfp4" if is_nvfp4 else "mxfp4"
    info = TensorInfo(name, (n_rows, n_cols), DType.BF16)
    rows = _SmallFloats(packed, scales, second, columns, group)
    return DecodedTensor(info, f"{METHOD} {kind}", "4-bit floats", 4, rows)
