"""Drills: short exercises for the circuits that all four skills need.

Copying, looking up and adding are learned from few tokens when almost every token of the answer
needs them. Only the training split's entities occur.
"""

from collections.abc import Callable

from edgekit.draw import Draw
from edgekit.quality.suites import words
from edgekit.quality.suites.base import Item, Split, split_of
from edgekit.quality.suites.multi_step import CHANGES, GAINS, LOSSES, TRANSFERS
from pocket.chat import SPECIAL_TOKENS, Chat

__all__ = ["drill"]

_MAKERS: tuple[Callable[[Draw, Split], str], ...] = (
    words.person,
    words.place,
    words.title,
    words.label,
    words.task,
    words.message,
    words.company,
    lambda draw, split: _code(draw, draw.between(1, 6)),
)


def _code(draw: Draw, n: int) -> str:
    """Make a code, half of the time of two or three digits that come again and again.

    What follows a repeated digit is not known from that digit alone, so copying such a code needs
    more than looking up what came after the last token.
    """
    if n < 4 or draw.chance(50):
        return words.digits(draw, Split.TRAIN, n)
    few = draw.sample("123456789", draw.between(2, 3))
    while split_of(code := "".join(draw.pick(few) for _ in range(n))) is not Split.TRAIN:
        pass
    return code


def drill(draw: Draw, chat: Chat) -> tuple[list[int], list[float]]:
    """Give the ids of one exercise and the loss weight of each."""
    kind = draw.below(6)
    if kind == 0:
        return _said_twice(draw, chat)
    question, answer = (_copy, _look_up, _whose, _whose, _sums)[kind - 1](draw)
    message = {"role": "user", "content": question}
    ids, written = chat.talk_ids([Item("drill", "drill", (message,), (), answer, {}, 0)])
    return ids, [float(w) for w in written]


def _said_twice(draw: Draw, chat: Chat) -> tuple[list[int], list[float]]:
    """Make random ids said twice; only the second time counts."""
    n, lowest = draw.between(8, 40), len(SPECIAL_TOKENS)
    first = [draw.between(lowest, chat.tokenizer.get_vocab_size() - 1) for _ in range(n)]
    return [chat.bos_id, *first, *first], [0.0] * (n + 2) + [1.0] * (n - 1)


def _copy(draw: Draw) -> tuple[str, str]:
    text = ", ".join(draw.pick(_MAKERS)(draw, Split.TRAIN) for _ in range(draw.between(2, 6)))
    return f"Say {text}", text


def _look_up(draw: Draw) -> tuple[str, str]:
    """Ask for some of the values of a list of names, in another order."""
    known = {}
    is_code = draw.chance(70)
    for _ in range(draw.between(2, 7)):
        name = words.person(draw, Split.TRAIN)
        value = draw.pick(_MAKERS)(draw, Split.TRAIN)
        known[name] = _code(draw, draw.between(4, 6)) if is_code else value
    asked = draw.sample(list(known), min(len(known), 4))
    listed = ", ".join(f"{name} {value}" for name, value in known.items())
    answer = ", ".join(f"{name} {known[name]}" for name in asked)
    return f"{listed}.\n{', '.join(asked)}", answer


def _sums(draw: Draw) -> tuple[str, str]:
    """Ask for a chain of additions and subtractions, worked out as multi_step does."""
    count = draw.between(4, 60)
    asked, working = [str(count)], []
    for _ in range(draw.between(1, 5)):
        n = draw.between(2, 12)
        is_gain = count - n < 1 or (draw.chance(50) and count + n < 100)
        after = count + n if is_gain else count - n
        sign = "+" if is_gain else "-"
        asked.append(f"{sign} {n}")
        working.append(f"{count} {sign} {n} = {after}")
        count = after
    return " ".join(asked), f"{', '.join(working)}. Answer: {count}"


def _whose(draw: Draw) -> tuple[str, str]:
    """Ask for the changes of two holders, by holder: who did what, without any sum."""
    names = [words.person(draw, Split.TRAIN) for _ in range(2)]
    item = words.owned(draw)
    sentences: list[str] = []
    changes: dict[str, list[str]] = {name: [] for name in names}
    for _ in range(draw.between(3, 7)):
        n = draw.between(2, 12)
        holder, other = draw.sample(names, 2)
        if draw.chance(30):
            template = draw.pick(TRANSFERS[Split.TRAIN])
            sentences.append(template.format(a=holder, b=other, n=n, item=item))
            changes[holder].append(f"- {n}")
            changes[other].append(f"+ {n}")
        else:
            is_gain = draw.chance(50)
            verb = draw.pick(GAINS if is_gain else LOSSES)
            template = draw.pick(CHANGES[Split.TRAIN])
            sentences.append(template.format(a=holder, verb=verb, n=n, item=item))
            changes[holder].append(f"{'+' if is_gain else '-'} {n}")
    asked = draw.sample(names, 2)
    answer = ". ".join(f"{name} {' '.join(changes[name]) or 'none'}" for name in asked)
    return f"{' '.join(sentences)} {', '.join(asked)}", answer
