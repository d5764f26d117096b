"""Import of codes from an already-quantized source: which are kept, and in which form.

Codes on the common grid are used unchanged. Where scales have more digits than the grid
holds, the codes stay and the scales are rounded: the code nearest to each weight is then still
its own (a scale moves by 2**-8 of itself at most, so the largest 8-bit code by half a step).
Everything else in the source is read as floats and quantized like any other. The plan says
which, and why.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from edgekit.checkpoint.prequantized.tensor import PrequantizedTensor
from edgekit.families.base import SourceModel
from edgekit.quantize.grid import N_SIGNIFICANT_BITS, round_scales
from edgekit.quantize.model import EncodedTensor
from edgekit.quantize.plan import TensorPlan, plan_tensors
from edgekit.scheme import Scheme

_REQUANTIZED: Final = "requantized"
_DEQUANTIZED: Final = "dequantized"
# How the reasons of tensors begin whose codes did not go in as they were.
CHANGES_OF_CODES: Final = (_REQUANTIZED, _DEQUANTIZED)
CODES_KEPT: Final = "codes kept, scales rounded"
# Rounding to 8 significant bits moves a number by at most this; clipping moves it further.
_LARGEST_MOVE: Final = 2.0**-N_SIGNIFICANT_BITS


@dataclass(frozen=True, slots=True)
class _Misfit:
    """Why codes and scales are not on the grid, and whether the codes can stay all the same."""

    reason: str
    keeps_codes: bool


def plan_source(source: SourceModel, scheme: Scheme) -> tuple[TensorPlan, ...]:
    """Decide the encoding of every tensor, and which codes of the source are kept.

    Reads the scales of matrices that are codes already; a float source is planned as
    ``plan_tensors`` does.

    Args:
        source: The model.
        scheme: What was asked for. Codes of as many bits are kept with their own group if it is
            not smaller than the one asked for.

    Returns:
        One plan per canonical weight, in file order.

    Raises:
        QuantError: No allowed group divides the input width of some matrices.
        CheckpointError: Scales that are not finite numbers.
    """
    return tuple(
        item
        if (prequantized := source.tensor(item.name).prequantized) is None
        else _decide(item, prequantized, scheme)
        for item in _plan_decoded(source, scheme)
    )


def expected_plan(source: SourceModel, scheme: Scheme) -> tuple[TensorPlan, ...]:
    """Decide as ``plan_source`` does without reading a scale: codes are taken to be on the grid.

    Raises:
        QuantError: No allowed group divides the input width of some matrices.
    """
    return tuple(
        replace(item, encoding=prequantized.encoding, keeps_codes=True)
        if (prequantized := source.tensor(item.name).prequantized) is not None
        and _may_keep(item, prequantized, scheme)
        else item
        for item in _plan_decoded(source, scheme)
    )


def _plan_decoded(source: SourceModel, scheme: Scheme) -> Iterator[TensorPlan]:
    """Plan as for floats; the reason names the source's format where codes cannot be kept."""
    for item in plan_tensors(source.spec, scheme):
        decoded = source.tensor(item.name).decoded
        if decoded is None:
            yield item
        elif item.encoding.block is None:
            yield replace(item, reason=_say_dequantized(decoded.label, scheme))
        else:
            yield _requantize(item, f"{decoded.reason} ({decoded.label})")


def import_codes(prequantized: PrequantizedTensor, item: TensorPlan) -> EncodedTensor:
    """Import the codes of a source, with its scales rounded to the grid.

    Args:
        prequantized: The source's matrix.
        item: Its plan, with ``keeps_codes``.
    """
    n_rows = prequantized.info.shape[0]
    scales = round_scales(prequantized.scales(0, n_rows), prequantized.bits)
    return EncodedTensor.of_codes(
        item.name, prequantized.encoding, prequantized.codes(0, n_rows), scales
    )


def _decide(item: TensorPlan, prequantized: PrequantizedTensor, asked: Scheme) -> TensorPlan:
    if item.encoding.block is None:
        return replace(item, reason=_say_dequantized(prequantized.label, asked))
    if not _may_keep(item, prequantized, asked):
        return _requantize(item, f"{item.encoding} instead of {prequantized.label}")
    misfit = _find_misfit(prequantized)
    if misfit is None:
        return replace(
            item,
            encoding=prequantized.encoding,
            reason=f"imported from {prequantized.label}",
            keeps_codes=True,
            imported=prequantized.label,
        )
    if misfit.keeps_codes:
        reason = f"{_REQUANTIZED}: {misfit.reason} ({prequantized.label}); {CODES_KEPT}"
        return replace(item, encoding=prequantized.encoding, reason=reason, keeps_codes=True)
    return _requantize(item, f"{misfit.reason} ({prequantized.label})")


def _may_keep(item: TensorPlan, prequantized: PrequantizedTensor, asked: Scheme) -> bool:
    """Tell whether codes with the source's bits and group could be kept."""
    if item.encoding.block is None or item.encoding.has_palette:
        return False
    # An embedding of 4-bit codes gains nothing from the 8 bits that the plan gives to floats.
    return (
        prequantized.bits in (asked.encoding.bits, item.encoding.bits)
        and prequantized.group >= item.encoding.block
    )


def _say_dequantized(label: str, asked: Scheme) -> str:
    return f"{_DEQUANTIZED} from {label}: {asked} was asked for"


def _requantize(item: TensorPlan, why: str) -> TensorPlan:
    after = "" if item.reason == "as asked" else f"; {item.reason}"
    return replace(item, reason=f"{_REQUANTIZED}: {why}{after}")


def _find_misfit(prequantized: PrequantizedTensor) -> _Misfit | None:
    """Compare scales and zero points with the grid; None if it holds them exactly."""
    n_rows = prequantized.info.shape[0]
    scales, biases = prequantized.scales(0, n_rows), prequantized.biases(0, n_rows)
    of_all = f"of {scales.size} groups"
    if biases is not None and (n := _count(biases != -prequantized.zero_point * scales)):
        return _Misfit(f"{n} {of_all} have their zero point elsewhere", keeps_codes=False)
    is_zero = scales == 0
    if is_zero.any() and (n := _count_nonzero_codes(prequantized, is_zero)):
        return _Misfit(f"{n} {of_all} have the scale 0", keeps_codes=False)
    if prequantized.bits == 8 and (n := _count(scales < 0)):
        return _Misfit(f"{n} {of_all} have a negative scale", keeps_codes=False)
    moved = np.where(
        is_zero, np.float32(0), np.abs(round_scales(scales, prequantized.bits) - scales)
    )
    if n := _count(moved > np.abs(scales) * np.float32(_LARGEST_MOVE)):
        return _Misfit(f"{n} {of_all} have a scale outside fp16", keeps_codes=False)
    if n := _count(moved > 0):
        more = f"{n} {of_all} have a scale of more than {N_SIGNIFICANT_BITS} significant bits"
        return _Misfit(more, keeps_codes=True)
    return None


def _count(is_so: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> int:
    return int(np.count_nonzero(is_so))


def _count_nonzero_codes(
    prequantized: PrequantizedTensor, is_zero: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
) -> int:
    """Count groups of scale 0 whose codes would no longer mean 0 under another scale."""
    codes = prequantized.codes(0, prequantized.info.shape[0])
    off_middle = (
        (codes != prequantized.zero_point).reshape(*is_zero.shape, prequantized.group).any(axis=2)
    )
    return _count(is_zero & off_middle)
