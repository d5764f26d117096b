"""Progress reports of long work: a callback ``progress(what, n_done, n_total)``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, int, int], None]
"""Must return quickly and never raise."""


def ignore_progress(what: str, n_done: int, n_total: int) -> None:
    """Show nothing."""
