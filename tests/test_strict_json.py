from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import FormatError
from edgekit.strict_json import parse_object

_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), _JSON, max_size=5))
def test_reads_what_json_writes(value):
    data = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    assert parse_object(data, "x") == json.loads(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"\xff{}", "can't decode"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": -Infinity}', "-Infinity is not JSON"),
        (b'{"a": 1, "a": 2}', "key given twice: 'a'"),
        (b'{"o": {"b": 1, "c": 2, "b": 1}}', "key given twice: 'b'"),
        (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nesting too deep"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "digits"),
    ],
)
def test_refuses_what_is_not_plain_json(data, words):
    with pytest.raises(FormatError) as caught:
        parse_object(data, "some file")
    assert caught.value.what == "some file: not valid JSON"
    assert words in caught.value.got


@pytest.mark.parametrize(("data", "kind"), [(b"[]", "list"), (b"1", "int"), (b"null", "NoneType")])
def test_refuses_anything_but_an_object(data, kind):
    with pytest.raises(FormatError) as caught:
        parse_object(data, "some file")
    assert (caught.value.got, caught.value.wanted) == (kind, "object")


@given(st.binary(max_size=64))
def test_any_bytes_give_an_object_or_a_format_error(data):
    try:
        assert isinstance(parse_object(data, "x"), dict)
    except FormatError as error:
        assert error.what.startswith("x: ")
