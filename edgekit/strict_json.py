"""Strict reading of JSON objects from untrusted files.

Stricter than ``json.loads``. Refused are: a key that stands twice in one object; NaN, infinity and
numbers that would become infinite; half of a surrogate pair, which UTF-8 cannot hold; and nesting
beyond ``MAX_DEPTH``, which would exhaust the stack here or wherever the value is shown.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any, Final, NoReturn

from edgekit.errors import CheckpointError, FormatError, MissingFileError
from edgekit.files import NotTrustedError, read_inside

MAX_OBJECT_BYTES: Final = 4 << 20
MAX_DEPTH: Final = 127  # as the JSON reader of Rust, and with it safetensors
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def parse_object(data: bytes, where: str, *, allows_surrogates: bool = False) -> dict[str, Any]:
    """Read UTF-8 JSON whose outermost value is an object.

    Args:
        data: The bytes; the caller has limited their number.
        where: File and place, for the message.
        allows_surrogates: Accept half of a surrogate pair; edgekit's own reports may hold one.

    Raises:
        FormatError: Not UTF-8, not JSON, not an object, a key that stands twice, a number or text
            that JSON does not allow, or nesting too deep.
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=refuse_constant,
            parse_float=_finite,
            # Only where it may be needed, because a call for each integer is slow.
            parse_int=_integer if b"-0" in data else None,
        )
        _check_parts(value, allows_surrogates=allows_surrogates)
    except (ValueError, RecursionError) as error:
        got = "nesting too deep" if isinstance(error, RecursionError) else str(error)
        raise FormatError(f"{where}: not valid JSON", got=got, wanted="a JSON object") from error
    if not isinstance(value, dict):
        raise FormatError(f"{where}: outermost value", got=type(value).__name__, wanted="object")
    return value


def read_object(path: Path, *, max_bytes: int = MAX_OBJECT_BYTES) -> dict[str, Any]:
    """Read a JSON file whose outermost value is an object.

    Raises:
        MissingFileError: No such file.
        CheckpointError: Unreadable, larger than ``max_bytes``, or not a JSON object.
    """
    try:
        data = read_inside(path, max_bytes)
    except FileNotFoundError as error:
        raise MissingFileError(
            f"{path}: no such file",
            wanted=f"a model folder with {path.name}",
            do="Name the folder that holds it, or download the model again.",
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read",
            got=str(error),
            wanted=f"a plain file in this folder of at most {max_bytes} bytes",
            do=error.do if isinstance(error, NotTrustedError) else None,
        ) from error
    try:
        return parse_object(data, str(path))
    except FormatError as error:
        raise CheckpointError(
            error.what, got=error.got, wanted=error.wanted, do="Download the model again."
        ) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise ValueError(f"key given twice: {counts.most_common(1)[0][0][:80]!r}")
    return result


def refuse_constant(name: str) -> NoReturn:
    """Refuse NaN and infinity: Python's JSON reader takes them, but JSON has no such numbers."""
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"number too large: {digits[:40]}")
    return value


def _integer(digits: str) -> int:
    if digits == "-0":
        raise ValueError("-0 is not an integer")  # other readers take it for a float
    return int(digits)


def _check_parts(value: Any, *, allows_surrogates: bool) -> None:
    """Check every text and level: Python reads more than can be written or shown again."""
    level = [value]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += item.keys()
                inner += item.values()
            elif isinstance(item, list):
                inner += item
            elif isinstance(item, str) and not allows_surrogates and _SURROGATE.search(item):
                raise ValueError("half of a surrogate pair in a text")
        level = [item for item in inner if isinstance(item, str | list | dict)]
        if not level:
            return
    if any(isinstance(item, list | dict) for item in level):
        raise ValueError("nesting too deep")
