"""Changes to a valid input that get past the first check of a reader.

JSON is changed as a tree and written with faults that ``json.dumps`` cannot write; binary files
are changed field by field, and byte by byte.
"""

from __future__ import annotations

import json
import re
import struct
from random import Random
from typing import Any, Final


class Raw(str):
    """Text that goes into the JSON as it is."""


class Pairs(list):
    """A JSON object as pairs, so that a key may stand twice."""


BIG: Final = (
    0, 1, 2, 3, 7, 8, 31, 32, 33, 63, 64, 127, 128, 255, 256, 257, 1023, 1024, 4095, 4096, 65535,
    65536, 1 << 20, (1 << 24) - 1, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32,
    (1 << 48), (1 << 53) + 1, (1 << 56), (1 << 62), (1 << 63) - 1, 1 << 63, (1 << 64) - 1,
)  # fmt: skip
NUMBERS: Final = (
    *BIG, -1, -2, -(1 << 31), -(1 << 63), 1 << 64, 10**30, 10**400, 0.0, -0.0, 0.5, 1.0, 1.5, 2.0,
    -1.0, 1e-320, 5e-324, 1e-45, 1e-8, 1e8, 1e15, 1e300, 1.7976931348623157e308, 3.5e38, 65536.0,
    Raw("NaN"), Raw("Infinity"), Raw("-Infinity"), Raw("1e999"), Raw("-1e999"), Raw("1E400"),
    Raw("-0"), Raw("1" + "0" * 5000), Raw("9" * 4299), Raw("1.0000000000000000000000000001"),
    Raw("0x10"), Raw("01"), Raw("1_000"), Raw("+1"), Raw(".5"), Raw("1."),
)  # fmt: skip
TEXTS: Final = (
    "", " ", "\0", "a" * 300, "..", "../x", "/etc/hostname", "C:x", "a\\b", "\x1b[31mred\x1b[0m",
    "\u202egpj.exe", "\ufeff", "\u2028", Raw(r'"\ud800"'), Raw(r'"\udc00\ud800"'),
    Raw(r'"\ud83d\ude00"'), "\u0130", "\u017f", "\u212a",
    "__class__", "{{ 1 }}", "%s" * 50, "{0}", "weight", "lm_head", "int4-g32",
    "fp32", "F32", "I64", "BF16", "F8_E4M3", "yarn", "llama3", "longrope", "linear", "dynamic",
    "gptq", "fp8", "compressed-tensors", "True", "null", "1", "1e5", "NaN", "model.safetensors",
)  # fmt: skip
CONTAINERS: Final = (
    Raw("[]"), Raw("{}"), Raw("null"), Raw("true"), Raw("false"), Raw("[[]]"), Raw('{"":{}}'),
    Raw("[" * 120 + "]" * 120), Raw("[" * 900 + "]" * 900), Raw("[" * 960 + "]" * 960),
    Raw("[" * 2000 + "]" * 2000), Raw('{"a":' * 1200 + "1" + "}" * 1200), Raw("[" * 100_000),
    Raw('[1,2]'), Raw('["a","a"]'), Raw('{"a":1,"a":2}'), Raw("[0]"), Raw("[-1]"), Raw("[1e999]"),
    Raw("[" + "0," * 3000 + "0]"),
)  # fmt: skip
_TOKEN: Final = re.compile(rb"[A-Za-z0-9_.+-]+")


def parse_tree(data: bytes) -> Any:
    """Read JSON leniently; objects become ``Pairs``."""
    return json.loads(data.decode("utf-8"), object_pairs_hook=Pairs)


