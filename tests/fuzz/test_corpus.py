"""Claims: what once broke a reader, or stands for a class of hostile file, is now refused well.

Each file of corpus/TARGET is replayed through the same function that the fuzzer calls, with the
limits on processor time and on memory.
"""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from tests.fuzz.contract import check
from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
FILES = sorted(CORPUS.glob("*/*"))
# Hostile classes that are harmless as they are: taken, and the promises hold.
ACCEPTED = "accepted-"


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_hostile_file_is_refused_with_an_error_of_ours(path, tmp_path):
    target = TARGETS[path.parent.name]
    assert check(target, path.read_bytes(), tmp_path) is path.name.startswith(ACCEPTED)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_file_of_the_corpus_is_small_and_says_what_it_is(path):
    assert path.stat().st_size < 20_000
    assert path.parent.name in TARGETS
    assert "-" in path.stem


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_valid_files_are_read_within_the_limits(target, tmp_path):
    n_accepted = 0
    for data in target.seeds():
        check(target, data, tmp_path)  # imports are not the input's cost
        tracemalloc.start()
        try:
            n_accepted += check(target, data, tmp_path)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak <= target.memory_bytes + target.memory_factor * len(data)
    assert n_accepted >= 1


def test_every_target_has_a_corpus():
    assert {path.parent.name for path in FILES} == set(TARGETS)
