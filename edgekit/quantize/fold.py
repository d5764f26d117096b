"""Channel scales: moved between tensors before they are quantized, at no cost when the model runs.

Some channels of a real model are hundreds of times larger than their neighbours. Whatever rounds
a block of such inputs to 8 bits (ONNX, accuracy_level 4) rounds the small ones away, and the
columns of weights that meet the large ones deserve more precision than the others. So the columns
of a matrix are multiplied by a scale for each input channel, and what makes these inputs is divided
by it: the norm before the matrix; the rows of v, which o reads through the attention; the rows of
up, which down reads through the product with the gate. The decoder computes the same function.

What is divided and stored as floats (norms, biases) is rounded to 8 significant bits first, and the
scale is then defined by it, so that bfloat16, float16 and float32 all hold the same function.

Source:
    Xiao et al. 2023, SmoothQuant (arXiv 2211.10438), and Lin et al. 2023, AWQ (arXiv 2306.00978),
    move such scales. The exponent and the limit were measured (docs/activations.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from edgekit.dtypes import DType, F32Array, F64Array
from edgekit.families.spec import DecoderSpec, NormPlacement
from edgekit.formats.floats import to_bf16, to_float32
from edgekit.quantize.plan import TensorPlan
from edgekit.tensors import LazyTensor, TensorInfo

EXPONENTS: Final[Mapping[int, float]] = {4: 0.15, 8: 0.25}
"""Bits of the codes -> the power of (mean square of a channel / mean square of its columns) that
the scale is. A quarter makes inputs and columns equally uneven; with 4 bits the error of the
weights counts more, and a group must stay even."""
LARGEST_SCALE: Final = 16.0
"""Scales lie between this and its inverse: a channel that is silent here may speak elsewhere."""
_LARGEST_FLOAT: Final = float(np.finfo(np.float16).max)


@dataclass(frozen=True, slots=True)
class Site:
    """Where channel scales can move: canonical names of the tensors on both sides.

    Attributes:
        writer: A norm, or a matrix whose rows make the channels; it is divided.
        readers: Matrices that read the channels; their columns are multiplied. All read the same.
        bits: Fewest bits of the readers' codes.
        n_sharing: Consecutive heads of the readers' columns that read one head of the writer.
    """

    writer: str
    readers: tuple[str, ...]
    bits: int
    n_sharing: int = 1

    @property
    def is_norm(self) -> bool:
        """Whether a norm makes the channels."""
        return self.writer.endswith("norm")


@dataclass(frozen=True, slots=True, eq=False)
class ChannelScales:
    """The scales that were moved, by canonical name; nothing where none were.

    Attributes:
        columns: Matrix to float32 (M,): its columns are multiplied by it.
        rows: Matrix to float32 (N,): its rows are divided by it.
        floats: Norm or bias to its new values, float32, 8 significant bits each.
        sites: Where scales were moved.
        measured_on: What the model read when its inputs were measured.
    """

    columns: Mapping[str, F32Array] = field(default_factory=dict)
    rows: Mapping[str, F32Array] = field(default_factory=dict)
    floats: Mapping[str, F32Array] = field(default_factory=dict)
    sites: tuple[Site, ...] = ()
    measured_on: str = ""

    def apply(self, name: str, tensor: LazyTensor) -> LazyTensor:
        """Give a tensor with its scales moved; still not read."""
        if name in self.floats or name in self.columns or name in self.rows:
            return _ScaledTensor(tensor, self, name)
        return tensor

    def squares_of(self, name: str) -> F64Array:
        """Give what the mean squares of a matrix's inputs are divided by, (M,) or 1 for all."""
        scales = self.columns.get(name)
        return np.ones(1) if scales is None else np.square(scales.astype(np.float64))

    def describe(self) -> dict[str, Any]:
        """Give what a manifest says of them; empty where none were moved."""
        if not self.sites:
            return {}
        return {
            "n_sites": len(self.sites),
            "exponents": {f"int{bits}": value for bits, value in EXPONENTS.items()},
            "largest": LARGEST_SCALE,
            "measured_on": self.measured_on,
        }


