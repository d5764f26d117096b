"""Answer one question: how is a JSON object read from a file that nobody vouches for?

Stricter than ``json.loads``: a key may stand only once, NaN and infinity are refused, and
nesting that would exhaust the stack is an error like any other.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from edgekit.errors import FormatError


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """Read UTF-8 JSON whose outermost value is an object.

    Args:
        data: The bytes; the caller has capped their number.
        where: File and place, for the message.

    Raises:
        FormatError: Not UTF-8, not JSON, not an object, a key twice, or nested too deep.
    """
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        got = "nesting too deep" if isinstance(error, RecursionError) else str(error)
        raise FormatError(f"{where}: not valid JSON", got=got, wanted="a JSON object") from error
    if not isinstance(value, dict):
        raise FormatError(f"{where}: outermost value", got=type(value).__name__, wanted="object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise ValueError(f"key given twice: {counts.most_common(1)[0][0][:80]!r}")
    return result


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
