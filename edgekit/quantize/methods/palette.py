"""Palettes: 16 values for a block of rows, by weighted k-means; each weight becomes the nearest.

The values are those of Lloyd's algorithm on one axis, begun once at equal shares of the weights and
once at equal distances; the better of the two is taken. Sorting makes every step a difference of
running sums (float64), so a run takes as many steps as it needs.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from edgekit.dtypes import F32Array, F64Array
from edgekit.encoding import Encoding
from edgekit.quantize.methods.blocks import RowCodes

_MAX_STEPS: Final = 100
_LARGEST: Final = float(np.finfo(np.float16).max)


def palette_rows(
    rows: F32Array, encoding: Encoding, importance: F32Array | None = None
) -> RowCodes:
    """Quantize rows with a palette for each block of rows.

    Args:
        rows: float32 (N, M), checked; whole blocks.
        encoding: ``lut4``; its block is G.
        importance: Factor of the squared error of each column, (M,), at least 0; None for ones.

    Returns:
        Codes, and the palettes (N // G, 16) in place of scales: sorted, exact in fp16.
    """
    n_rows, n_cols = rows.shape
    n_values = 1 << encoding.bits
    n_palettes = encoding.scales_shape(n_rows, n_cols)[0]
    codes = np.empty((n_rows, n_cols), dtype=np.uint8)
    palettes = np.empty((n_palettes, n_values), dtype=np.float32)
    n_shared = n_rows // n_palettes
    shares = np.ones(n_cols) if importance is None else importance.astype(np.float64)
    weights = np.tile(shares, n_shared)
    for i in range(n_palettes):
        part = slice(i * n_shared, (i + 1) * n_shared)
        values = rows[part].reshape(-1)
        palettes[i] = _choose(values, weights, n_values)
        middles = (palettes[i, 1:] + palettes[i, :-1]) / np.float32(2)
        codes[part] = np.searchsorted(middles, rows[part]).astype(np.uint8)
    return RowCodes(codes, palettes, None)


def _choose(values: F32Array, weights: F64Array, n_values: int) -> F32Array:
    """Give the palette of some weights, sorted."""
    order = np.argsort(values, kind="stable")
    found = _Sorted(values[order].astype(np.float64), weights[order])
    shares = (np.arange(n_values) + 0.5) / n_values
    starts = (
        np.interp(shares * found.counts[-1], found.counts[1:], found.values),
        found.values[0] + shares * (found.values[-1] - found.values[0]),
    )
    tried = [_rounded(found.improve(np.asarray(start))) for start in starts]
    return min(tried, key=found.error)


def _rounded(centres: F64Array) -> F32Array:
    return np.clip(centres, -_LARGEST, _LARGEST).astype(np.float16).astype(np.float32)


class _Sorted:
    """Sorted values with running sums of weights, and of weighted values and squares."""

    def __init__(self, values: F64Array, weights: F64Array) -> None:
        self.values = values
        self.counts = np.concatenate([[0.0], np.cumsum(weights)])
        self._sums = np.concatenate([[0.0], np.cumsum(weights * values)])
        self._squares = float((weights * np.square(values)).sum())

    def _cells(self, centres: F64Array) -> tuple[F64Array, F64Array]:
        """Give weight and weighted sum of the values nearest to each centre."""
        middles = (centres[1:] + centres[:-1]) / 2
        ends = np.searchsorted(self.values, middles)
        ends = np.concatenate([[0], ends, [len(self.values)]])
        return np.diff(self.counts[ends]), np.diff(self._sums[ends])

    def improve(self, centres: F64Array) -> F64Array:
        """Move each centre to the mean of its values until nothing moves; empty ones stay."""
        for _ in range(_MAX_STEPS):
            counts, sums = self._cells(centres)
            moved = np.divide(sums, counts, out=centres.copy(), where=counts > 0)
            moved.sort()
            if np.array_equal(moved, centres):
                break
            centres = moved
        return centres

    def error(self, palette: F32Array) -> float:
        """Give the sum of the weighted squared errors."""
        centres = palette.astype(np.float64)
        counts, sums = self._cells(centres)
        return self._squares + float((np.square(centres) * counts - 2 * centres * sums).sum())
