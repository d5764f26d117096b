"""Claims: whatever is changed in a valid file, a reader keeps its contract (contract.py)."""

from __future__ import annotations

import tempfile
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.contract import Target, check
from tests.fuzz.mutate import mutate_bytes
from tests.fuzz.targets import TARGETS

N_EXAMPLES = {"tokenizer": 150, "template": 120, "coreml-package": 150, "stream": 150}
USUAL = 400


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_changed_files_are_read_right_or_refused(target: Target):
    seeds = target.seeds()

    @settings(max_examples=N_EXAMPLES.get(target.name, USUAL), derandomize=True, database=None)
    @given(st.sampled_from(seeds), st.integers(0, 1 << 32), st.integers(1, 4))
    def holds(seed: bytes, number: int, n_changes: int) -> None:
        rng, data = Random(number), seed
        for _ in range(n_changes):
            data = target.mutate(data, rng)
        check(target, data, folder)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        holds()


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_any_bytes_at_all_are_refused_or_read_right(target: Target):
    @settings(max_examples=25, derandomize=True, database=None)
    @given(st.binary(max_size=400), st.integers(0, 1 << 32))
    def holds(data: bytes, number: int) -> None:
        check(target, data, folder)
        check(target, mutate_bytes(data, Random(number)), folder)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        holds()
