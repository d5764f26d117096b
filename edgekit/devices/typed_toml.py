"""Answer one question: how does a TOML table become a typed value, every wrong key named?

The dataclass is the schema: a nested dataclass is a table, ``tuple[X, ...]`` a list, an enum its
value, ``X | None`` a key that may be absent. Unknown keys, absent keys and wrong types are
collected, never dropped, so a file is corrected in one go.
It must not know what a device is.
"""

from __future__ import annotations

import dataclasses
import enum
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, Final

_SCALARS: Final = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
_MAX_INT: Final = (1 << 63) - 1  # the range of TOML
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # a terminal would obey them
_UNIONS: Final = (types.UnionType, typing.Union)


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a file: the dotted key, what was found, what would be right."""

    key: str
    got: str
    wanted: str

    def __str__(self) -> str:
        return f"{self.key}: got {self.got}, wanted {self.wanted}"


def build(hint: Any, data: Any, problems: list[Problem], key: str = "") -> Any:
    """Build a value of type ``hint`` from parsed TOML.

    Args:
        hint: A dataclass, or a type that a field of one may have.
        data: What ``tomllib`` gave for it.
        problems: Receives everything that is wrong; when it grew, the result is meaningless.
        key: Dotted key of ``data``, for the messages.

    Returns:
        The value; None where a problem was found.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in _UNIONS:
        return build(args[0], data, problems, key)
    if origin is tuple:
        if not isinstance(data, list):
            return _wrong(problems, key, data, "a list")
        return tuple(build(args[0], v, problems, f"{key}[{i}]") for i, v in enumerate(data))
    if dataclasses.is_dataclass(origin or hint):
        return _build_table(origin or hint, args, data, problems, key)
    if issubclass(hint, enum.Enum):
        values = [member.value for member in hint]
        return hint(data) if data in values else _wrong(problems, key, data, " | ".join(values))
    if type(data) is int and abs(data) > _MAX_INT:
        return _wrong(problems, key, data, "a number of at most 64 bits")
    if type(data) is str and _CONTROL.search(data):
        return _wrong(problems, key, data, "text without control characters")
    if hint is float and type(data) is int:
        return float(data)
    return data if type(data) is hint else _wrong(problems, key, data, _SCALARS[hint])


def _build_table(
    cls: Any, args: tuple[Any, ...], data: Any, problems: list[Problem], key: str
) -> Any:
    if not isinstance(data, Mapping):
        return _wrong(problems, key, data, "a table")
    hints = typing.get_type_hints(cls)
    bound = dict(zip(getattr(cls, "__parameters__", ()), args, strict=False))
    prefix = f"{key}." if key else ""
    n_before = len(problems)
    known = {f.name: f for f in dataclasses.fields(cls)}
    problems += [
        Problem(prefix + name, "an unknown key", f"one of {', '.join(known)}")
        for name in data
        if name not in known
    ]
    values: dict[str, Any] = {}
    for name, field in known.items():
        if name in data:
            hint = _bind(hints[name], bound)
            values[name] = build(hint, data[name], problems, prefix + name)
        elif field.default is dataclasses.MISSING:
            problems.append(Problem(prefix + name, "nothing", "this key"))
    if len(problems) > n_before:
        return None
    try:
        return cls(**values)
    except ValueError as error:
        return _wrong(problems, key, dict(data), str(error))


def _bind(hint: Any, bound: Mapping[Any, Any]) -> Any:
    """Put the type argument of a generic dataclass in place of its variable."""
    if typing.get_origin(hint) in _UNIONS:
        return bound.get(typing.get_args(hint)[0], hint)
    return bound.get(hint, hint)


def _wrong(problems: list[Problem], key: str, data: Any, wanted: str) -> None:
    problems.append(Problem(key or "(file)", f"{type(data).__name__} {data!r}", wanted))
