"""The suite ``long_context``: find one stated value in a long text with many similar statements.

Lengths go 128, 256, 512, 960 tokens and depths 0 to 100 % by index. The text is filler sentences
with one wanted fact and several distractors that differ only in the name. The value is graded.
"""

import math
import re
from collections.abc import Callable, Sequence

from edgekit.draw import Draw
from edgekit.quality.suites import words
from edgekit.quality.suites.base import Answer, Item, Score, Split, iter_items

__all__ = ["DEPTHS_PCT", "LENGTHS", "LongContext"]

LENGTHS = (128, 256, 512, 960)
DEPTHS_PCT = (0, 25, 50, 75, 100)
_TOKENS_PER_WORD = 1.3
_CODE_ATTRIBUTES = ("locker code", "badge number", "gate code", "door code", "ticket number")
_WORD_ATTRIBUTES = ("password", "call sign", "secret word")
_FACTS = {
    Split.TRAIN: (
        "The {attribute} of {name} is {value}.",
        "The {attribute} that belongs to {name} is {value}.",
        "For {name} the {attribute} is {value}.",
        "Note that the {attribute} of {name} is {value}.",
        "The {attribute} given to {name} is {value}.",
        "Remember, the {attribute} of {name} was set to {value}.",
        "Today {name} got the {attribute} {value}.",
        "{name} has the {attribute} {value}.",
        "{name} uses {value} as the {attribute}.",
        "The new {attribute} for {name} reads {value}.",
        "Today the {attribute} of {name} is {value}.",
        "Note that {name} has the {attribute} {value}.",
        "For {name} the new {attribute} was set to {value}.",
        "{name} now has {value} as the {attribute}.",
        "Remember that for {name} the {attribute} reads {value}.",
        "{name} got the new {attribute}, {value}.",
        "Today {name} uses {value} as the new {attribute}.",
    ),
    Split.HELD_OUT: (
        "Note that for {name} the {attribute} is {value}.",
        "Today the {attribute} of {name} was set to {value}.",
        "{name} got {value} as the new {attribute}.",
    ),
}
_QUESTIONS = {
    Split.TRAIN: (
        "What is the {attribute} of {name}?",
        "Which {attribute} does {name} have?",
        "Tell me the {attribute} of {name}.",
        "Find the {attribute} of {name} in the text.",
        "What {attribute} was given to {name}?",
        "Give me the {attribute} that belongs to {name}.",
        "Look up the {attribute} for {name}.",
        "{name} needs the {attribute}. What is it?",
        "What is the {attribute} for {name}?",
        "Which {attribute} was given to {name}?",
        "In the text, which {attribute} does {name} have?",
        "Look in the text for the {attribute} that {name} has.",
    ),
    Split.HELD_OUT: (
        "Which {attribute} belongs to {name}?",
        "Find the {attribute} that was given to {name}.",
        "In the text, what is the {attribute} for {name}?",
    ),
}
_FILLERS = {
    Split.TRAIN: (
        "The {adjective} {noun} was quiet in the morning.",
        "Nobody saw the {adjective} {noun} near the {noun2}.",
        "A {adjective} {noun} stood by the {color} {noun2}.",
        "The {noun} and the {noun2} were {adjective}.",
        "In {place} the {noun} is always {adjective}.",
        "They carried the {noun} to the {adjective} {noun2}.",
        "Every {noun} in the {noun2} looked {adjective}.",
        "The road to {place} is {adjective} and {adjective2}.",
        "She left a {color} {noun} on the {noun2}.",
        "It rained on the {noun} all day.",
        "The {noun} was painted {color} last summer.",
        "He likes the {adjective} {noun} more than the {noun2}.",
        "Behind the {noun} there is a {adjective} {noun2}.",
        "People from {place} often talk about the {noun}.",
        "The {food} near the {noun} tasted good.",
        "We walked past the {adjective} {noun} again.",
        "Some {food} and a {noun} were on the table.",
        "No one has fixed the {adjective} {noun} yet.",
    ),
    Split.HELD_OUT: (
        "In the morning they walked past the {color} {noun}.",
        "Behind the {adjective} {noun} it was always quiet.",
        "People carried some {food} to the {noun}.",
        "The {noun} near {place} was {adjective} last summer.",
        "Nobody in {place} likes the {adjective} {noun}.",
    ),
}


