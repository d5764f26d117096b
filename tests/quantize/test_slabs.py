"""Claims: cutting a tensor into slabs or over threads changes nothing, and errors stay exact."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from edgekit.dtypes import DType
from edgekit.errors import QuantError
from edgekit.quantize.distortion import measure_distortion
from edgekit.quantize.model import FloatTensor, QuantizedTensor
from edgekit.quantize.recipe import TensorPlan
from edgekit.quantize.slabs import quantize_tensor, slab_rows
from edgekit.scheme import FP16, FP32, Scheme
from edgekit.tensors import TensorInfo

INT4 = Scheme("int4", 32)


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


def planned(values: np.ndarray, scheme: Scheme) -> TensorPlan:
    return TensorPlan("w", values.shape, scheme, "test")


@pytest.fixture
def matrix() -> np.ndarray:
    return np.random.default_rng(0).standard_t(4, (53, 96)).astype(np.float32)


@pytest.mark.parametrize("scheme", ["int4-g32", "int8-g32"])
@pytest.mark.parametrize(("n_threads", "n_slab"), [(1, 1), (1, 96 * 7), (4, 96), (3, 96 * 20)])
def test_codes_do_not_depend_on_slabs_or_threads(matrix, scheme, n_threads, n_slab):
    plan = planned(matrix, Scheme.parse(scheme))
    whole = quantize_tensor(ArrayTensor(matrix), plan)
    source = ArrayTensor(matrix)
    cut = quantize_tensor(source, plan, n_threads=n_threads, n_slab_elements=n_slab)
    assert cut.sha256() == whole.sha256()
    assert source.largest_read == max(1, n_slab // 96)


@pytest.mark.parametrize("scheme", [FP16, FP32])
@pytest.mark.parametrize("shape", [(53,), (53, 96)])
def test_floats_of_any_rank_are_rounded_in_slabs(matrix, scheme, shape):
    values = np.resize(matrix, shape)
    tensor = quantize_tensor(ArrayTensor(values), planned(values, scheme), n_slab_elements=10)
    assert isinstance(tensor, FloatTensor)
    half = values.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(tensor.values, half if scheme == FP16 else values)


@pytest.mark.parametrize("n_threads", [1, 4])
def test_the_first_bad_weight_is_named_whatever_thread_finds_it(matrix, n_threads):
    matrix[20, 5] = matrix[40, 1] = np.inf
    with pytest.raises(QuantError) as caught:
        quantize_tensor(
            ArrayTensor(matrix), planned(matrix, INT4), n_threads=n_threads, n_slab_elements=96
        )
    assert caught.value.what == "w[20, 5]: unusable weight"


def test_a_tensor_of_another_shape_is_refused(matrix):
    with pytest.raises(QuantError, match="w: shape"):
        quantize_tensor(ArrayTensor(matrix), planned(matrix[1:], INT4))


@pytest.mark.parametrize(
    ("shape", "n_slab", "expected"),
    [
        ((5, 10), 20, [(0, 2), (2, 4), (4, 5)]),
        ((3,), 2, [(0, 2), (2, 3)]),
        ((2, 9), 4, [(0, 1), (1, 2)]),
    ],
)
def test_slabs_cover_the_rows_in_order(shape, n_slab, expected):
    assert [(part.start, part.stop) for part in slab_rows(shape, n_slab)] == expected


def test_distortion_worked_by_hand():
    # Signal 32 * 3**2 + 0; one weight is off by 1, one by 2: noise 5.
    wanted = np.full((2, 32), 3.0, np.float32)
    wanted[1] = 0
    codes = np.full((2, 32), 11, np.uint8)
    codes[0, 0], codes[0, 1], codes[1] = 12, 9, 8
    stored = QuantizedTensor("w", 4, 32, codes, np.ones((2, 1), np.float32))
    found = measure_distortion(ArrayTensor(wanted), stored)
    assert found.max_abs_error == 2.0
    assert found.relative_rms == pytest.approx((5 / 288) ** 0.5, rel=1e-12)
    assert found.snr_db == pytest.approx(10 * np.log10(288 / 5), rel=1e-12)


def test_distortion_of_exact_floats_is_nothing():
    values = np.arange(5, dtype=np.float32)
    found = measure_distortion(ArrayTensor(values), FloatTensor("w", FP32, values))
    assert (found.relative_rms, found.max_abs_error, found.snr_db) == (0.0, 0.0, None)


def test_distortion_sums_over_all_slabs(monkeypatch, matrix):
    tensor = quantize_tensor(ArrayTensor(matrix), planned(matrix, INT4))
    whole = measure_distortion(ArrayTensor(matrix), tensor)
    monkeypatch.setattr("edgekit.quantize.slabs.slab_rows.__defaults__", (96 * 4,))
    cut = measure_distortion(ArrayTensor(matrix), tensor)
    assert cut.relative_rms == pytest.approx(whole.relative_rms, rel=1e-12)
    assert cut.max_abs_error == whole.max_abs_error


@pytest.mark.parametrize("rows", [1, 54])
def test_distortion_refuses_another_shape_and_an_unrelated_source(matrix, rows):
    tensor = quantize_tensor(ArrayTensor(matrix), planned(matrix, INT4))
    with pytest.raises(QuantError, match="shape"):
        measure_distortion(ArrayTensor(np.resize(matrix, (rows, 96))), tensor)
    with pytest.raises(QuantError, match="zeros"):
        measure_distortion(ArrayTensor(np.zeros_like(matrix)), tensor)
