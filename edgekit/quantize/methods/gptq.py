"""GPTQ: each column's rounding error is made good in the columns after it.

The output error of a matrix whose rounding errors are E (N, M), over inputs with second moments
H (M, M), is the sum of the squares of E R with H = R R^T, R upper triangular: column k of E R holds
the errors of columns 0 .. k. So the columns are rounded in order, and what the errors so far do to
later columns is taken from those before they are rounded. Blocks of columns take the errors before
them in one matrix product; within a block the update is column by column. Before a block is
rounded its scales are searched on the updated weights, with the squares of R's diagonal as
importance: what an error in that column costs once later columns have made good what they can.

The order of the columns is that of the matrix, so blocks stay contiguous, as every format has them.

Source:
    Frantar et al. 2023, GPTQ (arXiv 2210.17323); Chee et al. 2023, QuIP (arXiv 2307.13304), whose
    form with a single triangular factor this is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from edgekit.dtypes import F32Array, F64Array
from edgekit.encoding import Encoding
from edgekit.quantize.grid import ROUNDER
from edgekit.quantize.methods.blocks import BlockScales, RowCodes
from edgekit.quantize.methods.search import search_scales

DAMPING: Final = 0.01
"""Added to the second moments' diagonal, in shares of its mean: tokens are few, channels many."""
_FACTOR_BLOCK: Final = 128
_INNER_COLUMNS: Final = 32  # rounded before the rest of a larger block is updated
# Rows of every matrix product, filled up with zeros: for another shape the BLAS library may take
# another kernel, with another order of adds.
_TILE_ROWS: Final = 256


@dataclass(frozen=True, slots=True, eq=False)
class GptqFactor:
    """The upper triangular R of damped second moments, H = R R^T.

    Attributes:
        upper: float32 (M, M).
    """

    upper: F32Array

    def inverse_blocks(self, block: int) -> F32Array:
        """Invert the blocks on the diagonal: float32 (M // G, G, G), upper triangular each."""
        n_blocks = len(self.upper) // block
        places = np.arange(n_blocks)
        shape = (n_blocks, block, n_blocks, block)
        blocks = self.upper.reshape(shape)[places, :, places]
        return _invert_upper(blocks.astype(np.float64)).astype(np.float32)


def factor_moments(moments: F64Array, damping: float = DAMPING) -> GptqFactor:
    """Factor the second moments of the inputs of a matrix.

    Args:
        moments: Mean outer product of the inputs, symmetric, (M, M); of any rank, zero too.
        damping: Added to the diagonal, in shares of its mean.

    Returns:
        The factor: float64 inside, and equal on any number of threads.
    """
    mean = float(np.diagonal(moments).mean())
    work = moments / mean if mean > 0 else np.eye(len(moments))
    work.reshape(-1)[:: len(work) + 1] += damping
    return GptqFactor(_factor_upper(work, floor=damping / 2).astype(np.float32))


