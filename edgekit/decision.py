"""``Accepted`` and ``Rejected``: what every ``supports`` and ``match`` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Accepted:
    """Yes; ``notes`` says what the caller should still know."""

    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rejected:
    """No, and why, in words a person can act on."""

    reason: str


Decision: TypeAlias = Accepted | Rejected
