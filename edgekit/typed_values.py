"""Conversion of JSON and TOML data into dataclasses; every fault is named with its path.

The dataclass is the schema: a nested dataclass is an object (TOML: a table), ``tuple[X, ...]`` a
list, an enum its value, ``X | None`` a value or null. Unknown keys, missing keys and wrong types
are refused with their path, such as ``tensors[3].shape``; nothing is guessed or dropped. cattrs
does the conversion; it is imported at the first use.
"""

from __future__ import annotations

import enum
import functools
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Final, Literal, TypeVar

from edgekit.lazy import require

_T = TypeVar("_T")
_SCALARS: Final = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
_UNIONS: Final = (types.UnionType, typing.Union)
_MAX_INT: Final = (1 << 63) - 1  # the range of TOML
_MAX_DEPTH: Final = 32
_MAX_FAULTS: Final = 8  # per list: a hostile file must not fill the memory with errors
_MAX_SHOWN: Final = 120
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # a terminal would act on them
_OBJECT: Final = "keys with values"


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault: the path of the value, what was found there, what would have been right."""

    path: str
    got: str
    wanted: str

    def __str__(self) -> str:
        return f"{self.path}: got {self.got}, wanted {self.wanted}"


class WrongValuesError(ValueError):
    """Data that does not fit the dataclass; ``problems`` names every fault."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(map(str, self.problems)))


class _NotWantedError(ValueError):
    """What a value (or the one under ``key``) should have been; the caller knows its path."""

    def __init__(self, wanted: str, key: str = "") -> None:
        super().__init__(wanted)
        self.key = key


def from_plain(cls: type[_T], data: Any, *, is_for_terminal: bool = False) -> _T:
    """Build a dataclass from parsed JSON or TOML.

    A whole number is accepted for ``float``; true and false are not numbers. Numbers must be finite
    and whole numbers must fit into 64 bits. A union of dataclasses is told apart by a field that is
    a ``Literal`` in each. A ``ValueError`` from ``__post_init__`` says what would be right.

    Args:
        cls: The dataclass.
        data: What ``json`` or ``tomllib`` gave.
        is_for_terminal: Refuse texts with control characters other than tab and line feed.

    Raises:
        WrongValuesError: The data does not fit; every fault is named with its path.
    """
    try:
        return typing.cast(_T, _converter(is_for_terminal).structure(data, cls))
    except (_NotWantedError, require("cattrs").BaseValidationError) as error:
        raise WrongValuesError(_problems(error, data, "")) from error


def _problems(error: Exception, data: Any, path: str) -> Iterator[Problem]:
    """Walk the tree of errors that cattrs raises, together with the data."""
    cattrs = require("cattrs")
    if isinstance(error, cattrs.ForbiddenExtraKeysError):
        known = ", ".join(field.name for field in fields(error.cl))
        for name in sorted(error.extra_fields)[:_MAX_FAULTS]:
            yield Problem(_join(path, name), "an unknown key", f"one of {known}")
    elif isinstance(error, cattrs.BaseValidationError):
        is_class = isinstance(error, cattrs.ClassValidationError)
        with_place, others = error.group_exceptions()
        for inner, note in with_place:
            key = note.name if is_class else note.index
            if isinstance(inner, KeyError):
                yield Problem(_join(path, key), "nothing", "this key")
            else:
                yield from _problems(inner, data[key], _join(path, key))
        for inner in others:
            yield from _problems(inner, data, path)
    else:
        if isinstance(error, _NotWantedError) and error.key:
            data, path = data.get(error.key), _join(path, error.key)
        yield Problem(path or "(file)", _shown(data), str(error))


def _join(path: str, key: str | int) -> str:
    if isinstance(key, int):
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else key


def _shown(data: Any) -> str:
    if data is None:
        return "null"
    if type(data) is int and abs(data) > _MAX_INT:
        return f"int of {data.bit_length()} bits"
    text = repr(data) if not isinstance(data, Mapping) else repr(dict(data))
    cut = text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
    return f"{type(data).__name__} {cut}"


@functools.cache
def _converter(is_for_terminal: bool) -> Any:
    converter = require("cattrs").Converter(forbid_extra_keys=True, detailed_validation=True)
    make_class = require("cattrs.gen").make_dict_structure_fn
    for kind in (*_SCALARS, enum.Enum):
        converter.register_structure_hook(kind, _scalar)
    if is_for_terminal:
        converter.register_structure_hook(str, _terminal_text)
    converter.register_structure_hook_func(lambda hint: hint is Any, _free)
    converter.register_structure_hook_factory(
        lambda hint: is_dataclass(typing.get_origin(hint) or hint),
        lambda hint: _guard(make_class(hint, converter)),
    )
    for origin, factory in ((tuple, _tuple), (Mapping, _mapping)):
        converter.register_structure_hook_factory(
            functools.partial(_has_origin, origin), functools.partial(factory, converter)
        )
    converter.register_structure_hook_factory(
        lambda hint: len(_members(hint)) > 1, functools.partial(_union, converter)
    )
    return converter


