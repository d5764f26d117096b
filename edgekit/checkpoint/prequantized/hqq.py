"""Reader of HQQ checkpoints.

The weight, read row by row, is a matrix of groups: (groups, G) with ``X.axis`` 1, (G, groups) with
``X.axis`` 0. ``X.W_q`` packs the codes of that matrix: its rows are cut into as many parts as codes
fit into a word, and a word holds one code of each part, the first in the highest bits (bytes; 3
bits: ten codes in 30 bits of an int32). ``X.scale`` and ``X.zero`` have a number for each group:
``w = (code - zero) * scale``. ``X.shape``, ``X.nbits`` and others are single numbers in tensors of
their own.

Source: https://github.com/dropbox/hqq (hqq/core/quantize.py and bitpack.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from edgekit.checkpoint.config import RawConfig
from edgekit.checkpoint.prequantized.tensor import (
    DOWNLOAD_AGAIN,
    DecodedTensor,
    NotRead,
    take_part,
)
from edgekit.dtypes import DTYPES, DType, F32Array, U8Array
from edgekit.errors import CheckpointError
from edgekit.formats.safetensors import SafetensorsTensor
from edgekit.tensors import LazyTensor, TensorInfo

METHOD: Final = "hqq"
_CODES: Final = ".W_q"
_REASON: Final = "zero points that are not integers"
_META: Final = (
    "W_q", "axis", "channel_wise", "compute_dtype", "encoded_state_dict", "group_size", "nbits",
    "offload_meta", "optimize", "packing", "quant_scale", "quant_zero", "round_zero", "scale",
    "shape", "stores_quant_config", "unpack_view_dtype", "view_as_float", "zero",
)  # fmt: skip
# Bits -> bytes of a word, codes in it.
_WORDS: Final[Mapping[int, tuple[int, int]]] = {
    8: (1, 1),
    4: (1, 2),
    3: (4, 10),
    2: (1, 4),
    1: (1, 8),
}


@dataclass(frozen=True, slots=True, eq=False)
class _Groups:
    """Packed codes of a matrix of groups.

    Attributes:
        packed: The words.
        scales: One number for each group.
        zeros: One number for each group.
        bits: Bits of a code.
        n_part: Values of each part of the matrix, of which a word holds one.
        group: Values of a group; None where groups are the columns of the matrix.
        n_cols: M.
    """

    packed: SafetensorsTensor
    scales: SafetensorsTensor
    zeros: SafetensorsTensor
    bits: int
    n_part: int
    group: int | None
    n_cols: int

    def read(self, start: int, stop: int) -> F32Array:
        begin, end = start * self.n_cols, stop * self.n_cols
        values = self._codes(begin, end).astype(np.float32)
        places = np.arange(begin, end)
        if self.group is None:
            groups = places % self.scales.info.n_elements
            values -= self.zeros.read().reshape(-1)[groups]
            values *= self.scales.read().reshape(-1)[groups]
        else:
            first, last = begin // self.group, -(-end // self.group)
            groups = places // self.group - first
            values -= self.zeros.read_rows(first, last).reshape(-1)[groups]
            values *= self.scales.read_rows(first, last).reshape(-1)[groups]
        return values.reshape(stop - start, self.n_cols)

    def _codes(self, begin: int, end: int) -> U8Array:
        """Unpack values ``begin:end`` of the weight read row by row."""
        n_bytes, n_codes = _WORDS[self.bits]
        codes = np.empty(end - begin, np.uint8)
        for part in range(begin // self.n_part, -(-end // self.n_part)):
            first = part * self.n_part
            low, high = max(begin, first), min(end, first + self.n_part)
            stored = self.packed.raw_bytes((low - first) * n_bytes, (high - first) * n_bytes)
            words = stored.view(np.uint32) if n_bytes == 4 else stored
            shift = words.dtype.type(self.bits * (n_codes - 1 - part))
            mask = words.dtype.type((1 << self.bits) - 1)
            codes[low - begin : high - begin] = (words >> shift) & mask
        return codes


def account_for_hqq(section: RawConfig) -> None:
    """Account for the keys of ``quantization_config``; the tensors alone are enough to read."""
    section.ignore(("quant_config", "skip_modules"))


def join_hqq(
    tensors: Mapping[str, LazyTensor], *, reads: bool
) -> tuple[dict[str, LazyTensor], set[str]]:
    """Join codes, scales and zero points.

    Args:
        tensors: Checkpoint tensors by their own names.
        reads: Whether the tensors can be read; without reading, no shape is known.

    Returns:
        Weights by name, and the names of the tensors that they are made of.

    Raises:
        CheckpointError: Parts are missing or do not fit together.
    """
    stored = {n: t for n, t in tensors.items() if isinstance(t, SafetensorsTensor)}
    joined: dict[str, LazyTensor] = {}
    used: set[str] = set()
    for name, tensor in stored.items():
        module = name.removesuffix(_CODES)
        if module != name:
            joined[f"{module}.weight"] = _join(module, stored) if reads else _of_header(tensor)
            used |= {f"{module}.{part}" for part in _META}
    return joined, used


def _of_header(packed: SafetensorsTensor) -> DecodedTensor:
    """Make the tensor from its header, where shape and bits were not downloaded."""
    info = TensorInfo(packed.info.name, (packed.info.n_bytes,), DType.FP16)
    return DecodedTensor(info, METHOD, _REASON, 8, NotRead(), has_shape=False)


def _join(module: str, tensors: Mapping[str, SafetensorsTensor]) -> DecodedTensor:
    packed = tensors[f"{module}{_CODES}"]
    bits, axis = _read_number(module, "nbits", tensors), _read_number(module, "axis", tensors)
    shape = take_part(tensors, f"{module}.shape", "I64 or I32", (2,)).raw().tolist()
    for part in ("quant_scale", "quant_zero"):
        if f"{module}.{part}" in tensors and _read_number(module, part, tensors):
            raise CheckpointError(
                f"{module}.{part}",
                got="scales that are quantized themselves",
                wanted="scales as floats",
                do="Use the model before quantization.",
            )
    n_values = shape[0] * shape[1] if min(shape) > 0 else 0
    scale = take_part(tensors, f"{module}.scale", "floats", (None, None))
    zero = take_part(tensors, f"{module}.zero", "floats", scale.info.shape)
    n_groups = scale.info.n_elements
    group = n_values // n_groups if n_groups and n_values % n_groups == 0 else 0
    fits = bits in _WORDS and axis in (0, 1) and group > 0
    fits = fits and scale.info.shape == ((1, n_groups) if axis == 0 else (n_groups, 1))
    if fits:
        n_bytes, n_codes = _WORDS[bits]
        n_wide = n_groups if axis == 0 else group
        n_part = -(-(n_values // n_wide) // n_codes) * n_wide
        fits = packed.info.n_bytes == n_part * n_bytes
    if not fits:
        raise CheckpointError(
            f"{module}{_CODES}: packed codes",
            got=f"{DTYPES[packed.info.dtype].safetensors} of shape {list(packed.info.shape)}",
            wanted=f"codes of {bits} bits for shape {shape} in {n_groups} groups (axis {axis})",
            do=DOWNLOAD_AGAIN,
        )
    info = TensorInfo(f"{module}.weight", (shape[0], shape[1]), DType.FP16)
    rows = _Groups(
        packed,
        scale,
        zero,
        bits,
        n_part,
        group if axis == 1 else None,
        shape[1],
    )
    label = f"{METHOD} int{bits}-g{group}"
    return DecodedTensor(info, label, _REASON, bits, rows)


def _read_number(module: str, part: str, tensors: Mapping[str, SafetensorsTensor]) -> int:
    tensor = take_part(tensors, f"{module}.{part}", "I32 or I64 or U8 or BOOL", ())
    return int(tensor.raw())
