"""Claims: presets and users' schemes are read from files, strictly, and described without loss."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.encoding import Encoding
from edgekit.errors import UsageError
from edgekit.paths import schemes_dir
from edgekit.scheme import (
    METHODS,
    RECOMMENDED,
    Mixed,
    Rule,
    Scheme,
    describe,
    preset_names,
    scheme_of,
    with_rules,
)

WHOLE = """
about = "Mine."
encoding = "uint4-g64"
method = "importance"
fold = false

[mixed]
bits_per_weight = 4.75
wide = ["uint4-g32", "int8-g64"]

[[rules]]
tensors = ["embed", "lm_head"]
encoding = "int8-g64"
reason = "the ends"

[[rules]]
tensors = ["layers.0.*"]
encoding = "fp16"
reason = "the first layer"
"""


def test_every_file_of_the_folder_is_a_preset():
    assert {path.stem for path in schemes_dir().iterdir()} == set(preset_names())
    assert RECOMMENDED in preset_names()


@pytest.mark.parametrize("name", preset_names())
def test_presets(name):
    scheme = Scheme.parse(name)
    assert str(scheme) == scheme.name == name
    assert scheme == Scheme.parse(f" {name.upper()} ")
    assert scheme.about.endswith(".")
    assert len(scheme.about) < 120
    assert scheme.encoding.bits == 4
    assert scheme.method in METHODS
    assert not scheme.is_word
    assert scheme_of(describe(scheme), name=name, where="x") == scheme


def test_the_fast_preset_tries_nothing_out():
    fast = Scheme.parse("fast")
    assert (fast.method, fast.mixed) == ("importance", None)


def test_a_users_scheme(tmp_path):
    path = tmp_path / "my-phone.v2.toml"
    path.write_text(WHOLE)
    assert Scheme.parse(str(path)) == Scheme(
        "my-phone.v2",
        Encoding("uint4", 64),
        (
            Rule(("embed", "lm_head"), Encoding("int8", 64), "the ends"),
            Rule(("layers.0.*",), Encoding("fp16"), "the first layer"),
        ),
        "importance",
        fold=False,
        mixed=Mixed(4.75, (Encoding("uint4", 32), Encoding("int8", 64))),
        about="Mine.",
    )


def test_describing_is_the_inverse_of_reading(tmp_path):
    (tmp_path / "a.toml").write_text(WHOLE)
    scheme = Scheme.parse(str(tmp_path / "a.toml"))
    assert scheme_of(describe(scheme), name="a", where="x") == scheme
    plain = Scheme.parse("int4-g64")
    assert scheme_of(describe(plain), name="int4-g64", where="x") == plain


def test_words_say_everything_and_files_do_not(tmp_path):
    (tmp_path / "a.toml").write_text(WHOLE)
    assert Scheme.parse("int4-g64").is_word
    assert Scheme.parse("fp16").is_word
    assert not Scheme.parse(str(tmp_path / "a.toml")).is_word
    rule = Rule(("layers.0.v",), Encoding("int8", 64), "why")
    assert not with_rules(Scheme.parse("int4-g64"), "int4-g64", (rule,)).is_word


def test_rules_that_are_added_come_first():
    scheme = Scheme.parse("balanced")
    rule = Rule(("embed",), Encoding("uint4", 64), "small")
    fixed = with_rules(scheme, "balanced-9MB", (rule,))
    assert (fixed.name, fixed.mixed) == ("balanced-9MB", None)
    assert fixed.rules == (rule, *scheme.rules)
    assert fixed.rule_of("embed") == rule
    assert (fixed.method, fixed.about) == (scheme.method, scheme.about)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("about = ", "FILE is not TOML"),
        ('encoding = "int4"', "about: got nothing, wanted this key"),
        ('about = "a"', "encoding: got nothing, wanted this key"),
        ('about = "a"\nencoding = "int5"', "wanted an encoding: fp32, fp16"),
        ('about = "a"\nencoding = 4', "encoding: got int 4, wanted text"),
        ('about = "a"\nencoding = "int4"\nbits = 4', "bits: got an unknown key"),
        ('about = "a"\nencoding = "int4"\nmethod = "awq"', "wanted a method of rtn, search"),
        ('about = "a"\nencoding = "int4"\n[mixed]\nwide = []', "encodings with codes in wide"),
        ('about = "a"\nencoding = "int4"\n[mixed]\nwide = ["fp16"]', "encodings with codes"),
        (
            'about = "a"\nencoding = "int4"\n[mixed]\nwide = ["int8"]\nbits_per_weight = 1.5',
            "bits_per_weight from 2 to 16",
        ),
        (
            'about = "a"\nencoding = "int4"\n[mixed]\nwide = ["int8"]\nbits_per_weight = inf',
            "mixed.bits_per_weight",
        ),
        (
            'about = "a"\nencoding = "fp16"\n[mixed]\nwide = ["int8"]',
            "an encoding with codes where bits are mixed",
        ),
        (
            'about = "a"\nencoding = "int4"\n[[rules]]\ntensors = []\nencoding = "int8"\n'
            'reason = "x"',
            "rules[0]",
        ),
        (
            'about = "a"\nencoding = "int4"\n[[rules]]\ntensors = ["embed"]\nencoding = "int8"\n'
            'reason = " "',
            "wanted a reason",
        ),
        (
            'about = "a"\nencoding = "int4"\n[[rules]]\ntensors = ["embed"]\nencoding = "int4-g7"\n'
            'reason = "x"',
            "wanted an encoding: 32, 64 or 128",
        ),
    ],
)
def test_files_that_are_no_schemes(tmp_path, text, words):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        Scheme.parse(str(path))
    assert words in str(caught.value).replace(str(path), "FILE")
    assert "edgekit/schemes/balanced.toml" in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match=r"cannot read scheme .*none\.toml; got No such file"):
        Scheme.parse(str(tmp_path / "none.toml"))
    (tmp_path / "latin.toml").write_bytes(b'about = "\xe9"')
    with pytest.raises(UsageError, match="wanted a TOML file in UTF-8"):
        Scheme.parse(str(tmp_path / "latin.toml"))
    (tmp_path / "large.toml").write_bytes(b" " * (1 << 19))
    with pytest.raises(UsageError, match="a size above"):
        Scheme.parse(str(tmp_path / "large.toml"))
    (tmp_path / "a b.toml").write_text(WHOLE)
    with pytest.raises(UsageError, match="becomes part of folder names; got 'a b'"):
        Scheme.parse(str(tmp_path / "a b.toml"))


def test_the_message_for_an_unknown_word_names_the_presets():
    with pytest.raises(UsageError, match=r"fast, tiny, balanced, quality, or a \.toml file"):
        Scheme.parse("best")


def test_the_page_of_schemes_shows_the_files():
    page = (Path(__file__).parent.parent / "docs" / "schemes.md").read_text(encoding="utf-8")
    assert (schemes_dir() / "balanced.toml").read_text(encoding="utf-8") in page
    for name in preset_names():
        scheme = Scheme.parse(name)
        (row,) = (line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        assert f"{scheme.encoding.bits} bits in blocks of {scheme.encoding.block}" in row
        assert f"| {scheme.method} |" in row
        if scheme.mixed is not None:
            assert f"{scheme.mixed.bits_per_weight} bits per weight" in row
