"""Claims about schemes: text and value are inverses, sizes are exact, nonsense is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import UsageError
from edgekit.scheme import FP16, FP32, GROUPS, Scheme

ALL = [FP32, FP16, *[Scheme(kind, group) for kind in ("int4", "int8") for group in GROUPS]]


@pytest.mark.parametrize("scheme", ALL, ids=str)
def test_parse_is_the_inverse_of_str(scheme):
    assert Scheme.parse(str(scheme)) == scheme


def test_an_integer_scheme_without_a_group_has_group_32():
    assert str(Scheme.parse("int4")) == "int4-g32"
    assert str(Scheme.parse(" INT8-G128 ")) == "int8-g128"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("int3", "unknown scheme"),
        ("", "unknown scheme"),
        ("int4-g", "unknown scheme"),
        ("int4-64", "unknown scheme"),
        ("int4-g16", "group not supported"),
        ("int4-g0", "group not supported"),
        ("int4-g" + "9" * 5000, "unknown scheme"),
        ("fp16-g32", "takes no group"),
    ],
)
def test_what_is_no_scheme_is_refused(text, said):
    with pytest.raises(UsageError, match=said):
        Scheme.parse(text)


@given(st.text(max_size=12))
def test_any_text_is_a_scheme_or_a_usage_error(text):
    try:
        assert Scheme.parse(text) in ALL
    except UsageError as error:
        assert error.what


def test_sizes_count_codes_and_half_width_scales():
    assert Scheme("int4", 32).bytes_of(2, 64) == 2 * 32 + 2 * 2 * 2
    assert Scheme("int8", 64).bytes_of(3, 128) == 3 * 128 + 3 * 2 * 2
    assert FP16.bytes_of(2, 3) == 12
    assert FP32.bytes_of(2, 3) == 24
    assert [s.bits for s in ALL] == [32, 16, 4, 4, 4, 8, 8, 8]
    assert [s.is_quantized for s in ALL] == [False] * 2 + [True] * 6