def write_tree(value: Any) -> str:
    """Write a tree; ``Raw`` goes in as it is."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, Pairs):
        inner = (f"{write_tree(key)}:{write_tree(item)}" for key, item in value)
        return "{" + ",".join(inner) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(write_tree, value)) + "]"
    return json.dumps(value)


def mutate_json(data: bytes, rng: Random) -> bytes:
    """Change one to four places of a JSON document; now and then its bytes."""
    if rng.random() < 0.06:
        return mutate_bytes(data, rng)
    try:
        tree = parse_tree(data)
    except (ValueError, RecursionError):
        return mutate_bytes(data, rng)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        tree = mutate_tree(tree, rng)
    try:
        return write_tree(tree).encode("utf-8", "surrogatepass")
    except RecursionError:
        return mutate_bytes(data, rng)


def mutate_tree(tree: Any, rng: Random) -> Any:
    """Change one place of a tree, in place where it can be."""
    places = _places(tree)
    if not places:
        return hostile(tree, rng)
    holder, key = rng.choice(places)
    old = holder[key][1] if isinstance(holder, Pairs) else holder[key]
    match rng.randrange(10):
        case 0 if len(holder) > 1:
            del holder[key]
        case 1:
            holder.insert(key, holder[key])  # twice: for an object the same key
        case 2 if isinstance(holder, Pairs):
            name = rng.choice((*TEXTS, *(pair[0] for pair in holder)))
            holder[key] = (name, old)
        case 3:
            other, at = rng.choice(places)
            _put(holder, key, other[at][1] if isinstance(other, Pairs) else other[at])
        case _:
            _put(holder, key, hostile(old, rng))
    return tree


def hostile(old: Any, rng: Random) -> Any:
    """Give something to stand in place of a value: mostly of its own kind."""
    if rng.random() < 0.15:
        return rng.choice(CONTAINERS)
    if rng.random() < 0.1:
        return rng.choice((*NUMBERS, *TEXTS))
    if isinstance(old, bool):
        return rng.choice((not old, 0, 1, None))
    if isinstance(old, int | float) and not isinstance(old, Raw):
        near = (old + 1, old - 1, old * 2, -old, old / 2 if abs(old) < 1e300 else old)
        return rng.choice((rng.choice(near), rng.choice(NUMBERS)))
    if isinstance(old, str):
        cut = rng.randrange(len(old) + 1)
        joined = old[:cut] + rng.choice(("", ".", "a", "\0", "é", "0")) + old[cut + 1 :]
        return rng.choice((joined, rng.choice(TEXTS)))
    return rng.choice((*CONTAINERS, *NUMBERS, *TEXTS))


def _places(tree: Any) -> list[tuple[Any, int]]:
    found: list[tuple[Any, int]] = []
    waiting = [tree]
    while waiting and len(found) < 5000:
        holder = waiting.pop()
        if isinstance(holder, list):
            found += [(holder, i) for i in range(len(holder))]
            waiting += [pair[1] if isinstance(holder, Pairs) else pair for pair in holder]
    return found


def _put(holder: Any, key: int, value: Any) -> None:
    # A place may have come to lie inside itself; a written copy cuts the knot.
    if isinstance(value, list):
        try:
            value = Raw(write_tree(value))
        except RecursionError:
            value = None
    holder[key] = (holder[key][0], value) if isinstance(holder, Pairs) else value


def mutate_bytes(data: bytes, rng: Random) -> bytes:
    """Flip, cut, repeat, or overwrite some bytes."""
    out = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        at = rng.randrange(len(out)) if out else 0
        length = min(len(out) - at, rng.choice((1, 1, 2, 4, 8, 16, 64)))
        match rng.randrange(6):
            case 0 if out:
                out[at] ^= 1 << rng.randrange(8)
            case 1 if out:
                out[at] = rng.randrange(256)
            case 2:
                del out[at : at + length]
            case 3:
                out[at:at] = out[at : at + length]
            case 4:
                del out[at:]
            case _:
                size = rng.choice((1, 2, 4, 8))
                value = rng.choice(BIG) & ((1 << 8 * size) - 1)
                out[at : at + size] = value.to_bytes(size, "little")
    return bytes(out)


def mutate_fields(data: bytes, rng: Random, places: list[tuple[int, str]]) -> bytes:
    """Overwrite numbers of a binary file: ``places`` are offsets and struct codes."""
    if not places or rng.random() < 0.15:
        return mutate_bytes(data, rng)
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        offset, code = rng.choice(places)
        size = struct.calcsize(f"<{code}")
        (old,) = struct.unpack_from(f"<{code}", data, offset)
        value = rng.choice((*BIG, old + 1, old - 1, old * 2, old ^ 1, len(data), offset))
        out[offset : offset + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
    return bytes(out)


def mutate_words(data: bytes, rng: Random, pool: tuple[str, ...]) -> bytes:
    """Change a text word by word: replace, drop, repeat or swap in what ``pool`` offers."""
    words = list(_TOKEN.finditer(data))
    if not words or rng.random() < 0.15:
        return mutate_bytes(data, rng)
    for _ in range(rng.choice((1, 1, 2, 3))):
        word = rng.choice(words)
        new = rng.choice((rng.choice(pool).encode(), rng.choice(words)[0], b"", word[0] * 2))
        data = data[: word.start()] + new + data[word.end() :]
        words = list(_TOKEN.finditer(data)) or words
    if rng.random() < 0.25:
        lines = data.splitlines(keepends=True)
        i, j = rng.randrange(len(lines) or 1), rng.randrange(len(lines) or 1)
        data = b"".join(
            (*lines[:i], *lines[j : j + rng.randrange(4)], *lines[i + rng.randrange(2) :])
        )
    return data
