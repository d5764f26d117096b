"""Statistics of what a matrix reads while the model reads a calibration text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgekit.dtypes import F64Array
from edgekit.errors import QuantError


@dataclass(frozen=True, slots=True, eq=False)
class InputStatistics:
    """Second moments of the M input channels of a matrix, over a calibration text.

    Attributes:
        mean_squares: Of each channel, (M,), float64, at least 0.
        moments: Mean outer product of the inputs, (M, M), float64, or None where only the mean
            squares are known (an importance matrix of llama.cpp).
    """

    mean_squares: F64Array
    moments: F64Array | None = None

    @classmethod
    def of_moments(cls, moments: F64Array) -> InputStatistics:
        """Take the mean squares from the diagonal."""
        return cls(np.diagonal(moments).copy(), moments)

    def check(self, name: str, n_cols: int) -> None:
        """Refuse statistics that do not belong to a matrix or are no numbers.

        Raises:
            QuantError: Another number of channels, or a mean square that is negative, NaN or
                infinite.
        """
        if self.mean_squares.shape != (n_cols,):
            raise QuantError(
                f"{name}: statistics of the inputs",
                got=f"shape {self.mean_squares.shape}",
                wanted=f"one mean square for each of {n_cols} columns",
                do="They were measured on another model: measure them again.",
            )
        is_usable = np.isfinite(self.mean_squares) & (self.mean_squares >= 0)
        if not is_usable.all():
            channel = int(np.argmin(is_usable))
            raise QuantError(
                f"{name}: mean square of input channel {channel}",
                got=self.mean_squares[channel],
                wanted="a finite number, 0 or more",
                do="The model computes no finite numbers on the calibration text.",
            )
