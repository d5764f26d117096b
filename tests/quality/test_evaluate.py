"""Claims about running suites: right is right, times are those of the events."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgekit.errors import UsageError
from edgekit.quality import evaluate
from edgekit.quality.evaluate import SuitePlan, ask, run_suites
from edgekit.quality.suites import SUITES
from edgekit.records import EngineInfo
from edgekit.runtime.base import Finish, TokenEvent
from edgekit.statistics import wilson_interval

PLAN = SuitePlan(n_items=3, seed=5)
ITEMS = PLAN.make_items(None)


class Oracle:
    """Knows the answers: ``say`` turns an item into the text that is streamed."""

    def __init__(self, say, *, start_s: float = 100.0, step_s: float = 0.5) -> None:
        self.info = EngineInfo("oracle", "1", "oracle")
        self.say, self.start_s, self.step_s = say, start_s, step_s
        self.by_messages = {str(item.messages): item for suite in ITEMS.values() for item in suite}
        self.asked: list = []

    def stream_chat(self, messages, options, tools=()) -> Iterator[TokenEvent]:
        item = self.by_messages[str(messages)]
        self.asked.append((item, options, tools))
        text = self.say(item)
        pieces = ["", text[:2], text[2:]]
        for index, piece in enumerate(pieces):
            yield TokenEvent(index, 7, piece, self.start_s + (index + 1) * self.step_s)
        yield TokenEvent(len(pieces), None, "", self.start_s + 9, finish=Finish.STOP)

    def close(self) -> None:
        pass


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands at 100 s; events bring their own times."""
    monkeypatch.setattr(evaluate, "monotonic", lambda: 100.0)


def quiet(what: str, n_done: int, n_total: int) -> None:
    pass


def test_the_right_answers_are_all_right():
    records = run_suites(Oracle(lambda item: item.target), ITEMS, quiet)
    assert [record.suite for record in records] == list(SUITES)
    for record in records:
        assert (record.n_items, record.n_correct, record.rate) == (3, 3, 1.0)
        assert (record.low, record.high) == wilson_interval(3, 3)
        assert [outcome.item_id for outcome in record.outcomes] == [
            item.id for item in ITEMS[record.suite]
        ]
        assert all(outcome.reason == "" for outcome in record.outcomes)


def test_wrong_answers_are_wrong_with_a_reason_and_kept_as_given():
    for record in run_suites(Oracle(lambda item: "blue cheese"), ITEMS, quiet):
        assert (record.n_correct, record.rate) == (0, 0.0)
        assert all(outcome.reason for outcome in record.outcomes)
        assert {outcome.answer for outcome in record.outcomes} == {"blue cheese"}


def test_one_wrong_answer_of_three_is_two_thirds():
    wrong = ITEMS["multi_step"][1]
    backend = Oracle(lambda item: "no" if item is wrong else item.target)
    by_suite = {record.suite: record for record in run_suites(backend, ITEMS, quiet)}
    assert by_suite["multi_step"].rate == pytest.approx(2 / 3)
    assert [o.is_correct for o in by_suite["multi_step"].outcomes] == [True, False, True]
    assert by_suite["tool_calls"].rate == 1.0


def test_times_are_those_of_the_events(clock):
    reply = ask(Oracle(lambda item: "answer"), ITEMS["multi_step"][0])
    # The first event has no text, so the second one, at 1.0 s, is the first token.
    assert (reply.text, reply.ttft_s, reply.e2e_s, reply.n_output_tokens) == ("answer", 1.0, 9.0, 3)


def test_an_answer_without_text_has_no_first_token(clock):
    reply = ask(Oracle(lambda item: ""), ITEMS["multi_step"][0])
    assert (reply.text, reply.ttft_s, reply.e2e_s) == ("", None, 9.0)


def test_items_are_asked_greedily_with_their_own_tools_and_length():
    backend = Oracle(lambda item: item.target)
    run_suites(backend, ITEMS, quiet)
    assert len(backend.asked) == 3 * len(SUITES)
    for item, options, tools in backend.asked:
        assert options.temperature == 0
        assert options.max_tokens == item.max_tokens
        assert tools == item.tools


def test_progress_is_told_of_every_item_and_the_end():
    told: list = []
    run_suites(Oracle(lambda i: ""), {"multi_step": ITEMS["multi_step"]}, lambda *p: told.append(p))
    assert told == [("multi_step", n, 3) for n in range(4)]


def test_a_plan_makes_the_same_items_again_and_others_for_another_seed():
    assert PLAN.make_items(None) == ITEMS
    assert SuitePlan(n_items=3, seed=6).make_items(None) != ITEMS


def test_a_plan_that_asks_nothing_or_for_an_unknown_suite_is_refused():
    with pytest.raises(UsageError, match="items per suite; got 0"):
        SuitePlan(n_items=0).make_items(None)
    with pytest.raises(UsageError, match="did you mean 'multi_step'"):
        SuitePlan(("multi_stp",)).make_items(None)


def test_suites_of_tools_are_left_out_where_there_is_no_place_for_tools_unless_named():
    without = SuitePlan(n_items=1).make_items(None, offers_tools=False)
    assert list(without) == ["structured_output", "long_context", "multi_step"]
    assert list(SuitePlan(n_items=1).make_items(None)) == ["tool_calls", *without]
    named = SuitePlan(("tool_calls",), n_items=1).make_items(None, offers_tools=False)
    assert list(named) == ["tool_calls"]
