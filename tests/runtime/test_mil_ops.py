"""Claims about single operations: equal to what coremltools computes when it folds constants."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from edgekit.formats.mil_blob import BlobReader, BlobWriter
from edgekit.formats.mlpackage import (
    PACKAGE_NAME,
    main_block,
    read_spec,
    require_coremltools,
    type_name,
    weights_path,
)
from edgekit.runtime.mil_ops import OPS
from edgekit.runtime.mil_program import StoredWeight
from tests.exporters.coreml.coreml_edit import export
from tests.exporters.memory_model import memory_model

FLOAT32_TOLERANCE: Final = 1e-6
"""Relative; sums of at most 24 float32 products in another order."""

RNG = np.random.default_rng(3)


def floats(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(np.float32)


class Kept:
    """A weight that is simply there."""

    def __init__(self, matrix: np.ndarray[Any, Any]) -> None:
        self.matrix = matrix

    def array(self) -> Any:
        return self.matrix

    def rows(self, indices: Any) -> Any:
        return self.matrix[indices]


def by_coremltools(op: str, arguments: Mapping[str, Any]) -> list[Any]:
    """Let coremltools fold the operation, as its builder does for constants."""
    ct = require_coremltools()
    mil = require_coremltools("coremltools.converters.mil.mil")
    inputs = {"unused": mil.Builder.TensorSpec((1,), dtype=mil.types.fp32)}
    with mil.Function(inputs, opset_version=ct.target.iOS18):
        result = getattr(mil.Builder, op)(**arguments)
    outputs = result if isinstance(result, (list, tuple)) else [result]
    return [np.asarray(output.val) for output in outputs]


def by_us(op: str, arguments: Mapping[str, Any]) -> list[Any]:
    ours = OPS[op]
    held = {name: np.asarray(value) for name, value in arguments.items() if name != "values"}
    params: dict[str, Any] = {k: v for k, v in held.items() if k not in ours.tensors}
    for weight in ("weight", *(("x",) if op == "gather" else ())):
        if weight in params:
            params[weight] = Kept(params[weight])
    tensors = (
        list(arguments["values"])
        if ours.tensors == ("values",)
        else [held[name] for name in ours.tensors]
    )
    result = ours.make(params)(*tensors)
    return list(result) if isinstance(result, tuple) else [result]


def ints(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int32)


X = floats(2, 3, 4)
CASES: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "abs": ("abs", {"x": X}),
    "add": ("add", {"x": X, "y": floats(3, 1)}),
    "cast to int": ("cast", {"x": 10 * X, "dtype": "int32"}),
    "cast to bool": ("cast", {"x": X, "dtype": "bool"}),
    "concat": ("concat", {"values": (X, floats(2, 1, 4)), "axis": 1}),
    "expand_dims": ("expand_dims", {"x": X, "axes": ints(0, 2)}),
    "gather": ("gather", {"x": floats(9, 4), "indices": ints(3, 0, 8), "axis": np.int32(0)}),
    "gelu": ("gelu", {"x": 3 * X, "mode": "TANH_APPROXIMATION"}),
    "greater": ("greater", {"x": X, "y": np.float32(0.2)}),
    "linear": ("linear", {"x": floats(5, 24), "weight": floats(7, 24), "bias": floats(7)}),
    "logical_and": ("logical_and", {"x": X > 0, "y": X[:1] > 0}),
    "logical_not": ("logical_not", {"x": X > 0}),
    "matmul": ("matmul", {"x": X, "y": floats(2, 4, 5)}),
    "matmul, turned": ("matmul", {"x": X, "y": floats(2, 5, 4), "transpose_y": np.bool_(True)}),
    "maximum": ("maximum", {"x": X, "y": np.float32(-0.1)}),
    "mul": ("mul", {"x": X, "y": floats(4)}),
    "reduce_max": ("reduce_max", {"x": X, "axes": ints(0, 2), "keep_dims": False}),
    "reduce_mean": ("reduce_mean", {"x": X, "axes": ints(-1), "keep_dims": True}),
    "relu": ("relu", {"x": X}),
    "reshape": ("reshape", {"x": X, "shape": ints(3, -1, 2)}),
    "rsqrt": ("rsqrt", {"x": np.abs(X), "epsilon": np.float32(0.01)}),
    "shape": ("shape", {"x": X}),
    "softmax": ("softmax", {"x": 9 * X, "axis": np.int32(-1)}),
    "softmax along the middle": ("softmax", {"x": X, "axis": np.int32(1)}),
    "split": ("split", {"x": X, "num_splits": np.int32(2), "axis": np.int32(-1)}),
    "split of sizes": ("split", {"x": X, "split_sizes": ints(1, 0, 3), "axis": np.int32(-1)}),
    "square": ("square", {"x": X}),
    "sub": ("sub", {"x": X, "y": floats(2, 1, 1)}),
    "tanh": ("tanh", {"x": 3 * X}),
    "tile": ("tile", {"x": X, "reps": ints(1, 2, 3)}),
    "tile of a single": ("tile", {"x": X[:, :1], "reps": ints(1, 5, 1)}),
    "transpose": ("transpose", {"x": X, "perm": ints(2, 0, 1)}),
    "slice": ("slice_by_index", {"x": X, "begin": ints(0, 1, 1), "end": ints(2, 3, 3)}),
    "slice with masks": (
        "slice_by_index",
        {
            "x": X, "begin": ints(1, 9, 1), "end": ints(9, 2, 9),
            "begin_mask": np.array([False, True, False]),
            "end_mask": np.array([False, False, True]),
            "squeeze_mask": np.array([True, False, False]),
        },
    ),
    "slice from the end": (
        "slice_by_index",
        {"x": X, "begin": ints(0, -2, 0), "end": ints(1, 3, -1), "stride": ints(1, 1, 2)},
    ),
    "slice update": (
        "slice_update",
        {
            "x": X, "update": floats(1, 3, 2), "begin": ints(1, 0, 1), "end": ints(2, 0, 3),
            "begin_mask": np.array([False, True, False]),
            "end_mask": np.array([False, True, False]),
        },
    ),
    "attention": (
        "scaled_dot_product_attention",
        {
            "query": floats(1, 2, 3, 8), "key": floats(1, 2, 5, 8), "value": floats(1, 2, 5, 8),
            "attn_mask": np.where(np.tri(3, 5, 2), 0, -3e4).astype(np.float32)[None, None],
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_operation_is_that_of_coremltools(case: str) -> None:
    op, arguments = CASES[case]
    wanted = by_coremltools(op, arguments)
    # slice_update writes into its operand, so it gets one of its own.
    own = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in arguments.items()}
    got = by_us(op, own)
    assert len(got) == len(wanted)
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=FLOAT32_TOLERANCE, atol=FLOAT32_TOLERANCE)


def test_silu_by_its_definition() -> None:
    x = np.array([-200.0, -1.0, 0.0, 0.5, 90.0], np.float32)
    with np.errstate(over="ignore"):
        wanted = x.astype(np.float64) / (1 + np.exp(-x.astype(np.float64)))
    np.testing.assert_allclose(OPS["silu"].make({})(x), wanted, rtol=1e-6, atol=1e-7)


def test_gelu_far_from_zero_is_the_identity_or_zero() -> None:
    x = np.array([-6e4, -30.0, 0.0, 30.0, 6e4], np.float32)
    run = OPS["gelu"].make({"mode": "TANH_APPROXIMATION"})
    np.testing.assert_array_equal(run(x), np.maximum(x, 0))
    with pytest.raises(NotImplementedError, match="EXACT"):
        OPS["gelu"].make({"mode": "EXACT"})


@pytest.mark.parametrize("sizes", [ints(1, 2), ints(5, -1)])
def test_splits_that_do_not_fit_fail(sizes: np.ndarray[Any, Any]) -> None:
    run = OPS["split"].make({"axis": np.int32(-1), "split_sizes": sizes})
    with pytest.raises(ValueError, match="split of 4"):
        run(X)


def test_every_operation_has_a_case() -> None:
    assert {op for op, _ in CASES.values()} | {"silu"} == set(OPS)


def test_slices_beyond_an_axis_fail() -> None:
    run = OPS["slice_by_index"].make({})
    with pytest.raises(ValueError, match="axis of 3"):
        run(X, ints(0, 0, 0), ints(2, 4, 4))


def test_update_of_another_shape_fails() -> None:
    run = OPS["slice_update"].make({})
    with pytest.raises(ValueError, match="update of shape"):
        run(X.copy(), floats(1, 1, 1), ints(0, 0, 0), ints(2, 3, 4))


def _read_codes(reader: Any, value: Any) -> Any:
    """Read codes or zero points with coremltools' reader, by their declared type."""
    read = getattr(reader, f"read_{type_name(value.type).lower()}_data")
    return read(value.blobFileValue.offset)