def _scalar(data: Any, kind: Any) -> Any:
    if issubclass(kind, enum.Enum):
        members = {member.value: member for member in kind}
        if not isinstance(data, str) or data not in members:
            raise _NotWantedError(" | ".join(members))
        return members[data]
    if kind is float and type(data) is int and abs(data) <= _MAX_INT:
        return float(data)
    if type(data) is not kind:
        raise _NotWantedError(_SCALARS[kind])
    if kind is int and abs(data) > _MAX_INT:
        raise _NotWantedError("a number of at most 64 bits")
    if kind is float and not math.isfinite(data):
        raise _NotWantedError("a finite number")
    return data


def _terminal_text(data: Any, kind: Any) -> Any:
    value = _scalar(data, kind)
    if _CONTROL.search(value):
        raise _NotWantedError("text without control characters")
    return value


def _free(data: Any, _: Any) -> Any:
    """Take any JSON value that can be written again."""
    _check_free(data, _MAX_DEPTH)
    return data


def _check_free(value: Any, depth: int) -> None:
    if depth == 0:
        raise _NotWantedError("values that are not nested too deep")
    if isinstance(value, float) and not math.isfinite(value):
        raise _NotWantedError(f"finite numbers, not {value}")
    if isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            _check_free(item, depth - 1)


def _guard(build: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def structure(data: Any, hint: Any) -> Any:
        if not isinstance(data, Mapping):
            raise _NotWantedError(_OBJECT)
        return build(data, hint)

    return structure


def _has_origin(origin: Any, hint: Any) -> bool:
    return typing.get_origin(hint) is origin


def _tuple(converter: Any, hint: Any) -> Callable[[Any, Any], tuple[Any, ...]]:
    item_hint, *rest = typing.get_args(hint)
    if rest != [...]:
        raise TypeError(f"{hint} in a dataclass")
    item = converter.get_structure_hook(item_hint)

    def structure(data: Any, _: Any) -> tuple[Any, ...]:
        if not isinstance(data, list | tuple):
            raise _NotWantedError("a list")
        return tuple(_each(enumerate(data), item, item_hint))

    return structure


def _mapping(converter: Any, hint: Any) -> Callable[[Any, Any], dict[str, Any]]:
    value_hint = typing.get_args(hint)[1]
    value = converter.get_structure_hook(value_hint)

    def structure(data: Any, _: Any) -> dict[str, Any]:
        if not isinstance(data, Mapping):
            raise _NotWantedError(_OBJECT)
        return dict(zip(data, _each(data.items(), value, value_hint), strict=True))

    return structure


def _each(
    items: Iterable[tuple[Any, Any]], hook: Callable[[Any, Any], Any], hint: Any
) -> list[Any]:
    """Convert every part of a list or mapping; stop after ``_MAX_FAULTS`` faults."""
    errors = require("cattrs.errors")
    values, faults = [], []
    for key, item in items:
        try:
            values.append(hook(item, hint))
        except (_NotWantedError, errors.BaseValidationError) as error:
            error.__notes__ = [errors.IterableValidationNote("", key, hint)]
            faults.append(error)
            if len(faults) == _MAX_FAULTS:
                break
    if faults:
        raise errors.IterableValidationError("", faults, hint)
    return values


def _members(hint: Any) -> list[Any]:
    """Give the dataclasses of a union."""
    if typing.get_origin(hint) not in _UNIONS:
        return []
    return [inner for inner in typing.get_args(hint) if is_dataclass(inner)]


def _union(converter: Any, hint: Any) -> Callable[[Any, Any], Any]:
    """Choose a dataclass by the field that is a ``Literal`` in each."""
    allows_none = type(None) in typing.get_args(hint)
    by_tag: dict[str, Any] = {}
    for member in _members(hint):
        for name, inner in typing.get_type_hints(member).items():
            if typing.get_origin(inner) is Literal:
                tag_name = name
                by_tag |= dict.fromkeys(typing.get_args(inner), member)
    hooks = {tag: converter.get_structure_hook(member) for tag, member in by_tag.items()}

    def structure(data: Any, _: Any) -> Any:
        if data is None and allows_none:
            return None
        if not isinstance(data, Mapping):
            raise _NotWantedError(_OBJECT)
        tag = data.get(tag_name)
        if not isinstance(tag, str) or tag not in hooks:
            raise _NotWantedError(" | ".join(hooks), key=tag_name)
        return hooks[tag](data, by_tag[tag])

    return structure
