"""Rows of MLX: `mx.quantize` on every matrix, mlx-lm's mixed recipe and its GPTQ."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from edgekit.dtypes import F32Array
from study.ggml import uses_more_bits
from study.row import Made, Model, NotInstalledError, Row, ends_int8
from study.weights import Weights, join, linear_names, read

if TYPE_CHECKING:
    import mlx.core as mx
    import mlx.nn as nn


def rows() -> Iterator[Row]:
    """Give the rows of MLX."""
    for group in (32, 64, 128):
        yield AffineRow(group, mixed=False).row
    yield AffineRow(64, mixed=True).row
    for group in (32, 64):
        yield GptqRow(group).row


@dataclass(frozen=True, slots=True)
class AffineRow:
    """What `mlx_lm.convert -q` does to the linear layers.

    Attributes:
        group: Values that share a scale and a bias.
        mixed: Six bits for v and down in half of the layers (recipe mixed_4_6).
    """

    group: int
    mixed: bool

    @property
    def row(self) -> Row:
        """The row of the table."""
        words = "mixed_4_6" if self.mixed else "affine 4 bits"
        name = f"mlx-{'mixed-' if self.mixed else ''}g{self.group}"
        return Row(name, f"mlx {words} g{self.group}", self._make)

    def _make(self, model: Model) -> Made:
        import mlx.core as mx

        n_layers = model.source.spec.n_layers
        tensors, n_bytes = {}, {}
        for name in linear_names(model.source.spec):
            _, layer, part = name.split(".")
            has_more = part in ("v", "down") and uses_more_bits(int(layer), n_layers)
            bits = 6 if self.mixed and has_more else 4
            matrix = read(model.source, name)
            if matrix.shape[1] % self.group:
                raise NotInstalledError(
                    f"mlx needs rows that are multiples of {self.group}; {name} has "
                    f"{matrix.shape[1]}"
                )
            # In bfloat16, the type of the checkpoint, as mlx-lm does it.
            stored = mx.quantize(
                mx.array(matrix).astype(mx.bfloat16), group_size=self.group, bits=bits
            )
            tensors[name] = _floats(stored, self.group, bits)
            n_bytes[name] = float(sum(part.nbytes for part in stored))
        return Made(join((ends_int8(model), Weights(tensors, n_bytes))), _tool())


def _floats(stored: tuple[mx.array, ...], group: int, bits: int) -> F32Array:
    """Dequantize with float32 arithmetic."""
    import mlx.core as mx

    codes, scales, biases = stored
    floats = mx.dequantize(
        codes, scales.astype(mx.float32), biases.astype(mx.float32), group_size=group, bits=bits
    )
    return np.array(floats, dtype=np.float32)


def _tool() -> str:
    return f"mlx {version('mlx')}, mlx-lm {version('mlx-lm')}"


@dataclass(frozen=True, slots=True)
class GptqRow:
    """mlx-lm's GPTQ, with the Hessians of the study's calibration text.

    mlx-lm computes them by running the model, which takes hours on a processor. Here it gets those
    that the study has anyway; all that follows is its own code.
    """

    group: int

    @property
    def row(self) -> Row:
        """The row of the table."""
        name, label = f"mlx-gptq-g{self.group}", f"mlx-lm GPTQ 4 bits g{self.group}"
        return Row(name, label, self._make, is_calibrated=True)

    def _make(self, model: Model) -> Made:
        import mlx.core as mx

        gptq, load = _import_gptq()
        mx.disable_compile()  # on a processor, each compiled function is a run of a C++ compiler
        names = {
            model.source.tensor(name).stored.info.name.removesuffix(".weight"): name
            for name in linear_names(model.source.spec)
        }
        mlx_model, *_ = load(model.source.checkpoint.origin)
        mlx_model.set_dtype(mx.float32)
        moments = {
            id(module): partial(model.moments.of, names[theirs])
            for theirs, module in mlx_model.named_modules()
            if theirs in names
        }
        catcher = partial(_prepare, moments, model.moments.text.n_tokens)
        # It draws a progress bar.
        silent = contextlib.redirect_stderr(io.StringIO())
        with mock.patch.object(gptq, "Catcher", catcher), silent:
            quantized, _ = gptq.gptq_quantize(mlx_model, [], 4, self.group, 8, 32)
        modules = dict(quantized.named_modules())
        tensors, n_bytes = {}, {}
        for theirs, name in names.items():
            module = modules[theirs]
            stored = (module.weight, module.scales, module.biases)
            tensors[name] = _floats(stored, self.group, module.bits)
            # Scales and biases are float32 here and 16 bits in a file.
            n_bytes[name] = float(module.weight.nbytes + 4 * module.scales.size)
        return Made(join((ends_int8(model), Weights(tensors, n_bytes))), _tool())


def _prepare(
    moments: Mapping[int, Callable[[], F32Array]], n_tokens: int, module: nn.Module
) -> nn.Module:
    """Give what mlx-lm's GPTQ holds a matrix in while it sums x x', with the sum set.

    Args:
        moments: ``id`` of a matrix to the mean of x x' over tokens.
        n_tokens: Tokens of the mean.
        module: The matrix.
    """
    import mlx.core as mx
    import mlx.nn as nn

    holder = nn.Module()
    holder.module = module
    holder.H = mx.array(moments[id(module)]() * np.float32(n_tokens))
    return holder


def _import_gptq() -> tuple[Any, Any]:
    try:
        from mlx_lm import load
        from mlx_lm.quant import gptq
    except ImportError as error:
        raise NotInstalledError(f"mlx-lm's GPTQ cannot be imported: {error}") from error
    return gptq, load
