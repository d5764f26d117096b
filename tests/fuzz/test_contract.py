"""Claims: the contract notices what it is for, and a finding is made small."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from random import Random

import pytest

from edgekit.errors import FormatError
from tests.fuzz.contract import (
    PromiseBroken,
    Target,
    TooSlow,
    check,
    check_message,
    join_parts,
    promise,
    split_parts,
)
from tests.fuzz.mutate import Pairs, Raw, mutate_json, parse_tree, write_tree


def target(run, cpu_s=5.0):
    return Target("x", run, lambda: [b""], lambda data, rng: data, cpu_s=cpu_s)


def refuse(data, folder):
    raise FormatError("no")


def test_an_error_of_ours_is_a_refusal_and_a_value_is_accepted(tmp_path):
    assert check(target(refuse), b"", tmp_path) is False
    assert check(target(lambda data, folder: None), b"", tmp_path) is True


def test_any_other_error_comes_through(tmp_path):
    with pytest.raises(ZeroDivisionError):
        check(target(lambda data, folder: 1 // 0), b"", tmp_path)
    with pytest.raises(PromiseBroken, match="kept"):
        check(target(lambda data, folder: promise(False, "not kept")), b"", tmp_path)


def test_a_loop_without_end_is_ended(tmp_path):
    def spin(data, folder):
        while True:
            pass

    with pytest.raises(TooSlow):
        check(target(spin, cpu_s=0.2), b"", tmp_path)


def test_a_message_beyond_all_measure_is_noticed():
    class LongError(FormatError):
        def __str__(self):
            return "x" * 100_000

    with pytest.raises(PromiseBroken, match="100000 characters"):
        check_message(LongError("x"))


def test_parts_come_out_as_they_went_in():
    assert split_parts(join_parts(b"a", b"", b"c"), 3) == [b"a", b"", b"c"]
    assert split_parts(b"a", 2) == [b"a", b""]


def test_a_tree_keeps_what_json_cannot_say():
    tree = Pairs([("a", Raw("1e999")), ("a", [True, None, "é"])])
    assert write_tree(tree) == '{"a":1e999,"a":[true,null,"\\u00e9"]}'
    assert write_tree(parse_tree(b'{"b": [1, {}]}')) == '{"b":[1,{}]}'


def test_the_same_seed_makes_the_same_change_and_changes_reach_past_the_syntax():
    data = json.dumps({"a": 1, "b": {"c": [1, 2, "x"]}}).encode()
    made = [mutate_json(data, Random(seed)) for seed in range(300)]
    assert made == [mutate_json(data, Random(seed)) for seed in range(300)]
    n_parsed = 0
    for changed in made:
        try:
            n_parsed += isinstance(json.loads(changed), dict)
        except (ValueError, RecursionError):
            continue
    assert n_parsed > 150


@pytest.fixture
def findings(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent.parent / "scripts"))
    from fuzzing import findings

    yield findings
    for name in [name for name in sys.modules if name.split(".")[0] == "fuzzing"]:
        del sys.modules[name]


def test_a_finding_is_made_as_small_as_it_goes(findings):
    assert (
        findings.minimise(b"x" * 500 + b"BUG" + b"y" * 500, lambda data: b"BUG" in data) == b"BUG"
    )


def test_findings_of_the_same_place_have_the_same_name(findings):
    def name(call):
        with pytest.raises((FormatError, ZeroDivisionError, PromiseBroken)) as caught:
            call()
        return findings.key_of(caught.value)

    assert name(lambda: promise(False, "5 MiB")) == name(lambda: promise(False, "70 MiB"))
    assert name(lambda: promise(False, "slow")) != name(lambda: promise(False, "wrong"))
    assert name(lambda: 1 // 0).startswith("ZeroDivisionError-")
