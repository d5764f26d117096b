"""Claims: GPTQ rounds as its paper says, never worse than the search on what it minimizes."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.encoding import Encoding
from edgekit.quantize.methods.gptq import factor_moments, gptq_rows
from edgekit.quantize.methods.importance import column_weights, importance_rows
from edgekit.quantize.methods.search import search_rows, search_scales

INT4 = Encoding("int4", 32)
ENCODINGS = [
    Encoding.parse(f"{kind}-g{block}") for kind in ("int4", "uint4") for block in (32, 128)
]
EVERY_ENCODING = [*ENCODINGS, Encoding("int8", 32), Encoding("uint8", 64)]


def correlated(n_cols: int, n_tokens: int, seed: int = 0) -> np.ndarray:
    """Inputs (T, M) with loud channels and a few directions that most tokens share."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((n_tokens, 6)) @ rng.standard_normal((6, n_cols))
    loudness = np.exp(rng.standard_normal(n_cols))
    return (rng.standard_normal((n_tokens, n_cols)) + 0.7 * shared) * loudness


def draw_rows(n_rows: int, n_cols: int, seed: int = 1) -> np.ndarray:
    return (np.random.default_rng(seed).standard_t(4, (n_rows, n_cols)) * 0.03).astype(np.float32)


def moments_of(inputs: np.ndarray) -> np.ndarray:
    return inputs.T @ inputs / len(inputs)


def output_error(rows: np.ndarray, codes, bits: int, moments: np.ndarray) -> float:
    error = codes.dequantize(bits).astype(np.float64) - rows
    return float(np.einsum("nm,nm->", error @ moments, error))


def same(one, other) -> bool:
    return (
        np.array_equal(one.codes, other.codes)
        and np.array_equal(one.scales, other.scales)
        and (one.zero_points is None) == (other.zero_points is None)
        and (one.zero_points is None or np.array_equal(one.zero_points, other.zero_points))
    )


@pytest.mark.parametrize("n_cols", [1, 5, 128, 200, 300])
def test_the_factor_times_its_transpose_gives_the_damped_moments(n_cols):
    moments = moments_of(correlated(n_cols, 2 * n_cols + 3))
    factor = factor_moments(moments, shrinkage=0.3, damping=0.05)
    shares = moments / np.diagonal(moments).mean()
    wanted = 0.7 * shares + 0.3 * np.diag(np.diagonal(shares)) + 0.05 * np.eye(n_cols)
    upper = factor.upper.astype(np.float64)
    np.testing.assert_allclose(upper @ upper.T, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())
    assert np.array_equal(np.triu(upper), upper)
    assert (np.diagonal(upper) > 0).all()


def test_diagonal_blocks_are_inverted_exactly_enough():
    factor = factor_moments(moments_of(correlated(256, 600)))
    for block in (32, 64, 128):
        inverses = factor.inverse_blocks(block)
        for i, inverse in enumerate(inverses):
            here = slice(i * block, (i + 1) * block)
            product = inverse.astype(np.float64) @ factor.upper[here, here]
            np.testing.assert_allclose(product, np.eye(block), atol=1e-5)


@pytest.mark.parametrize("encoding", EVERY_ENCODING, ids=str)
def test_independent_inputs_of_one_size_give_the_search(encoding):
    rows = draw_rows(40, 256)
    made = gptq_rows(rows, encoding, factor_moments(np.eye(256) * 3))
    # Every column counts alike, so the search inside weighs with one number.
    wanted = search_rows(rows, encoding, np.full(256, np.float32(1.01)))
    assert same(made, wanted)


@pytest.mark.parametrize("encoding", EVERY_ENCODING, ids=str)
def test_independent_inputs_of_many_sizes_give_the_weighted_search(encoding):
    rows = draw_rows(24, 128)
    sizes = np.exp(np.random.default_rng(3).standard_normal(128) * 2)
    factor = factor_moments(np.diag(sizes))
    made = gptq_rows(rows, encoding, factor)
    assert same(made, importance_rows(rows, encoding, np.square(np.diagonal(factor.upper))))


