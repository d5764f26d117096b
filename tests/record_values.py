"""Values for every field of a record, by its type."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping

from hypothesis import strategies as st

FINITE = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(max_size=6)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | FINITE | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=3,
)


def values_of(hint):
    """Every value that a field of this type may hold."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if type(None) in arguments:
        return st.none() | values_of(next(a for a in arguments if a is not type(None)))
    if origin is tuple:
        return st.lists(values_of(arguments[0]), max_size=2).map(tuple)
    if origin is Mapping:
        return st.dictionaries(TEXT, TEXT if arguments[1] is str else JSON, max_size=2)
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return st.builds(
            hint, **{f.name: values_of(hints[f.name]) for f in dataclasses.fields(hint)}
        )
    plain = {
        int: st.integers(-(1 << 63) + 1, (1 << 63) - 1),
        float: FINITE,
        str: TEXT,
        bool: st.booleans(),
    }
    return plain[hint] if hint in plain else st.sampled_from(hint)