def gptq_rows(rows: F32Array, encoding: Encoding, factor: GptqFactor) -> RowCodes:
    """Quantize rows with error feedback; each row is independent of all others.

    Args:
        rows: float32 (N, M), checked.
        encoding: Codes with a block that divides M.
        factor: Of the second moments of the matrix's inputs.
    """
    n_rows, n_cols = rows.shape
    block = n_cols // encoding.n_blocks(n_cols)
    codes = np.empty((n_rows, n_cols), dtype=np.uint8)
    scales = np.empty((n_rows, n_cols // block), dtype=np.float32)
    zeros = np.empty(scales.shape, dtype=np.uint8)
    inverses = factor.inverse_blocks(block)
    for start in range(0, n_rows, _TILE_ROWS):
        part = slice(start, min(start + _TILE_ROWS, n_rows))
        _gptq_tile(rows[part], encoding, factor.upper, inverses, codes[part], scales[part], zeros[part])
    return RowCodes(codes, scales, zeros if encoding.has_zero_points else None)


def _gptq_tile(
    rows: F32Array,
    encoding: Encoding,
    upper: F32Array,
    inverses: F32Array,
    codes: np.ndarray,
    scales: F32Array,
    zeros: np.ndarray,
) -> None:
    """Quantize rows into ``codes``, ``scales`` and ``zeros``."""
    n_rows, n_cols = rows.shape
    weights = np.zeros((n_cols, _TILE_ROWS), dtype=np.float32)  # columns of the matrix are rows
    weights[:, :n_rows] = rows.T
    errors = np.empty_like(weights)
    block = inverses.shape[1]
    for i in range(n_cols // block):
        here = slice(i * block, (i + 1) * block)
        inverse = inverses[i]
        updated = weights[here].copy()
        if i:
            updated += inverse.T @ (upper[: here.start, here].T @ errors[: here.start])
        importance = np.square(np.diagonal(upper)[here])[:, None]
        chosen = search_scales(updated, encoding, importance)
        steps = _round_columns(updated, chosen, encoding, inverse)
        errors[here] = weights[here] - steps * chosen.scales
        codes[:, here] = (steps + chosen.zeros).astype(np.uint8)[:, :n_rows].T
        scales[:, i] = chosen.scales[:n_rows]
        zeros[:, i] = chosen.zeros[:n_rows]


def _round_columns(
    updated: F32Array, chosen: BlockScales, encoding: Encoding, inverse: F32Array
) -> F32Array:
    """Round the columns of a block in order, each with the errors before it. Destroys ``updated``.

    Args:
        updated: Weights as the blocks before left them, (G, n).
        chosen: Their scales.
        encoding: Codes of block G.
        inverse: The inverse of R's block, (G, G).

    Returns:
        Signed steps from zero, float32 (G, n).
    """
    n_cols = len(updated)
    lowest = -chosen.zeros
    highest = np.float32(2**encoding.bits - 1) - chosen.zeros
    per_weight = np.float32(1) / chosen.scales
    steps = np.empty_like(updated)
    for first in range(0, n_cols, _INNER_COLUMNS):
        end = min(first + _INNER_COLUMNS, n_cols)
        for i in range(first, end):
            step = np.multiply(updated[i], per_weight, out=steps[i])
            np.clip(step, lowest, highest, out=step)
            step += ROUNDER
            step -= ROUNDER
            error = updated[i]
            error -= step * chosen.scales
            error /= inverse[i, i]
            if i + 1 < end:
                updated[i + 1 : end] -= inverse[i, i + 1 : end, None] * error
        if end < n_cols:
            updated[end:] -= inverse[first:end, end:].T @ updated[first:end]
    return steps


def _factor_upper(work: F64Array, floor: float) -> F64Array:
    """Give the upper triangular R with ``work`` = R R^T. Destroys ``work``.

    No square on R's diagonal is below ``floor``: damping keeps them above, but for rounding.

    Blocks of columns from the last to the first, so that nearly all work is matrix products:
    LAPACK's own factorization depends on the number of threads in its last digits.
    """
    size = len(work)
    end = size
    while end:
        start = max(0, (end - 1) // _FACTOR_BLOCK * _FACTOR_BLOCK)
        part = work[:end, start:end]
        if end < size:
            part -= work[:end, end:] @ work[start:end, end:].T
        diagonal = _factor_small(part[start:], floor)
        if start:
            part[:start] = part[:start] @ _invert_upper(diagonal[None])[0].T
        part[start:] = diagonal
        end = start
    return np.triu(work)


def _factor_small(block: F64Array, floor: float) -> F64Array:
    """Factor one block column by column, from the last."""
    rest = block.copy()
    upper = np.zeros_like(block)
    for j in range(len(block) - 1, -1, -1):
        upper[:j, j] = rest[:j, j] / np.sqrt(max(rest[j, j], floor))
        upper[j, j] = np.sqrt(max(rest[j, j], floor))
        rest[:j, :j] -= upper[:j, j, None] * upper[:j, j]
    return upper


def _invert_upper(blocks: F64Array) -> F64Array:
    """Invert upper triangular matrices, (n, G, G)."""
    size = blocks.shape[-1]
    inverse = np.zeros_like(blocks)
    for i in range(size - 1, -1, -1):
        inverse[:, i, i] = 1 / blocks[:, i, i]
        if i + 1 < size:
            row = (blocks[:, i, None, i + 1 :] * inverse[:, i + 1 :, i + 1 :].swapaxes(1, 2)).sum(-1)
            inverse[:, i, i + 1 :] = -row * inverse[:, i, i, None]
    return inverse
