"""Claims about the fake engine: a pure function of the history."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.errors import EngineCrashError, UsageError
from edgekit.runtime.fake import FakeDecoder, hashed_logits


def test_the_same_history_gives_the_same_logits_however_it_was_fed():
    once = FakeDecoder(50).forward([1, 2, 3, 4, 5], n_past=0, n_logits=5)
    chunked = FakeDecoder(50)
    first = chunked.forward([1, 2], n_past=0, n_logits=2)
    rest = chunked.forward([3, 4, 5], n_past=2, n_logits=3)
    np.testing.assert_array_equal(once, np.concatenate([first, rest]))
    again = chunked.forward([3], n_past=2)
    np.testing.assert_array_equal(again[0], once[2])


def test_logits_depend_on_the_last_four_tokens_only():
    np.testing.assert_array_equal(
        hashed_logits([9, 1, 2, 3, 4], 10), hashed_logits([1, 2, 3, 4], 10)
    )
    assert not np.array_equal(hashed_logits([1, 2, 3, 4], 10), hashed_logits([1, 2, 3, 5], 10))


def test_a_script_is_said_and_then_said_again():
    script = [5, 5, 6, 2]
    decoder = FakeDecoder.saying(script, vocab_size=8)
    history = [1, 3]
    logits = decoder.forward(history, n_past=0)
    for _ in range(8):
        history.append(int(np.argmax(logits[-1])))
        logits = decoder.forward(history[-1:], n_past=len(history) - 1)
    assert history[2:] == script * 2


def test_a_rule_decides_the_logits():
    decoder = FakeDecoder(4, rule=lambda history: np.full(4, len(history), dtype=np.float32))
    assert decoder.forward([0, 1, 2], n_past=0, n_logits=2)[:, 0].tolist() == [2.0, 3.0]


def test_it_says_that_it_is_emulated():
    assert FakeDecoder(4).info.is_emulated


def test_a_closed_decoder_says_so():
    decoder = FakeDecoder(4)
    decoder.close()
    decoder.close()
    with pytest.raises(EngineCrashError, match="closed"):
        decoder.forward([1], n_past=0)


def test_more_tokens_than_the_context_is_refused():
    with pytest.raises(UsageError, match="longer than the context"):
        FakeDecoder(4, context_length=2).forward([1, 1, 1], n_past=0)
