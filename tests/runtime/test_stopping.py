"""Claims about stop strings: found wherever the pieces break, never shown, nothing lost."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.runtime.stopping import StopMatcher

short_text = st.text(alphabet="ab\n", min_size=0, max_size=30)
stop_texts = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), min_size=0, max_size=3)


def run(stops, pieces):
    matcher = StopMatcher(stops)
    shown = ""
    for piece in pieces:
        shown += matcher.feed(piece)
        if matcher.is_stopped:
            return shown, True
    return shown + matcher.flush(), False


def test_without_stops_text_passes_at_once():
    assert StopMatcher(()).feed("hello") == "hello"


def test_a_possible_beginning_is_held_and_released_when_it_is_none():
    matcher = StopMatcher(("\n\nUser",))
    assert matcher.feed("fine\n") == "fine"
    assert matcher.feed("\nUs") == ""
    assert matcher.feed("eful") == "\n\nUseful"
    assert matcher.flush() == ""


def test_a_stop_split_over_pieces_is_never_shown():
    assert run(("END",), ["one E", "N", "D two"]) == ("one ", True)


def test_the_stop_that_is_complete_first_wins_however_the_text_is_split():
    assert run(("cc", "b"), ["aabcc"]) == ("aa", True)
    assert run(("abc", "b"), ["abc"]) == run(("abc", "b"), list("abc")) == ("a", True)


def test_flush_gives_what_was_held():
    assert run(("END",), ["text EN"]) == ("text EN", False)


def test_nothing_comes_after_a_stop():
    matcher = StopMatcher(("x",))
    assert matcher.feed("axb") == "a"
    assert (matcher.feed("more"), matcher.flush()) == ("", "")


@pytest.mark.parametrize("stop", ["aab", "aa"])
def test_overlapping_beginnings_are_seen(stop):
    assert run((stop,), list("aaab"))[1]


@given(text=short_text, stops=stop_texts, cuts=st.lists(st.integers(0, 30), max_size=6))
@settings(max_examples=300, deadline=None)
def test_any_split_gives_the_text_before_the_first_stop(text, stops, cuts):
    bounds = [0, *sorted(min(c, len(text)) for c in cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(bounds)]
    found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    assert run(stops, pieces) == ((text[: min(found)[1]], True) if found else (text, False))


@given(text=short_text, stops=stop_texts)
@settings(max_examples=200, deadline=None)
def test_one_character_at_a_time_holds_less_than_a_stop(text, stops):
    matcher = StopMatcher(stops)
    shown = ""
    for n, character in enumerate(text, start=1):
        shown += matcher.feed(character)
        if matcher.is_stopped:
            break
        assert n - len(shown) < max((len(s) for s in stops), default=1)
