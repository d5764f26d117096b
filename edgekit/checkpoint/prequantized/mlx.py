"""Reader of folders quantized by MLX.

``X.weight`` holds the codes in uint32 words, low bits first along the input, one after the other.
In the mode ``affine``, ``X.scales`` and ``X.biases`` have one number for each group:
``w = code * scale + bias``. In the modes ``mxfp4``, ``mxfp8`` and ``nvfp4`` the codes are floats of
4 (E2M1) or 8 bits (E4M3), ``X.scales`` are bytes (exponents in the mx modes, E4M3 in nvfp4), and
nvfp4 may have an ``X.global_scale``.

A module is quantized if it has scales; the sizes of its tensors show its bits and its group.
config.json states them too, by name for single modules that differ.

Source: https://github.com/ml-explore/mlx-lm (utils.py, quantize_model and load_model),
https://github.com/ml-explore/mlx (mlx.core.quantize and dequantize).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from edgekit.checkpoint.config import RawConfig
from edgekit.checkpoint.prequantized.small_floats import e2m1_values, scale_groups
from edgekit.checkpoint.prequantized.tensor import (
    DOWNLOAD_AGAIN,
    DecodedTensor,
    PrequantizedTensor,
    make_prequantized,
    put_together,
    take_part,
    unpack_words,
    whole_groups,
)
from edgekit.dtypes import DType, F32Array, U8Array
from edgekit.errors import CheckpointError
from edgekit.formats.floats import to_float32
from edgekit.formats.safetensors import SafetensorsTensor
from edgekit.tensors import LazyTensor, TensorInfo

MLX_KEY: Final = "quantization"
ORIGIN: Final = "mlx"
_SCALES: Final = ".scales"
_AFFINE: Final = "affine"
# Mode -> bits, group, and the type of the bytes that are its scales.
_FLOAT_MODES: Final[Mapping[str, tuple[int, int, DType]]] = {
    "mxfp4": (4, 32, DType.FP8_E8M0),
    "mxfp8": (8, 32, DType.FP8_E8M0),
    "nvfp4": (4, 16, DType.FP8_E4M3),
}
# mlx.core stores the largest magnitude of the tensor: 448 (E4M3) times 6 (E2M1) stand for it.
_GLOBAL_SCALE_UNIT: Final = np.float32(448 * 6)
_TOP_MODULES: Final = ("lm_head", "embed_tokens")
# Keys that say who wrote the folder and how an engine computes.
_IGNORED: Final = ("quant_method", "linear_class", "quantize_activations")


@dataclass(frozen=True, slots=True)
class Packing:
    """Bits of a code, weights that share a scale, and what codes stand for."""

    bits: int
    group: int
    mode: str


@dataclass(frozen=True, slots=True)
class MlxSettings:
    """The packing of every module, and that of those which differ, by module name."""

    usual: Packing
    single: Mapping[str, Packing]

    def of(self, module: str) -> Packing:
        """Give the packing of one module."""
        return self.single.get(module, self.usual)


@dataclass(frozen=True, slots=True, eq=False)
class _Affine:
    """Packed rows, with scales and biases."""

    words: SafetensorsTensor
    stored_scales: SafetensorsTensor
    stored_biases: SafetensorsTensor
    bits: int

    def codes(self, start: int, stop: int) -> U8Array:
        return unpack_words(self.words.raw_rows(start, stop), self.bits)

    def scales(self, start: int, stop: int) -> F32Array:
        return self.stored_scales.read_rows(start, stop)

    def biases(self, start: int, stop: int) -> F32Array | None:
        return self.stored_biases.read_rows(start, stop)

    def zeros(self, start: int, stop: int) -> F32Array | None:
        return None


@dataclass(frozen=True, slots=True, eq=False)
class _Floats:
    """Packed small floats, with the bytes that scale them."""

    words: SafetensorsTensor
    stored_scales: SafetensorsTensor
    global_scale: SafetensorsTensor | None
    packing: Packing

    def read(self, start: int, stop: int) -> F32Array:
        stored = self.words.raw_rows(start, stop).view(np.uint8)
        four_bits = self.packing.bits == 4
        values = e2m1_values(stored) if four_bits else to_float32(stored, DType.FP8_E4M3)
        scale_type = _FLOAT_MODES[self.packing.mode][2]
        scales = to_float32(self.stored_scales.raw_rows(start, stop), scale_type)
        if self.global_scale is not None:
            scales *= self.global_scale.read().reshape(()) / _GLOBAL_SCALE_UNIT
        return scale_groups(values, scales, self.packing.group)


def read_settings(section: RawConfig) -> MlxSettings:
    """Account for the keys of ``quantization``; faults are reported to the section."""
    section.ignore(_IGNORED)
    usual = _read_packing(section, None)
    single: dict[str, Packing] = {}
    for module, value in section.items():
        if isinstance(value, bool) and ("." in module or module in _TOP_MODULES):
            section.ignore([module])
        elif isinstance(value, dict) and (inner := section.take_section(module)) is not None:
            single[module] = _read_packing(inner, usual)
    return MlxSettings(usual, single)


def _read_packing(section: RawConfig, usual: Packing | None) -> Packing:
    mode = section.take("mode", str, usual.mode if usual else _AFFINE)
    if mode in _FLOAT_MODES:
        bits, group, _ = _FLOAT_MODES[mode]
        section.expect("bits", bits, bits)
        section.expect("group_size", group, group)
        return Packing(bits, group, mode)
    if mode != _AFFINE:
        known = ", ".join((_AFFINE, *_FLOAT_MODES))
        section.report(f"mode is {mode[:40]!r} (edgekit reads {known})")
    if usual is not None and usual.mode != _AFFINE:
        usual = None
    bits = section.take_count("bits", usual.bits if usual else None, at_most=64)
    if bits > 8 or bits == 7:
        section.report(f"bits is {bits} (edgekit reads 1, 2, 3, 4, 5, 6 and 8)")
    group = section.take_count("group_size", usual.group if usual else None, at_most=1 << 31)
    return Packing(bits, group, _AFFINE)


def join_mlx(
    tensors: Mapping[str, SafetensorsTensor], settings: MlxSettings
) -> dict[str, LazyTensor]:
    """Join codes, scales and biases under the weight's name; other tensors pass through.

    Args:
        tensors: Checkpoint tensors by their own names.
        settings: What ``read_settings`` gave.

    Raises:
        CheckpointError: Parts are missing or do not fit together or the config.
    """
    joined: dict[str, LazyTensor] = {}
    used: set[str] = set()
    for name, tensor in tensors.items():
        module = name.removesuffix(_SCALES)
        if name.endswith(_SCALES):
            joined[f"{module}.weight"] = _join(module, tensors, settings.of(module))
            used |= {name, f"{module}.weight", f"{module}.biases", f"{module}.global_scale"}
        elif tensor.info.dtype is DType.UINT32:
            # Codes without scales are a fault that the join names.
            used.add(name)
            module = name.removesuffix(".weight")
            joined[name] = _join(module, tensors, settings.of(module))
    return put_together(tensors, joined, used)


def _join(
    module: str, tensors: Mapping[str, SafetensorsTensor], packing: Packing
) -> PrequantizedTensor | DecodedTensor:
    name = f"{module}.weight"
    words = take_part(tensors, name, "U32", (None, None))
    n_rows, n_words = words.info.shape
    is_affine = packing.mode == _AFFINE
    kind = "floats" if is_affine else "U8"
    scales = take_part(tensors, f"{module}{_SCALES}", kind, (n_rows, None))
    n_groups = scales.info.shape[1]
    biases = None
    if is_affine:
        biases = take_part(tensors, f"{module}.biases", "floats", (n_rows, n_groups))
    n_cols = 32 * n_words // packing.bits
    group = whole_groups(n_cols, n_groups)
    if group < 1 or group % 16 or 32 * n_words % packing.bits:
        raise CheckpointError(
            f"{name}: group size",
            got=f"{n_groups} scales for a row of {n_cols} weights",
            wanted=f"one for {packing.group} weights of {packing.bits} bits each",
            do=DOWNLOAD_AGAIN,
        )
    if group != packing.group:
        raise CheckpointError(
            f"{module}{_SCALES}: groups are not what {MLX_KEY} in config.json says",
            got=f"one scale for {group} weights",
            wanted=f"one for {packing.group}",
            do="Config and weights must come from the same model; download both again.",
        )
    info = TensorInfo(name, (n_rows, n_cols), scales.info.dtype if is_affine else DType.BF16)
    if biases is not None:
        rows = _Affine(words, scales, biases, packing.bits)
        return make_prequantized(info, bits=packing.bits, group=group, origin=ORIGIN, rows=rows)
    whole = None
    if f"{module}.global_scale" in tensors:
        whole = tensors[f"{module}.global_scale"]
        if whole.info.n_elements != 1:
            take_part(tensors, f"{module}.global_scale", "floats", (1,))
    floats = _Floats(words, scales, whole, packing)
    reason = f"{packing.bits}-bit floats"
    return DecodedTensor(info, f"{ORIGIN} {packing.mode}", reason, packing.bits, floats)
