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

from edgekit.dtypes import DType, F32Array
from edgekit.encoding import BF16, FP16, Encoding
from edgekit.errors import QuantError
from edgekit.formats.floats import to_bf16, to_float32
from edgekit.quantize.input_statistics import InputStatistics
from edgekit.quantize.methods.blocks import RowCodes, check_rows, unusable
from edgekit.quantize.methods.gptq import factor_moments, gptq_rows
from edgekit.quantize.methods.importance import column_weights, importance_rows
from edgekit.quantize.methods.kernels import nearest_rows, search_rows
from edgekit.quantize.methods.palette import palette_rows


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


_LARGEST: Final = {
    "fp32": float(np.finfo(np.float32).max),
    "fp16": float(np.finfo(np.float16).max),
    "bf16": (2 - 2.0**-7) * 2.0**127,
}

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
        rows: float32, shape (N, M); with palettes, whole ones.
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
    if encoding.has_palette:
        return palette_rows(rows, encoding, _weights_of(method, statistics, name))
    return row_quantizer(method, statistics)(rows, encoding)


def _weights_of(method: Method, statistics: InputStatistics | None, name: str) -> F32Array | None:
    """Give what the columns of a matrix with palettes count; None where all count alike."""
    if method in (Method.GPTQ, Method.AUTO):
        raise QuantError(
            f"{name}: method {method.value} makes scales, not palettes",
            do="Use --method importance, or another scheme.",
        )
    if method is not Method.IMPORTANCE or statistics is None:
        return None
    return column_weights(statistics.mean_squares)


def round_floats(
    values: F32Array, encoding: Encoding, *, name: str, first_row: int = 0
) -> F32Array:
    """Round values to the nearest ones that a float encoding holds.

    Args:
        values: float32, any shape with at least one axis.
        encoding: fp32, fp16 or bf16.
        name: Canonical tensor name, for errors.
        first_row: Index of ``values[0]`` in the whole tensor, for errors.

    Returns:
        float32, same shape; every value exact in ``encoding``.

    Raises:
        QuantError: A value is NaN or infinite, or too large for the encoding.
    """
    limit = _LARGEST[encoding.kind]
    if values.size and not np.abs(values).max() <= limit:
        raise unusable(values, limit, name, first_row)
    if encoding == FP16:
        return values.astype(np.float16).astype(np.float32)
    return to_float32(to_bf16(values), DType.BF16) if encoding == BF16 else values
