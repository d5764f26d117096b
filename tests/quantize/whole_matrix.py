"""A matrix quantized in one piece, to hold the parts that the package makes against."""

from __future__ import annotations

import numpy as np

from edgekit.quantize.methods import Method, quantize_rows
from edgekit.quantize.model import QuantizedTensor
from edgekit.scheme import Scheme


def quantize_matrix(
    name: str, matrix: np.ndarray, scheme: Scheme, method: Method = Method.SEARCH
) -> QuantizedTensor:
    codes, scales = quantize_rows(matrix, scheme, method, name=name)
    return QuantizedTensor(name, scheme.bits, scheme.group, codes, scales)


def nearest_codes(matrix: np.ndarray, tensor: QuantizedTensor) -> np.ndarray:
    """Round to the nearest step of the tensor's own scales, half to even, and clip."""
    steps = matrix * np.repeat(np.float32(1) / tensor.scales, tensor.group, axis=1)
    codes = np.rint(steps) + tensor.zero_point
    return np.clip(codes, 0, 2 * tensor.zero_point - 1).astype(np.uint8)
