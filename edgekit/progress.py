"""Progress reports of long work: a callback ``progress(what, n_done, n_total)``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, int, int], None]
"""Must return quickly and never raise."""


def ignore_progress(what: str, n_done: int, n_total: int) -> None:
    """Show nothing."""


class TimeLeft:
    """An estimate of how long a phase of work still takes, from the reports of its progress.

    A phase begins where the count falls or the total changes; from then on all its pieces are taken
    to last as long as those before.
    """

    def __init__(self) -> None:
        self._started_s = 0.0
        self._first = self._done = self._total = 0

    def report(self, now_s: float, n_done: int, n_total: int) -> float | None:
        """Take a report and give the seconds that are left; None while nothing is known.

        Args:
            now_s: Any clock that never goes back.
            n_done: Pieces done.
            n_total: Pieces of the phase.
        """
        if n_total != self._total or n_done < self._done:
            self._started_s, self._first = now_s, n_done
        self._done, self._total = n_done, n_total
        if n_done <= self._first:
            return None
        return (now_s - self._started_s) / (n_done - self._first) * (n_total - n_done)


def format_left(seconds: float | None) -> str:
    """Write how long it still takes, rounded up; empty if that is unknown or under 2 seconds."""
    if seconds is None or seconds < 2:
        return ""
    if seconds < 100:
        return f"{-(-seconds // 1):.0f} s left"
    minutes = int(-(-seconds // 60))
    return f"{minutes} min left" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min left"
