"""Answer one question: which codes does a ``compressed-tensors`` checkpoint hold?

The layout ``pack-quantized``: ``X.weight_packed`` holds the codes of ``X.weight`` in int32 words,
low bits first along the input, each code moved up by half its range; ``X.weight_scale`` has one
scale for each group of a row (or for the row), and ``X.weight_shape`` the shape before packing.

Source: https://github.com/vllm-project/compressed-tensors, compressors/pack_quantized and
quantization/quant_args (layout and keys).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np

from edgekit.checkpoint.config import RawConfig
from edgekit.checkpoint.prequantized.tensor import (
    PrequantizedTensor,
    make_prequantized,
    take_part,
    unpack_words,
)
from edgekit.dtypes import Bits, F32Array, U8Array
from edgekit.errors import CheckpointError
from edgekit.formats.safetensors import SafetensorsTensor
from edgekit.tensors import LazyTensor

METHOD: Final = "compressed-tensors"
_LAYOUT: Final = "pack-quantized"
_PACKED: Final = "_packed"
# They say how the codes were found or who wrote them, or repeat what the tensors say.
_IGNORED: Final = ("ignore", "global_compression_ratio", "quantization_status", "version")
_IGNORED_OF_WEIGHTS: Final = ("observer", "observer_kwargs", "scale_dtype", "zp_dtype")
# Orders that leave the weights where they are; others would need the columns moved.
_ORDERS: Final = (None, "weight", "static")
Grids: TypeAlias = frozenset[tuple[int, int | None]]


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Packed rows beside their scales."""

    packed: SafetensorsTensor
    stored_scales: SafetensorsTensor
    bits: Bits

    def codes(self, start: int, stop: int) -> U8Array:
        return unpack_words(self.packed.raw_rows(start, stop), self.bits)

    def scales(self, start: int, stop: int) -> F32Array:
        return self.stored_scales.read_rows(start, stop)

    def biases(self, start: int, stop: int) -> F32Array | None:
        return None


def read_grids(section: RawConfig) -> Grids:
    """Account for the keys of ``quantization_config``; give (bits, group) of its weights.

    A group of None is a whole row. Faults are reported to the section.
    """
    section.ignore(_IGNORED)
    section.expect("format", _LAYOUT, _LAYOUT)
    section.expect("kv_cache_scheme", None, None)
    # Both would change the weights after unpacking; empty or dense ones change nothing.
    if (section.take("sparsity_config", dict, None) or {}).get("format", "dense") != "dense":
        section.report("sparsity_config is set (edgekit supports none)")
    if section.take("transform_config", dict, None):
        section.report("transform_config is set (edgekit supports none)")
    groups = section.take_section("config_groups")
    if not groups:
        section.report("config_groups is missing or empty")
        return frozenset()
    found = [_read_group(group) for key in groups if (group := groups.take_section(key))]
    return frozenset(grid for grid in found if grid is not None)


def _read_group(group: RawConfig) -> tuple[int, int | None] | None:
    # Which modules a group means shows in which tensors are packed.
    group.ignore(["targets"])
    group.expect("input_activations", None, None)
    group.expect("output_activations", None, None)
    if group.get("format") is not None:
        group.expect("format", _LAYOUT, _LAYOUT)
    group.ignore(["format"])
    weights = group.take_section("weights")
    if weights is None:
        group.report("weights is missing")
        return None
    weights.ignore(_IGNORED_OF_WEIGHTS)
    weights.expect("type", "int", "int")
    weights.expect("symmetric", True, True)
    weights.expect("block_structure", None, None)
    weights.expect("dynamic", False, False)
    order = weights.take("actorder", str, None)
    if order not in _ORDERS:
        weights.report(f"actorder is {order!r} (edgekit supports null, 'weight' and 'static')")
    bits = weights.take_count("num_bits", at_most=64)
    if bits not in (4, 8):
        weights.report(f"num_bits is {bits} (edgekit supports 4 and 8)")
    strategy = weights.take("strategy", str, "group")
    if strategy == "channel":
        weights.ignore(["group_size"])
        return bits, None
    if strategy != "group":
        weights.report(f"strategy is {strategy[:40]!r} (edgekit supports 'group' and 'channel')")
    return bits, weights.take_count("group_size", at_most=1 << 31)


def join_packed(tensors: Mapping[str, SafetensorsTensor], grids: Grids) -> dict[str, LazyTensor]:
    """Put codes and scales together under the weight's name; other tensors pass through.

    Args:
        tensors: Checkpoint tensors by their own names.
        grids: What ``read_grids`` gave.

    Raises:
        CheckpointError: Parts are missing or do not fit together or the config.
    """
    joined: dict[str, LazyTensor] = {}
    used: set[str] = set()
    for name in tensors:
        if name.endswith(f".weight{_PACKED}"):
            weight = name.removesuffix(_PACKED)
            joined[weight] = _join(weight, tensors, grids)
            used |= {name, f"{weight}_scale", f"{weight}_shape"}
    _refuse_twice(joined, tensors)
    return {name: tensor for name, tensor in tensors.items() if name not in used} | joined


def _join(
    weight: str, tensors: Mapping[str, SafetensorsTensor], grids: Grids
) -> PrequantizedTensor:
    packed = take_part(tensors, f"{weight}{_PACKED}", "I32", (None, None))
    n_rows, n_words = packed.info.shape
    scales = take_part(tensors, f"{weight}_scale", "floats", (n_rows, None))
    shape = _read_shape(f"{weight}_shape", tensors)
    if shape[0] != n_rows:
        raise CheckpointError(
            f"{weight}_shape", got=list(shape), wanted=f"{n_rows} rows as in {weight}{_PACKED}"
        )
    bits: Bits = 4 if 8 * n_words == shape[1] else 8
    joined = make_prequantized(
        weight,
        shape,
        n_words=n_words,
        n_groups=scales.info.shape[1],
        dtype=scales.info.dtype,
        origin=METHOD,
        rows=_Rows(packed, scales, bits),
    )
    is_row = joined.source_group == shape[1]
    if (bits, joined.source_group) not in grids and not (is_row and (bits, None) in grids):
        raise CheckpointError(
            f"{weight}: codes are not what quantization_config says",
            got=f"{bits} bits, group {joined.source_group}",
            wanted=" or ".join(
                f"{b} bits, group {g or 'of a row'}" for b, g in sorted(grids, key=str)
            ),
            do="Config and weights must come from the same model; download both again.",
        )
    return joined


def _read_shape(name: str, tensors: Mapping[str, SafetensorsTensor]) -> tuple[int, int]:
    tensor = tensors.get(name)
    kinds = "I32" if tensor is not None and tensor.info.dtype.value == "int32" else "I64"
    n_rows, n_cols = np.asarray(take_part(tensors, name, kinds, (2,)).raw()).tolist()
    if n_rows < 1 or n_cols < 1:
        raise CheckpointError(name, got=[n_rows, n_cols], wanted="two positive integers")
    return n_rows, n_cols


def _refuse_twice(joined: Mapping[str, LazyTensor], tensors: Mapping[str, LazyTensor]) -> None:
    twice = sorted(joined.keys() & tensors.keys())
    if twice:
        raise CheckpointError(
            f"{twice[0]}: weight stored twice",
            got=f"as floats and as codes ({len(twice)} such weights)",
            wanted="one of them",
        )
