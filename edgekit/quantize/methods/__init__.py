"""Quantization methods by name: from rows of weights to codes, scales and zero points.

``rtn`` and ``search`` look at the weights alone; ``importance`` and ``gptq`` also at what the model
computes while it reads a calibration text. ``auto`` is not a way to round: it tries both on a part
of the text and takes, for each tensor, the one with the smaller output error on the rest
(calibrated.py).
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final, TypeAlias

import numpy as np

from edgekit.dtypes import F32Array
from edgekit.encoding import Encoding
from edgekit.errors import QuantError
from edgekit.quantize.input_statistics import InputStatistics
from edgekit.quantize.methods.blocks import RowCodes, check_rows, unusable
from edgekit.quantize.methods.gptq import factor_moments, gptq_rows
from edgekit.quantize.methods.importance import column_weights, importance_rows
from edgekit.quantize.methods.kernels import nearest_rows, search_rows


class Method(enum.Enum):
    """How codes and scales are chosen."""

    RTN = "rtn"
    SEARCH = "search"
    IMPORTANCE = "importance"
    GPTQ = "gptq"
    AUTO = "auto"

    @property
    def reads_text(self) -> bool:
        """Whether the method looks at what the model computes on a calibration text."""
        return self in (Method.IMPORTANCE, Method.GPTQ, Method.AUTO)


TRIED_BY_AUTO: Final = (Method.IMPORTANCE, Method.GPTQ)

RowQuantizer: TypeAlias = Callable[[F32Array, Encoding], RowCodes]
"""Checked rows float32 (N, M) and an encoding to codes; each row is independent of all others."""


def row_quantizer(method: Method, statistics: InputStatistics | None = None) -> RowQuantizer:
    """Prepare a method for a matrix; what it computes once is shared by all rows.

    Args:
        method: Not ``AUTO``.
        statistics: Of the matrix's inputs; ``IMPORTANCE`` needs the mean squares, ``GPTQ`` the
            whole moments.

    Raises:
        QuantError: The method needs statistics that are not there.
    """
    if method is Method.RTN:
        return nearest_rows
    if method is Method.SEARCH:
        return search_rows
    if statistics is not None and method is Method.IMPORTANCE:
        weights = column_weights(statistics.mean_squares)
        return lambda rows, encoding: importance_rows(rows, encoding, weights)
    if statistics is not None and statistics.moments is not None and method is Method.GPTQ:
        factor = factor_moments(statistics.moments)
        return lambda rows, encoding: gptq_rows(rows, encoding, factor)
    raise QuantError(
        f"method {method.value}: no statistics of the inputs",
        wanted="a calibration text that the model has read",
        do="Use --method search, which looks at the weights alone.",
    )


def quantize_rows(
    rows: F32Array,
    encoding: Encoding,
    method: Method = Method.SEARCH,
    statistics: InputStatistics | None = None,
    *,
    name: str,
    first_row: int = 0,
) -> RowCodes:
    """Quantize rows of a matrix; each row is independent of all others.

    Args:
        rows: float32, shape (N, M).
        encoding: Codes with their block G.
        method: How scales are chosen; not ``AUTO``.
        statistics: Of the matrix's inputs, for the methods that need them.
        name: Canonical tensor name, for errors.
        first_row: Index of ``rows[0]`` in the whole matrix, for errors.

    Returns:
        Codes, scales on the grid of grid.py, and zero points. A block of zeros has scale 1.

    Raises:
        QuantError: The encoding has no codes, M is not a multiple of G, a weight is NaN, infinite
            or beyond +-65280, or statistics are missing or not numbers.
    """
    check_rows(rows, encoding, name, first_row)
    if statistics is not None:
        statistics.check(name, rows.shape[1])
    return row_quantizer(method, statistics)(rows, encoding)


def round_floats(
    values: F32Array, encoding: Encoding, *, name: str, first_row: int = 0
) -> F32Array:
    """Round values to the nearest ones that a float encoding holds.

    Args:
        values: float32, any shape with at least one axis.
        encoding: fp32 or fp16.
        name: Canonical tensor name, for errors.
        first_row: Index of ``values[0]`` in the whole tensor, for errors.

    Returns:
        float32, same shape; every value exact in ``encoding``.

    Raises:
        QuantError: A value is NaN or infinite, or too large for fp16.
    """
    limit = float(np.finfo(np.float32).max)
    if encoding.kind == "fp16":
        limit = float(np.finfo(np.float16).max)
    if values.size and not np.abs(values).max() <= limit:
        raise unusable(values, limit, name, first_row)
    return values.astype(np.float16).astype(np.float32) if encoding.kind == "fp16" else values
