"""The reference decoder gives Hugging Face transformers' logits for every family.

The stored logits come from scripts/golden.py; every engine is compared with the reference.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from edgekit.families import FAMILIES, open_model
from edgekit.runtime.reference import ReferenceDecoder
from tests.builders import write_tiny_checkpoint
from tests.golden.tokens import CHUNKS, ROWS, golden_ids
from tests.tiny_families import TINY_CONFIGS

GOLDEN = Path(__file__).parent.parent / "golden" / "families"
# Both sides sum in float32 in another order; 3e-5 was the largest difference seen.
FLOAT32_SUMS: Final = 2e-4


def in_pieces(decoder, lengths):
    ids, start, parts = golden_ids(), 0, []
    for length in lengths:
        piece = ids[start : start + length]
        parts.append(decoder.forward(piece, n_past=start, n_logits=length))
        start += length
    return np.concatenate(parts)[list(ROWS)]


@pytest.mark.parametrize("name", TINY_CONFIGS)
def test_logits_are_those_of_transformers(tmp_path, name):
    folder = write_tiny_checkpoint(tmp_path / "m", name)
    golden = np.load(GOLDEN / f"{name}.npz")
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert weights == str(golden["weights_sha256"]), "run scripts/golden.py again"
    source = open_model(folder)
    chunked = golden["chunked"] if "chunked" in golden else golden["whole"]
    for lengths, wanted in (([sum(CHUNKS)], golden["whole"]), (CHUNKS, chunked)):
        got = in_pieces(ReferenceDecoder.from_source(source), lengths)
        assert np.abs(got - wanted).max() <= FLOAT32_SUMS * golden["std"]


def test_the_golden_set_covers_every_family_and_nothing_else():
    assert {path.stem for path in GOLDEN.glob("*.npz")} == set(TINY_CONFIGS)
    covered = {config["model_type"] for config in TINY_CONFIGS.values()}
    # Gemma 3's wrapper is tested with renamed tensors below.
    assert covered == set(FAMILIES) - {"gemma3"}


def test_pieces_matter_only_to_longrope():
    assert [p.stem for p in GOLDEN.glob("*.npz") if "chunked" in np.load(p)] == ["phi3"]
