"""Answer one question: how far is a stored tensor from the floats it came from?"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from edgekit.dtypes import F32Array
from edgekit.errors import QuantError
from edgekit.quantize.model import FloatTensor, ModelTensor
from edgekit.quantize.slabs import slab_rows
from edgekit.tensors import LazyTensor


@dataclass(frozen=True, slots=True)
class Distortion:
    """Error of one tensor.

    Attributes:
        name: Canonical name.
        relative_rms: Root of squared error over squared weights; 0 when exact.
        max_abs_error: Largest absolute difference of one weight.
        snr_db: Signal-to-noise ratio in decibels; None when exact.
    """

    name: str
    relative_rms: float
    max_abs_error: float
    snr_db: float | None


def measure_distortion(source: LazyTensor, tensor: ModelTensor) -> Distortion:
    """Compare a stored tensor with its float source, a slab at a time, in float64 sums.

    Raises:
        QuantError: The shapes differ.
    """
    if source.info.shape != tensor.shape:
        raise QuantError(f"{tensor.name}: shape", got=tensor.shape, wanted=source.info.shape)
    signal = noise = largest = 0.0
    for part in slab_rows(tensor.shape):
        wanted = source.read_rows(part.start, part.stop).astype(np.float64)
        error = np.abs(_stored_rows(tensor, part) - wanted)
        signal += float(np.square(wanted).sum())
        noise += float(np.square(error).sum())
        largest = max(largest, float(error.max(initial=0.0)))
    if noise == 0.0:
        return Distortion(tensor.name, 0.0, 0.0, None)
    if signal == 0.0:
        raise QuantError(f"{tensor.name}: a tensor of zeros came back with other values")
    return Distortion(
        tensor.name, math.sqrt(noise / signal), largest, 10 * math.log10(signal / noise)
    )


def _stored_rows(tensor: ModelTensor, part: slice) -> F32Array:
    if isinstance(tensor, FloatTensor):
        return tensor.values[part]
    return replace(tensor, codes=tensor.codes[part], scales=tensor.scales[part]).dequantize()