@pytest.mark.parametrize("scheme", ["int4-g32", "int8-g64", "uint4-g64"])
def test_dequantized_weights_equal_coremltools_decompress(tmp_path: Path, scheme: str) -> None:
    model = memory_model(scheme=scheme)
    package = export(model, tmp_path).path / PACKAGE_NAME
    blobs = BlobReader(weights_path(package))
    reader = require_coremltools("coremltools.libmilstoragepython")._BlobStorageReader(
        str(weights_path(package))
    )
    module = "coremltools.converters.mil.mil.ops.defs.iOS18.compression"
    decompress = require_coremltools(module).constexpr_blockwise_shift_scale.decompress
    n_checked = 0
    for op in main_block(read_spec(package)).operations:
        if not op.type.startswith("constexpr"):
            continue
        given = {key: item.arguments[0].value for key, item in op.inputs.items()}
        data, scale, offset = given["data"], given["scale"], given.get("offset")
        weight = StoredWeight(blobs, data, scale, offset, rounds=True)
        n_out = weight.shape[0]
        codes, zeros = (
            None if value is None else _read_codes(reader, value).reshape(n_out, -1)
            for value in (data, offset)
        )
        assert (zeros is not None) == (type_name(data.type) == "UINT4")
        scales = reader.read_fp16_data(scale.blobFileValue.offset).view(np.float16)
        wanted = decompress(codes, scales.reshape(n_out, -1), zeros)
        assert wanted.dtype == np.float16
        np.testing.assert_array_equal(weight.array(), wanted.astype(np.float32))
        indices = np.array([[2, 0], [n_out - 1, 2]])
        np.testing.assert_array_equal(weight.rows(indices), weight.array()[indices])
        n_checked += 1
    assert n_checked == 15


def test_weights_without_rounding_are_the_exact_products(tmp_path: Path) -> None:
    model = memory_model(scheme="int8")
    package = export(model, tmp_path).path / PACKAGE_NAME
    blobs = BlobReader(weights_path(package))
    ops = {op.outputs[0].name: op for op in main_block(read_spec(package)).operations if op.outputs}
    for name in ("embed", "layers.1.down"):
        op = ops[name.replace(".", "_")]
        data, scale = (op.inputs[key].arguments[0].value for key in ("data", "scale"))
        weight = StoredWeight(blobs, data, scale, rounds=False)
        tensor: Any = model.get(name)
        np.testing.assert_array_equal(weight.array(), tensor.dequantize())


def test_empty_weight_file_has_a_valid_header(tmp_path: Path) -> None:
    with BlobWriter(tmp_path / "weight.bin"):
        pass
    assert BlobReader(tmp_path / "weight.bin").n_blobs == 0
