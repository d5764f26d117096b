"""A matrix quantized in one piece, to hold the parts that the package makes against."""

from __future__ import annotations

import numpy as np

from edgekit.encoding import Encoding
from edgekit.quantize.methods import Method, quantize_rows
from edgekit.quantize.model import EncodedTensor


def quantize_matrix(
    name: str, matrix: np.ndarray, encoding: Encoding, method: Method = Method.SEARCH
) -> EncodedTensor:
    made = quantize_rows(matrix, encoding, method, name=name)
    return EncodedTensor.of_codes(name, encoding, made.codes, made.scales, made.zero_points)


def nearest_codes(matrix: np.ndarray, tensor: EncodedTensor) -> np.ndarray:
    """Round to the nearest step of the tensor's own scales, half to even, and clip."""
    steps = matrix * np.repeat(np.float32(1) / tensor.scales, tensor.encoding.block, axis=1)
    n_codes = 1 << tensor.encoding.bits
    return np.clip(np.rint(steps) + n_codes // 2, 0, n_codes - 1).astype(np.uint8)
