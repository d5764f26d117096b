"""Claims: a budget is spent where a byte avoids most damage, and is never exceeded."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from edgekit.encoding import Encoding
from edgekit.errors import QuantError
from edgekit.quantize.budget import Option, spend

FOUR, EIGHT, SMALL = Encoding("uint4", 128), Encoding("int8", 128), Encoding("uint4", 32)


def option(encoding, damage, *n_bytes):
    return Option(encoding, damage, dict(zip(("onnx", "mlx"), n_bytes, strict=False)))


def tensor(damage, n_bytes, *, then=0.0, more=2):
    return [option(FOUR, damage, n_bytes), option(EIGHT, then, more * n_bytes)]


# Worked by hand: saved damage per million bytes.
#   a: 0.040 for 100 more bytes -> 400      b: 0.030 for 50 -> 600
#   c: 0.010 for 200 -> 50                  d: 0.003 for 10 -> 300
FOUR_TENSORS = {
    "a": tensor(0.040, 100),
    "b": tensor(0.030, 50),
    "c": tensor(0.010, 200),
    "d": tensor(0.003, 10),
}  # 360 bytes at the smallest, 720 at the largest


@pytest.mark.parametrize(
    ("limit", "steps", "blocked", "n_bytes"),
    [
        (360, "", "b", 360),
        (369, "", "b", 360),
        (370, "d", "b", 370),  # b and a do not fit, d does
        (409, "d", "b", 370),
        (410, "b", "a", 410),
        (420, "bd", "a", 420),
        (510, "ba", "d", 510),
        (520, "bad", "c", 520),
        (719, "bad", "c", 520),
        (720, "badc", None, 720),
        (10_000, "badc", None, 720),
    ],
)
def test_worked_by_hand(limit, steps, blocked, n_bytes):
    spent = spend(FOUR_TENSORS, {"onnx": limit})
    assert "".join(step.name for step in spent.steps) == steps
    assert (spent.next_step.name if spent.next_step else None) == blocked
    assert spent.n_bytes == {"onnx": n_bytes}
    for name in FOUR_TENSORS:
        assert spent.chosen[name].encoding == (EIGHT if name in steps else FOUR)
    left = {"a": 0.040, "b": 0.030, "c": 0.010, "d": 0.003}
    assert spent.damage == pytest.approx(sum(left[n] for n in left if n not in steps))
    saved = {"a": 400, "b": 600, "c": 50, "d": 300}
    assert [step.saved for step in spent.steps] == pytest.approx([saved[n] for n in steps])


def test_a_budget_that_is_too_small_says_the_smallest_size():
    with pytest.raises(QuantError) as caught:
        spend(FOUR_TENSORS, {"onnx": 359})
    assert str(caught.value).startswith(
        "the budget is too small for onnx; got 359 B for the weights; wanted at least 360 B, "
        "with every tensor at its smallest."
    )


def test_every_format_must_fit():
    options = {
        "a": [option(FOUR, 0.2, 10, 12), option(EIGHT, 0.0, 20, 24)],
        "b": [option(FOUR, 0.1, 10, 12), option(EIGHT, 0.0, 20, 24)],
    }
    spent = spend(options, {"onnx": 40, "mlx": 47})
    assert [step.name for step in spent.steps] == ["a"]
    assert spent.n_bytes == {"onnx": 30, "mlx": 36}
    assert spent.next_step.name == "b"
    with pytest.raises(QuantError, match="too small for mlx; got 23 B"):
        spend(options, {"onnx": 40, "mlx": 23})


def test_a_middle_option_is_taken_only_where_it_is_worth_it():
    # From 10 bytes: 15 bytes avoid 0.6 (0.12 a byte), 20 avoid 1.0 (0.10 a byte): both are steps.
    worth = {"a": [option(FOUR, 1.0, 10), option(SMALL, 0.4, 15), option(EIGHT, 0.0, 20)]}
    assert [s.after.encoding for s in spend(worth, {"onnx": 20}).steps] == [SMALL, EIGHT]
    assert spend(worth, {"onnx": 19}).chosen["a"].encoding == SMALL
    # 15 bytes avoid 0.4 (0.08 a byte): the way to 20 bytes is better, so 15 is no step.
    not_worth = {"a": [option(FOUR, 1.0, 10), option(SMALL, 0.6, 15), option(EIGHT, 0.0, 20)]}
    assert [s.after.encoding for s in spend(not_worth, {"onnx": 20}).steps] == [EIGHT]
    assert spend(not_worth, {"onnx": 19}).chosen["a"].encoding == FOUR


def test_more_bytes_for_no_less_damage_are_never_spent():
    options = {"a": [option(FOUR, 0.5, 10), option(EIGHT, 0.5, 20)], "b": tensor(0.0, 5)}
    spent = spend(options, {"onnx": 1000})
    assert (spent.steps, spent.next_step) == ((), None)


def test_equal_steps_come_in_the_order_of_the_tensors():
    options = {name: tensor(0.1, 10) for name in "zya"}
    assert [s.name for s in spend(options, {"onnx": 50}).steps] == ["z", "y"]


@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_left_does_not_fit_or_saves_nothing(seed):
    rng = np.random.default_rng(seed)
    options = {}
    for number in range(9):
        size = int(rng.integers(5, 60))
        options[f"t{number}"] = [
            option(FOUR, float(rng.uniform(0, 1)), size),
            option(SMALL, float(rng.uniform(0, 0.5)), size + int(rng.integers(1, 20))),
            option(EIGHT, float(rng.uniform(0, 0.1)), 2 * size + 20),
        ]
    smallest = sum(min(o.most_bytes for o in choices) for choices in options.values())
    for extra in (0, 15, 60, 200, 5000):
        limit = smallest + extra
        spent = spend(options, {"onnx": limit})
        total = sum(chosen.most_bytes for chosen in spent.chosen.values())
        assert spent.n_bytes == {"onnx": total}
        assert total <= limit
        assert spent == spend(options, {"onnx": limit})
        ratios = [step.saved for step in spent.steps]
        own = {name: [s.saved for s in spent.steps if s.name == name] for name in options}
        assert all(list(r) == sorted(r, reverse=True) for r in own.values())
        if spent.next_step is not None:
            more = spent.next_step.after.most_bytes - spent.next_step.before.most_bytes
            before = [s for s in spent.steps if s.saved >= spent.next_step.saved]
            assert ratios[: len(before)] == [s.saved for s in before]
            used = smallest + sum(s.after.most_bytes - s.before.most_bytes for s in before)
            assert used + more > limit


@pytest.mark.parametrize("seed", range(4))
def test_greedy_is_the_best_there_is_where_it_fills_the_budget(seed):
    """With the next step at hand, no choice of the same bytes has less damage (convex hull)."""
    rng = np.random.default_rng(seed)
    options = {
        f"t{n}": tensor(float(rng.uniform(0, 1)), int(rng.integers(5, 40))) for n in range(7)
    }
    order = spend(options, {"onnx": 10**6}).steps
    total = sum(o[0].most_bytes for o in options.values())
    for step in order:
        total += step.after.most_bytes - step.before.most_bytes
        spent = spend(options, {"onnx": total})
        best = min(
            sum(o.damage for o in choice)
            for choice in itertools.product(*options.values())
            if sum(o.most_bytes for o in choice) <= total
        )
        assert spent.damage <= best + 1e-12
