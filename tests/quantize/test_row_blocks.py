"""Claims: cutting a tensor into row blocks or over threads changes nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest

from edgekit.dtypes import DType
from edgekit.encoding import FP16, FP32, Encoding
from edgekit.errors import QuantError
from edgekit.quantize.encoded_model import encode_rows
from edgekit.quantize.model import FloatTensor, join_rows
from edgekit.quantize.plan import TensorPlan
from edgekit.tensors import TensorInfo, row_blocks

INT4 = Encoding("int4", 32)


@dataclass
class ArrayTensor:
    """A ``LazyTensor`` over an array; ``largest_read`` is the most rows it gave at once."""

    values: np.ndarray
    largest_read: int = 0

    @property
    def info(self) -> TensorInfo:
        return TensorInfo("w", self.values.shape, DType.FP32)

    def read(self) -> np.ndarray:
        return self.read_rows(0, len(self.values))

    def read_rows(self, start: int, stop: int) -> np.ndarray:
        self.largest_read = max(self.largest_read, stop - start)
        return self.values[start:stop].copy()


def planned(values: np.ndarray, scheme: Encoding) -> TensorPlan:
    return TensorPlan("w", values.shape, scheme, "test")


def encode(source, plan, n_threads, n_block):
    """Encode block after block, some at the same time."""
    blocks = row_blocks(plan.shape, n_block)
    with ThreadPoolExecutor(n_threads) as pool:
        return join_rows(list(pool.map(lambda part: encode_rows(source, plan, part), blocks)))


@pytest.fixture
def matrix() -> np.ndarray:
    return np.random.default_rng(0).standard_t(4, (53, 96)).astype(np.float32)


@pytest.mark.parametrize("scheme", ["int4-g32", "int8-g32"])
@pytest.mark.parametrize(("n_threads", "n_block"), [(1, 1), (1, 96 * 7), (4, 96), (3, 96 * 20)])
def test_codes_do_not_depend_on_row_blocks_or_threads(matrix, scheme, n_threads, n_block):
    plan = planned(matrix, Encoding.parse(scheme))
    whole = encode_rows(ArrayTensor(matrix), plan, slice(0, len(matrix)))
    source = ArrayTensor(matrix)
    cut = encode(source, plan, n_threads, n_block)
    assert cut.sha256() == whole.sha256()
    assert source.largest_read == max(2, n_block // 96 // 2 * 2)


@pytest.mark.parametrize("scheme", [FP16, FP32])
@pytest.mark.parametrize("shape", [(53,), (53, 96)])
def test_floats_of_any_rank_are_rounded_in_row_blocks(matrix, scheme, shape):
    values = np.resize(matrix, shape)
    tensor = encode(ArrayTensor(values), planned(values, scheme), 1, 10)
    assert isinstance(tensor, FloatTensor)
    half = values.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(tensor.values, half if scheme == FP16 else values)


@pytest.mark.parametrize("n_threads", [1, 4])
def test_the_first_bad_weight_is_named_whatever_thread_finds_it(matrix, n_threads):
    matrix[20, 5] = matrix[40, 1] = np.inf
    with pytest.raises(QuantError) as caught:
        encode(ArrayTensor(matrix), planned(matrix, INT4), n_threads, 96)
    assert caught.value.what == "w[20, 5]: unusable weight"


def test_a_tensor_of_another_shape_is_refused(matrix):
    with pytest.raises(QuantError, match="w: shape"):
        encode_rows(ArrayTensor(matrix), planned(matrix[1:], INT4), slice(0, 2))


@pytest.mark.parametrize(
    ("shape", "n_block", "expected"),
    [
        ((5, 10), 20, [(0, 2), (2, 4), (4, 5)]),
        ((3,), 2, [(0, 2), (2, 3)]),
        ((5, 9), 4, [(0, 2), (2, 4), (4, 5)]),
        ((9, 1), 5, [(0, 4), (4, 8), (8, 9)]),
    ],
)
def test_row_blocks_cover_the_rows_in_order(shape, n_block, expected):
    assert [(part.start, part.stop) for part in row_blocks(shape, n_block)] == expected
