"""Claims: rounding, searching and weighing do what they say, block by block, on every encoding."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgekit.encoding import Encoding
from edgekit.quantize.grid import LARGEST_WEIGHT, round_scales, round_scales_beside
from edgekit.quantize.methods import blocks
from edgekit.quantize.methods.importance import column_weights, importance_rows
from edgekit.quantize.methods.rtn import nearest_rows
from edgekit.quantize.methods.search import search_rows

UINT4 = Encoding("uint4", 32)
ENCODINGS = [
    Encoding.parse(text)
    for text in ("int4-g32", "int4-g128", "uint4-g32", "uint4-g64", "int8-g32", "uint8-g32")
]


def draw(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_t(4, shape) * 0.02).astype(np.float32)


def weighted_errors(rows: np.ndarray, made, encoding: Encoding, weights: np.ndarray) -> np.ndarray:
    error = made.dequantize(encoding.bits).astype(np.float64) - rows
    return (np.square(error) * weights).reshape(-1, encoding.block).sum(axis=1)


def relative_rms(rows: np.ndarray, made, encoding: Encoding) -> float:
    error = made.dequantize(encoding.bits).astype(np.float64) - rows
    return float(np.sqrt(np.square(error).sum() / np.square(rows.astype(np.float64)).sum()))


def test_a_block_with_a_zero_point_worked_by_hand():
    # From -1 to 6.5 in 15 steps of 0.5; zero is code 2.
    row = np.array([-1.0, 6.5, 0.2, -0.3, 3.1, 0.0] + [0.0] * 26, np.float32)
    made = nearest_rows(row[None], UINT4)
    np.testing.assert_array_equal(made.scales, [[0.5]])
    np.testing.assert_array_equal(made.zero_points, [[2]])
    np.testing.assert_array_equal(made.codes[0, :6], [0, 15, 2, 1, 8, 2])
    np.testing.assert_array_equal(
        made.dequantize(4)[0, :6], np.array([-1, 6.5, 0, -0.5, 3, 0], np.float32)
    )


def test_weights_of_one_sign_have_their_zero_point_at_an_end():
    positive = np.linspace(0.5, 15, 32, dtype=np.float32)[None]
    for rows, zero in ((positive, 0), (-positive, 15)):
        made = nearest_rows(rows, UINT4)
        assert made.zero_points.item() == zero
        assert made.scales.item() == 1


def test_importance_decides_between_two_weights_worked_by_hand():
    # One scale cannot hit 10 and 1: whoever counts more is hit.
    row = np.zeros((1, 32), np.float32)
    row[0, :2] = [10.0, 1.0]
    counts = np.full(32, 1e-6)
    counts[:2] = [1e-6, 1.0]
    encoding = Encoding("int4", 32)
    small = importance_rows(row, encoding, column_weights(counts)).dequantize(4)
    counts[:2] = [1.0, 1e-6]
    large = importance_rows(row, encoding, column_weights(counts)).dequantize(4)
    assert abs(small[0, 1] - 1) < 0.01
    assert abs(large[0, 0] - 10) < 0.04
    assert abs(small[0, 0] - 10) > 0.04 or abs(large[0, 1] - 1) > 0.01


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.sampled_from([128, 256])),
        elements=st.floats(-LARGEST_WEIGHT, LARGEST_WEIGHT, width=32)
        | st.floats(-(2.0**-20), 2.0**-20, width=32),
    ),
    st.sampled_from(ENCODINGS),
    st.sampled_from(["rtn", "search", "importance"]),
)
def test_any_weights_give_what_every_format_holds_exactly(rows, encoding, method):
    counts = np.exp(np.random.default_rng(0).standard_normal(rows.shape[1]) * 3)
    made = {
        "rtn": lambda: nearest_rows(rows, encoding),
        "search": lambda: search_rows(rows, encoding),
        "importance": lambda: importance_rows(rows, encoding, column_weights(counts)),
    }[method]()
    bits = encoding.code_bits
    assert made.codes.dtype == np.uint8
    assert made.codes.max() < 2**bits
    scales = made.scales.astype(np.float64)
    assert (made.zero_points is not None) == encoding.has_zero_points
    if made.zero_points is None:
        np.testing.assert_array_equal(round_scales(made.scales, bits), made.scales)
        zeros = np.full(scales.shape, 2 ** (bits - 1))
    else:
        assert made.zero_points.dtype == np.uint8
        zeros = made.zero_points
        again = round_scales_beside(made.scales, zeros.astype(np.float32), bits)
        np.testing.assert_array_equal(again, made.scales)
        assert (made.scales > 0).all()
    for values in (scales, -scales * zeros):
        for dtype in (np.float16, ml_dtypes.bfloat16):
            assert (values.astype(dtype).astype(np.float64) == values).all()
    if bits == 4:
        weights = made.dequantize(4).astype(np.float64)
        assert (weights.astype(np.float16).astype(np.float64) == weights).all()
    is_zero = (rows.reshape(-1, encoding.block) == 0).all(axis=1)
    assert (made.scales.reshape(-1)[is_zero] == 1).all()
    assert (made.dequantize(bits).reshape(-1, encoding.block)[is_zero] == 0).all()


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_no_block_gets_worse_by_a_search_or_by_importance(encoding):
    rows = draw((128, 512), seed=5)
    counts = column_weights(np.exp(np.random.default_rng(1).standard_normal(512) * 2))
    ones = np.ones(512)
    nearest, searched = nearest_rows(rows, encoding), search_rows(rows, encoding)
    weighted = importance_rows(rows, encoding, counts)
    slack = 1 + 1e-5  # compared are float32 sums; these are float64
    for made, weights in ((searched, ones), (weighted, counts)):
        before = weighted_errors(rows, nearest, encoding, weights)
        after = weighted_errors(rows, made, encoding, weights)
        assert (after <= before * slack).all()
        if encoding.bits == 4:
            assert (after < before).mean() > 0.5
    if encoding.bits == 4:
        assert (
            weighted_errors(rows, weighted, encoding, counts).sum()
            < weighted_errors(rows, searched, encoding, counts).sum()
        )


@pytest.mark.parametrize(
    ("kind", "method", "rms"),
    [
        # Notes of the grid, Student-t with 4 degrees of freedom: rounding to nearest and the best
        # whole zero point, in float32 and then on the joint grid (+0.1 %).
        ("uint4-g32", nearest_rows, 0.0967),
        ("uint4-g32", search_rows, 0.0938),
    ],
)
def test_the_error_with_zero_points_is_that_of_a_measured_table(kind, method, rms):
    rows = draw((1024, 1024))
    encoding = Encoding.parse(kind)
    assert relative_rms(rows, method(rows, encoding), encoding) == pytest.approx(rms, rel=0.012)


def test_an_8_bit_zero_point_gains_where_weights_have_one_sign():
    rows = np.abs(draw((64, 512)))  # one sign: half of the symmetric codes are never used
    shifted = relative_rms(rows, nearest_rows(rows, Encoding("uint8", 32)), Encoding("uint8", 32))
    symmetric = relative_rms(rows, nearest_rows(rows, Encoding("int8", 32)), Encoding("int8", 32))
    assert shifted < 0.6 * symmetric


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_codes_do_not_depend_on_the_tile_or_on_the_other_rows(monkeypatch, encoding):
    rows = draw((37, 256), seed=7)
    counts = column_weights(np.arange(256.0))
    whole = importance_rows(rows, encoding, counts)
    one = importance_rows(rows[20:21], encoding, counts)
    np.testing.assert_array_equal(one.codes, whole.codes[20:21])
    for n_elements in (1, 256 * 5, 1 << 20):
        monkeypatch.setattr(blocks, "TILE_ELEMENTS", n_elements)
        again = importance_rows(rows, encoding, counts)
        np.testing.assert_array_equal(again.codes, whole.codes)
        np.testing.assert_array_equal(again.scales, whole.scales)


def test_silent_channels_still_count_a_little():
    weights = column_weights(np.array([0.0, 2.0, 2.0, 0.0]))
    np.testing.assert_array_equal(weights, np.array([2.0**-20, 2, 2, 2.0**-20], np.float32))
    np.testing.assert_array_equal(column_weights(np.zeros(3)), np.ones(3, np.float32))
    assert column_weights(np.array([1e-300, 1e300])).tolist() == [2.0**-20, 2.0]