def explain(
    spec: DecoderSpec, sites: Iterable[Site], plans: Iterable[TensorPlan]
) -> tuple[TensorPlan, ...]:
    """Add to the reason of every tensor which scales were moved.

    Args:
        spec: The decoder.
        sites: Where scales were moved.
        plans: What becomes of each tensor.
    """
    shapes = spec.weight_shapes()
    said: dict[str, list[str]] = {}
    for site in sites:
        readers = ", ".join(name.rpartition(".")[2] for name in site.readers)
        writer = site.writer.rpartition(".")[2]
        taken = f"takes the input scales of {readers}"
        said.setdefault(site.writer, []).append(taken)
        if f"{site.writer}.bias" in shapes:
            said.setdefault(f"{site.writer}.bias", []).append(taken)
        where = writer if site.is_norm else f"the rows of {writer}"
        for name in site.readers:
            said.setdefault(name, []).append(f"its input scales are in {where}")
    return tuple(
        replace(item, reason="; ".join((item.reason, *said.get(item.name, ())))) for item in plans
    )


def input_groups(spec: DecoderSpec, plans: Iterable[TensorPlan]) -> list[tuple[str, ...]]:
    """Group the matrices that are quantized here, and read an activation, by what they read.

    Args:
        spec: The decoder.
        plans: What becomes of each tensor.
    """
    made = {item.name for item in plans if item.encoding.is_quantized and not item.keeps_codes}
    groups = [
        tuple(f"layers.{i}.{part}" for part in parts)
        for i in range(spec.n_layers)
        for parts in (("q", "k", "v"), ("o",), ("gate", "up"), ("down",))
    ]
    groups.append(("lm_head",))
    kept = (tuple(name for name in group if name in made) for group in groups)
    return [group for group in kept if group]


def find_sites(spec: DecoderSpec, plans: Iterable[TensorPlan]) -> tuple[Site, ...]:
    """Say where channel scales of a decoder can move.

    Only between matrices that are quantized here: codes that a source brought stay as they are,
    and floats gain nothing.

    Args:
        spec: The decoder.
        plans: What becomes of each tensor.
    """
    bits = {
        item.name: item.encoding.bits
        for item in plans
        if item.encoding.is_quantized and not item.keeps_codes
    }
    n_sharing = spec.n_heads // spec.n_kv_heads
    pairs: list[tuple[str, tuple[str, ...], int]] = []
    for i in range(spec.n_layers):
        at = f"layers.{i}."
        if spec.norm_placement is not NormPlacement.AFTER:
            pairs.append((f"{at}attn_norm", (f"{at}q", f"{at}k", f"{at}v"), 1))
            pairs.append((f"{at}ffn_norm", (f"{at}gate", f"{at}up"), 1))
        pairs.append((f"{at}v", (f"{at}o",), n_sharing))
        pairs.append((f"{at}up", (f"{at}down",), 1))
    if not spec.is_tied:
        pairs.append(("final_norm", ("lm_head",), 1))
    return tuple(
        Site(writer, readers, min(bits[name] for name in readers), n_shared)
        for writer, readers, n_shared in pairs
        if bits.keys() >= {*readers, *([] if writer.endswith("norm") else [writer])}
    )


def choose_scales(
    spec: DecoderSpec,
    sites: Sequence[Site],
    inputs: Mapping[str, F64Array],
    floats: Mapping[str, F32Array],
) -> ChannelScales:
    """Choose the scales of every site.

    Args:
        spec: The decoder.
        sites: From ``find_sites``.
        inputs: First reader of each site to what its scales follow: mean squares of the input
            channels over those of the columns, (M,).
        floats: Values of the norms, and of the biases of the matrices, that are writers.
    """
    columns: dict[str, F32Array] = {}
    rows: dict[str, F32Array] = {}
    made: dict[str, F32Array] = {}
    for site in sites:
        sizes = inputs[site.readers[0]]
        if site.n_sharing > 1:
            heads = sizes.reshape(-1, site.n_sharing, spec.head_width)
            sizes = heads.mean(axis=1).reshape(-1)
        scales = _scales_of(sizes, EXPONENTS[site.bits])
        stored = site.writer if site.is_norm else f"{site.writer}.bias"
        if stored in floats:
            offset = spec.norm_offset if site.is_norm else 0.0
            made[stored], scales = _settle(floats[stored], scales, offset)
        if not site.is_norm:
            rows[site.writer] = scales
        if site.n_sharing > 1:
            shared = scales.reshape(-1, 1, spec.head_width)
            scales = np.repeat(shared, site.n_sharing, axis=1).reshape(-1)
        columns.update(dict.fromkeys(site.readers, scales))
    return ChannelScales(columns, rows, made, tuple(sites))


