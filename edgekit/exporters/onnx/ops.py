"""Nodes and initializers of an ONNX graph: plain ones, matmuls, and norms.

Weights are references into the weight file; only small numbers lie in the proto itself.
Block-quantized matmuls have accuracy_level 4: activations are rounded to int8 per block; every
other level falls off a speed cliff on the CPU. A matmul that needs more takes its activations in
two such terms (activations.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from edgekit.dtypes import DType
from edgekit.encoding import FP16
from edgekit.exporters.arrays import StoredArray
from edgekit.exporters.onnx.activations import ACCURACY_LEVEL
from edgekit.exporters.onnx.weights import WEIGHTS_NAME, Linear
from edgekit.families.spec import DecoderSpec
from edgekit.formats.onnx_io import Port
from edgekit.lazy import require
from edgekit.tensors import TensorInfo

MICROSOFT: Final = "com.microsoft"
_INT8_STEPS: Final = 127  # from zero to the largest of a block, as onnxruntime's kernel rounds
_SMALLEST_STEP: Final = 1e-30  # of a block of zeros


class GraphWriter:
    """Collects nodes and initializers in the order in which they are added.

    Args:
        arrays: What the weight file holds.
        offsets: First byte of each array in it.
    """

    def __init__(self, arrays: Sequence[StoredArray], offsets: Mapping[str, int]) -> None:
        self._onnx = require("onnx")
        self._helper = require("onnx.helper")
        self.arrays = {stored.info.name: stored for stored in arrays}
        self._offsets = offsets
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def node(
        self,
        op: str,
        inputs: Sequence[str],
        outputs: str | Sequence[str],
        *,
        name: str | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Add one node, named after its first output unless told otherwise; give that output."""
        names = [outputs] if isinstance(outputs, str) else list(outputs)
        self.nodes.append(
            self._helper.make_node(
                op, list(inputs), names, name=name or names[0], domain=domain, **attributes
            )
        )
        return names[0]

    def cast(self, name: str, to: str, output: str) -> str:
        """Convert to a type by its ONNX name, such as ``INT32``."""
        return self.node("Cast", [name], output, to=getattr(self._onnx.TensorProto, to))

    def array(self, name: str, info: TensorInfo, shape: Sequence[int]) -> str:
        """Add an initializer whose bytes are in the weight file."""
        tensor = self._onnx.TensorProto(
            name=name,
            dims=shape,
            data_type=_onnx_types(self._onnx)[info.dtype],
            data_location=self._onnx.TensorProto.EXTERNAL,
        )
        place = (WEIGHTS_NAME, self._offsets[info.name], info.n_bytes)
        for key, value in zip(("location", "offset", "length"), place, strict=True):
            tensor.external_data.add(key=key, value=str(value))
        self.initializers.append(tensor)
        return name

    def declare(self, port: Port) -> Any:
        """Give the ``ValueInfoProto`` of an input or output of the graph."""
        make = self._helper.make_tensor_value_info
        return make(port.name, _onnx_types(self._onnx)[port.dtype], port.shape)

    def integers(self, name: str, value: int | list[int]) -> str:
        """Add an int64 initializer inside the graph file, where shape inference can read it."""
        return self._small(name, np.asarray(value, dtype=np.int64))

    def number(self, name: str, value: float) -> str:
        """Add a float32 scalar inside the graph file."""
        return self._small(name, np.asarray(value, dtype=np.float32))

    def _small(self, name: str, array: Any) -> str:
        self.initializers.append(self._onnx.numpy_helper.from_array(array, name))
        return name


def _onnx_types(onnx: Any) -> dict[DType, int]:
    """Give ONNX's number for each type of a stored array, an input or an output."""
    types = onnx.TensorProto
    return {
        DType.FP32: types.FLOAT,
        DType.FP16: types.FLOAT16,
        DType.INT64: types.INT64,
        DType.UINT8: types.UINT8,
    }


