"""Claims about encodings: text and value are inverses, sizes are exact, nonsense is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.encoding import BLOCKS, FP16, FP32, Encoding
from edgekit.errors import UsageError

KINDS = ("int4", "int8", "uint4", "uint8")
ALL = [FP32, FP16, *[Encoding(kind, block) for kind in KINDS for block in BLOCKS]]


@pytest.mark.parametrize("encoding", ALL, ids=str)
def test_parse_is_the_inverse_of_str(encoding):
    assert Encoding.parse(str(encoding)) == encoding


@given(st.text(max_size=12))
def test_any_text_is_an_encoding_or_a_usage_error(text):
    try:
        assert Encoding.parse(text) in ALL
    except UsageError as error:
        assert error.what


def test_sizes_count_codes_scales_of_two_bytes_and_zero_points():
    assert Encoding("int4", 32).bytes_of(2, 64) == 2 * 32 + 2 * 2 * 2
    assert Encoding("int8", 64).bytes_of(3, 128) == 3 * 128 + 3 * 2 * 2
    # Three blocks of a row have three zero points: one byte and a half of 4 bits, two bytes.
    assert Encoding("uint4", 32).bytes_of(2, 96) == 2 * (48 + 3 * 2 + 2)
    assert Encoding("uint8", 32).bytes_of(2, 96) == 2 * (96 + 3 * 2 + 3)
    assert FP16.bytes_of(2, 3) == 12
    assert FP32.bytes_of(2, 3) == 24


def test_bits_of_a_weight_count_its_share_of_scale_and_zero_point():
    bits = {str(e): e.bits_per_weight for e in ALL if e.block in (None, 32, 128)}
    assert bits == {
        "fp32": 32, "fp16": 16,
        "int4-g32": 4.5, "int4-g128": 4.125, "int8-g32": 8.5, "int8-g128": 8.125,
        "uint4-g32": 4.625, "uint4-g128": 4.15625, "uint8-g32": 8.75, "uint8-g128": 8.1875,
    }  # fmt: skip
    assert [e.is_quantized for e in ALL] == [False] * 2 + [True] * 12
    assert [e.has_zero_points for e in ALL] == [False] * 8 + [True] * 6


def test_floats_have_no_codes():
    assert Encoding("uint8", 32).code_bits == 8
    with pytest.raises(UsageError, match="fp16 has no codes"):
        assert FP16.code_bits
