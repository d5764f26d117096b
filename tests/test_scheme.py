"""Claims about schemes: text and value are inverses, rules are found, nonsense is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.encoding import BLOCKS, Encoding
from edgekit.errors import UsageError
from edgekit.scheme import Rule, Scheme

KINDS = ("int4", "int8", "uint4", "uint8")
NAMES = ["fp32", "fp16", *[f"{kind}-g{block}" for kind in KINDS for block in BLOCKS]]


@pytest.mark.parametrize("name", NAMES)
def test_parse_is_the_inverse_of_str(name):
    scheme = Scheme.parse(name)
    assert str(scheme) == name
    assert scheme.encoding == Encoding.parse(name)
    assert scheme.is_quantized == ("int" in name)


def test_an_integer_scheme_without_a_block_has_blocks_of_32():
    assert str(Scheme.parse("int4")) == "int4-g32"
    assert str(Scheme.parse(" INT8-G128 ")) == "int8-g128"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("int3", "unknown scheme"),
        ("", "unknown scheme"),
        ("int4-g", "unknown scheme"),
        ("int4-64", "unknown scheme"),
        ("int4-g16", "block not supported"),
        ("int4-g0", "block not supported"),
        ("int4-g" + "9" * 5000, "unknown scheme"),
        ("fp16-g32", "takes no block"),
    ],
)
def test_what_is_no_scheme_is_refused(text, said):
    with pytest.raises(UsageError, match=said):
        Scheme.parse(text)


@given(st.text(max_size=12))
def test_any_text_is_a_scheme_or_a_usage_error(text):
    try:
        assert str(Scheme.parse(text)) in NAMES
    except UsageError as error:
        assert error.what


def test_both_ends_of_a_4_bit_model_keep_8_bits():
    for kind in ("int4", "uint4"):
        scheme = Scheme.parse(f"{kind}-g64")
        for name in ("embed", "lm_head"):
            rule = scheme.rule_of(name)
            assert rule is not None
            assert rule.encoding == Encoding("int8", 64)
        assert scheme.rule_of("layers.0.q") is None
    assert Scheme.parse("int8").rules == Scheme.parse("fp16").rules == ()


def test_the_first_rule_that_names_a_matrix_counts():
    wide, narrow = Encoding("int8", 32), Encoding("int4", 32)
    rules = (Rule(("layers.1.*", "embed"), wide, "a"), Rule(("layers.*.v",), narrow, "b"))
    scheme = Scheme("mine", narrow, rules)
    found = {name: scheme.rule_of(f"layers.{name}") for name in ("1.v", "0.v", "11.v", "0.q")}
    reasons = {name: rule.reason if rule else None for name, rule in found.items()}
    assert reasons == {"1.v": "a", "0.v": "b", "11.v": "b", "0.q": None}
