"""A row of the study: one way to quantize a model, and what it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgekit.encoding import Encoding
from edgekit.families.base import SourceModel
from edgekit.quantize.encoded_model import encode_rows
from edgekit.quantize.model import EncodedTensor
from edgekit.quantize.plan import TensorPlan
from study.measure import Logits
from study.moments import Moments
from study.weights import Weights, end_names


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """What rows are made from: the float model, its calibration, a folder for their files."""

    source: SourceModel
    moments: Moments
    folder: Path


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """What a row gave.

    Attributes:
        weights: Its weights as floats.
        tool: Who quantized, with the version.
        logits: Set where the row is run by another runtime than the study's float forward.
    """

    weights: Weights
    tool: str
    logits: Logits | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table.

    Attributes:
        name: Short, unique, stable: the name of its file.
        label: As the table says it.
        make: Makes the weights.
        is_calibrated: Whether the calibration text matters.
    """

    name: str
    label: str
    make: Callable[[Model], Made]
    is_calibrated: bool = False


class NotInstalledError(Exception):
    """What a row needs is not installed here; the text says what."""


def ends_int8(model: Model) -> Weights:
    """Give the embedding and the head in int8, blocks of 32: the same for all that have no file."""
    encoding = Encoding.parse("int8")
    tensors, n_bytes = {}, {}
    for name in end_names(model.source.spec):
        tensor = model.source.tensor(name)
        plan = TensorPlan(name, tensor.info.shape, encoding, "")
        made = encode_rows(tensor, plan, slice(0, plan.shape[0]))
        tensors[name] = made.dequantize() if isinstance(made, EncodedTensor) else made.values
        n_bytes[name] = float(encoding.bytes_of(*tensor.info.shape))
    return Weights(tensors, n_bytes)
