"""Claims about divergence: two-token vocabularies by hand, exact zeros for equal models."""

from __future__ import annotations

import tracemalloc
from math import exp, log

import numpy as np
import pytest

from edgekit.errors import MeasureError
from edgekit.quality import divergence as module
from edgekit.quality.divergence import (
    LiveReference,
    chunk_tokens,
    measure_divergence,
    token_divergence,
)
from tests.quality.fake_decoder import TableDecoder


def table(rows) -> TableDecoder:
    """A model that gives these logits at every position, by token id."""
    return TableDecoder(np.array(rows, dtype=np.float32))


def compare(candidate, reference, documents):
    return measure_divergence(candidate, LiveReference(reference, documents))


def noise(seed: int, vocab_size: int = 31):
    rows = np.random.default_rng(seed).normal(0, 3, (vocab_size, vocab_size))
    return table(rows)


HALF = table([[0, 0], [0, 0]])
QUARTER = table([[log(3), 0], [log(3), 0]])  # 3/4 and 1/4
DOCUMENTS = [[0, 1, 1], [1, 0]]


def test_divergence_of_two_tokens_by_hand():
    found = compare(QUARTER, HALF, DOCUMENTS)
    kl = 0.5 * log(0.5 / 0.75) + 0.5 * log(0.5 / 0.25)
    assert (found.n_documents, found.n_tokens) == (2, 3)
    assert found.kl_mean == pytest.approx(kl, rel=1e-6)
    assert found.kl_max == found.kl_p99 == pytest.approx(kl, rel=1e-6)
    assert (found.kl_low, found.kl_high) == pytest.approx((kl, kl), rel=1e-6)
    assert found.reference_perplexity == pytest.approx(2.0, rel=1e-6)
    # Next tokens are 1, 1, 0: two at 1/4 and one at 3/4.
    assert found.perplexity == pytest.approx(exp(-(2 * log(0.25) + log(0.75)) / 3), rel=1e-6)


def test_the_direction_is_reference_to_candidate():
    found = compare(HALF, QUARTER, DOCUMENTS)
    wanted = 0.75 * log(0.75 / 0.5) + 0.25 * log(0.25 / 0.5)
    assert found.kl_mean == pytest.approx(wanted, rel=1e-6)


def test_equal_models_differ_by_exactly_nothing():
    documents = [list(range(20)), [3, 1, 2]]
    found = compare(noise(1), noise(1), documents)
    assert (found.kl_mean, found.kl_max, found.kl_low, found.kl_high) == (0, 0, 0, 0)
    assert found.top1_agreement == 1.0
    assert found.perplexity == found.reference_perplexity


def test_adding_a_constant_to_all_logits_changes_nothing_but_rounding():
    documents = [list(range(20)), [3, 1, 2]]
    base = noise(1)
    found = compare(table(base.rows + 64), base, documents)
    assert found.kl_mean == pytest.approx(0, abs=1e-7)
    assert found.perplexity == pytest.approx(found.reference_perplexity, rel=1e-5)


def test_agreement_counts_positions_but_the_last():
    # The candidate prefers another token after token 0 only; 0 stands at 2 of 4 counted places.
    found = compare(table([[0, 1], [1, 0]]), table([[1, 0], [1, 0]]), [[0, 1, 0, 1, 0]])
    assert found.top1_agreement == 0.5
    # One document: there is nothing to draw an interval from.
    assert (found.top1_low, found.top1_high) == (0.5, 0.5)


def test_the_interval_holds_the_mean_and_the_tail_lies_above():
    documents = [np.random.default_rng(i).integers(0, 31, 12).tolist() for i in range(30)]
    found = compare(noise(2), noise(1), documents)
    assert 0 < found.kl_low < found.kl_mean < found.kl_high
    assert found.kl_mean < found.kl_p99 <= found.kl_max


def test_certain_and_very_unlikely_tokens_stay_finite():
    sure = table([[200, 0], [200, 0]])
    found = compare(table([[0, 200], [0, 200]]), sure, DOCUMENTS)
    assert found.kl_mean == pytest.approx(200)
    assert found.top1_agreement == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_no_numbers_are_refused_on_both_sides(bad):
    broken = table([[0, bad], [0, 0]])
    with pytest.raises(MeasureError, match="NaN or infinity"):
        compare(HALF, broken, DOCUMENTS)
    with pytest.raises(MeasureError, match="NaN or infinity"):
        compare(broken, HALF, DOCUMENTS)


