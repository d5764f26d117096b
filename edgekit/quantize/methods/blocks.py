"""Blocks of weights as the methods compute with them: arrays (G, n), a column for each block.

A block is G weights along the input dimension that share a scale. With the blocks as columns every
numpy pass runs over long rows, and all sums are fixed trees of elementwise adds, so that no result
depends on how a matrix was cut into parts or spread over threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from edgekit.dtypes import Bits, F32Array, U8Array, zero_point
from edgekit.encoding import Encoding
from edgekit.errors import QuantError
from edgekit.quantize.grid import LARGEST_WEIGHT, ROUNDER

TILE_ELEMENTS: Final = 1 << 17  # 512 KiB of float32: fastest of 2**13 .. 2**17 (measured)


@dataclass(frozen=True, slots=True, eq=False)
class RowCodes:
    """Codes of N rows of a matrix: ``w = (codes - zero_point) * scale``.

    Attributes:
        codes: uint8 (N, M).
        scales: float32 (N, M // G), on the grid of grid.py; or palettes, (N // G, 16).
        zero_points: uint8 (N, M // G); None where all are the code in the middle.
    """

    codes: U8Array
    scales: F32Array
    zero_points: U8Array | None

    def dequantize(self, bits: Bits) -> F32Array:
        """Give the float32 rows that the codes stand for, (N, M)."""
        n_rows, n_cols = self.codes.shape
        by_block = self.codes.reshape(n_rows, self.scales.shape[1], -1).astype(np.float32)
        if self.zero_points is None:
            by_block -= np.float32(zero_point(bits))
        else:
            by_block -= self.zero_points[:, :, None]
        by_block *= self.scales[:, :, None]
        return by_block.reshape(n_rows, n_cols)


@dataclass(frozen=True, slots=True, eq=False)
class BlockScales:
    """Scales and zero points of n blocks, both float32 (n,); zero points are whole numbers."""

    scales: F32Array
    zeros: F32Array


def check_rows(rows: F32Array, encoding: Encoding, name: str, first_row: int) -> None:
    """Refuse rows that cannot be codes of an encoding.

    Raises:
        QuantError: The encoding has no codes, its block does not divide the row length, or a weight
            is NaN, infinite or beyond +-65280.
    """
    if encoding.block is None:
        raise QuantError(
            f"{name}: encoding {encoding} has no codes", wanted="int4, int8, uint4, uint8 or lut4"
        )
    n_cols = rows.shape[1]
    along, n_blocked = ("rows", len(rows)) if encoding.has_palette else ("row length", n_cols)
    if n_cols == 0 or n_blocked % encoding.block:
        raise QuantError(
            f"{name}: {along}",
            got=n_blocked,
            wanted=f"a multiple of block {encoding.block}",
            do="Use a smaller block (32) or scheme fp16.",
        )
    for start in range(0, len(rows), max(1, TILE_ELEMENTS // n_cols)):
        part = rows[start : start + max(1, TILE_ELEMENTS // n_cols)]
        # NaN makes both comparisons false.
        if not (part.max() <= LARGEST_WEIGHT and part.min() >= -LARGEST_WEIGHT):
            raise unusable(part, LARGEST_WEIGHT, name, first_row + start)


def unusable(rows: F32Array, limit: float, name: str, first_row: int) -> QuantError:
    """Describe the first weight whose magnitude is not at most ``limit``."""
    index = tuple(int(i) for i in np.argwhere(~(np.abs(rows) <= limit))[0])
    where = (index[0] + first_row, *index[1:])
    return QuantError(
        f"{name}{list(where)}: unusable weight",
        got=rows[index],
        wanted=f"a number within +-{limit:g}",
        do="The checkpoint is damaged, or this tensor needs scheme fp32.",
    )


def to_steps(weights: F32Array, chosen: BlockScales, bits: Bits) -> F32Array:
    """Give signed whole steps from zero, clipped to the codes, as float32 (G, n)."""
    steps: F32Array = weights * (np.float32(1) / chosen.scales)
    np.clip(steps, -chosen.zeros, np.float32(2**bits - 1) - chosen.zeros, out=steps)
    steps += ROUNDER
    steps -= ROUNDER
    return steps


def squared_error(
    weights: F32Array, chosen: BlockScales, bits: Bits, importance: F32Array | None
) -> F32Array:
    """Give the squared error of each block, (n,).

    Args:
        weights: (G, n).
        chosen: Scales and zero points of the blocks.
        bits: 4 or 8.
        importance: Factor of each squared error, (G, 1) or (G, n); None for ones.
    """
    steps = to_steps(weights, chosen, bits)
    steps *= chosen.scales
    steps -= weights
    np.square(steps, out=steps)
    if importance is not None:
        steps *= importance
    return sum_rows(steps)


def sum_rows(values: F32Array) -> F32Array:
    """Sum over the first axis, one row after another."""
    total: F32Array = values[0].copy()
    for row in values[1:]:
        total += row
    return total


def encode_rows(
    rows: F32Array,
    encoding: Encoding,
    choose: Callable[[F32Array, F32Array | None], BlockScales],
    importance: F32Array | None = None,
) -> RowCodes:
    """Choose the scales of all blocks of some rows, and round each weight by itself.

    Args:
        rows: float32 (N, M), checked.
        encoding: Codes with a block G that divides M.
        choose: Gives the scales of blocks (G, n), by their importance (G, n).
        importance: Factor of the squared error of each column, (M,).

    Returns:
        Codes and scales. A block of zeros has scale 1.
    """
    n_rows, n_cols = rows.shape
    n_blocks = encoding.n_blocks(n_cols)
    block = n_cols // n_blocks
    codes = np.empty((n_rows, n_cols), dtype=np.uint8)
    scales = np.empty((n_rows, n_blocks), dtype=np.float32)
    zeros = np.empty((n_rows, n_blocks), dtype=np.uint8)
    n_tile = max(1, TILE_ELEMENTS // n_cols)
    tiled = None
    if importance is not None:
        tiled = np.tile(importance.reshape(n_blocks, block).T, (1, min(n_tile, n_rows)))
    for start in range(0, n_rows, n_tile):
        part = slice(start, min(start + n_tile, n_rows))
        weights = np.ascontiguousarray(rows[part].reshape(-1, block).T)  # (G, n)
        chosen = choose(weights, None if tiled is None else tiled[:, : weights.shape[1]])
        steps = to_steps(weights, chosen, encoding.code_bits)
        steps += chosen.zeros
        codes[part] = steps.astype(np.uint8).T.reshape(-1, n_cols)
        scales[part] = chosen.scales.reshape(-1, n_blocks)
        zeros[part] = chosen.zeros.reshape(-1, n_blocks)
    return RowCodes(codes, scales, zeros if encoding.has_zero_points else None)
