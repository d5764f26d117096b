"""Rows of edgekit: the weights that `edgekit export` puts into every format."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from edgekit.quantize.encoded_model import quantize_model
from edgekit.quantize.methods import Method
from edgekit.quantize.model import EncodedTensor
from edgekit.scheme import Scheme
from study.row import Made, Model, Row, ends_int8
from study.weights import Weights

_SCHEMES: Final = ("int4-g32", "int4-g64", "int4-g128", "uint4-g32", "uint4-g64", "uint4-g128")


def rows() -> Iterator[Row]:
    """Give the rows of edgekit."""
    yield Row("ends-int8", "embedding int8, all else float", _ends)
    yield EdgekitRow("int8", "search").row
    for scheme in ("int4-g32", "int4-g128"):
        for method in ("rtn", "search"):
            yield EdgekitRow(scheme, method, fold=False).row
    for method in ("importance", "gptq"):
        yield EdgekitRow("int4-g32", method, fold=False).row
    for method in ("search", "importance", "gptq"):
        for scheme in _SCHEMES:
            yield EdgekitRow(scheme, method).row
    yield EdgekitRow("uint4-g128", "auto").row


def _ends(model: Model) -> Made:
    return Made(ends_int8(model), "edgekit")


@dataclass(frozen=True, slots=True)
class EdgekitRow:
    """What `edgekit export` is asked for.

    Attributes:
        scheme: ``--scheme``.
        method: ``--method``.
        fold: Whether channel scales move first.
    """

    scheme: str
    method: str
    fold: bool = True

    @property
    def row(self) -> Row:
        """The row of the table."""
        words, name = f"edgekit {self.scheme} {self.method}", f"edgekit-{self.scheme}-{self.method}"
        if not self.fold:
            name, words = f"{name}-nofold", f"{words}, no fold"
        return Row(name, words, self._make, is_calibrated=Method(self.method).reads_text)

    def _make(self, model: Model) -> Made:
        method = Method(self.method)
        with tempfile.TemporaryDirectory(dir=model.folder) as folder:
            encoded = quantize_model(
                model.source,
                Scheme.parse(self.scheme),
                folder,
                method=method,
                text=model.moments.documents if method.reads_text else None,
                fold=self.fold,
            )
            tensors, n_bytes = {}, {}
            for entry in encoded.entries:
                tensor = encoded.get(entry.name)
                if isinstance(tensor, EncodedTensor):
                    tensors[entry.name] = tensor.dequantize()
                    n_bytes[entry.name] = float(tensor.encoding.bytes_of(*tensor.shape))
                else:
                    tensors[entry.name] = np.asarray(tensor.values, np.float32)
            return Made(Weights(tensors, n_bytes), "edgekit")
