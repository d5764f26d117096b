"""Claims about divergence: two-token vocabularies by hand, exact zeros for equal models."""

from __future__ import annotations

from math import exp, log

import numpy as np
import pytest

from edgekit.errors import MeasureError
from edgekit.quality.divergence import measure_divergence, run_reference


def table(rows):
    """A model that gives these logits at every position, by token id."""
    values = np.array(rows, dtype=np.float32)
    return lambda ids: values[np.array(ids)]


def noise(seed: int, vocab_size: int = 31):
    rows = np.random.default_rng(seed).normal(0, 3, (vocab_size, vocab_size))
    return table(rows)


HALF = table([[0, 0], [0, 0]])
QUARTER = table([[log(3), 0], [log(3), 0]])  # 3/4 and 1/4
DOCUMENTS = [[0, 1, 1], [1, 0]]


def test_divergence_of_two_tokens_by_hand():
    found = measure_divergence(QUARTER, run_reference(HALF, DOCUMENTS))
    kl = 0.5 * log(0.5 / 0.75) + 0.5 * log(0.5 / 0.25)
    assert (found.n_documents, found.n_tokens) == (2, 3)
    assert found.kl_mean == pytest.approx(kl, rel=1e-6)
    assert found.kl_max == found.kl_p99 == pytest.approx(kl, rel=1e-6)
    assert (found.kl_low, found.kl_high) == pytest.approx((kl, kl), rel=1e-6)
    assert found.reference_perplexity == pytest.approx(2.0, rel=1e-6)
    # Next tokens are 1, 1, 0: two at 1/4 and one at 3/4.
    assert found.perplexity == pytest.approx(exp(-(2 * log(0.25) + log(0.75)) / 3), rel=1e-6)


def test_the_direction_is_reference_to_candidate():
    found = measure_divergence(HALF, run_reference(QUARTER, DOCUMENTS))
    wanted = 0.75 * log(0.75 / 0.5) + 0.25 * log(0.25 / 0.5)
    assert found.kl_mean == pytest.approx(wanted, rel=1e-6)


def test_equal_models_differ_by_exactly_nothing():
    documents = [list(range(20)), [3, 1, 2]]
    found = measure_divergence(noise(1), run_reference(noise(1), documents))
    assert (found.kl_mean, found.kl_max, found.kl_low, found.kl_high) == (0, 0, 0, 0)
    assert found.top1_agreement == 1.0
    assert found.perplexity == found.reference_perplexity


def test_adding_a_constant_to_all_logits_changes_nothing_but_rounding():
    documents = [list(range(20)), [3, 1, 2]]
    base = noise(1)
    found = measure_divergence(lambda ids: base(ids) + 64, run_reference(base, documents))
    assert found.kl_mean == pytest.approx(0, abs=1e-7)
    assert found.perplexity == pytest.approx(found.reference_perplexity, rel=1e-5)


def test_agreement_counts_positions_but_the_last():
    # The candidate prefers another token after token 0 only; 0 stands at 2 of 4 counted places.
    reference = run_reference(table([[1, 0], [1, 0]]), [[0, 1, 0, 1, 0]])
    assert measure_divergence(table([[0, 1], [1, 0]]), reference).top1_agreement == 0.5


def test_the_interval_holds_the_mean_and_the_tail_lies_above():
    documents = [np.random.default_rng(i).integers(0, 31, 12).tolist() for i in range(30)]
    found = measure_divergence(noise(2), run_reference(noise(1), documents))
    assert 0 < found.kl_low < found.kl_mean < found.kl_high
    assert found.kl_mean < found.kl_p99 <= found.kl_max


def test_certain_and_very_unlikely_tokens_stay_finite():
    sure = table([[200, 0], [200, 0]])
    found = measure_divergence(table([[0, 200], [0, 200]]), run_reference(sure, DOCUMENTS))
    assert found.kl_mean == pytest.approx(200)
    assert found.top1_agreement == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_no_numbers_are_refused_on_both_sides(bad):
    broken = table([[0, bad], [0, 0]])
    with pytest.raises(MeasureError, match="NaN or infinity"):
        run_reference(broken, DOCUMENTS)
    with pytest.raises(MeasureError, match="NaN or infinity"):
        measure_divergence(broken, run_reference(HALF, DOCUMENTS))


def test_another_vocabulary_is_refused_with_both_shapes():
    wide = table([[0, 0, 0], [0, 0, 0]])
    with pytest.raises(MeasureError, match=r"got \(2, 3\); wanted \(2, 2\)"):
        measure_divergence(wide, run_reference(HALF, DOCUMENTS))


def test_documents_without_a_next_token_do_not_count():
    assert run_reference(HALF, [[0], [], [0, 1]]).documents == ((0, 1),)
    with pytest.raises(MeasureError, match="no document of 2 tokens or more"):
        run_reference(HALF, [[0], []])
