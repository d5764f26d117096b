"""The suite ``multi_step``: keep a count through one to five changes while another count changes.

The sentences about the second holder are distractors unless a transfer joins the two. The number
after the last "Answer:" is graded.
"""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence

from edgekit.draw import Draw
from edgekit.quality.suites import words
from edgekit.quality.suites.base import Answer, Item, Score, Split, iter_items

__all__ = ["CHANGES", "GAINS", "LOSSES", "TRANSFERS", "MultiStep"]

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
MAX_STEPS = 5
_MAX_COUNT = 99

GAINS = ("finds", "buys", "gets", "picks up", "wins", "receives")
LOSSES = ("loses", "sells", "drops", "throws out", "breaks", "gives back")
_OPENERS = (
    "", "", "", "Then ", "Later ", "Next, ", "Soon ", "After lunch ", "In the garden ",
    "At the market ", "In the evening, ", "Then, at the market, ", "On the way home, ",
)  # fmt: skip
_AMOUNTS = ("{n}", "{n} {item}", "{n} of them")
_CLOSERS = ("", "", "", " on the way home", " at the market", " after lunch", " in the garden")


def _composed(held_out: Sequence[str], *parts: Sequence[str]) -> tuple[str, ...]:
    """Give every sequence of the parts except reserved sentences, whoever they ask about."""
    swap = str.maketrans("abxy", "bayx")
    reserved = {
        *held_out,
        *(re.sub(r"\{\w\}", lambda m: m[0].translate(swap), t) for t in held_out),
    }
    return tuple(s for s in map("".join, itertools.product(*parts)) if s not in reserved)


_STARTS_HELD_OUT = (
    "{a} starts with {x} {item}, while {b} starts with {y}.",
    "In the morning {a} has {x} {item}. {b} has {y}.",
    "At first {b} has {y} {item} and {a} has {x}.",
)
_STARTS = {
    Split.TRAIN: (
        *_composed(
            _STARTS_HELD_OUT,
            ("", "", "At first ", "In the morning ", "One day "),
            ("{a} has {x} {item}", "{a} starts with {x} {item}", "{a} begins with {x} {item}"),
            (" and ", ", while ", ". ", ", but "),
            ("{b} has {y}", "{b} has {y} {item}", "{b} starts with {y}"),
            (".",),
        ),
        *_composed(
            _STARTS_HELD_OUT,
            ("", "", "At first ", "In the morning ", "One day "),
            ("{b} has {y} {item}", "{b} starts with {y} {item}", "{b} begins with {y} {item}"),
            (" and ", ", while ", ". ", ", but "),
            ("{a} has {x}", "{a} has {x} {item}", "{a} starts with {x}"),
            (".",),
        ),
        *("There are {x} {item} with {a} and {y} with {b}.",) * 9,
        *("There are {y} {item} with {b} and {x} with {a}.",) * 9,
    ),
    Split.HELD_OUT: _STARTS_HELD_OUT,
}
_CHANGES_HELD_OUT = (
    "After lunch, {a} {verb} {n} {item} at the market.",
    "Then, in the garden, {a} {verb} {n}.",
    "Later {a} {verb} {n} of them on the way home.",
)
CHANGES = {
    Split.TRAIN: _composed(
        _CHANGES_HELD_OUT, _OPENERS, ("{a} {verb} ",), _AMOUNTS, _CLOSERS, (".",)
    ),
    Split.HELD_OUT: _CHANGES_HELD_OUT,
}
_TRANSFERS_HELD_OUT = (
    "Then {a} gives {n} {item} to {b}.",
    "Later {b} takes {n} of them from {a}.",
    "Next, {a} hands {b} {n} {item}.",
)
TRANSFERS = {
    Split.TRAIN: (
        *_composed(
            _TRANSFERS_HELD_OUT, _OPENERS, ("{a} gives ", "{a} hands "), _AMOUNTS, (" to {b}.",)
        ),
        *_composed(
            _TRANSFERS_HELD_OUT, _OPENERS, ("{a} gives {b} ", "{a} hands {b} "), _AMOUNTS, (".",)
        ),
        *_composed(
            _TRANSFERS_HELD_OUT, _OPENERS, ("{b} takes ", "{b} gets "), _AMOUNTS, (" from {a}.",)
        ),
    ),
    Split.HELD_OUT: _TRANSFERS_HELD_OUT,
}
_ASIDES = {
    Split.TRAIN: (
        "{a} is {n} years old.",
        "It takes {n} minutes to get home.",
        "The market opens at {n}.",
        "{a} lives at number {n}.",
        "It is {n} degrees in the garden.",
        "There are {n} people at the market.",
        "The way to the market is {n} streets long.",
        "Lunch takes {n} minutes.",
    ),
    Split.HELD_OUT: ("The way home takes {n} minutes.", "It is {n} minutes to the market."),
}
_QUESTIONS = {
    Split.TRAIN: (
        "How many {item} does {a} have now?",
        "How many {item} does {a} have at the end?",
        "How many {item} are with {a} now?",
        "What is the number of {item} that {a} has?",
        "Count the {item} of {a}.",
        "In the end, how many {item} has {a}?",
        "How many {item} does {a} have in the end?",
        "At the end, how many {item} does {a} have?",
        "What is the number of {item} with {a}?",
        "What number of {item} does {a} have now?",
        "Now, how many {item} are with {a}?",
    ),
    Split.HELD_OUT: (
        "What number of {item} does {a} have in the end?",
        "At the end, how many {item} are with {a}?",
        "Now, how many {item} does {a} have?",
    ),
}


