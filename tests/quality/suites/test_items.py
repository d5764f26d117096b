"""Items are the same everywhere, balanced, and their own targets are correct answers."""

import hashlib
import json
import re
import subprocess
import sys

import pytest

from edgekit.draw import Draw
from edgekit.errors import UsageError
from edgekit.quality.suites import (
    SUITES,
    Answer,
    Item,
    Split,
    load_suite,
    multi_step,
    parse_tool_calls,
    structured_output,
)
from edgekit.quality.suites.long_context import DEPTHS_PCT, LENGTHS, LongContext
from edgekit.quality.suites.tools import TOOLS

# A change here means that published numbers and the bundled model no longer fit the suites.
DIGESTS = {
    "tool_calls/train": "7b239891205ac7c4",
    "tool_calls/held_out": "8c13664910fc32fa",
    "structured_output/train": "bb181a6fc38a0671",
    "structured_output/held_out": "e32bfa8a2da6ed48",
    "long_context/train": "f00c366f8014c882",
    "long_context/held_out": "d05bda02adf35042",
    "multi_step/train": "f90e1e52683ebd4a",
    "multi_step/held_out": "031be9abd024ac13",
}


def _digest(items: list[Item]) -> str:
    rows = [[i.id, list(i.messages), list(i.tools), i.target, dict(i.meta)] for i in items]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


@pytest.mark.parametrize("split", Split)
@pytest.mark.parametrize("name", SUITES)
def test_items_are_the_same_on_every_machine(name: str, split: Split) -> None:
    items = load_suite(name).items(48, seed=3, split=split)
    assert _digest(items) == DIGESTS[f"{name}/{split.value}"]


def test_the_random_stream_is_pinned() -> None:
    draw = Draw("pin", 1)
    assert [draw.below(1000) for _ in range(6)] == [93, 311, 951, 219, 574, 562]


@pytest.mark.parametrize("name", SUITES)
def test_a_shorter_run_is_the_start_of_a_longer_one(name: str) -> None:
    suite = load_suite(name)
    assert suite.items(7, seed=1) == suite.items(23, seed=1)[:7]
    assert suite.items(7, seed=1) != suite.items(7, seed=2)


@pytest.mark.parametrize("split", Split)
@pytest.mark.parametrize("name", SUITES)
def test_every_target_is_graded_correct_and_an_empty_answer_is_not(name: str, split: Split) -> None:
    suite = load_suite(name)
    for item in suite.items(160, seed=2, split=split):
        assert item.suite == suite.name == name
        assert item.max_tokens <= suite.max_tokens
        assert suite.score(item, Answer(item.target)).is_correct, item
        is_call_wanted = name != "tool_calls" or item.target.startswith("[TOOL_CALLS]")
        assert suite.score(item, Answer("")).is_correct is not is_call_wanted


@pytest.mark.parametrize("name", SUITES)
def test_the_target_of_another_item_is_graded_wrong(name: str) -> None:
    suite = load_suite(name)
    items = suite.items(60, seed=4)
    for item, other in zip(items, [*items[20:], *items[:20]], strict=True):
        if item.target != other.target and item.meta.get("answer", 0) != other.meta.get("answer"):
            score = suite.score(item, Answer(other.target))
            assert not score.is_correct
            assert score.reason


def test_calls_fit_the_schema_of_an_offered_tool() -> None:
    kinds = {"string": str, "integer": int, "number": (int, float), "boolean": bool}
    for item in load_suite("tool_calls").items(480, seed=6):
        offered = {t["function"]["name"]: t["function"]["parameters"] for t in item.tools}
        assert 2 <= len(offered) == len(item.tools) <= 4
        for call in parse_tool_calls(item.target):
            schema, arguments = offered[call.name], call.arguments
            assert arguments is not None
            assert set(schema["required"]) <= arguments.keys() <= schema["properties"].keys()
            for key, value in arguments.items():
                spec = schema["properties"][key]
                assert isinstance(value, kinds[spec["type"]])
                assert isinstance(value, bool) == (spec["type"] == "boolean")
                assert value in spec.get("enum", [value])


def test_every_tool_and_the_no_tool_case_come_equally_often() -> None:
    items = load_suite("tool_calls").items(16 * 5, seed=1)
    kinds = [item.meta["kind"] for item in items]
    assert set(kinds) == {*TOOLS, "none"}
    assert all(kinds.count(kind) == 5 for kind in set(kinds))


