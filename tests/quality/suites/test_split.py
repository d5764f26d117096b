"""Training and held-out examples share words and kinds, never sentences or entities."""

import itertools
import re
import string
from collections.abc import Mapping, Sequence

import pytest

from edgekit.draw import Draw
from edgekit.quality.suites import (
    SUITES,
    Split,
    load_suite,
    long_context,
    multi_step,
    record_kinds,
    structured_output,
    tool_calls,
    tool_phrases,
    words,
)
from edgekit.quality.suites.base import split_of

TRAIN, HELD_OUT = Split.TRAIN, Split.HELD_OUT
Pairs = list[tuple[Sequence[str], Sequence[str]]]


def _template_pairs() -> Mapping[str, Pairs]:
    tool_pairs: Pairs = [
        (tool_phrases.OTHER_REQUESTS[TRAIN], tool_phrases.OTHER_REQUESTS[HELD_OUT]),
    ]
    for phrases in tool_phrases.PHRASES.values():
        for by_split in (phrases.cores, *phrases.clauses.values()):
            tool_pairs.append((by_split[TRAIN], by_split[HELD_OUT]))
    lead_pairs: Pairs = [
        ([t for t in by[TRAIN] if t], [t for t in by[HELD_OUT] if t])
        for by in (tool_phrases.LEADS, tool_phrases.TAILS)
    ]
    fields = [f for kind in record_kinds.RECORD_KINDS.values() for f in kind.values()]
    return {
        "tool_calls": tool_pairs + lead_pairs,
        "structured_output": [(f.train, f.held_out) for f in fields]
        + [(f.train_false, f.held_out_false) for f in fields if f.make is None]
        + [(structured_output._ASKS[TRAIN], structured_output._ASKS[HELD_OUT])],
        "long_context": [
            (t[TRAIN], t[HELD_OUT])
            for t in (long_context._FACTS, long_context._QUESTIONS, long_context._FILLERS)
        ],
        "multi_step": [
            (t[TRAIN], t[HELD_OUT])
            for t in (
                multi_step._STARTS,
                multi_step.CHANGES,
                multi_step.TRANSFERS,
                multi_step._ASIDES,
                multi_step._QUESTIONS,
            )
        ],
    }


def _plain_words(text: str) -> set[str]:
    return set(re.findall(r"[a-z']+", re.sub(r"\{\w+\}", " ", text).lower()))


PAIRS = _template_pairs()


@pytest.mark.parametrize("suite", SUITES)
def test_no_template_is_in_both_splits_and_both_have_some(suite: str) -> None:
    for train, held_out in PAIRS[suite]:
        assert train
        assert held_out
        normal = [{t.strip("~ ,.").casefold() for t in side} for side in (train, held_out)]
        assert not normal[0] & normal[1]


@pytest.mark.parametrize("suite", SUITES)
def test_held_out_templates_use_only_words_that_training_also_uses(suite: str) -> None:
    train = itertools.chain.from_iterable(t for pairs in PAIRS.values() for t, _ in pairs)
    known = set().union(*map(_plain_words, train))
    known |= set().union(*map(_plain_words, words.NOUNS + words.ADJECTIVES))
    for _, held_out in PAIRS[suite]:
        for template in held_out:
            assert _plain_words(template) <= known, template


@pytest.mark.parametrize("suite", SUITES)
def test_no_question_is_in_both_splits_even_with_equal_seeds(suite: str) -> None:
    asked = [
        {i.messages[0]["content"] for i in load_suite(suite).items(400, seed=5, split=split)}
        for split in Split
    ]
    assert not asked[0] & asked[1]


@pytest.mark.parametrize("split", Split)
@pytest.mark.parametrize(
    "maker",
    [
        words.company,
        words.device,
        words.gadget,
        words.label,
        words.meeting,
        words.message,
        words.person,
        words.place,
        words.pseudo_word,
        words.task,
        words.title,
    ],
)
def test_every_entity_belongs_to_the_split_that_asked_for_it(maker, split: Split) -> None:
    draw = Draw("test", maker.__name__, split.value)
    made = {maker(draw, split) for _ in range(60)}
    assert len(made) > 20
    assert {split_of(entity) for entity in made} == {split}


@pytest.mark.parametrize("split", Split)
def test_every_free_text_argument_of_a_call_belongs_to_the_split(split: Split) -> None:
    suite = tool_calls.ToolCalls()
    free = {key.partition(".")[::2] for key in tool_calls._FREE_TEXT}
    n_checked = 0
    for item in suite.items(320, seed=9, split=split):
        for call in tool_calls.parse_tool_calls(item.target):
            for key, value in (call.arguments or {}).items():
                if (call.name, key) in free:
                    n_checked += 1
                    assert split_of(value) is split
    assert n_checked > 150


@pytest.mark.parametrize("split", Split)
def test_every_name_and_value_of_a_long_text_belongs_to_the_split(split: Split) -> None:
    for item in long_context.LongContext().items(40, seed=9, split=split):
        values = [str(item.meta["value"]), *str(item.meta["other_values"]).split()]
        assert {split_of(value) for value in values} == {split}
        name = item.target.partition(" of ")[2].partition(" is ")[0]
        assert split_of(name) is split


def test_the_hash_holds_back_about_a_fifth() -> None:
    names = ["".join(p) for p in itertools.product(string.ascii_lowercase, repeat=3)]
    share = sum(split_of(name) is HELD_OUT for name in names) / len(names)
    assert 0.19 < share < 0.21
