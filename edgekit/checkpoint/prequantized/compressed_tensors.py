"""Reader of compressed-tensors checkpoints (llm-compressor).

Each group of modules in ``config_groups`` has its own scheme, and the tensors of a module tell
which layout it has:

- pack-quantized: ``X.weight_packed`` holds integer codes in int32 words along the input, low bits
  first, each shifted up by half its range; codes of 3, 5, 6 and 7 bits may be split over two words
  (older versions start each word with a new code). ``X.weight_shape`` is the shape before packing.
- int-quantized and naive-quantized: ``X.weight`` holds int8 codes (int8.py).
- float-quantized and mxfp8-quantized: ``X.weight`` is FP8 (fp8.py).
- nvfp4-pack-quantized, mxfp4-pack-quantized, mxfp6-pack-quantized: ``X.weight_packed`` holds
  bytes of E2M1 floats, two to a byte, or of E2M3 floats, four to three bytes.

``X.weight_scale`` has a scale for a tensor, a row, a group of a row or a block; ``X.weight_g_idx``
the group of each input, where inputs were moved; ``X.weight_zero_point`` the zero points, packed
along the output or as int8, where codes are not symmetric; ``X.weight_global_scale`` divides the
scales of nvfp4.

Source: https://github.com/vllm-project/compressed-tensors (compressors, quantization/quant_args,
quantization/lifecycle/forward).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from edgekit.checkpoint.config import RawConfig
from edgekit.checkpoint.prequantized.small_floats import (
    e2m1_values,
    e2m3_values,
    read_scales,
    scale_groups,
)
from edgekit.checkpoint.prequantized.tensor import (
    DOWNLOAD_AGAIN,
    DecodedTensor,
    PrequantizedTensor,
    make_prequantized,
    put_together,
    read_order,
    take_part,
    unpack_words,
    whole_groups,
)
from edgekit.dtypes import DType, F32Array, U8Array
from edgekit.errors import CheckpointError
from edgekit.formats.safetensors import SafetensorsTensor
from edgekit.tensors import LazyTensor, TensorInfo

METHOD: Final = "compressed-tensors"
_PACKED: Final = "_packed"
_PARTS: Final = (
    "_packed", "_scale", "_shape", "_zero_point", "_g_idx", "_global_scale",
)  # fmt: skip
_FORMATS: Final = (
    "pack-quantized", "int-quantized", "naive-quantized", "float-quantized",
    "nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp6-pack-quantized", "mxfp8-quantized",
    "mixed-precision", "dense", "fakequant",
)  # fmt: skip
_STRATEGIES: Final = ("tensor", "channel", "group", "block", "tensor_group")
# Keys that say how the codes were found, who wrote them, or repeat what the tensors say.
# Activations and the cache of keys and values are quantized while an engine runs.
_IGNORED: Final = (
    "global_compression_ratio", "ignore", "kv_cache_scheme", "quantization_status", "version",
)  # fmt: skip
_IGNORED_OF_GROUPS: Final = ("targets", "input_activations", "output_activations")
_IGNORED_OF_WEIGHTS: Final = (
    "actorder", "block_structure", "observer", "observer_kwargs", "scale_dtype", "zp_dtype",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scheme:
    """The scheme of a group of modules: bits, group (None: a row or more), is symmetric."""

    bits: int
    group: int | None
    is_float: bool
    is_symmetric: bool


@dataclass(frozen=True, slots=True)
class CompressedTensorsSettings:
    """The schemes of a checkpoint's groups of modules."""

    schemes: tuple[Scheme, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Packed:
    """Packed rows of integer codes, with their scales.

    ``pad_bits`` are unused at the top of each word.
    """

    packed: SafetensorsTensor
    stored_scales: SafetensorsTensor
    stored_zeros: SafetensorsTensor | None
    n_cols: int
    bits: int
    is_dense: bool

    def codes(self, start: int, stop: int) -> U8Array:
        words = self.packed.raw_rows(start, stop)
        if self.is_dense:
            return unpack_words(words, self.bits)[:, : self.n_cols]
        n_each = 32 // self.bits
        shifts = np.arange(n_each, dtype=np.uint32) * np.uint32(self.bits)
        spread = words.view(np.uint32)[:, :, None] >> shifts
        codes = (spread & np.uint32((1 << self.bits) - 1)).astype(np.uint8)
        return codes.reshape(len(words), -1)[:, : self.n_cols]

    def scales(self, start: int, stop: int) -> F32Array:
        return self.stored_scales.read_rows(start, stop)

    def biases(self, start: int, stop: int) -> F32Array | None:
        return None

    def zeros(self, start: int, stop: int) -> F32Array | None:
        tensor = self.stored_zeros
        if tensor is None:
            return None
        if tensor.info.dtype is DType.INT8:
            signed = tensor.raw_rows(start, stop).astype(np.float32)
            return signed + np.float32(1 << (self.bits - 1))
        # Packed along the output: 32 zero points fill a whole number of words.
        first, last = start // 32, -(-stop // 32)
        n_words = tensor.info.shape[0]
        words = tensor.raw_rows(first * self.bits, min(last * self.bits, n_words))
        zeros = unpack_words(words.T, self.bits)[:, start - 32 * first : stop - 32 * first]
        return zeros.T.astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class _SmallFloats:
    """E2M1 or E2M3 floats, with their scales."""

    packed: SafetensorsTensor
    stored_scales: SafetensorsTensor
    divisor: SafetensorsTensor | None
    group: int
    bits: int

    def read(self, start: int, stop: int) -> F32Array:
        packed = self.packed.raw_rows(start, stop)
        values = e2m1_values(packed) if self.bits == 4 else e2m3_values(packed)
        scales = read_scales(self.stored_scales, start, stop)
        if self.divisor is not None:
            scales = scales / self.divisor.read().reshape(())
        return scale_groups(values, scales, self.group)


def read_schemes(section: RawConfig) -> CompressedTensorsSettings:
    """Account for the keys of ``quantization_config``; faults are reported to the section."""
    section.ignore(_IGNORED)
    _take_format(section)
    # Both change the weights after unpacking; an empty or dense section changes nothing.
    if (section.take("sparsity_config", dict, None) or {}).get("format", "dense") != "dense":
        section.report("sparsity_config is set (edgekit supports none)")
    if section.take("transform_config", dict, None):
        section.report("transform_config is set (edgekit supports none)")
    groups = section.take_section("config_groups")
    if not groups:
        section.report("config_groups is missing or empty")
        return CompressedTensorsSettings(())
    sections = [group for key in groups if (group := groups.take_section(key))]
    schemes = [_read_group(group) for group in sections]
    return CompressedTensorsSettings(tuple(scheme for scheme in schemes if scheme is not None))


def _take_format(section: RawConfig) -> None:
    layout = section.take("format", str, _FORMATS[0])
    if layout not in _FORMATS:
        section.report(f"format is {layout[:40]!r} (edgekit reads {', '.join(_FORMATS)})")


def _read_group(group: RawConfig) -> Scheme | None:
    # Which modules a group means shows in which tensors are packed.
    group.ignore(_IGNORED_OF_GROUPS)
    _take_format(group)
    weights = group.take_section("weights")
    if weights is None:
        if group.get("input_activations") is None and group.get("output_activations") is None:
            group.report("weights is missing")
        return None
    weights.ignore(_IGNORED_OF_WEIGHTS)
    weights.expect("dynamic", False, False)
    kind = weights.take("type", str, "int")
    if kind not in ("int", "float"):
        weights.report(f"type is {kind[:40]!r} (edgekit reads 'int' and 'float')")
    is_symmetric = weights.take("symmetric", bool, True)
    bits = weights.take_count("num_bits", 8, at_most=64)
    if bits > 8 or (kind == "float" and bits not in (4, 6, 8)):
        weights.report(f"num_bits is {bits} (edgekit reads 1 to 8, and floats of 4, 6 and 8)")
    strategy = weights.take("strategy", str, None)
    group_size = weights.take("group_size", int, None)
    if strategy is None:
        strategy = "tensor" if group_size is None else "channel" if group_size == -1 else "group"
    if strategy not in _STRATEGIES:
        weights.report(
            f"strategy is {strategy[:40]!r} (edgekit reads {', '.join(map(repr, _STRATEGIES))})"
        )
    if strategy not in ("group", "tensor_group"):
        return Scheme(bits, None, kind == "float", is_symmetric)
    if group_size is None or group_size < 1:
        what = "missing" if group_size is None else f"{group_size} (wanted a positive number)"
        weights.report(f"group_size is {what}")
    return Scheme(bits, group_size, kind == "float", is_symmetric)


def join_packed(
    tensors: Mapping[str, SafetensorsTensor], settings: CompressedTensorsSettings, *, reads: bool
) -> dict[str, LazyTensor]:
    """Join codes and scales under the weight's name; other tensors pass through.

    Args:
        tensors: Checkpoint tensors by their own names.
        settings: What ``read_schemes`` gave.
        reads: Whether the tensors can be read; if not, shapes come from the packed parts, and
            inputs count as in order.

    Raises:
        CheckpointError: Parts are missing or do not fit together or the config.
    """
    joined: dict[str, LazyTensor] = {}
    used: set[str] = set()
    for name, tensor in tensors.items():
        weight = name.removesuffix(_PACKED)
        if name.endswith(f".weight{_PACKED}"):
            has_floats = any(scheme.is_float for scheme in settings.schemes)
            is_float = tensor.info.dtype is DType.UINT8 and has_floats
            join = _join_floats if is_float else _join_codes
            joined[weight] = join(weight, tensors, settings, reads=reads)
            used |= {f"{weight}{part}" for part in _PARTS}
    return put_together(tensors, joined, used)


def _join_codes(
    weight: str,
    tensors: Mapping[str, SafetensorsTensor],
    settings: CompressedTensorsSettings,
    *,
    reads: bool,
) -> PrequantizedTensor | DecodedTensor:
    packed = take_part(tensors, f"{weight}{_PACKED}", "I32", (None, None))
    n_rows, n_words = packed.info.shape
    scales = take_part(tensors, f"{weight}_scale", "floats", (n_rows, None))
    n_groups = scales.info.shape[1]
    schemes = [scheme for scheme in settings.schemes if not scheme.is_float]
    n_rows_said, n_cols = n_rows, _guess_inputs(n_words, n_groups, schemes)
    if reads:
        n_rows_said, n_cols = _read_shape(f"{weight}_shape", tensors)
    if n_rows_said != n_rows:
        raise CheckpointError(
            f"{weight}_shape",
            got=[n_rows_said, n_cols],
            wanted=f"{n_rows} rows as in {weight}{_PACKED}",
        )
    bits, is_dense = _find_bits(weight, n_cols, n_words, schemes)
    group = whole_groups(n_cols, n_groups)
    if group < 1:
        raise CheckpointError(
            f"{weight}: group size",
            got=f"{n_groups} scales for a row of {n_cols} weights",
            wanted="as many weights for each scale",
            do=DOWNLOAD_AGAIN,
        )
    fitting = [s for s in schemes if s.bits == bits and group == (s.group or n_cols)]
    if not fitting:
        said = sorted({(s.bits, s.group) for s in schemes}, key=str)
        raise CheckpointError(
            f"{weight}: codes are not what quantization_config says",
            got=f"{bits} bits, group {group}",
            wanted=" or ".join(f"{b} bits, group {g or 'of a row'}" for b, g in said) or "floats",
            do="Config and weights must come from the same model; download both again.",
        )
    zeros = _take_zeros(weight, tensors, fitting, (n_rows, n_groups), bits, reads=reads)
    columns = None
    if reads and f"{weight}_g_idx" in tensors:
        index = take_part(tensors, f"{weight}_g_idx", "I32 or I64", (n_cols,))
        columns = read_order(index, n_groups, group)
    reasons = ["inputs in another order (actorder)"] if columns is not None else []
    reasons += ["zero points of their own (asymmetric)"] if zeros is not None else []
    return make_prequantized(
        TensorInfo(weight, (n_rows, n_cols), scales.info.dtype),
        bits=bits,
        group=group,
        origin=METHOD,
        rows=_Packed(packed, scales, zeros, n_cols, bits, is_dense),
        columns=columns,
        reason=", ".join(reasons),
    )


def _guess_inputs(n_words: int, n_groups: int, schemes: list[Scheme]) -> int:
    """Derive M from the sizes of the parts, if the tensor that states it was not downloaded."""
    for scheme in schemes:
        n_cols = n_groups * scheme.group if scheme.group else 32 * n_words // scheme.bits
        if n_words in (-(-n_cols * scheme.bits // 32), -(-n_cols // (32 // scheme.bits))):
            return n_cols
    return 8 * n_words


def _read_shape(name: str, tensors: Mapping[str, SafetensorsTensor]) -> tuple[int, int]:
    n_rows, n_cols = np.asarray(take_part(tensors, name, "I32 or I64", (2,)).raw()).tolist()
    if n_rows < 1 or n_cols < 1:
        raise CheckpointError(name, got=[n_rows, n_cols], wanted="two positive integers")
    return n_rows, n_cols


def _find_bits(weight: str, n_cols: int, n_words: int, schemes: list[Scheme]) -> tuple[int, bool]:
    """Give the bits of a code that fill ``n_words`` words, and whether they run on across words."""
    for bits in sorted({scheme.bits for scheme in schemes} | {4, 8}):
        if n_words == -(-n_cols * bits // 32):
            return bits, True
        if n_words == -(-n_cols // (32 // bits)):
            return bits, False
    raise CheckpointError(
        f"{weight}: packed codes",
        got=f"{n_words} words of 32 bits for a row of {n_cols} weights",
        wanted=" or ".join(f"{bits} bits" for bits in sorted({s.bits for s in schemes}))
        + " for each weight",
        do=DOWNLOAD_AGAIN,
    )


def _take_zeros(
    weight: str,
    tensors: Mapping[str, SafetensorsTensor],
    schemes: list[Scheme],
    shape: tuple[int, int],
    bits: int,
    *,
    reads: bool,
) -> SafetensorsTensor | None:
    """Find the zero points, if codes have any that are not in the middle."""
    name = f"{weight}_zero_point"
    if name not in tensors:
        if not any(scheme.is_symmetric for scheme in schemes):
            take_part(tensors, name, "I32", (-(-shape[0] * bits // 32), shape[1]))
        return None
    if tensors[name].info.dtype is DType.INT32:
        tensor = take_part(tensors, name, "I32", (-(-shape[0] * bits // 32), shape[1]))
    else:
        tensor = take_part(tensors, name, "I8", shape)
        if reads and not tensor.raw().any():
            return None
    if all(scheme.is_symmetric for scheme in schemes):
        raise CheckpointError(
            f"{name}: zero points that quantization_config in config.json does not have",
            got="symmetric is true",
            wanted="symmetric is false",
            do="Config and weights must come from the same model; download both again.",
        )
    return tensor


def _join_floats(
    weight: str,
    tensors: Mapping[str, SafetensorsTensor],
    settings: CompressedTensorsSettings,
    *,
    reads: bool,
) -> DecodedTensor:
    packed = take_part(tensors, f"{weight}{_PACKED}", "U8", (None, None))
    n_rows, n_bytes = packed.info.shape
    scales = take_part(tensors, f"{weight}_scale", "F8_E4M3 or U8 or F8_E8M0", (n_rows, None))
    bits = 6 if n_bytes == 24 * scales.info.shape[1] else 4
    n_cols = 8 * n_bytes // bits
    group = whole_groups(n_cols, scales.info.shape[1])
    if group not in (16, 32):
        raise CheckpointError(
            f"{weight}: group size",
            got=f"{scales.info.shape[1]} scales for a row of {n_cols} weights",
            wanted="a scale for each 16 weights (nvfp4) or 32 (mxfp4, mxfp6)",
            do=DOWNLOAD_AGAIN,
        )
    divisor = None
    if scales.info.dtype is DType.FP8_E4M3:
        divisor = tensors.get(f"{weight}_global_scale")
        if divisor is None or divisor.info.n_elements != 1:
            divisor = take_part(tensors, f"{weight}_global_scale", "floats", (1,))
    kind = f"mxfp{bits}" if divisor is None else "nvfp4"
    return DecodedTensor(
        TensorInfo(weight, (n_rows, n_cols), DType.BF16),
        f"{METHOD} {kind}",
        f"{bits}-bit floats",
        bits,
        _SmallFloats(packed, scales, divisor, group, bits),
    )
