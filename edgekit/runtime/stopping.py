"""Stop strings: finding the first one in a text that is streamed in pieces.

Text that could still become a stop string is held back, so that no part of one is ever shown.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Finds the first complete stop string in a text that arrives in pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self._is_stopped = False

    @property
    def is_stopped(self) -> bool:
        """True once a stop string was complete."""
        return self._is_stopped

    def feed(self, text: str) -> str:
        """Add the next piece and give the text that is final now."""
        if self._is_stopped:
            return ""
        if not self._stops:
            return text
        self._held += text
        # The stop that is complete first wins, which does not depend on how the text is split.
        found = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self._is_stopped = True
            final, self._held = self._held[: min(found)[1]], ""
            return final
        n_final = len(self._held) - self._n_open()
        final, self._held = self._held[:n_final], self._held[n_final:]
        return final

    def flush(self) -> str:
        """Give what was held back: no more text follows, so it cannot become a stop string."""
        final, self._held = self._held, ""
        return final

    def _n_open(self) -> int:
        """Length of the longest end of the held text with which some stop string begins."""
        return max(
            (
                n
                for stop in self._stops
                for n in range(min(len(stop) - 1, len(self._held)), 0, -1)
                if self._held.endswith(stop[:n])
            ),
            default=0,
        )