def float_names(spec: DecoderSpec, sites: Iterable[Site]) -> tuple[str, ...]:
    """Name the norms and biases that ``choose_scales`` wants the values of."""
    shapes = spec.weight_shapes()
    names = (site.writer if site.is_norm else f"{site.writer}.bias" for site in sites)
    return tuple(name for name in names if name in shapes)


def _scales_of(sizes: F64Array, exponent: float) -> F32Array:
    """Give the scale of each channel from its mean square, around 1; a silent site has ones."""
    heard = sizes > 0
    if not heard.any():
        return np.ones(sizes.shape, dtype=np.float32)
    powers = np.log2(sizes, where=heard, out=np.full(sizes.shape, -np.inf)) * exponent
    limit = np.log2(LARGEST_SCALE)
    scales: F64Array = np.exp2(np.clip(powers - powers[heard].mean(), -limit, limit))
    return scales.astype(np.float32)


def _settle(stored: F32Array, scales: F32Array, offset: float) -> tuple[F32Array, F32Array]:
    """Divide stored floats by scales, rounded to 8 significant bits; give the exact scales too.

    Args:
        stored: A norm or a bias.
        scales: What to divide by, about.
        offset: Added to the stored value before use.

    Returns:
        New stored values and the scales that they mean. What is used has 8 significant bits with
        its offset, too. Where 8 bits cannot hold that, the value stays and the scale is 1.
    """
    used = stored.astype(np.float64) + offset
    new_used = _round_bits(_round_bits(used / scales - offset) + offset)
    new = new_used - offset
    is_zero = used == 0
    with np.errstate(over="ignore"):
        half = new.astype(np.float16)
    is_held = (
        (new == _round_bits(new))
        & (new == half)
        & (np.abs(new) <= _LARGEST_FLOAT)
        & (np.sign(new_used) == np.sign(used))
        & ~is_zero
    )
    exact = np.divide(used, new_used, out=np.ones_like(used), where=is_held)
    exact = np.where(is_zero, scales, exact)
    return np.where(is_held, new, stored).astype(np.float32), exact.astype(np.float32)


def _round_bits(values: F64Array) -> F64Array:
    """Round to 8 significant bits, those of bfloat16."""
    return to_float32(to_bf16(values.astype(np.float32)), DType.BF16).astype(np.float64)


class _ScaledTensor:
    """A tensor with its scales moved; satisfies ``LazyTensor``."""

    def __init__(self, tensor: LazyTensor, scales: ChannelScales, name: str) -> None:
        self._tensor = tensor
        self._floats = scales.floats.get(name)
        self._columns = scales.columns.get(name)
        self._rows = scales.rows.get(name)

    @property
    def info(self) -> TensorInfo:
        """Name, shape and stored type."""
        return self._tensor.info

    def read(self) -> F32Array:
        """Read the whole tensor as float32, shape ``info.shape``."""
        return self.read_rows(0, self.info.shape[0])

    def read_rows(self, start: int, stop: int) -> F32Array:
        """Read rows ``start:stop`` of the first axis as float32."""
        if self._floats is not None:
            return self._floats[start:stop]
        values = self._tensor.read_rows(start, stop)
        if self._columns is not None:
            values = values * self._columns
        if self._rows is not None:
            values = values / self._rows[start:stop, None]
        return values
