from __future__ import annotations

import json

import pytest

from edgekit.checkpoint.config import RawConfig
from edgekit.errors import CheckpointError, MissingFileError, UnknownKeyError
from edgekit.strict_json import read_object


def config(**values):
    return RawConfig(values, "config.json")


def test_every_key_taken_or_ignored_passes():
    c = config(a=1, b="x", c=2.5, d=True, e=[1], f=None, g=3)
    assert c.take("a", int) == 1
    assert c.take("b", str) == "x"
    assert c.take("c", float) == 2.5
    assert c.take("d", bool) is True
    assert c.take("e", list) == [1]
    assert c.take("f", int, None) is None
    c.ignore(["g", "never there"])
    c.finish()


def test_an_integer_is_a_number_and_a_bool_is_neither():
    c = config(a=3, b=True, d=False)
    assert (c.take("a", float), type(c.take("a", float))) == (3.0, float)
    c.take("b", int)
    c.take("d", float)
    with pytest.raises(CheckpointError) as caught:
        c.finish()
    assert caught.value.what == (
        "config.json: b is True (wanted an integer); d is False (wanted a number)"
    )


def test_all_unknown_keys_are_named_together():
    c = config(a=1, z=1, m=2)
    c.take("a", int)
    with pytest.raises(UnknownKeyError) as caught:
        c.finish()
    assert caught.value.keys == ("m", "z")


def test_all_missing_and_wrong_keys_are_named_together_with_unknown_ones():
    c = config(b="x", z=1, n=-1)
    c.take("a", int)
    c.take("b", float)
    c.take_count("n")
    with pytest.raises(UnknownKeyError) as caught:
        c.finish()
    assert caught.value.keys == ("z",)
    for words in ("a is missing", "b is 'x' (wanted a number)", "n is -1 (wanted 1 .. "):
        assert words in caught.value.what


def test_looking_at_a_key_does_not_account_for_it():
    c = config(a=1)
    assert c["a"] == 1
    assert "a" in c
    assert c.get("a") == 1
    with pytest.raises(UnknownKeyError):
        c.finish()


def test_keys_of_a_section_are_accounted_for_in_turn():
    c = config(rope={"kind": "x", "extra": 1})
    section = c.take_section("rope")
    section.take("kind", int)
    with pytest.raises(UnknownKeyError) as caught:
        c.finish()
    assert caught.value.keys == ("rope.extra",)
    assert "rope.kind is 'x' (wanted an integer)" in caught.value.what


@pytest.mark.parametrize("values", [{}, {"rope": None}, {"rope": {}}])
def test_an_absent_section_is_none(values):
    c = config(**values)
    assert c.take_section("rope") is None
    c.finish()


@pytest.mark.parametrize(
    ("value", "is_right"), [(1, True), (8, True), (0, False), (9, False), (1.0, False)]
)
def test_a_count_has_limits(value, is_right):
    c = config(n=value)
    c.take_count("n", at_most=8)
    if is_right:
        c.finish()
    else:
        with pytest.raises(CheckpointError, match="n is"):
            c.finish()


def test_only_the_supported_value_passes_expect():
    c = config(act="gelu")
    c.expect("act", "silu", "silu")
    c.expect("absent", None, None)
    with pytest.raises(CheckpointError, match=r"act is 'gelu' \(edgekit supports 'silu' only\)"):
        c.finish()


@pytest.mark.parametrize(
    ("value", "wanted"), [(None, ()), (2, (2,)), ([2, 7, 2], (2, 7)), ([], ()), (0, (0,))]
)
def test_token_ids_come_single_or_as_a_list(value, wanted):
    c = config(eos=value)
    assert c.take_ids("eos") == wanted
    c.finish()


@pytest.mark.parametrize("value", [-1, "2", [2, None], True, {"a": 1}, 2.0])
def test_what_is_no_token_id_is_reported(value):
    c = config(eos=value)
    assert c.take_ids("eos") == ()
    with pytest.raises(CheckpointError, match="eos is"):
        c.finish()


def test_a_config_file_is_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"a": "é"}), encoding="utf-8")
    assert dict(RawConfig.open(tmp_path / "config.json")) == {"a": "é"}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"not json", "not valid JSON"),
        (b"[1]", "outermost value"),
        (b'{"a":' * 50_000, "nesting too deep"),
        (b'{"a": 1, "a": 2}', "key given twice"),
        (b'{"a": "' + b"x" * (4 << 20) + b'"}', "size"),
    ],
)
def test_a_config_that_is_no_small_json_object_is_a_checkpoint_error(tmp_path, data, words):
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(CheckpointError, match=words) as caught:
        RawConfig.open(tmp_path / "config.json")
    assert str(tmp_path / "config.json") in caught.value.what


def test_a_file_that_is_absent_or_unreadable_says_so(tmp_path):
    with pytest.raises(MissingFileError, match="no such file"):
        read_object(tmp_path / "absent.json")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_object(tmp_path)