class LongContext:
    """Needle-in-a-haystack questions with distractor needles."""

    name = "long_context"
    title = "Long-context retrieval"
    max_tokens = 40

    def items(
        self,
        n: int,
        *,
        seed: int,
        split: Split = Split.HELD_OUT,
        count_tokens: Callable[[str], int] | None = None,
    ) -> list[Item]:
        """Make texts of at most the nominal length, question included.

        Args:
            n: Number of items.
            seed: Names the sequence.
            split: Which templates and entities to use.
            count_tokens: Tokens of a text; words times 1.3 when absent.
        """
        count = count_tokens or _estimate_tokens
        made = []
        for index, item_id, draw in iter_items(self.name, n, seed, split):
            length = LENGTHS[index % len(LENGTHS)]
            depth_pct = DEPTHS_PCT[index // len(LENGTHS) % len(DEPTHS_PCT)]
            made.append(self.passage(item_id, length, depth_pct, 1, draw, split, count)[0])
        return made

    def passage(
        self,
        item_id: str,
        length: int,
        depth_pct: int,
        n_questions: int,
        draw: Draw,
        split: Split,
        count_tokens: Callable[[str], int],
        n_distractors: int | None = None,
    ) -> list[Item]:
        """Make one text and `n_questions` items about it; the first asks at `depth_pct`.

        The later items hold only their question, like further turns of the same conversation.
        """
        if n_distractors is None:
            n_distractors = 2 + length // 128
        is_code = draw.chance(70)
        attribute = draw.pick(_CODE_ATTRIBUTES if is_code else _WORD_ATTRIBUTES)
        known: dict[str, str] = {}
        while len(known) < 1 + n_distractors:
            value = words.digits(draw, split, 4) if is_code else words.pseudo_word(draw, split)
            if value not in known.values():
                known[words.person(draw, split)] = value
        facts = [
            draw.pick(_FACTS[split]).format(attribute=attribute, name=name, value=value)
            for name, value in known.items()
        ]
        names = list(known)
        asked = [names[0], *draw.sample(names[1:], n_questions - 1)]
        questions = [
            draw.pick(_QUESTIONS[split]).format(attribute=attribute, name=name) for name in asked
        ]
        budget = length - count_tokens(questions[0]) - 2
        text, depth = _text(facts, budget, depth_pct, draw, split, count_tokens)
        contents = [f"{text}\n{questions[0]}", *questions[1:]]
        return [
            Item(
                id=item_id if turn == 0 else f"{item_id}/{turn}",
                suite=self.name,
                messages=({"role": "user", "content": content},),
                tools=(),
                target=f"The {attribute} of {name} is {known[name]}.",
                meta={
                    "n_context_tokens": length,
                    "depth_pct": depth_pct,
                    "measured_depth_pct": depth,
                    "n_distractors": n_distractors,
                    "value": known[name],
                    "other_values": " ".join(v for k, v in known.items() if k != name),
                },
                max_tokens=self.max_tokens,
            )
            for turn, (name, content) in enumerate(zip(asked, contents, strict=True))
        ]

    def score(self, item: Item, answer: Answer) -> Score:
        """Look for the value, and for no other value of the text, in the answer."""
        said = set(re.findall(r"\w+", answer.text.casefold()))
        if said & set(str(item.meta["other_values"]).casefold().split()):
            return Score(False, "distractor")
        is_correct = str(item.meta["value"]).casefold() in said
        return Score(is_correct, "" if is_correct else "wrong_value")


def _estimate_tokens(text: str) -> int:
    return math.ceil(len(text.split()) * _TOKENS_PER_WORD)


def _filler(draw: Draw, split: Split) -> str:
    noun, noun2 = draw.sample(words.NOUNS, 2)
    adjective, adjective2 = draw.sample(words.ADJECTIVES, 2)
    return draw.pick(_FILLERS[split]).format(
        noun=noun,
        noun2=noun2,
        adjective=adjective,
        adjective2=adjective2,
        color=draw.pick(words.COLORS),
        food=draw.pick(words.FOODS),
        place=words.place(draw, split),
    )


def _text(
    facts: Sequence[str],
    budget: int,
    depth_pct: int,
    draw: Draw,
    split: Split,
    count_tokens: Callable[[str], int],
) -> tuple[str, int]:
    """Put facts[0] at `depth_pct` of the filler and the other facts anywhere else."""
    left = budget - sum(count_tokens(" " + fact) for fact in facts)
    sentences: list[str] = []
    while (left := left - count_tokens(" " + (sentence := _filler(draw, split)))) >= 0:
        sentences.append(sentence)
    for fact in facts[1:]:
        sentences.insert(draw.below(len(sentences) + 1), fact)
    at = round(len(sentences) * depth_pct / 100)
    measured = round(100 * at / max(1, len(sentences)))
    return " ".join([*sentences[:at], facts[0], *sentences[at:]]), measured
