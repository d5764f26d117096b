"""``Accepted`` and ``Rejected``: the answer of every ``supports`` and ``match``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Accepted:
    """Yes; ``notes`` says what the caller should know besides."""

    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rejected:
    """No; ``reason`` says why, and what a person can change."""

    reason: str


Decision: TypeAlias = Accepted | Rejected
