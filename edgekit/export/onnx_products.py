"""Answer one question: how is a matrix product written in ONNX?

Block-quantized products have accuracy_level 4: activations are rounded to int8 per block; every
other level falls off a speed cliff on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from edgekit.export.onnx_layout import Linear
from edgekit.export.onnx_parts import MICROSOFT, GraphParts
from edgekit.scheme import FP16

ACCURACY_LEVEL: Final = 4


class Products:
    """Adds the matrix products of a decoder to its graph, by name."""

    def __init__(self, parts: GraphParts, linears: Sequence[Linear]) -> None:
        self._parts = parts
        self._linears = {linear.name: linear for linear in linears}

    def __contains__(self, name: str) -> bool:
        return name in self._linears

    def add(self, name: str, x: str, output: str | None = None) -> str:
        """Multiply (..., M) by a matrix (N, M), with its bias if it has one; give (..., N)."""
        linear = self._linears[name]
        output = output or f"{name}.out"
        bias = f"{name}.bias" if linear.has_bias else ""
        if linear.scheme.group is not None:
            return self._add_blocks(linear, linear.scheme.group, x, bias, output)
        weight = linear.stored
        if linear.scheme == FP16:
            weight = self._parts.cast(weight, "FLOAT", f"{name}.float32")
        product = f"{name}.product" if bias else output
        # transB keeps (N, M) as in the checkpoint, so a tied embedding is one array.
        self._parts.node("FusedMatMul", [x, weight], product, name=name, domain=MICROSOFT, transB=1)
        return self._parts.node("Add", [product, bias], output) if bias else output

    def _add_blocks(self, linear: Linear, group: int, x: str, bias: str, output: str) -> str:
        bits = linear.scheme.bits
        # The product wants (N, M // G, bytes of a block). A tied embedding is thus known by two
        # names and two shapes, with one offset in the weight file.
        codes = self._parts.array(
            f"{linear.name}.codes",
            self._parts.arrays[f"{linear.stored}.codes"].info,
            (linear.n_out, linear.n_in // group, group * bits // 8),
        )
        inputs = [x, codes, f"{linear.stored}.scales"]
        return self._parts.node(
            "MatMulNBits",
            [*inputs, "", "", bias] if bias else inputs,
            output,
            name=linear.name,
            domain=MICROSOFT,
            K=linear.n_in,
            N=linear.n_out,
            bits=bits,
            block_size=group,
            accuracy_level=ACCURACY_LEVEL,
        )