@pytest.mark.parametrize("encoding", EVERY_ENCODING, ids=str)
def test_correlated_inputs_gain_over_importance(encoding):
    rows, moments = draw_rows(96, 256), moments_of(correlated(256, 1500))
    feedback = gptq_rows(rows, encoding, factor_moments(moments))
    alone = importance_rows(rows, encoding, column_weights(np.diagonal(moments)))
    bits = encoding.bits
    assert output_error(rows, feedback, bits, moments) < 0.8 * output_error(
        rows, alone, bits, moments
    )


def test_two_blocks_by_the_textbook_algorithm():
    """Frantar et al., algorithm 1: the inverse of H, column by column, all later ones updated."""
    rows, moments = draw_rows(5, 64, seed=4), moments_of(correlated(64, 200, seed=5))
    damped = moments / np.diagonal(moments).mean() + 0.01 * np.eye(64)
    inverse_factor = np.linalg.cholesky(np.linalg.inv(damped)).T  # upper: H^-1 = U^T U
    weights = rows.astype(np.float64)
    wanted_codes = np.empty((5, 64), np.uint8)
    made = gptq_rows(rows, INT4, factor_moments(moments, shrinkage=0), n_sweeps=0)
    for m in range(64):
        if m % 32 == 0:
            block = slice(m, m + 32)
            counts = 1 / np.square(np.diagonal(inverse_factor)[block, None])
            chosen = search_scales(
                np.ascontiguousarray(weights[:, block].T, dtype=np.float32),
                INT4,
                counts.astype(np.float32),
            )
            np.testing.assert_array_equal(chosen.scales, made.scales[:, m // 32])
        scales = chosen.scales.astype(np.float64)
        steps = np.clip(np.rint(weights[:, m] / scales), -8, 7)
        error = (weights[:, m] - steps * scales) / inverse_factor[m, m]
        weights[:, m + 1 :] -= error[:, None] * inverse_factor[m, m + 1 :]
        wanted_codes[:, m] = steps + 8
    np.testing.assert_array_equal(made.codes, wanted_codes)


def test_two_columns_by_brute_force():
    """With one scale and two live columns, feedback finds the best pair of codes or comes close."""
    rng = np.random.default_rng(0)
    moments = np.zeros((32, 32))
    moments[:2, :2] = [[1.0, 0.9], [0.9, 1.0]]
    factor = factor_moments(moments, shrinkage=0, damping=1e-4)
    rows = np.zeros((200, 32), np.float32)
    rows[:, :2] = rng.uniform(-1, 1, (200, 2))
    made = gptq_rows(rows, INT4, factor)
    errors = made.dequantize(4)[:, :2].astype(np.float64) - rows[:, :2]
    reached = np.einsum("nm,mk,nk->n", errors, moments[:2, :2], errors)
    pairs = np.array(list(itertools.product(range(-8, 8), repeat=2)), np.float64)
    tried = pairs[None] * made.scales[:, :1, None] - rows[:, None, :2]
    least = np.einsum("npm,mk,npk->np", tried, moments[:2, :2], tried).min(axis=1)
    assert (reached >= least - 1e-9).all()
    assert np.mean(reached <= least + 1e-7) > 0.6
    assert reached.mean() < 1.5 * least.mean()


def test_shrunk_moments_do_better_on_another_text_of_the_same_kind():
    rows, inputs = draw_rows(64, 256), correlated(256, 4400, seed=8)
    few, other = moments_of(inputs[:400]), moments_of(inputs[400:])
    errors = [
        output_error(rows, gptq_rows(rows, INT4, factor_moments(few, shrinkage=share)), 4, other)
        for share in (0.0, 0.2, 1.0)
    ]
    assert errors[1] < 0.95 * errors[0]
    assert errors[1] < 0.95 * errors[2]


@pytest.mark.parametrize("encoding", EVERY_ENCODING, ids=str)
def test_no_sweep_makes_a_row_worse(encoding):
    rows, moments = draw_rows(30, 256), moments_of(correlated(256, 1000))
    factor = factor_moments(moments)
    damped = factor.damped.astype(np.float64)
    before = None
    for n_sweeps in (0, 1, 2, 5):
        made = gptq_rows(rows, encoding, factor, n_sweeps=n_sweeps)
        error = made.dequantize(encoding.bits).astype(np.float64) - rows
        errors = np.einsum("nm,mk,nk->n", error, damped, error)
        if before is not None:
            assert (errors <= before * (1 + 1e-5)).all()
            assert errors.sum() < before.sum()
        before = errors


def test_after_enough_sweeps_no_single_code_can_be_better():
    rows, moments = draw_rows(12, 64), moments_of(correlated(64, 300))
    factor = factor_moments(moments)
    made = gptq_rows(rows, INT4, factor, n_sweeps=50)
    damped = factor.damped.astype(np.float64)
    error = made.dequantize(4).astype(np.float64) - rows
    scales = np.repeat(made.scales.astype(np.float64), 32, axis=1)
    for change in (-1, 1):
        moved = made.codes.astype(int) + change
        is_possible = (moved >= 0) & (moved <= 15)
        delta = change * scales
        gained = 2 * delta * (error @ damped) + np.square(delta) * np.diagonal(damped)
        assert (gained[is_possible] >= -1e-7 * np.abs(gained).max()).all()


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_codes_do_not_depend_on_how_rows_are_cut(data):
    encoding = data.draw(st.sampled_from(EVERY_ENCODING))
    n_rows = data.draw(st.integers(2, 300))
    cut = data.draw(st.integers(1, n_rows - 1))
    rows = draw_rows(n_rows, 128, seed=n_rows)
    factor = factor_moments(moments_of(correlated(128, 400)))
    whole = gptq_rows(rows, encoding, factor)
    first, second = (gptq_rows(part, encoding, factor) for part in (rows[:cut], rows[cut:]))
    np.testing.assert_array_equal(np.concatenate([first.codes, second.codes]), whole.codes)
    np.testing.assert_array_equal(np.concatenate([first.scales, second.scales]), whole.scales)


@pytest.mark.parametrize("encoding", EVERY_ENCODING, ids=str)
@pytest.mark.parametrize("kind", ["no tokens", "one token", "silent", "loud", "tiny", "huge"])
def test_degenerate_inputs_give_codes_close_to_the_search(encoding, kind):
    rows = draw_rows(8, 128)
    inputs = correlated(128, 300)
    if kind == "no tokens":
        inputs = np.zeros((1, 128))
    elif kind == "one token":
        inputs = inputs[:1]
    elif kind == "silent":
        inputs[:, 10:100] = 0
    elif kind == "loud":
        inputs[:, 7] *= 1e4
    else:
        inputs *= {"tiny": 1e-30, "huge": 1e30}[kind]
    made = gptq_rows(rows, encoding, factor_moments(moments_of(inputs)))
    assert np.isfinite(made.scales).all()
    moments = moments_of(inputs)
    plain = search_rows(rows, encoding)
    bits = encoding.bits
    assert output_error(rows, made, bits, moments) <= output_error(rows, plain, bits, moments)


def test_zero_rows_keep_scale_1_and_the_code_of_zero():
    rows = draw_rows(4, 64)
    rows[2] = 0
    factor = factor_moments(moments_of(correlated(64, 100)))
    for encoding in (INT4, Encoding("uint4", 32), Encoding("int8", 32)):
        made = gptq_rows(rows, encoding, factor)
        assert (made.dequantize(encoding.bits)[2] == 0).all()
        assert (made.scales[2] == 1).all()


def test_the_number_of_blas_threads_changes_no_byte():
    program = (
        "import hashlib, numpy as np\n"
        "from edgekit.encoding import Encoding\n"
        "from edgekit.quantize.methods.gptq import factor_moments, gptq_rows\n"
        "r = np.random.default_rng(0)\n"
        "x = (r.standard_normal((700, 640)) @ r.standard_normal((640, 640))).astype(np.float32)\n"
        "f = factor_moments((x.T @ x).astype(np.float64))\n"
        "w = r.standard_normal((300, 640)).astype(np.float32)\n"
        "c = gptq_rows(w, Encoding('uint4', 64), f)\n"
        "print(hashlib.sha256(f.upper.tobytes() + c.codes.tobytes()).hexdigest())\n"
    )
    hashes = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "OPENBLAS_NUM_THREADS": n, "PYTHONPATH": os.pathsep.join(sys.path)},
            check=True,
            capture_output=True,
        ).stdout
        for n in ("1", "2", "3")
    }
    assert len(hashes) == 1