class MultiStep:
    """Short arithmetic stories."""

    name = "multi_step"
    title = "Multi-step arithmetic"
    max_tokens = 72

    def items(
        self,
        n: int,
        *,
        seed: int,
        split: Split = Split.HELD_OUT,
        count_tokens: Callable[[str], int] | None = None,
    ) -> list[Item]:
        """Make stories whose number of steps goes 1, 2, 3, 4, 5 by index."""
        return [
            self.story(item_id, 1 + index % MAX_STEPS, draw, split)
            for index, item_id, draw in iter_items(self.name, n, seed, split)
        ]

    def story(self, item_id: str, n_steps: int, draw: Draw, split: Split) -> Item:
        """Make one story with `n_steps` changes to the count that is asked for."""
        return self.story_asked_twice(item_id, n_steps, draw, split)[0]

    def story_asked_twice(
        self, item_id: str, n_steps: int, draw: Draw, split: Split
    ) -> tuple[Item, Item]:
        """Make one story; the second item asks for the other holder's count, without the story."""
        asked = words.person(draw, split)
        other = words.person(draw, split)
        item = words.owned(draw)
        own, others = _Holder(asked, draw.between(4, 40)), _Holder(other, draw.between(4, 40))
        start = draw.pick(_STARTS[split])
        sentences = [start.format(a=asked, b=other, x=own.count, y=others.count, item=item)]
        n_distractors = draw.between(0, 1 + n_steps // 2)
        is_step = [True] * n_steps + [False] * n_distractors
        for is_counted in draw.sample(is_step, len(is_step)):
            if not is_counted:
                sentences.append(_distraction(draw, split, others, item))
                continue
            n = draw.between(2, 12)
            is_gain = own.count - n < 1 or (draw.chance(50) and own.count + n <= _MAX_COUNT)
            is_transfer = draw.chance(35) and (not is_gain or others.count - n >= 1)
            own.change(n if is_gain else -n)
            if is_transfer:
                giver, taker = (other, asked) if is_gain else (asked, other)
                template = draw.pick(TRANSFERS[split])
                sentences.append(template.format(a=giver, b=taker, n=n, item=item))
                others.change(-n if is_gain else n)
            else:
                verb = draw.pick(GAINS if is_gain else LOSSES)
                template = draw.pick(CHANGES[split])
                sentences.append(template.format(a=asked, verb=verb, n=n, item=item))
        sentences.append(draw.pick(_QUESTIONS[split]).format(a=asked, item=item))
        again = draw.pick(_QUESTIONS[split]).format(a=other, item=item)
        meta = {"n_distractors": n_distractors}
        return (
            self._item(item_id, " ".join(sentences), own, meta),
            self._item(f"{item_id}-other", again, others, meta),
        )

    def _item(self, item_id: str, text: str, holder: "_Holder", meta: Mapping[str, int]) -> Item:
        return Item(
            id=item_id,
            suite=self.name,
            messages=({"role": "user", "content": text},),
            tools=(),
            target=", ".join(holder.working) + f". Answer: {holder.count}",
            meta={"n_steps": len(holder.working), **meta, "answer": holder.count},
            max_tokens=self.max_tokens,
        )

    def score(self, item: Item, answer: Answer) -> Score:
        """Compare the number after the last "Answer:", or the last number of all."""
        _, marker, tail = answer.text.rpartition("Answer:")
        numbers = _NUMBER.findall(tail if marker else answer.text.replace(",", " "))
        if not numbers:
            return Score(False, "no_number")
        got = numbers[0] if marker else numbers[-1]
        is_correct = len(got) < 20 and float(got) == float(item.meta["answer"])
        return Score(is_correct, "" if is_correct else "wrong_value")


class _Holder:
    """Someone's count, with the sums that led to it."""

    def __init__(self, name: str, count: int) -> None:
        self.name = name
        self.count = count
        self.working: list[str] = []

    def change(self, n: int) -> None:
        before, self.count = self.count, self.count + n
        self.working.append(f"{before} {'+' if n > 0 else '-'} {abs(n)} = {self.count}")


def _distraction(draw: Draw, split: Split, other: _Holder, item: str) -> str:
    """Make a sentence that does not change the asked count, though maybe that of `other`."""
    n = draw.between(2, 12)
    if draw.chance(25):
        return draw.pick(_ASIDES[split]).format(a=other.name, n=n)
    is_gain = other.count - n < 1 or draw.chance(50)
    other.change(n if is_gain else -n)
    verb = draw.pick(GAINS if is_gain else LOSSES)
    return draw.pick(CHANGES[split]).format(a=other.name, verb=verb, n=n, item=item)
