"""Rows of edgekit: the weights that `edgekit export` puts into every format."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from edgekit.artifact import Format
from edgekit.exporters import open_exporter
from edgekit.exporters.base import ExportOptions
from edgekit.pipeline.export import choose_method
from edgekit.pipeline.mixed_precision import Budget, mix, needs_budget
from edgekit.quantize.encoded_model import quantize_model
from edgekit.quantize.methods import Method
from edgekit.quantize.model import EncodedTensor
from edgekit.scheme import Scheme, preset_names
from study.row import Made, Model, Row, ends_int8
from study.weights import Weights

_SCHEMES: Final = ("int4-g32", "int4-g64", "int4-g128", "uint4-g32", "uint4-g64", "uint4-g128")
_FORMATS: Final = (Format.ONNX, Format.MLX, Format.COREML)  # what a mixed model must be legal in
_BITS: Final = (4.3, 4.6, 5.0)


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
    for scheme in _SCHEMES:
        yield EdgekitRow(scheme).row
    yield EdgekitRow("uint4-g128", "auto").row
    for preset in preset_names():
        yield EdgekitRow(preset).row
    for bits in _BITS:
        yield EdgekitRow("balanced", bits=bits).row
    yield EdgekitRow("quality", bits=4.8).row


def _ends(model: Model) -> Made:
    return Made(ends_int8(model), "edgekit")


@dataclass(frozen=True, slots=True)
class EdgekitRow:
    """What `edgekit export` is asked for.

    Attributes:
        scheme: ``--scheme``, a preset too.
        method: ``--method``; empty for the scheme's own.
        fold: Whether channel scales move first.
        bits: ``--bits-per-weight``.
    """

    scheme: str
    method: str = ""
    fold: bool = True
    bits: float | None = None

    @property
    def row(self) -> Row:
        """The row of the table."""
        asked = [self.scheme, self.method, f"{self.bits}-bits" if self.bits else ""]
        words = " ".join(part for part in ("edgekit", *asked) if part)
        name = "-".join(part for part in ("edgekit", *asked) if part)
        if not self.fold:
            name, words = f"{name}-nofold", f"{words}, no fold"
        is_calibrated = self._reads_text or needs_budget(self._scheme, Budget(self.bits))
        return Row(name, words, self._make, is_calibrated=is_calibrated)

    @property
    def _scheme(self) -> Scheme:
        return Scheme.parse(self.scheme)

    @property
    def _method(self) -> Method:
        return choose_method(self.method or None, self._scheme)

    @property
    def _reads_text(self) -> bool:
        """Whether the calibration text is read; edgekit's own few words are not counted.

        ``importance`` reads it only where it is asked for.
        """
        return self._method.reads_text and (
            self._method is not Method.IMPORTANCE or self.method == Method.IMPORTANCE.value
        )

    def _make(self, model: Model) -> Made:
        scheme, budget, text = self._scheme, Budget(self.bits), model.moments.text
        if needs_budget(scheme, budget):
            exporters = [open_exporter(fmt) for fmt in _FORMATS]
            mixed = mix(model.source, scheme, budget, exporters, ExportOptions(None), text)
            scheme = mixed.scheme
        with tempfile.TemporaryDirectory(dir=model.folder) as folder:
            encoded = quantize_model(
                model.source,
                scheme,
                folder,
                method=self._method,
                text=text.sequences if self._reads_text else None,
                fold=self.fold and scheme.fold,
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
