"""Typed values: what the dataclass says comes through, and every fault is named with its path."""

from __future__ import annotations

import datetime
import enum
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import pytest

from edgekit.typed_values import WrongValuesError, from_plain


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Word(enum.StrEnum):
    ONE = "one"


@dataclass(frozen=True, slots=True)
class Circle:
    radius: float
    kind: Literal["circle"] = "circle"


@dataclass(frozen=True, slots=True)
class Square:
    side: float
    kind: Literal["square"] = "square"


Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True)
class Figure(Generic[Number]):
    value: Number | None
    source: str = ""

    def __post_init__(self) -> None:
        if self.value is not None and self.value < 0:
            raise ValueError("a value of at least 0")


@dataclass(frozen=True, slots=True)
class Tensor:
    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Whole:
    n: int
    x: float
    flag: bool
    colour: Colour
    word: Word = Word.ONE
    shape: Circle | Square | None = None
    tensors: tuple[Tensor, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    free: Mapping[str, Any] = field(default_factory=dict)
    cores: Figure[int] | None = None
    rate: Figure[float] = Figure(0.0)


SOUND = {"n": 1, "x": 2, "flag": True, "colour": "red"}


def problems(**change: object) -> list[str]:
    with pytest.raises(WrongValuesError) as caught:
        from_plain(Whole, {**SOUND, **change})
    return [str(problem) for problem in caught.value.problems]


def test_every_kind_of_field_comes_through():
    found = from_plain(
        Whole,
        {
            **SOUND,
            "word": "one",
            "shape": {"kind": "square", "side": 3},
            "tensors": [{"name": "a", "shape": [2, 3]}],
            "names": {"a": "b"},
            "free": {"a": [1, {"b": None}]},
            "cores": {"value": 4},
            "rate": {"value": 4, "source": "s"},
        },
    )
    assert found == Whole(
        1, 2.0, True, Colour.RED, Word.ONE, Square(3.0), (Tensor("a", (2, 3)),), {"a": "b"},
        {"a": [1, {"b": None}]}, Figure(4), Figure(4.0, "s"),
    )  # fmt: skip
    assert type(found.x) is float
    assert found.cores is not None
    assert (type(found.cores.value), type(found.rate.value)) == (int, float)
    assert from_plain(Whole, {**SOUND, "shape": None}).shape is None


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"n": 1.0}, "n: got float 1.0, wanted a whole number"),
        ({"n": True}, "n: got bool True, wanted a whole number"),
        ({"n": 1 << 63}, "n: got int of 64 bits, wanted a number of at most 64 bits"),
        ({"n": 1 << 90_000}, "n: got int of 90001 bits, wanted a number of at most 64 bits"),
        ({"x": float("nan")}, "x: got float nan, wanted a finite number"),
        ({"x": "2"}, "x: got str '2', wanted a number"),
        ({"flag": 1}, "flag: got int 1, wanted true or false"),
        ({"colour": "green"}, "colour: got str 'green', wanted red | blue"),
        ({"colour": ["red"]}, "colour: got list ['red'], wanted red | blue"),
        ({"word": "two"}, "word: got str 'two', wanted one"),
        ({"shape": {"kind": "line"}}, "shape.kind: got str 'line', wanted circle | square"),
        ({"shape": {"side": 1}}, "shape.kind: got null, wanted circle | square"),
        ({"shape": {"kind": "circle"}}, "shape.radius: got nothing, wanted this key"),
        ({"shape": 7}, "shape: got int 7, wanted keys with values"),
        ({"tensors": {}}, "tensors: got dict {}, wanted a list"),
        ({"tensors": "ab"}, "tensors: got str 'ab', wanted a list"),
        ({"tensors": ["a"]}, "tensors[0]: got str 'a', wanted keys with values"),
        ({"names": {"a": 1}}, "names.a: got int 1, wanted text"),
        ({"names": ["a"]}, "names: got list ['a'], wanted keys with values"),
        ({"cores": {"value": 1.5}}, "cores.value: got float 1.5, wanted a whole number"),
        ({"rate": {"value": -1}}, "rate: got dict {'value': -1}, wanted a value of at least 0"),
        ({"y": 1}, "y: got an unknown key, wanted one of n, x, flag, colour, word, shape, tensors, "
                   "names, free, cores, rate"),
    ],
)  # fmt: skip
def test_a_fault_is_named_with_its_path(change, problem):
    assert problems(**change) == [problem]


def test_the_path_leads_to_the_value():
    tensors = [{"name": "a", "shape": [1, 2]}] * 3 + [{"name": "a", "shape": [1, "2"]}]
    assert problems(tensors=tensors) == ["tensors[3].shape[1]: got str '2', wanted a whole number"]


def test_all_faults_are_named_at_once_and_those_of_a_list_are_capped():
    assert len(problems(n="1", x="2", flag=0, other=1)) == 4
    assert len(problems(tensors=[7] * 100_000)) == 8


def test_free_values_can_be_written_again():
    assert "finite" in problems(free={"a": [float("inf")]})[0]
    deep: object = 1
    for _ in range(40):
        deep = [deep]
    assert "nested too deep" in problems(free={"a": deep})[0]


def test_what_toml_has_more_than_json_is_no_number():
    assert problems(n=datetime.date(2026, 1, 1))[0].startswith("n: got date ")


@pytest.mark.parametrize("data", [None, 7, "n", [], [["n", 1]]])
def test_what_is_no_object_is_refused_whole(data):
    with pytest.raises(WrongValuesError, match=r"^\(file\): got .*, wanted keys with values$"):
        from_plain(Whole, data)


def test_control_characters_are_refused_on_request():
    data = {"name": "a\x1b[2J", "shape": []}
    assert from_plain(Tensor, data).name == "a\x1b[2J"
    with pytest.raises(WrongValuesError, match="text without control characters"):
        from_plain(Tensor, data, is_for_terminal=True)
    assert from_plain(Tensor, {"name": "a\n\tb", "shape": []}, is_for_terminal=True)


@pytest.mark.parametrize("module", ["edgekit", "edgekit.cli"])
def test_starting_edgekit_imports_no_converter(module):
    code = f"import sys, {module}; sys.exit('cattrs' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
