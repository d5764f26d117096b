"""Answer one question: what does config.json say, and was every key accounted for?

A ``RawConfig`` remembers which keys were taken or ignored by name. Reading never stops at the
first fault: ``finish`` reports all missing, wrong and unknown keys together.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar, overload

from edgekit.errors import CheckpointError, UnknownKeyError
from edgekit.strict_json import read_object

_T = TypeVar("_T")
_D = TypeVar("_D")
_REQUIRED: Final = object()
_JSON_NAMES: Final[Mapping[type, str]] = {
    int: "an integer",
    float: "a number",
    str: "a string",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


class RawConfig(Mapping[str, Any]):
    """The keys of config.json, each waiting to be taken, ignored by name, or reported.

    As a mapping it only shows the values; looking does not count as taking.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        """Wrap parsed JSON; ``where`` names the file (and section) in messages."""
        self.where = where
        self._values = dict(values)
        self._accounted: set[str] = set()
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

    def require(self, key: str) -> None:
        """Report a key that is absent or null; taking it is left to the caller."""
        if self._values.get(key) is None:
            self.report(f"{key} is missing")

    def fill(self, defaults: Mapping[str, Any]) -> None:
        """Give absent keys the value that their absence means; null counts as absent."""
        for key, value in defaults.items():
            if self._values.get(key) is None:
                self._values[key] = value

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

        A fault is kept for ``finish``; until that has passed the result means nothing.

        Args:
            key: Name of the key.
            kind: int, float (integers are fine), str, bool, list or dict.
            default: Value when absent; without it the key is required.
        """
        self._accounted.add(key)
        value = self._values.get(key)
        if value is None:
            if default is not _REQUIRED:
                return default
            self.report(f"{key} is missing (wanted {_JSON_NAMES[kind]})")
            return kind()
        accepted = (int, float) if kind is float else kind
        is_other = not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool)
        if is_other or (kind is float and abs(value) > sys.float_info.max):
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

    def expect(self, key: str, wanted: Any, default: Any) -> None:
        """Take a key of which only one value is supported.

        Args:
            key: Name of the key.
            wanted: The value that is supported.
            default: What an absent key means.
        """
        self._accounted.add(key)
        value = self._values.get(key, default)
        if value != wanted:
            self.report(f"{key} is {_quote(value)} (edgekit supports {wanted!r} only)")

    def take_ids(self, key: str) -> tuple[int, ...]:
        """Take token ids written as one id, a list of ids, or null (none)."""
        self._accounted.add(key)
        value = self._values.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
            self.report(f"{key} is {_quote(value)} (wanted a token id or a list of them)")
            return ()
        return tuple(dict.fromkeys(ids))

    def take_section(self, key: str) -> RawConfig | None:
        """Take an object whose keys are accounted for in turn; None when absent or null."""
        value = self.take(key, dict, None)
        if value is None:
            return None
        section = RawConfig(value, f"{self.where}: {key}")
        self._sections.append(section)
        return section

    def ignore(self, keys: Iterable[str]) -> None:
        """Count keys as accounted for although nothing is done with them."""
        self._accounted.update(keys)

    def report(self, problem: str) -> None:
        """Keep a fault for ``finish``."""
        self._problems.append(problem)

    def finish(self) -> None:
        """Check that every key was accounted for and none was at fault.

        Raises:
            UnknownKeyError: Keys neither taken nor ignored; other faults are named too.
            CheckpointError: Keys missing or wrong; all of them are named.
        """
        unknown, problems = self._drain()
        if unknown:
            also = f" (also: {'; '.join(problems)})" if problems else ""
            raise UnknownKeyError(
                f"{self.where}: keys that edgekit does not know{also}",
                keys=unknown,
                do="They may change the result. Remove them only if you know that they do not.",
            )
        if problems:
            raise CheckpointError(
                f"{self.where}: {'; '.join(problems)}",
                do="Compare it with the model's original config.json.",
            )

    def _drain(self) -> tuple[list[str], list[str]]:
        """Give unknown keys and faults, sections included, and forget the faults."""
        unknown = sorted(self._values.keys() - self._accounted)
        problems, self._problems = self._problems, []
        sections, self._sections = self._sections, []
        for section in sections:
            name = section.where.removeprefix(f"{self.where}: ")
            inner_unknown, inner_problems = section._drain()
            unknown += [f"{name}.{key}" for key in inner_unknown]
            problems += [f"{name}.{problem}" for problem in inner_problems]
        return unknown, problems


def _quote(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "..."
