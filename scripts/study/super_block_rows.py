"""Rows of llama.cpp's K-quants with rows padded so that super-blocks of 256 apply."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from study.ggml import Ggml, GgmlMissingError, kind_of
from study.row import Made, Model, NotInstalledError, Row, ends_int8
from study.weights import Weights, join, linear_names, read


def rows() -> Iterator[Row]:
    """Give the rows of K-quants."""
    for recipe in ("Q4_K_S", "Q4_K_M", "Q5_K_M"):
        for has_importance in (False, True):
            yield SuperBlockRow(recipe, has_importance).row


@dataclass(frozen=True, slots=True)
class SuperBlockRow:
    """llama.cpp's types with rows padded so that super-blocks of 256 apply.

    Attributes:
        recipe: ``Q4_K_M``, ...
        has_importance: Whether the quantizer sees mean squares of the inputs.
    """

    recipe: str
    has_importance: bool

    @property
    def row(self) -> Row:
        """The row of the table."""
        ending, words = ("-imatrix", " + imatrix") if self.has_importance else ("", "")
        return Row(
            f"padded-{self.recipe.lower()}{ending}",
            f"ggml {self.recipe}{words}, rows padded",
            self._make,
            is_calibrated=self.has_importance,
        )

    def _make(self, model: Model) -> Made:
        try:
            ggml = Ggml()
        except GgmlMissingError as error:
            raise NotInstalledError(str(error)) from error
        spec = model.source.spec
        tensors, n_bytes = {}, {}
        for name in linear_names(spec):
            importance = model.moments.importance(name) if self.has_importance else None
            kind = kind_of(self.recipe, name, spec.n_layers)
            made = ggml.quantize(read(model.source, name), kind, importance, pads=True)
            tensors[name], n_bytes[name] = made.matrix, made.n_bytes
        return Made(join((ends_int8(model), Weights(tensors, n_bytes))), ggml.version)
