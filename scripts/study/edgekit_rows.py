"""Rows of edgekit: what `edgekit export` writes, read back from its store."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from edgekit.quantize.methods import Method
from edgekit.quantize.model import EncodedTensor
from edgekit.quantize.store import quantize_model
from edgekit.scheme import Scheme
from study.row import Made, Model, Row, ends_int8
from study.weights import Weights


def rows() -> Iterator[Row]:
    """Give the rows of edgekit."""
    yield Row("ends-int8", "embedding int8, all else float", _ends)
    yield EdgekitRow("int8", "search", fold=True).row
    for fold in (False, True):
        for scheme in ("int4-g32", "int4-g64", "int4-g128"):
            for method in ("rtn", "search"):
                yield EdgekitRow(scheme, method, fold).row


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
    fold: bool

    @property
    def row(self) -> Row:
        """The row of the table."""
        ending = "" if self.fold else "-nofold"
        words = f"edgekit {self.scheme} {self.method}{', fold' if self.fold else ''}"
        return Row(f"edgekit-{self.scheme}-{self.method}{ending}", words, self._make)

    def _make(self, model: Model) -> Made:
        with tempfile.TemporaryDirectory(dir=model.folder) as folder:
            stored = quantize_model(
                model.source,
                Scheme.parse(self.scheme),
                folder,
                method=Method(self.method),
                fold=self.fold,
            )
            with closing(stored):
                tensors, n_bytes = {}, {}
                for entry in stored.entries:
                    tensor = stored.get(entry.name)
                    if isinstance(tensor, EncodedTensor):
                        tensors[entry.name] = tensor.dequantize()
                        n_bytes[entry.name] = float(tensor.encoding.bytes_of(*tensor.shape))
                    else:
                        tensors[entry.name] = np.asarray(tensor.values, np.float32)
                return Made(Weights(tensors, n_bytes), "edgekit")
