"""Answer one question: which codes does a folder quantized by MLX hold?

``X.weight`` holds the codes in uint32 words, low bits first along the input; ``X.scales`` and
``X.biases`` have one number for each group: ``w = code * scale + bias``. Whether a module is
quantized shows in its having scales; config.json says the bits and the group, for single modules
by name where they differ.

Source: https://github.com/ml-explore/mlx-lm (utils.py, quantize_model and load_model),
https://github.com/ml-explore/mlx (mlx.core.quantize).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from edgekit.checkpoint.config import RawConfig
from edgekit.checkpoint.prequantized.tensor import (
    PrequantizedTensor,
    make_prequantized,
    take_part,
    unpack_words,
)
from edgekit.dtypes import Bits, DType, F32Array, U8Array
from edgekit.errors import CheckpointError
from edgekit.formats.safetensors import SafetensorsTensor
from edgekit.tensors import LazyTensor

MLX_KEY: Final = "quantization"
ORIGIN: Final = "mlx"
_SCALES: Final = ".scales"


@dataclass(frozen=True, slots=True)
class Packing:
    """Bits of a code, and weights that share a scale."""

    bits: int
    group: int


@dataclass(frozen=True, slots=True)
class Settings:
    """The packing of every module, and that of those which differ, by module name."""

    usual: Packing
    single: Mapping[str, Packing]

    def of(self, module: str) -> Packing:
        """Give the packing of one module."""
        return self.single.get(module, self.usual)


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Packed rows beside scales and biases."""

    words: SafetensorsTensor
    stored_scales: SafetensorsTensor
    stored_biases: SafetensorsTensor
    bits: Bits

    def codes(self, start: int, stop: int) -> U8Array:
        return unpack_words(self.words.raw_rows(start, stop), self.bits)

    def scales(self, start: int, stop: int) -> F32Array:
        return self.stored_scales.read_rows(start, stop)

    def biases(self, start: int, stop: int) -> F32Array | None:
        return self.stored_biases.read_rows(start, stop)


def read_settings(section: RawConfig) -> Settings:
    """Account for the keys of ``quantization``; faults are reported to the section."""
    usual = _read_packing(section, None)
    single: dict[str, Packing] = {}
    for module, value in section.items():
        if isinstance(value, bool) and "." in module:
            section.ignore([module])
        elif isinstance(value, dict) and (inner := section.take_section(module)) is not None:
            single[module] = _read_packing(inner, usual)
    return Settings(usual, single)


def _read_packing(section: RawConfig, usual: Packing | None) -> Packing:
    bits = section.take_count("bits", usual.bits if usual else None, at_most=64)
    if bits not in (4, 8):
        section.report(f"bits is {bits} (edgekit supports 4 and 8)")
    section.expect("mode", "affine", "affine")
    group = section.take_count("group_size", usual.group if usual else None, at_most=1 << 31)
    return Packing(bits, group)


def join_affine(
    tensors: Mapping[str, SafetensorsTensor], settings: Settings
) -> dict[str, LazyTensor]:
    """Put codes, scales and biases together under the weight's name; others pass through.

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
            used |= {name, f"{module}.biases"}
        elif tensor.info.dtype is DType.UINT32:
            # Codes without scales are a fault that the join names.
            used.add(name)
            module = name.removesuffix(".weight")
            joined[name] = _join(module, tensors, settings.of(module))
    return {name: tensor for name, tensor in tensors.items() if name not in used} | joined


def _join(
    module: str, tensors: Mapping[str, SafetensorsTensor], packing: Packing
) -> PrequantizedTensor:
    words = take_part(tensors, f"{module}.weight", "U32", (None, None))
    n_rows, n_words = words.info.shape
    scales = take_part(tensors, f"{module}{_SCALES}", "floats", (n_rows, None))
    n_groups = scales.info.shape[1]
    biases = take_part(tensors, f"{module}.biases", "floats", (n_rows, n_groups))
    bits: Bits = 4 if packing.bits == 4 else 8
    weight = make_prequantized(
        f"{module}.weight",
        (n_rows, n_words * 32 // bits),
        n_words=n_words,
        n_groups=n_groups,
        dtype=scales.info.dtype,
        origin=ORIGIN,
        rows=_Rows(words, scales, biases, bits),
    )
    if weight.source_group != packing.group:
        raise CheckpointError(
            f"{module}{_SCALES}: groups are not what {MLX_KEY} in config.json says",
            got=f"one scale for {weight.source_group} weights",
            wanted=f"one for {packing.group}",
            do="Config and weights must come from the same model; download both again.",
        )
    return weight
