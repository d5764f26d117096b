"""``Draw``: a small random stream that is the same on every platform and Python version.

Text and items are made with it, so that the same seed gives the same ones everywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final, TypeVar

_MASK: Final = (1 << 64) - 1
T = TypeVar("T")


class Draw:
    """A small random stream that is the same on every platform and Python version.

    Source:
        splitmix64 (Steele, Lea, Flood 2014), seeded through BLAKE2b.
    """

    def __init__(self, *key: str | int) -> None:
        """Start a stream; equal keys give equal streams."""
        self._state = digest("\x1f".join(str(part) for part in key))

    def below(self, n: int) -> int:
        """Draw an integer in 0..n-1."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return ((z ^ (z >> 31)) * n) >> 64

    def between(self, low: int, high: int) -> int:
        """Draw an integer in low..high, both ends included."""
        return low + self.below(high - low + 1)

    def chance(self, pct: int) -> bool:
        """Be true in `pct` of 100 draws."""
        return self.below(100) < pct

    def pick(self, choices: Sequence[T]) -> T:
        """Draw one of `choices`."""
        return choices[self.below(len(choices))]

    def sample(self, choices: Sequence[T], n: int) -> list[T]:
        """Draw `n` different positions of `choices`, in random order."""
        pool = list(choices)
        for i in range(min(n, len(pool))):
            j = self.between(i, len(pool) - 1)
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:n]


def digest(text: str) -> int:
    """Give a number of 64 bits that a text always has."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
