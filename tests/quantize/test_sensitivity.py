"""Claims: a trial's damage is the KL divergence of a model with these weights rounded."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from edgekit.encoding import Encoding
from edgekit.families import open_model
from edgekit.quantize import sensitivity
from edgekit.quantize.sensitivity import (
    LOGIT_STRIDE,
    N_TOKENS,
    choose_extent,
    make_trials,
    measure_sensitivity,
    output_error,
    some_sequences,
    trial_flops,
)
from edgekit.runtime.reference import ReferenceDecoder
from tests.builders import write_tiny_checkpoint

FOUR, EIGHT = Encoding("int4", 32), Encoding("int8", 32)
TEXT = [[(37 * i + 5) % 384 for i in range(30)], [(11 * i + 3) % 384 for i in range(21)]]
MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


def rounded(name, weights, mean_squares, encoding):
    """A coarse rounding, so that float32 sums do not hide the damage."""
    step = np.float32(np.abs(weights).max() / (4 if encoding == FOUR else 40))
    return np.round(weights / step) * step


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("m") / "tiny"
    model = open_model(write_tiny_checkpoint(folder, "qwen2", tie_word_embeddings=False))
    yield model
    model.close()


def alone(source, changes):
    """The same divergence from the reference engine, in float64."""
    reads = [
        lambda name: source.tensor(name).read(),
        lambda name: (
            rounded(name, source.tensor(name).read(), None, changes[name])
            if name in changes
            else source.tensor(name).read()
        ),
    ]
    found = []
    for read in reads:
        rows = []
        for ids in TEXT:
            decoder = ReferenceDecoder(source.spec, read, dtype=np.float64)
            logits = np.asarray(decoder.forward(ids, n_past=0, n_logits=len(ids)), np.float64)
            rows.append(logits[(len(ids) - 1) % LOGIT_STRIDE :: LOGIT_STRIDE])
        logits = np.concatenate(rows)
        found.append(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
    ours, theirs = found
    return float((np.exp(ours) * (ours - theirs)).sum(axis=1).mean())


def measured(source, candidates, **more):
    return measure_sensitivity(
        source.spec, lambda name: source.tensor(name).read(), rounded, candidates, TEXT, **more
    )


def test_one_matrix_at_a_time(source):
    names = ["embed", "layers.0.v", "layers.0.down", "layers.1.q", "layers.1.gate", "lm_head"]
    found = measured(source, {name: [FOUR] for name in names})
    for name in names:
        # Two digits are kept.
        assert found.damages[name][FOUR] == pytest.approx(alone(source, {name: FOUR}), rel=0.06)
    assert found.n_trials == 6
    assert found.method == "KL divergence of 6 trials, one matrix at a time, on 51 tokens"


@pytest.mark.parametrize("family", ["mistral", "gemma2", "olmo2", "phi3"])
def test_other_families(tmp_path, family):
    model = open_model(write_tiny_checkpoint(tmp_path / "m", family))
    names = ["embed", "layers.0.o", "layers.1.up"]
    found = measured(model, {name: [FOUR] for name in names})
    for name in names:
        wanted = alone(model, {name: FOUR})
        assert found.damages[name][FOUR] == pytest.approx(wanted, rel=0.06, abs=1e-6)
    model.close()


def test_the_result_does_not_depend_on_how_trials_are_split(source, monkeypatch):
    candidates = {f"layers.{i}.{part}": [FOUR, EIGHT] for i in range(2) for part in MATRICES}
    whole = measured(source, candidates)
    monkeypatch.setattr(sensitivity, "_MAX_RESIDUAL_BYTES", 1)
    said = []
    single = measured(source, candidates, progress=lambda *what: said.append(what))
    assert single.damages == whole.damages
    assert said[-1] == ("sensitivity", 28, 28)


def test_inputs_are_measured_on_the_way(source):
    found = measured(source, {"layers.0.q": [FOUR]}).mean_squares
    assert len(found) == 2 * 7 + 1
    embedded = source.tensor("embed").read()[[i for ids in TEXT for i in ids]].astype(np.float64)
    norm = embedded / np.sqrt((embedded**2).mean(1, keepdims=True) + source.spec.norm_eps)
    wanted = ((norm * source.tensor("layers.0.attn_norm").read()) ** 2).mean(0)
    for part in "qkv":
        np.testing.assert_allclose(found[f"layers.0.{part}"], wanted, rtol=1e-4)
    np.testing.assert_array_equal(found["layers.1.gate"], found["layers.1.up"])


def test_the_damage_in_another_encoding_follows_from_the_output_errors(source):
    name = "layers.1.down"
    found = measured(source, {name: [FOUR, EIGHT]})
    weights, squares = source.tensor(name).read(), found.mean_squares[name]
    four, eight = (
        output_error(weights, rounded(name, weights, squares, e), squares) for e in (FOUR, EIGHT)
    )
    assert found.damages[name][EIGHT] == pytest.approx(
        found.damages[name][FOUR] * eight / four, rel=0.11
    )
    # And that is about what the model itself says.
    assert found.damages[name][EIGHT] == pytest.approx(alone(source, {name: EIGHT}), rel=0.5)


def test_ends_are_tried_in_every_encoding(source):
    found = measured(source, {"embed": [FOUR, EIGHT], "lm_head": [FOUR, EIGHT]})
    assert found.n_trials == 4
    for name in ("embed", "lm_head"):
        for encoding in (FOUR, EIGHT):
            wanted = alone(source, {name: encoding})
            assert found.damages[name][encoding] == pytest.approx(wanted, rel=0.06, abs=1e-6)


def test_the_damage_of_layers_together_is_shared_by_their_errors(source):
    names = ["layers.0.v", "layers.1.v"]
    found = measured(source, {name: [FOUR] for name in names}, n_layers_together=2)
    assert found.n_trials == 1
    errors = []
    for name in names:
        weights, squares = source.tensor(name).read(), found.mean_squares[name]
        errors.append(output_error(weights, rounded(name, weights, squares, FOUR), squares))
    both = alone(source, dict.fromkeys(names, FOUR))
    for name, error in zip(names, errors, strict=True):
        assert found.damages[name][FOUR] == pytest.approx(both * error / sum(errors), rel=0.06)
    assert "one kind of matrix in 2 layers at a time" in found.method


def test_output_error_by_hand():
    weights = np.array([[1, 2], [3, 0]], np.float32)
    stored = np.array([[1, 1], [3, 1]], np.float32)
    # Column squares: errors 0 and 2, weights 10 and 4; inputs 3 and 0.5.
    assert output_error(weights, stored, np.array([3.0, 0.5])) == pytest.approx(1 / 32)
    assert output_error(weights, weights, np.array([3.0, 0.5])) == 0
    assert output_error(weights, stored, np.zeros(2)) == 0


def test_trials_group_layers_that_follow_each_other():
    spec = SimpleNamespace(n_layers=5)
    names = ["embed", *(f"layers.{i}.{p}" for i in range(5) for p in ("v", "down")), "lm_head"]
    assert [trial.names for trial in make_trials(spec, names, 2)] == [
        ("embed",),
        ("layers.0.v", "layers.1.v"), ("layers.0.down", "layers.1.down"),
        ("layers.2.v", "layers.3.v"), ("layers.2.down", "layers.3.down"),
        ("layers.4.v",), ("layers.4.down",),
        ("lm_head",),
    ]  # fmt: skip
    assert len(make_trials(spec, names, 1)) == len(names)
    assert len(make_trials(spec, names, 8)) == 4


def test_work_by_hand_and_the_choice_of_groups(source):
    spec = source.spec
    shapes = spec.weight_shapes()
    layer = sum(np.prod(shapes[f"layers.0.{part}"]) for part in MATRICES)
    head = np.prod(shapes["lm_head"])
    trials = make_trials(spec, ["layers.0.v", "layers.1.v", "lm_head"], 1)
    # The float model and v of layer 0 run two layers, v of layer 1 one, lm_head none.
    wanted = 2 * (5 * layer * 64 + 4 * head * 64 / LOGIT_STRIDE)
    assert trial_flops(spec, trials, 64) == wanted
    names = [f"layers.{i}.{part}" for i in range(2) for part in MATRICES]
    many, few = (trial_flops(spec, make_trials(spec, names, 1), n) for n in N_TOKENS)
    assert choose_extent(spec, names, many) == (256, 1)
    assert choose_extent(spec, names, many - 1) == (128, 1)
    assert choose_extent(spec, names, few) == (128, 1)
    assert choose_extent(spec, names, few - 1) == (128, 2)


def test_layers_share_trials_only_as_far_as_needed():
    shapes = {f"layers.0.{part}": (64, 64) for part in MATRICES} | {"embed": (64, 64)}
    spec = SimpleNamespace(n_layers=12, is_tied=True, weight_shapes=lambda: shapes)
    names = [f"layers.{i}.{part}" for i in range(12) for part in MATRICES]
    work = {n: trial_flops(spec, make_trials(spec, names, n), 128) for n in (2, 4, 8, 12)}
    assert list(work.values()) == sorted(work.values(), reverse=True)
    assert choose_extent(spec, names, work[2]) == (128, 2)
    assert choose_extent(spec, names, work[2] - 1) == (128, 4)
    assert choose_extent(spec, names, work[4] - 1) == (128, 8)
    assert choose_extent(spec, names, work[8] - 1) == (128, 12)
    assert choose_extent(spec, names, 1) == (128, 12)


def test_sequences_are_spread_over_the_text():
    text = [[number] * 300 for number in range(10)]
    assert [(s[0], len(s)) for s in some_sequences(text)] == [(0, 128), (5, 128)]
    assert [(s[0], len(s)) for s in some_sequences(text[:1])] == [(0, 256)]
    assert [len(s) for s in some_sequences([[1, 2, 3]], 2)] == [2]
