"""Mixed precision by budget: which tensor gets more bits, until the bytes are spent.

Every tensor begins with its smallest option. Then, again and again, the step that lowers the
expected damage most for each byte is taken, as long as it fits in every format. Options that cost
more bytes for no less damage, and those between which a mix of others is better, are left out
first, so the best step of a tensor is always its next one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgekit.encoding import Encoding
from edgekit.errors import QuantError
from edgekit.units import format_bytes


@dataclass(frozen=True, slots=True)
class Option:
    """One way to store a tensor.

    Attributes:
        encoding: How it is stored.
        damage: Expected KL divergence of the model from the float model, in nats per token, when
            this tensor alone is stored so.
        n_bytes: Bytes of the tensor by format; every option of every tensor has the same formats.
    """

    encoding: Encoding
    damage: float
    n_bytes: Mapping[str, int]

    @property
    def most_bytes(self) -> int:
        """Bytes in the format that needs most."""
        return max(self.n_bytes.values())


@dataclass(frozen=True, slots=True)
class Step:
    """A step that was taken: a tensor got a larger option.

    Attributes:
        name: The tensor.
        before: What it had.
        after: What it got.
        saved: Damage that the step avoids, for each million bytes.
    """

    name: str
    before: Option
    after: Option
    saved: float


@dataclass(frozen=True, slots=True)
class Spending:
    """What became of a budget.

    Attributes:
        chosen: The option of every tensor.
        steps: The steps that were taken, in order.
        n_bytes: Bytes of all tensors by format.
        next_step: The step that would have come next and does not fit; None if none is left.
    """

    chosen: Mapping[str, Option]
    steps: tuple[Step, ...]
    n_bytes: Mapping[str, int]
    next_step: Step | None

    @property
    def damage(self) -> float:
        """Expected damage of all tensors together, if damages add up."""
        return sum(option.damage for option in self.chosen.values())


def spend(options: Mapping[str, Sequence[Option]], limits: Mapping[str, int]) -> Spending:
    """Choose an option for every tensor.

    Args:
        options: Tensor to its options, at least one each, in any order.
        limits: Most bytes of all tensors together, by format.

    Returns:
        The choice. Equal steps are taken in the order of ``options``.

    Raises:
        QuantError: The smallest options do not fit; the message says what the smallest size is.
    """
    ladders = {name: _ladder(choices) for name, choices in options.items()}
    places = dict.fromkeys(ladders, 0)
    totals = {fmt: sum(ladder[0].n_bytes[fmt] for ladder in ladders.values()) for fmt in limits}
    _refuse_impossible(totals, limits)
    steps: list[Step] = []
    blocked: Step | None = None
    stuck: set[str] = set()
    while True:
        best: Step | None = None
        for name, ladder in ladders.items():
            if name in stuck or places[name] + 1 == len(ladder):
                continue
            step = _step(name, ladder[places[name]], ladder[places[name] + 1])
            if best is None or step.saved > best.saved:
                best = step
        if best is None:
            break
        grown = {
            fmt: total + best.after.n_bytes[fmt] - best.before.n_bytes[fmt]
            for fmt, total in totals.items()
        }
        if any(grown[fmt] > limit for fmt, limit in limits.items()):
            # A smaller tensor may still fit.
            stuck.add(best.name)
            blocked = blocked or best
            continue
        totals = grown
        places[best.name] += 1
        steps.append(best)
    chosen = {name: ladder[places[name]] for name, ladder in ladders.items()}
    return Spending(chosen, tuple(steps), totals, blocked)


def _refuse_impossible(smallest: Mapping[str, int], limits: Mapping[str, int]) -> None:
    over = {fmt: n for fmt, n in smallest.items() if n > limits[fmt]}
    if not over:
        return
    fmt = max(over, key=lambda name: over[name] - limits[name])
    raise QuantError(
        f"the budget is too small for {fmt}",
        got=f"{format_bytes(limits[fmt])} for the weights",
        wanted=f"at least {format_bytes(over[fmt])}, with every tensor at its smallest",
        do="Raise the budget, leave out this format, or take a smaller model.",
    )


def _ladder(options: Sequence[Option]) -> list[Option]:
    """Give the options worth taking, the smallest first; each step saves less than the one before.

    These are the corners of the lower convex hull of damage over bytes.
    """
    ladder: list[Option] = []
    for option in sorted(options, key=lambda o: (o.most_bytes, o.damage)):
        if ladder and option.damage >= ladder[-1].damage:
            continue
        if ladder and option.most_bytes == ladder[-1].most_bytes:
            continue
        while len(ladder) > 1 and (
            _step("", ladder[-2], ladder[-1]).saved <= _step("", ladder[-2], option).saved
        ):
            ladder.pop()
        ladder.append(option)
    return ladder


def _step(name: str, before: Option, after: Option) -> Step:
    more = after.most_bytes - before.most_bytes
    return Step(name, before, after, (before.damage - after.damage) / more * 1e6)