class Matmuls:
    """Adds the matmuls of a decoder to its graph, by name."""

    def __init__(self, parts: GraphWriter, linears: Sequence[Linear]) -> None:
        self._parts = parts
        self._linears = {linear.name: linear for linear in linears}
        self._split: dict[tuple[str, int], str] = {}
        self._constants: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._linears

    def add(self, name: str, x: str, output: str | None = None) -> str:
        """Multiply (..., M) by a matrix (N, M), with its bias if it has one; give (..., N)."""
        linear = self._linears[name]
        output = output or f"{name}.out"
        bias = f"{name}.bias" if linear.has_bias else ""
        if linear.encoding.block is not None:
            return self._add_blocks(linear, linear.encoding.block, x, bias, output)
        weight = linear.stored
        if linear.encoding == FP16:
            weight = self._parts.cast(weight, "FLOAT", f"{name}.float32")
        product = f"{name}.product" if bias else output
        # transB keeps (N, M) as in the checkpoint, so a tied embedding is one array.
        self._parts.node("FusedMatMul", [x, weight], product, name=name, domain=MICROSOFT, transB=1)
        return self._parts.node("Add", [product, bias], output) if bias else output

    def _add_blocks(self, linear: Linear, block: int, x: str, bias: str, output: str) -> str:
        bits = linear.encoding.bits
        # The matmul needs (N, M // G, bytes of a block). So a tied embedding has two names and two
        # shapes, with one offset in the weight file.
        codes = self._parts.array(
            f"{linear.name}.codes",
            self._parts.arrays[f"{linear.stored}.codes"].info,
            (linear.n_out, linear.n_in // block, block * bits // 8),
        )
        is_split = linear.n_terms == 2
        zeros = f"{linear.stored}.zero_points" if linear.encoding.has_zero_points else ""
        inputs = [
            self._in_two(x, block) if is_split else x, codes, f"{linear.stored}.scales", zeros
        ]  # fmt: skip
        product = self._parts.node(
            "MatMulNBits",
            [*inputs, "", bias] if bias and not is_split else inputs if zeros else inputs[:3],
            f"{linear.name}.terms" if is_split else output,
            name=linear.name,
            domain=MICROSOFT,
            K=linear.n_in,
            N=linear.n_out,
            bits=bits,
            block_size=block,
            accuracy_level=ACCURACY_LEVEL,
        )
        if not is_split:
            return product
        whole = f"{linear.name}.sum" if bias else output
        self._parts.node("ReduceSum", [product, self._once("terms_axis", [2])], whole, keepdims=0)
        return self._parts.node("Add", [whole, bias], output) if bias else whole

    def _in_two(self, x: str, block: int) -> str:
        """Write (B, T, M) as the sum of two rows that int8 holds, (B, T, 2, M).

        The first row is what the kernel would round x to, which it then holds exactly; the second
        is the rest, 254 times smaller at least.
        """
        if (x, block) in self._split:
            return self._split[x, block]
        node, at = self._parts.node, f"{x}.g{block}"
        blocks = node("Reshape", [x, self._once(f"blocks.g{block}", [0, 0, -1, block])], f"{at}.in")
        sizes = node("Abs", [blocks], f"{at}.sizes")
        largest = node("ReduceMax", [sizes, self._once("blocks_axis", [-1])], f"{at}.largest")
        step = node("Div", [largest, self._once("int8_steps", _INT8_STEPS)], f"{at}.exact_step")
        step = node("Max", [step, self._once("smallest_step", _SMALLEST_STEP)], f"{at}.step")
        steps = node("Round", [node("Div", [blocks, step], f"{at}.ratio")], f"{at}.steps")
        first = node("Mul", [steps, step], f"{at}.first")
        rest = node("Sub", [blocks, first], f"{at}.rest")
        row = self._once("row", [0, 0, 1, -1])
        rows = [node("Reshape", [part, row], f"{part}.row") for part in (first, rest)]
        self._split[x, block] = node("Concat", rows, f"{at}.terms", axis=2)
        return self._split[x, block]

    def _once(self, name: str, value: float | list[int]) -> str:
        """Add a small constant if it is not there yet."""
        if name not in self._constants:
            self._constants.add(name)
            if isinstance(value, list):
                self._parts.integers(name, value)
            else:
                self._parts.number(name, value)
        return name


class Norms:
    """Adds the norms of a decoder to its graph, by canonical name."""

    def __init__(self, parts: GraphWriter, spec: DecoderSpec) -> None:
        self._parts = parts
        self._eps = spec.norm_eps
        self._offset = spec.norm_offset
        if self._offset:
            parts.number("norm_offset", self._offset)

    def add(self, x: str, name: str) -> str:
        """Norm over the last axis."""
        return self._parts.node(
            "SimplifiedLayerNormalization",
            [x, self._gain(name)],
            f"{name}.out",
            axis=-1,
            epsilon=self._eps,
            stash_type=1,
        )

    def add_sum(self, residual: str, output: str, name: str) -> tuple[str, str]:
        """Add a block's output to the residual and norm the sum, in one node: (normed, sum)."""
        normed, total = f"{name}.out", f"{name}.residual"
        self._parts.node(
            "SkipSimplifiedLayerNormalization",
            [residual, output, self._gain(name)],
            [normed] if name == "final_norm" else [normed, "", "", total],
            name=name,
            domain=MICROSOFT,
            epsilon=self._eps,
        )
        return normed, total

    def _gain(self, name: str) -> str:
        """Give the factor of a norm.

        onnxruntime adds the offset once, while loading. If it were folded into the stored float32,
        it could not be removed exactly.
        """
        if not self._offset:
            return name
        return self._parts.node("Add", [name, "norm_offset"], f"{name}.gain")
