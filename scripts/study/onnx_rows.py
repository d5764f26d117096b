"""Rows of onnxruntime's own tool for weights: `MatMulNBitsQuantizer` with each of its algorithms.

The tool gets a graph with the matrices of one layer and nothing else, and the nodes it writes are
read back. Its GPTQ wants inputs: it gets as many vectors as a matrix has columns, chosen so that
their second moments are those of the calibration text, which is all that GPTQ looks at.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekit.dtypes import F32Array
from study.moments import READERS
from study.row import Made, Model, NotInstalledError, Row, ends_int8
from study.weights import Weights, join, read


def rows() -> Iterator[Row]:
    """Give the rows of onnxruntime."""
    for algorithm in ("default-sym", "default-asym", "hqq"):
        for block in (32, 128):
            yield NBitsRow(algorithm, block).row
    for algorithm in ("k-quant", "gptq"):
        # At 128, the tool cannot pack zero points of rows with an odd number of blocks.
        yield NBitsRow(algorithm, 32).row


@dataclass(frozen=True, slots=True)
class NBitsRow:
    """One algorithm of the tool at one block size, four bits."""

    algorithm: str
    block: int

    @property
    def row(self) -> Row:
        """The row of the table."""
        words = {
            "default-sym": "RTN symmetric",
            "default-asym": "RTN asymmetric",
            "k-quant": "k_quant",
            "hqq": "HQQ",
            "gptq": "GPTQ",
        }[self.algorithm]
        name = f"ort-{self.algorithm}-g{self.block}"
        label = f"onnxruntime {words} g{self.block}"
        return Row(name, label, self._make, is_calibrated=self.algorithm == "gptq")

    def _make(self, model: Model) -> Made:
        quantizer = _import_tool()
        tensors: dict[str, F32Array] = {}
        n_bytes: dict[str, float] = {}
        for layer in range(model.source.spec.n_layers):
            graph = _layer_graph(model, layer)
            config = self._config(quantizer, model, layer)
            tool = quantizer.MatMulNBitsQuantizer(graph, block_size=self.block, algo_config=config)
            # The tool prints a progress bar.
            with contextlib.redirect_stdout(io.StringIO()):
                tool.process()
            for name, floats, size in _read_nodes(tool.model.model):
                tensors[name], n_bytes[name] = floats, size
        tool_name = f"onnxruntime {version('onnxruntime')}"
        return Made(join((ends_int8(model), Weights(tensors, n_bytes))), tool_name)

    def _config(self, quantizer: Any, model: Model, layer: int) -> Any:
        if self.algorithm.startswith("default"):
            return quantizer.DefaultWeightOnlyQuantConfig(
                block_size=self.block, is_symmetric=self.algorithm.endswith("-sym")
            )
        if self.algorithm == "hqq":
            return quantizer.HQQWeightOnlyQuantConfig(block_size=self.block, bits=4)
        if self.algorithm == "k-quant":
            return quantizer.KQuantWeightOnlyQuantConfig()
        return quantizer.GPTQWeightOnlyQuantConfig(calibration_data_reader=_Inputs(model, layer))


class _Inputs:
    """One batch of inputs whose second moments are those of the calibration text."""

    def __init__(self, model: Model, layer: int) -> None:
        self._batch = {
            _input_name(first): _root(model.moments.of(f"layers.{layer}.{first}"))
            for first in READERS
        }

    def __iter__(self) -> Iterator[dict[str, NDArray[np.float32]]]:
        return iter((self._batch,))


def _input_name(first: str) -> str:
    return f"{first}.input"


def _root(moments: F32Array) -> NDArray[np.float32]:
    """Give (M, M) vectors whose sum of x x' is the matrix."""
    values, vectors = np.linalg.eigh(moments.astype(np.float64))
    root = (vectors * np.sqrt(np.maximum(values, 0))).T
    return np.ascontiguousarray(root, dtype=np.float32)


def _layer_graph(model: Model, layer: int) -> onnx.ModelProto:
    """Give a graph with the seven matrices of a layer; each has the input of its readers."""
    nodes, inputs, outputs, weights = [], [], [], []
    for first, parts in READERS.items():
        for part in parts:
            name = f"layers.{layer}.{part}"
            matrix = read(model.source, name)
            if part == first:
                shape = [None, matrix.shape[1]]
                outside = _input_name(first)
                inputs.append(helper.make_tensor_value_info(outside, TensorProto.FLOAT, shape))
                # GPTQ asks for the inputs of products as outputs; those of a graph cannot be.
                nodes.append(helper.make_node("Identity", [outside], [first]))
            transposed = np.ascontiguousarray(matrix.T)
            weights.append(numpy_helper.from_array(transposed, f"{name}.weight"))
            nodes.append(helper.make_node("MatMul", [first, f"{name}.weight"], [name], name))
            shape = [None, matrix.shape[0]]
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    graph = helper.make_graph(nodes, "layer", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _read_nodes(model: onnx.ModelProto) -> Iterator[tuple[str, F32Array, float]]:
    """Give name, floats and bytes of every MatMulNBits; scales count 16 bits, as in fp16 models."""
    stored = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "MatMulNBits":
            continue
        facts = {item.name: item.i for item in node.attribute}
        codes, scales = stored[node.input[1]], stored[node.input[2]]
        has_zeros = len(node.input) > 3 and node.input[3] != ""
        zeros = stored[node.input[3]] if has_zeros else None
        floats = dequantize_nbits(codes, scales, zeros, facts["K"], facts["block_size"])
        size = codes.nbytes + 2 * scales.size
        if zeros is not None:
            size += zeros.nbytes if zeros.dtype == np.uint8 else 2 * zeros.size
        yield node.output[0], floats, float(size)


def dequantize_nbits(
    codes: NDArray[np.uint8],
    scales: NDArray[Any],
    zeros: NDArray[Any] | None,
    n_cols: int,
    block: int,
) -> F32Array:
    """Turn the four-bit inputs of MatMulNBits into floats, (N, K).

    Args:
        codes: (N, blocks, block / 2), low bits first.
        scales: One for each block of each row.
        zeros: Zero points, packed like codes row by row in uint8, or floats; None for 8.
        n_cols: K; the last block of a row may be longer than needed.
        block: Values that share a scale.
    """
    n_rows, n_blocks, _ = codes.shape
    values = np.stack([codes & 15, codes >> 4], axis=-1).reshape(n_rows, n_blocks, block)
    if zeros is None:
        middle: NDArray[Any] = np.full((n_rows, n_blocks), 8, np.float32)
    elif zeros.dtype == np.uint8:
        packed = zeros.reshape(n_rows, -1)
        middle = np.stack([packed & 15, packed >> 4], axis=-1).reshape(n_rows, -1)[:, :n_blocks]
    else:
        middle = zeros.reshape(n_rows, n_blocks)
    shifted = values.astype(np.float32) - middle.astype(np.float32)[..., None]
    floats = shifted * scales.reshape(n_rows, n_blocks, 1).astype(np.float32)
    result: F32Array = floats.reshape(n_rows, -1)[:, :n_cols]
    return result


def _import_tool() -> Any:
    try:
        from onnxruntime.quantization import matmul_nbits_quantizer
    except ImportError as error:
        raise NotInstalledError(f"onnxruntime's MatMulNBitsQuantizer: {error}") from error
    logging.disable(logging.INFO)  # a line for each matrix
    return matmul_nbits_quantizer
