"""Importance: a search in which an error counts as much as the input that meets it.

A rounding error in column m moves the output by the error times input m, so its square is weighted
with the mean square of that input over a calibration text. Errors of different columns are taken
to be independent; GPTQ (gptq.py) knows better, at a higher price.
"""

from __future__ import annotations

import numpy as np

from edgekit.dtypes import F32Array, F64Array
from edgekit.encoding import Encoding
from edgekit.quantize.methods.blocks import RowCodes
from edgekit.quantize.methods.kernels import search_rows

_SILENT: float = 2.0**-20
"""Least weight, in shares of the mean: a channel that is silent here may speak elsewhere."""


def column_weights(mean_squares: F64Array) -> F32Array:
    """Give what each column's squared error counts, (M,), 1 on average.

    Args:
        mean_squares: Mean square of each input channel, (M,), at least 0.
    """
    mean = float(mean_squares.mean())
    shares = mean_squares / mean if mean > 0 else np.ones_like(mean_squares)
    return np.maximum(shares, _SILENT).astype(np.float32)


def importance_rows(rows: F32Array, encoding: Encoding, weights: F32Array) -> RowCodes:
    """Quantize rows with the smallest weighted error in each block.

    Args:
        rows: float32 (N, M), checked.
        encoding: Codes with a block that divides M.
        weights: From ``column_weights``, (M,).
    """
    return search_rows(rows, encoding, weights)
