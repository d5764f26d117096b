"""Claims about the sampler: exact distributions, exact ties, the same seed the same tokens."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgekit.errors import EngineCrashError, UsageError
from edgekit.runtime.base import GenerateOptions
from edgekit.runtime.sampling import Sampler, distribution, log_softmax, most_likely

# P(chi-square with 3 degrees of freedom > 16.27) = 0.001; the seed is fixed, so it cannot flake.
CHI_SQUARE_3_DF_P_001 = 16.27


def as_logits(*probabilities: float) -> np.ndarray:
    return np.log(np.array(probabilities)).astype(np.float32)


logit_arrays = arrays(
    np.float32, st.integers(1, 40), elements=st.floats(-30, 30, width=32, allow_nan=False)
)


def test_greedy_takes_the_largest_logit_and_the_smaller_id_of_a_tie():
    sampler = Sampler(GenerateOptions())
    assert sampler.pick(np.array([0.0, 3.0, 3.0, 1.0], dtype=np.float32)).token_id == 1
    assert sampler.pick(np.zeros(5, dtype=np.float32)).token_id == 0


def test_greedy_reports_no_logprob_unless_asked():
    pick = Sampler(GenerateOptions()).pick(as_logits(0.5, 0.25, 0.25))
    assert (pick.logprob, pick.top) == (None, ())


def test_logprobs_are_the_models_own_whatever_the_temperature():
    logits = as_logits(0.5, 0.25, 0.125, 0.125)
    for temperature in (0.0, 0.01, 3.0):
        options = GenerateOptions(temperature=temperature, n_logprobs=2, seed=1)
        pick = Sampler(options).pick(logits)
        assert [i for i, _ in pick.top] == [0, 1]
        assert pick.top[0][1] == pytest.approx(math.log(0.5), abs=1e-7)
        assert pick.top[1][1] == pytest.approx(math.log(0.25), abs=1e-7)
        assert pick.logprob == pytest.approx(
            math.log(float(np.exp(logits)[pick.token_id])), abs=1e-7
        )


def test_temperature_one_draws_each_token_as_often_as_the_softmax_says():
    expected = np.array([0.5, 0.25, 0.15, 0.1])
    sampler = Sampler(GenerateOptions(temperature=1.0, seed=7))
    logits = as_logits(*expected)
    n_draws = 20_000
    counts = np.bincount([sampler.pick(logits).token_id for _ in range(n_draws)], minlength=4)
    chi_square = float((((counts - expected * n_draws) ** 2) / (expected * n_draws)).sum())
    assert chi_square < CHI_SQUARE_3_DF_P_001


def test_temperature_two_takes_the_square_root_of_the_odds():
    _, probabilities = distribution(as_logits(0.8, 0.2), GenerateOptions(temperature=2.0))
    assert probabilities[0] / probabilities[1] == pytest.approx(2.0, rel=1e-6)


def test_top_k_keeps_k_tokens_and_renormalizes():
    token_ids, probabilities = distribution(
        as_logits(0.1, 0.4, 0.2, 0.3), GenerateOptions(temperature=1.0, top_k=2)
    )
    assert token_ids.tolist() == [1, 3]
    assert probabilities.tolist() == pytest.approx([4 / 7, 3 / 7], rel=1e-6)


def test_top_k_breaks_a_tie_at_the_limit_by_the_smaller_id():
    logits = np.array([1, 2, 1, 1, 3], dtype=np.float32)
    assert most_likely(logits, 3).tolist() == [4, 1, 0]


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.0, [1]), (0.39, [1]), (0.41, [1, 3]), (0.71, [1, 3, 2]), (0.95, [1, 3, 2, 0])],
)
def test_top_p_keeps_the_shortest_head_that_reaches_the_mass(top_p, kept):
    token_ids, probabilities = distribution(
        as_logits(0.1, 0.4, 0.2, 0.3), GenerateOptions(temperature=1.0, top_p=top_p)
    )
    assert token_ids.tolist() == kept
    assert probabilities.sum() == pytest.approx(1.0, abs=1e-12)


def test_top_p_one_keeps_every_token_even_an_impossible_one():
    logits = np.array([0.0, -np.inf, 0.0], dtype=np.float32)
    token_ids, probabilities = distribution(logits, GenerateOptions(temperature=1.0))
    assert token_ids.tolist() == [0, 1, 2]
    assert probabilities.tolist() == [0.5, 0.0, 0.5]


def test_top_k_is_applied_before_top_p():
    # Of the two kept tokens (4/7, 3/7) the first alone reaches 0.5; of all four it would not.
    token_ids, _ = distribution(
        as_logits(0.1, 0.4, 0.2, 0.3), GenerateOptions(temperature=1.0, top_k=2, top_p=0.5)
    )
    assert token_ids.tolist() == [1]


@given(logits=logit_arrays, seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_same_seed_same_tokens(logits, seed):
    options = GenerateOptions(temperature=0.8, top_k=5, top_p=0.9, seed=seed)
    one, two = Sampler(options), Sampler(options)
    assert [one.pick(logits) for _ in range(5)] == [two.pick(logits) for _ in range(5)]


@given(logits=logit_arrays, n_kept=st.integers(1, 45))
@settings(max_examples=100, deadline=None)
def test_most_likely_is_the_head_of_a_stable_sort(logits, n_kept):
    expected = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:n_kept]
    assert most_likely(logits, n_kept).tolist() == expected


@given(
    logits=logit_arrays,
    temperature=st.floats(0.05, 4),
    top_k=st.integers(0, 45),
    top_p=st.floats(0, 1),
)
@settings(max_examples=100, deadline=None)
def test_a_distribution_is_one_and_holds_the_best_token(logits, temperature, top_k, top_p):
    options = GenerateOptions(temperature=temperature, top_k=top_k, top_p=top_p)
    token_ids, probabilities = distribution(logits, options)
    assert int(np.argmax(logits)) in token_ids
    assert len(set(token_ids.tolist())) == len(token_ids) <= (top_k or len(logits))
    assert probabilities.sum() == pytest.approx(1.0, abs=1e-9)


@given(logits=logit_arrays)
@settings(max_examples=60, deadline=None)
def test_a_cold_sampler_is_greedy_where_the_best_stands_out(logits):
    logits[len(logits) // 2] = 40
    pick = Sampler(GenerateOptions(temperature=0.01, seed=0)).pick(logits)
    assert pick.token_id == len(logits) // 2


@given(logits=logit_arrays)
@settings(max_examples=60, deadline=None)
def test_log_softmax_sums_to_one_and_ignores_a_shift(logits):
    logprobs = log_softmax(logits)
    assert np.exp(logprobs).sum() == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(log_softmax(logits + np.float32(8)), logprobs, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_numbers_are_a_crash_not_a_token(temperature, bad):
    logits = np.array([0.0, bad, 1.0], dtype=np.float32)
    with pytest.raises(EngineCrashError, match="not numbers"):
        Sampler(GenerateOptions(temperature=temperature, seed=0)).pick(logits)


@pytest.mark.parametrize(
    "bad",
    [
        {"max_tokens": 0},
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_p": 1.01},
        {"top_p": -0.1},
        {"top_k": -1},
        {"n_logprobs": -1},
        {"seed": -1},
        {"stop": ("",)},
        {"stop": "word"},
    ],
)
def test_an_option_out_of_range_is_refused_by_name(bad):
    with pytest.raises(UsageError, match=f"option {next(iter(bad))}"):
        Sampler(GenerateOptions(**bad))
