"""Rows of MLX: `mx.quantize` on every matrix, mlx-lm's mixed recipe and its GPTQ."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.dtypes import F32Array
from study.ggml import uses_more_bits
from study.row import Made, Model, NotInstalledError, Row, ends_int8
from study.weights import Weights, join, linear_names, read

if TYPE_CHECKING:
    import mlx.core as mx

_GPTQ_TOKENS = 512


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
    """mlx-lm's GPTQ as published, on the study's calibration text."""

    group: int

    @property
    def row(self) -> Row:
        """The row of the table."""
        name, label = f"mlx-gptq-g{self.group}", f"mlx-lm GPTQ 4 bits g{self.group}"
        return Row(name, label, self._make, is_calibrated=True, is_slow=True)

    def _make(self, model: Model) -> Made:
        import mlx.core as mx

        gptq, load = _import_gptq()
        checkpoint = model.source.checkpoint
        mlx_model, *_ = load(checkpoint.origin)
        mlx_model.set_dtype(mx.float32)  # its CPU kernels add up bfloat16 in bfloat16
        documents = [ids[:_GPTQ_TOKENS] for ids in model.moments.documents]
        whole = [ids for ids in documents if len(ids) == _GPTQ_TOKENS]
        quantized, _ = gptq(mlx_model, mx.array(whole), 4, self.group, 8, 32, batch_size=4)
        modules = dict(quantized.named_modules())
        tensors, n_bytes = {}, {}
        for name in linear_names(model.source.spec):
            theirs = model.source.tensor(name).stored.info.name.removesuffix(".weight")
            module = modules[theirs]
            tensors[name] = _floats(
                (module.weight, module.scales, module.biases), self.group, module.bits
            )
            # Scales and biases are float32 here and 16 bits in a file.
            n_bytes[name] = float(module.weight.nbytes + 4 * module.scales.size)
        return Made(join((ends_int8(model), Weights(tensors, n_bytes))), _tool())


def _import_gptq() -> tuple[Callable[..., Any], Callable[..., Any]]:
    try:
        from mlx_lm import load
        from mlx_lm.quant.gptq import gptq_quantize
    except ImportError as error:
        raise NotInstalledError(f"mlx-lm's GPTQ cannot be imported: {error}") from error
    return gptq_quantize, load
