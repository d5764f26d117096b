"""Can the model keep a count through one to five changes while another count changes too?

The sentences about the second holder are distractors unless a transfer joins the two. Graded on
the number after the last "Answer:".
"""

import re
from collections.abc import Callable

from edgekit.quality.suites import words
from edgekit.quality.suites.base import Answer, Draw, Item, Score, Split, iter_items

__all__ = ["MultiStep"]

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
MAX_STEPS = 5
_MAX_COUNT = 99

_GAINS = ("finds", "buys", "gets", "picks up", "wins", "receives")
_LOSSES = ("loses", "sells", "drops", "throws out", "breaks", "gives back")
_STARTS = {
    Split.TRAIN: (
        "{a} has {x} {item} and {b} has {y}.",
        "{a} has {x} {item}. {b} has {y} {item}.",
        "{a} starts with {x} {item} and {b} starts with {y}.",
        "There are {x} {item} with {a} and {y} with {b}.",
        "At first {a} has {x} {item}, while {b} has {y}.",
        "{b} has {y} {item} and {a} has {x}.",
        "{b} starts with {y} {item}. {a} starts with {x}.",
        "In the morning {b} has {y} {item} and {a} has {x} {item}.",
    ),
    Split.HELD_OUT: (
        "{a} starts with {x} {item}, while {b} starts with {y}.",
        "In the morning {a} has {x} {item}. {b} has {y}.",
        "At first {b} has {y} {item} and {a} has {x}.",
    ),
}
_CHANGES = {
    Split.TRAIN: (
        "{a} {verb} {n} {item}.",
        "Then {a} {verb} {n}.",
        "{a} {verb} {n} of them.",
        "After lunch {a} {verb} {n}.",
        "Next, {a} {verb} {n} {item}.",
        "At the market {a} {verb} {n}.",
        "In the garden {a} {verb} {n} {item}.",
        "{a} {verb} {n} {item} on the way home.",
        "Later {a} {verb} {n} {item}.",
        "In the evening, {a} {verb} {n}.",
    ),
    Split.HELD_OUT: (
        "After lunch, {a} {verb} {n} {item} at the market.",
        "Then, in the garden, {a} {verb} {n}.",
        "Later {a} {verb} {n} of them on the way home.",
    ),
}
_TRANSFERS = {
    Split.TRAIN: (
        "{a} gives {n} to {b}.",
        "{a} gives {b} {n} {item}.",
        "Then {a} hands {n} {item} to {b}.",
        "{a} hands {b} {n}.",
        "Later {a} gives {n} of them to {b}.",
        "{b} takes {n} {item} from {a}.",
        "{b} takes {n} from {a}.",
        "Next, {b} gets {n} {item} from {a}.",
    ),
    Split.HELD_OUT: (
        "Then {a} gives {n} {item} to {b}.",
        "Later {b} takes {n} of them from {a}.",
        "Next, {a} hands {b} {n} {item}.",
    ),
}
_ASIDES = {
    Split.TRAIN: (
        "{a} is {n} years old.",
        "It takes {n} minutes to get home.",
        "The market opens at {n}.",
        "{a} lives at number {n}.",
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
        asked = words.person(draw, split)
        other = words.person(draw, split)
        item = words.owned(draw)
        count, other_count = draw.between(4, 40), draw.between(4, 40)
        start = draw.pick(_STARTS[split])
        sentences = [start.format(a=asked, b=other, x=count, y=other_count, item=item)]
        n_distractors = draw.between(0, 1 + n_steps // 2)
        is_step = [True] * n_steps + [False] * n_distractors
        working = []
        for is_counted in draw.sample(is_step, len(is_step)):
            if not is_counted:
                sentence, other_count = _distraction(draw, split, other, item, other_count)
                sentences.append(sentence)
                continue
            n = draw.between(2, 12)
            is_gain = count - n < 1 or (draw.chance(50) and count + n <= _MAX_COUNT)
            is_transfer = draw.chance(35) and (not is_gain or other_count - n >= 1)
            if is_transfer:
                giver, taker = (other, asked) if is_gain else (asked, other)
                template = draw.pick(_TRANSFERS[split])
                sentences.append(template.format(a=giver, b=taker, n=n, item=item))
                other_count += -n if is_gain else n
            else:
                verb = draw.pick(_GAINS if is_gain else _LOSSES)
                template = draw.pick(_CHANGES[split])
                sentences.append(template.format(a=asked, verb=verb, n=n, item=item))
            after = count + n if is_gain else count - n
            working.append(f"{count} {'+' if is_gain else '-'} {n} = {after}")
            count = after
        sentences.append(draw.pick(_QUESTIONS[split]).format(a=asked, item=item))
        return Item(
            id=item_id,
            suite=self.name,
            messages=({"role": "user", "content": " ".join(sentences)},),
            tools=(),
            target=f"{', '.join(working)}. Answer: {count}",
            meta={"n_steps": n_steps, "n_distractors": n_distractors, "answer": count},
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


def _distraction(draw: Draw, split: Split, other: str, item: str, count: int) -> tuple[str, int]:
    """Make a sentence that leaves the asked count alone; give it and the other's new count."""
    n = draw.between(2, 12)
    if draw.chance(25):
        return draw.pick(_ASIDES[split]).format(a=other, n=n), count
    is_gain = count - n < 1 or draw.chance(50)
    verb = draw.pick(_GAINS if is_gain else _LOSSES)
    sentence = draw.pick(_CHANGES[split]).format(a=other, verb=verb, n=n, item=item)
    return sentence, count + n if is_gain else count - n