def test_another_vocabulary_is_refused_with_both_sizes():
    wide = table([[0, 0, 0], [0, 0, 0]])
    with pytest.raises(MeasureError, match="got 3 tokens; wanted 2 tokens, as the float model has"):
        compare(wide, HALF, DOCUMENTS)


def test_documents_without_a_next_token_do_not_count():
    assert LiveReference(HALF, [[0], [], [0, 1]]).documents == ((0, 1),)
    with pytest.raises(MeasureError, match="no document of 2 tokens or more"):
        LiveReference(HALF, [[0], []])


def test_every_other_document_can_be_left_out():
    reference = LiveReference(noise(1), [[1, 2, 3], [4, 5], [6, 7, 8, 9]])
    found = measure_divergence(noise(2), reference, step=2)
    assert (found.n_documents, found.n_tokens) == (2, 5)
    assert found == compare(noise(2), noise(1), [[1, 2, 3], [6, 7, 8, 9]])


def whole_arrays(candidate, reference, documents) -> dict[str, float]:
    """The same numbers from whole arrays: every logit of every token at once."""
    kl, same, loss = [], [], []
    for ids in documents:
        tables = []
        for decoder in (reference, candidate):
            rows = decoder.rows[np.array(ids[:-1])].astype(np.float64)
            rows = rows - rows.max(axis=-1, keepdims=True)
            rows = rows - np.log(np.exp(rows).sum(axis=-1, keepdims=True))
            tables.append(rows.astype(np.float32).astype(np.float64))
        wanted, got = tables
        kl.append(np.maximum((np.exp(wanted) * (wanted - got)).sum(axis=-1), 0))
        same.append(wanted.argmax(-1) == got.argmax(-1))
        loss.append(-got[np.arange(len(ids) - 1), ids[1:]])
    every = np.concatenate(kl)
    return {
        "kl_mean": sum(float(part.sum()) for part in kl) / len(every),
        "kl_median": float(np.median(every)),
        "kl_p99": float(np.quantile(every, 0.99)),
        "kl_max": float(every.max()),
        "top1_agreement": float(np.concatenate(same).mean()),
        "perplexity": float(np.exp(sum(float(part.sum()) for part in loss) / len(every))),
    }


@pytest.mark.parametrize("chunk", [1, 3, 16, 1000])
def test_chunks_give_the_numbers_of_whole_arrays(chunk, monkeypatch):
    documents = [np.random.default_rng(i).integers(0, 31, 9 + i).tolist() for i in range(12)]
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 31 * chunk)
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", 31 * 2)
    found = compare(noise(2), noise(1), documents)
    for name, value in whole_arrays(noise(2), noise(1), documents).items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-14), name
    assert found.kl_bound == found.kl_mean
    assert found.top_k is None
    assert found.kl_low < found.kl_mean < found.kl_high
    assert found.top1_low < found.top1_agreement < found.top1_high
    assert found.perplexity_low < found.perplexity < found.perplexity_high
    assert token_divergence(noise(1).rows, noise(2).rows).max() >= found.kl_max


def test_both_models_walk_a_document_in_the_same_steps(monkeypatch):
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 31 * 4)
    ours, theirs = noise(1), noise(2)
    told = []
    reference = LiveReference(theirs, [list(range(10)), [1, 2]])
    measure_divergence(ours, reference, progress=lambda *said: told.append(said), what="x")
    # 9 tokens have a next one; the last document has one.
    assert ours.calls == theirs.calls == [(0, 4), (4, 4), (8, 1), (0, 1)]
    assert told == [("x", 0, 10), ("x", 4, 10), ("x", 8, 10), ("x", 9, 10), ("x", 10, 10)]


def test_memory_is_that_of_a_chunk_and_not_of_the_text(monkeypatch):
    vocab_size, n_tokens = 100_000, 400
    assert chunk_tokens(151_936) * 151_936 * 4 <= 64 << 20
    assert chunk_tokens(2_000) == 256
    assert chunk_tokens(1 << 30) == 1
    rng = np.random.default_rng(3)
    tables = [rng.normal(0, 3, (4, vocab_size)).astype(np.float32) for _ in range(2)]
    documents = [rng.integers(0, 4, 101).tolist() for _ in range(n_tokens // 100)]
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 10 * vocab_size)
    reference = LiveReference(TableDecoder(tables[0]), documents)
    tracemalloc.start()
    found = measure_divergence(TableDecoder(tables[1]), reference)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.n_tokens == n_tokens
    # The log-probabilities of one model over the whole text would take 160 MB.
    assert peak < 2 * 10 * vocab_size * 4 + 8 * module._BLOCK_ELEMENTS * 8
