"""Grading is exact about values, forgiving about spelling of JSON, and never raises."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.quality.suites import SUITES, Answer, Item, ToolCall, load_suite, parse_tool_calls
from edgekit.quality.suites.base import is_same_value

CALL = '{"name": "set_timer", "arguments": {"minutes": 7}}'
SEVEN = ToolCall("set_timer", {"minutes": 7})


def _item(suite: str, target: str, **meta: str | int) -> Item:
    return Item("test", suite, (), (), target, meta, 64)


@pytest.mark.parametrize(
    "text",
    [
        f"[TOOL_CALLS][{CALL}]",
        f"[TOOL_CALLS] [{CALL}]",
        f"[TOOL_CALLS]{CALL}",
        f"[{CALL}]",
        CALL,
        f"[TOOL_CALLS][{CALL}] and more",
        '[{"function": {"name": "set_timer", "arguments": "{\\"minutes\\": 7}"}}]',
    ],
)
def test_a_call_is_read_in_every_usual_spelling(text: str) -> None:
    assert parse_tool_calls(text) == (SEVEN,)


@pytest.mark.parametrize("text", ["", "No tool fits this request.", "[1, 2]", "It is [sunny]."])
def test_plain_text_holds_no_call(text: str) -> None:
    assert parse_tool_calls(text) == ()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('[TOOL_CALLS][{"name": "set_timer", "arguments": {"minutes": ', "set_timer"),
        ('[TOOL_CALLS][{"name": "set_timer", "arguments": {"minutes": NaN}}]', "set_timer"),
        ("[TOOL_CALLS]", ""),
        ("[TOOL_CALLS][3]", ""),
        ("[TOOL_CALLS]" + "[" * 100_000, ""),
        ('[TOOL_CALLS][{"name": "set_timer", "arguments": ' + "9" * 5000 + "}]", "set_timer"),
    ],
)
def test_a_broken_call_has_no_arguments(text: str, name: str) -> None:
    assert parse_tool_calls(text) == (ToolCall(name, None),)


@given(st.text() | st.text(alphabet='[]{}":,\\ntTOOL_CALS0123456789e-.'))
def test_hostile_text_never_raises(text: str) -> None:
    for name in SUITES:
        suite = load_suite(name)
        item = suite.items(1, seed=1)[0]
        for answer in (text, "[TOOL_CALLS]" + text, "Answer:" + text, "```json" + text):
            assert suite.score(item, Answer(answer)).reason is not None


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"hour": 7, "minute": 30}, ""),
        ({"minute": 30.0, "hour": 7}, ""),
        ({"hour": 7}, "missing_argument"),
        ({"hour": 7, "minute": 30, "repeat": "daily"}, "extra_argument"),
        ({"hour": 7, "minute": 31}, "wrong_argument"),
        ({"hour": "7", "minute": 30}, "wrong_argument"),
        ({"hour": True, "minute": 30}, "wrong_argument"),
        (None, "invalid_json"),
    ],
)
def test_a_call_is_graded_by_name_and_every_argument(arguments, reason: str) -> None:
    target = '[TOOL_CALLS][{"name": "set_alarm", "arguments": {"hour": 7, "minute": 30}}]'
    suite, item = load_suite("tool_calls"), _item("tool_calls", target)
    score = suite.score(item, Answer("", (ToolCall("set_alarm", arguments),)))
    assert (score.reason, score.is_correct) == (reason, not reason)


def test_other_failures_of_a_call_have_their_own_reasons() -> None:
    suite, item = load_suite("tool_calls"), _item("tool_calls", f"[TOOL_CALLS][{CALL}]")
    assert suite.score(item, Answer("ok")).reason == "no_call"
    assert suite.score(item, Answer("", (SEVEN, SEVEN))).reason == "extra_call"
    assert suite.score(item, Answer("", (ToolCall("x", {}),))).reason == "wrong_tool"
    refusal = _item("tool_calls", "No tool fits this request.")
    assert suite.score(refusal, Answer("Sorry, I can not do that.")).is_correct
    assert suite.score(refusal, Answer("", (SEVEN,))).reason == "unexpected_call"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1, "b": ["x", "y"]}', ""),
        ('```json\n{"b": ["X", "y "], "a": 1.0}\n```', ""),
        ('{"a": 1, "b": ["y", "x"]}', "wrong_value"),
        ('{"a": 1, "b": "x, y"}', "wrong_value"),
        ('{"a": 1}', "missing_field"),
        ('{"a": 1, "b": ["x", "y"], "c": null}', "extra_field"),
        ("[1]", "not_an_object"),
        ('{"a": 1, "b": ["x"', "invalid_json"),
    ],
)
def test_a_record_is_graded_by_its_fields(text: str, reason: str) -> None:
    item = _item("structured_output", json.dumps({"a": 1, "b": ["x", "y"]}))
    assert load_suite("structured_output").score(item, Answer(text)).reason == reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("7 + 5 = 12, 12 - 4 = 8. Answer: 8", ""),
        ("Answer: 9. No, wait. Answer: 8.0", ""),
        ("She has 8 apples", ""),
        ("There were 12, now 8.", ""),
        ("Answer: 8 of 12", ""),
        ("Answer: 12", "wrong_value"),
        ("Answer: -8", "wrong_value"),
        ("Answer: none", "no_number"),
    ],
)
def test_a_story_is_graded_by_its_last_answer(text: str, reason: str) -> None:
    item = _item("multi_step", "", answer=8)
    assert load_suite("multi_step").score(item, Answer(text)).reason == reason


def test_json_values_are_compared_as_values() -> None:
    assert is_same_value({"a": [1, " X "], "b": None}, {"b": None, "a": [1.0, "x"]})
    assert not is_same_value(1, True)
    assert not is_same_value("1", 1)
    assert not is_same_value([1], [1, 1])
