"""Palettes: the values that rows share, and the codes that choose among them."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.encoding import Encoding
from edgekit.errors import QuantError
from edgekit.quantize.input_statistics import InputStatistics
from edgekit.quantize.methods import Method, quantize_rows
from edgekit.quantize.methods.palette import palette_rows
from edgekit.quantize.model import EncodedTensor

LUT4 = Encoding.parse("lut4")


def _tensor(rows: np.ndarray, **options) -> EncodedTensor:
    made = quantize_rows(rows, LUT4, name="w", **options)
    return EncodedTensor.of_codes("w", LUT4, made.codes, made.scales)


def _errors(rows: np.ndarray, tensor: EncodedTensor) -> np.ndarray:
    return np.square(tensor.dequantize() - rows).sum(axis=0)


def test_sixteen_values_are_found_exactly():
    rng = np.random.default_rng(0)
    values = np.sort(rng.standard_normal((2, 16)).astype(np.float16).astype(np.float32), axis=1)
    codes = rng.integers(0, 16, (64, 40))
    rows = values[np.arange(64) // 32, :][np.arange(64)[:, None], codes]
    tensor = _tensor(rows)
    np.testing.assert_array_equal(tensor.scales, values)
    np.testing.assert_array_equal(tensor.codes(), codes)
    np.testing.assert_array_equal(tensor.dequantize(), rows)


def test_no_value_can_be_moved_to_gain():
    """Each palette value is the mean of its weights, and each weight has the nearest value."""
    rows = np.random.default_rng(1).standard_t(4, (32, 300)).astype(np.float32)
    tensor = _tensor(rows)
    (palette,) = tensor.scales
    codes = tensor.codes()
    for code, value in enumerate(palette):
        assert value == pytest.approx(rows[codes == code].mean(), rel=2e-3, abs=2e-3)
    nearest = np.abs(rows[..., None] - palette).min(axis=-1)
    np.testing.assert_array_equal(np.abs(tensor.dequantize() - rows), nearest)


def test_palettes_of_a_gaussian_have_the_error_of_the_published_quantizer():
    """Lloyd-Max, 16 levels: mean squared error 0.009497 (Max 1960, table I)."""
    rows = np.random.default_rng(2).standard_normal((32, 20_000)).astype(np.float32)
    mse = np.square(_tensor(rows).dequantize() - rows).mean()
    assert mse == pytest.approx(0.009497, rel=0.02)


def test_columns_that_count_more_get_smaller_errors():
    rows = np.random.default_rng(3).standard_normal((32, 64)).astype(np.float32)
    rows[:, :4] += 6
    squares = np.ones(64)
    squares[:4] = 1000
    weighed = _tensor(rows, method=Method.IMPORTANCE, statistics=InputStatistics(squares))
    plain = _tensor(rows)
    assert _errors(rows, weighed)[:4].sum() < 0.5 * _errors(rows, plain)[:4].sum()
    assert (_errors(rows, weighed) * squares).sum() < (_errors(rows, plain) * squares).sum()


@pytest.mark.parametrize("method", [Method.GPTQ, Method.AUTO])
def test_methods_that_make_scales_refuse(method):
    with pytest.raises(QuantError, match="makes scales, not palettes"):
        quantize_rows(np.ones((32, 32), np.float32), LUT4, method, name="w")


def test_rows_that_share_a_palette_stay_together():
    rows = np.random.default_rng(4).standard_normal((96, 32)).astype(np.float32)
    whole = _tensor(rows)
    part = whole.rows(slice(32, 96))
    np.testing.assert_array_equal(part.dequantize(), whole.dequantize()[32:])
    np.testing.assert_array_equal(_tensor(rows[32:]).dequantize(), whole.dequantize()[32:])
    with pytest.raises(QuantError, match="whole palettes"):
        whole.rows(slice(16, 64))
    with pytest.raises(QuantError, match="rows"):
        quantize_rows(rows[:40], LUT4, name="w")


def test_a_block_of_equal_weights_and_one_of_zeros():
    rows = np.concatenate([np.full((32, 8), 0.25, np.float32), np.zeros((32, 8), np.float32)])
    np.testing.assert_array_equal(palette_rows(rows, LUT4).scales[0], 0.25)
    np.testing.assert_array_equal(_tensor(rows).dequantize(), rows)