def test_records_match_their_schema() -> None:
    n_null, n_omitted = 0, 0
    for item in load_suite("structured_output").items(400, seed=6):
        schema, record = json.loads(str(item.meta["schema"])), json.loads(item.target)
        assert set(schema["required"]) <= record.keys() <= schema["properties"].keys()
        n_omitted += record.keys() != schema["properties"].keys()
        for key, value in record.items():
            spec = schema["properties"][key]
            assert value in spec.get("enum", [value])
            if value is None:
                n_null += 1
                assert "null" in spec.get("type", ()) or None in spec["enum"]
            elif isinstance(value, str | int | float) and not isinstance(value, bool):
                said = item.messages[0]["content"].partition("Text: ")[2]
                assert str(value).lower() in said.lower()
    assert n_null > 5
    assert n_omitted > 5


def test_long_texts_keep_their_length_and_depth() -> None:
    items = LongContext().items(40, seed=8, count_tokens=lambda text: len(text.split()))
    slices = {(i.meta["n_context_tokens"], i.meta["depth_pct"]) for i in items}
    assert slices == {(length, depth) for length in LENGTHS for depth in DEPTHS_PCT}
    for item in items:
        length, content = int(item.meta["n_context_tokens"]), item.messages[0]["content"]
        assert length - 20 <= len(content.split()) <= length
        assert abs(int(item.meta["measured_depth_pct"]) - int(item.meta["depth_pct"])) <= 10
        at = content.index(str(item.meta["value"])) / len(content)
        assert abs(at - int(item.meta["depth_pct"]) / 100) < 0.25


def test_an_answer_with_a_distractor_value_is_wrong() -> None:
    suite = LongContext()
    item = suite.items(1, seed=1)[0]
    other = str(item.meta["other_values"]).split()[0]
    assert suite.score(item, Answer(f"{item.meta['value']}.")).is_correct
    assert suite.score(item, Answer(f"{item.meta['value']} or {other}")).reason == "distractor"


def test_the_working_of_a_story_is_a_chain_of_right_sums() -> None:
    for item in load_suite("multi_step").items(250, seed=6):
        sums = re.findall(r"(\d+) ([+-]) (\d+) = (\d+)", item.target)
        assert len(sums) == item.meta["n_steps"]
        for (a, sign, b, result), after in zip(sums, [*sums[1:], None], strict=True):
            assert int(a) + int(sign + b) == int(result) >= 0
            assert (after[0] if after else str(item.meta["answer"])) == result


def test_no_reserved_story_sentence_is_trained_on_with_the_roles_exchanged() -> None:
    roles = str.maketrans("abxy", "bayx")
    for table in (multi_step._STARTS, multi_step.TRANSFERS):
        exchanged = {
            re.sub(r"\{\w\}", lambda m: m[0].translate(roles), t) for t in table[Split.HELD_OUT]
        }
        assert not exchanged & {*table[Split.TRAIN]}


@pytest.mark.parametrize("split", Split)
def test_a_second_question_about_the_same_text_has_a_right_answer(split: Split) -> None:
    stories, records = multi_step.MultiStep(), structured_output.StructuredOutput()
    for i in range(60):
        first, second = stories.story_asked_twice("x", 1 + i % 5, Draw("twice", i), split)
        assert stories.score(second, Answer(second.target)).is_correct
        assert second.meta["n_distractors"] == first.meta["n_distractors"]
        first, second = records.record_asked_twice("x", i, 3, Draw("twice", i), split)
        said, wanted = json.loads(first.target), json.loads(second.target)
        assert all(said[key] == wanted[key] for key in said.keys() & wanted.keys())
        assert set(json.loads(str(second.meta["schema"]))["properties"]) >= wanted.keys()


def test_an_unknown_suite_is_a_usage_error_with_a_hint() -> None:
    with pytest.raises(UsageError, match="tool_calls"):
        load_suite("tool_call")


def test_suites_need_the_standard_library_only() -> None:
    code = (
        "import sys\n"
        "from edgekit.quality.suites import SUITES, load_suite\n"
        "[load_suite(name).items(4, seed=1) for name in SUITES]\n"
        "print(sorted({'torch', 'numpy', 'tokenizers'} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
