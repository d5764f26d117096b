"""``RawConfig``: the keys of config.json, each of which is used, ignored with reason, or refused.

A ``RawConfig`` remembers which keys were taken or ignored by name; config_keys.py judges the rest
by name and value. Reading never stops at the first fault: ``finish`` reports all missing, wrong
and unknown keys together. Keys that the user wants ignored (``--ignore-config-key``) pass.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar, overload

from edgekit.checkpoint.config_keys import CHANGES, asks_for_nothing, is_never_read
from edgekit.errors import CheckpointError, UnknownKeyError, UsageError
from edgekit.strict_json import read_object

_T = TypeVar("_T")
_D = TypeVar("_D")
_REQUIRED: Final = object()
_MAX_INTEGER: Final = (1 << 63) - 1  # what a manifest can hold
_MAX_TOKEN_ID: Final = (1 << 31) - 1
_JSON_NAMES: Final[Mapping[type, str]] = {
    int: "an integer",
    float: "a number",
    str: "a string",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


IGNORE_OPTION: Final = "--ignore-config-key"


@dataclass(frozen=True, slots=True)
class _Reading:
    """State that a config and its sections share: keys to ignore, and notes for the user."""

    asked: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


class RawConfig(Mapping[str, Any]):
    """The keys of config.json, each waiting to be taken, ignored by name, or reported.

    As a mapping it only shows the values; looking does not count as taking.

    Attributes:
        where: The file (and section), for messages.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        """Wrap parsed JSON; ``where`` names the file (and section) in messages."""
        self.where = where
        self._read = values
        self._values = dict(values)
        self._path = ""
        self._is_whole = True
        self._reading = _Reading()
        self._accounted: set[str] = set()
        self._misused: list[str] = []
        self._problems: list[str] = []
        self._sections: list[RawConfig] = []

    @classmethod
    def open(cls, path: Path) -> RawConfig:
        """Read a config file.

        Raises:
            MissingFileError: No such file.
            CheckpointError: Too large, not JSON, or not an object.
        """
        return cls(read_object(path), str(path))

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user from reading, one line each; sections included."""
        return tuple(self._reading.notes)

    def note(self, text: str) -> None:
        """Add a note for the user, once."""
        if text not in self._reading.notes:
            self._reading.notes.append(text)

    def as_read(self) -> dict[str, Any]:
        """Give the keys and values as the file has them, without what ``fill`` added."""
        return dict(self._read)

    def ignore_as_asked(self, keys: Iterable[str]) -> None:
        """Ignore keys, whatever their value is, because the user asks for it.

        Args:
            keys: Names; a key of a section is written ``section.key``.

        Raises:
            UsageError: The config has no such key.
        """
        asked = list(dict.fromkeys(keys))
        values = dict(_full_names(self._values))
        absent = [key for key in asked if key not in values]
        if absent:
            raise UsageError(
                f"{self.where}: {IGNORE_OPTION} names keys that are not there",
                got=", ".join(absent),
                wanted="keys of the config; one of a section as section.key",
                do="Leave the option out, or write the key as the message that refused it does.",
            )
        self._reading.asked.update(asked)
        for key in asked:
            self.note(f"config key {key} = {_quote(values[key])}: ignored as asked")

    def is_ignored(self, key: str) -> bool:
        """Tell whether the user wants a key ignored."""
        return self._path + key in self._reading.asked

    def fill(self, defaults: Mapping[str, Any], *, keeps_null: bool = False) -> None:
        """Give absent keys the value that their absence means.

        Args:
            defaults: Key to value.
            keeps_null: Whether null is a value of its own; else it counts as absent.
        """
        for key, value in defaults.items():
            is_there = key in self._values if keeps_null else self._values.get(key) is not None
            if not is_there:
                self._values[key] = value

    def rename(self, names: Mapping[str, str]) -> None:
        """Show keys under the names that most configs have for them, old name to usual name."""
        for old, usual in names.items():
            self._use(old)
            if self._values.get(usual) is None and old in self._values:
                self._values[usual] = self._values[old]

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    @overload
    def take(self, key: str, kind: type[_T]) -> _T: ...
    @overload
    def take(self, key: str, kind: type[_T], default: _D) -> _T | _D: ...
    def take(self, key: str, kind: type[Any], default: Any = _REQUIRED) -> Any:
        """Take a key of the given JSON type; null counts as absent.

        A fault is kept for ``finish``; the result is valid only after ``finish`` has passed.

        Args:
            key: Name of the key.
            kind: int, float (integers are fine), str, bool, list or dict.
            default: Value when absent; without it the key is required.
        """
        self._use(key)
        value = self._values.get(key)
        if value is None:
            if default is not _REQUIRED:
                return default
            self.report(f"{key} is missing (wanted {_JSON_NAMES[kind]})")
            return kind()
        accepted = (int, float) if kind is float else kind
        is_other = not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool)
        limit = {int: _MAX_INTEGER, float: sys.float_info.max}.get(kind)
        if is_other or (limit is not None and abs(value) > limit):
            self.report(f"{key} is {_quote(value)} (wanted {_JSON_NAMES[kind]})")
            return kind()
        return float(value) if kind is float else value

    def take_count(self, key: str, default: int | None = None, *, at_most: int = 1 << 31) -> int:
        """Take an integer of 1 .. ``at_most``; required unless a default is given.

        One beyond is reported and given as ``at_most``, so that computing with it stays cheap.
        """
        value = self.take(key, int) if default is None else self.take(key, int, default)
        if not 1 <= value <= at_most and isinstance(self._values.get(key), int):
            self.report(f"{key} is {_quote(value)} (wanted 1 .. {at_most})")
        return min(value, at_most)

    def take_factor(self, key: str, default: float) -> float:
        """Take a positive number that something is multiplied or divided by."""
        factor = self.take(key, float, default)
        if not 0 < factor < 1e9:
            self.report(f"{key} is {factor} (wanted a positive number)")
            return 1.0
        return float(factor)

    def expect(self, key: str, wanted: Any, default: Any) -> None:
        """Take a key of which only one value is supported.

        Args:
            key: Name of the key.
            wanted: The value that is supported.
            default: What an absent key means.

        A key that the user wants ignored counts as the value that is supported.
        """
        self._accounted.add(key)
        value = self._values.get(key, default)
        if value != wanted and not self.is_ignored(key):
            self.report(f"{key} is {_quote(value)} (edgekit supports {wanted!r} only)")

    def take_ids(self, key: str) -> tuple[int, ...]:
        """Take token ids written as one id, a list of ids, or null (none)."""
        self._use(key)
        value = self._values.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(i) is int and 0 <= i <= _MAX_TOKEN_ID for i in ids):
            self.report(f"{key} is {_quote(value)} (wanted a token id or a list of them)")
            return ()
        return tuple(dict.fromkeys(ids))

    def take_section(self, key: str) -> RawConfig | None:
        """Take an object whose keys are accounted for in turn; None when absent, null or empty."""
        value = self.take(key, dict, None)
        if not value:
            return None
        section = self._open_section(key, value)
        section._is_whole = False
        self._sections.append(section)
        return section

    def take_inner(self, key: str) -> RawConfig:
        """Take a required object that is a config of its own, with a ``finish`` of its own."""
        return self._open_section(key, self.take(key, dict))

    def _open_section(self, key: str, value: Mapping[str, Any]) -> RawConfig:
        section = RawConfig(value, f"{self.where}: {key}")
        section._path, section._reading = f"{self._path}{key}.", self._reading
        return section

    def _passes(self, key: str) -> bool:
        """Tell whether a key that was not taken may pass; never-read ones count at the top only."""
        if asks_for_nothing(key, self._read[key]):
            return True
        return is_never_read(key) if self._is_whole else key.startswith("_")

    def _use(self, key: str) -> None:
        """Count a key as one that the result depends on."""
        self._accounted.add(key)
        if self.is_ignored(key):
            self._misused.append(self._path + key)

    def ignore(self, keys: Iterable[str]) -> None:
        """Count keys as accounted for although nothing is done with them."""
        self._accounted.update(keys)

    def report(self, problem: str) -> None:
        """Keep a fault for ``finish``."""
        self._problems.append(problem)

    def finish(self) -> None:
        """Check that every key was accounted for and none was at fault.

        Raises:
            UsageError: A key that the result depends on was to be ignored.
            UnknownKeyError: Keys neither taken nor ignored; other faults are named too.
            CheckpointError: Keys missing or wrong; all of them are named.
        """
        unknown, problems, misused = self._drain()
        if misused:
            raise UsageError(
                f"{self.where}: {IGNORE_OPTION} names keys that edgekit computes with",
                got=", ".join(dict.fromkeys(misused)),
                wanted="keys that edgekit does not know, or supports with one value only",
                do="Leave the option out; change config.json if the value is wrong.",
            )
        if unknown:
            also = f" (also: {'; '.join(problems)})" if problems else ""
            options = " ".join(f"{IGNORE_OPTION} {key}" for key in unknown)
            raise UnknownKeyError(
                f"{self.where}: keys that edgekit does not know{also}",
                keys=unknown,
                do="They may change the result. If you know that they do not, have them ignored: "
                + options,
            )
        if problems:
            raise CheckpointError(
                f"{self.where}: {'; '.join(problems)}",
                do="Compare it with the model's original config.json.",
            )

    def _drain(self) -> tuple[dict[str, str], list[str], list[str]]:
        """Give unknown keys with their values, faults, and misused keys; forget the faults.

        Sections are included; keys have their full names.
        """
        unknown = {
            self._path + key: _describe(key, self._read[key])
            for key in sorted(self._read.keys() - self._accounted)
            if not self.is_ignored(key) and not self._passes(key)
        }
        problems, self._problems = self._problems, []
        misused, self._misused = self._misused, []
        sections, self._sections = self._sections, []
        for section in sections:
            name = section.where.removeprefix(f"{self.where}: ")
            inner_unknown, inner_problems, inner_misused = section._drain()
            unknown |= inner_unknown
            problems += [f"{name}.{problem}" for problem in inner_problems]
            misused += inner_misused
        return unknown, problems, misused


def _full_names(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Give every key with its value, those of sections as ``section.key``."""
    for key, value in values.items():
        yield path + key, value
        if isinstance(value, dict):
            yield from _full_names(value, f"{path}{key}.")


def _describe(key: str, value: object) -> str:
    """Give the value of a key that is refused, and what it does if that is known."""
    why = f" ({CHANGES[key]})" if key in CHANGES else ""
    return _quote(value) + why


def _quote(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "..."
