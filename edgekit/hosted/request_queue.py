"""``RequestQueue``: one request at a time uses the model, and a few more may wait.

Waiting requests have a time limit. Requests beyond the queue are refused at once and told to come
back later.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from edgekit.hosted.api_error import ApiError

_POLL_S: Final = 0.05


class RequestQueue:
    """A lock with a short queue.

    Args:
        max_waiting: Requests that may wait besides the one that runs.
        max_wait_s: Longest wait of one request.
    """

    def __init__(self, max_waiting: int, max_wait_s: float) -> None:
        self._max_waiting = max_waiting
        self._max_wait_s = max_wait_s
        self._lock = threading.Lock()
        self._count_lock = threading.Lock()
        self._n_waiting = 0

    @contextmanager
    def hold(self, check: Callable[[], None]) -> Iterator[None]:
        """Wait for the model and hold it for the length of the ``with`` block.

        Args:
            check: Called while waiting; raises when the client has gone.

        Raises:
            ApiError: 429 when the queue is full, 503 when the wait was too long.
        """
        if not self._lock.acquire(blocking=False):
            self._wait(check)
        try:
            yield
        finally:
            self._lock.release()

    def _wait(self, check: Callable[[], None]) -> None:
        with self._count_lock:
            if self._n_waiting >= self._max_waiting:
                raise ApiError(
                    429, "the model is busy, its queue is full", got=f"{self._n_waiting} waiting",
                    do="Try again in a moment.", kind="rate_limit_error",
                    code="rate_limit_exceeded", headers={"Retry-After": "1"},
                )  # fmt: skip
            self._n_waiting += 1
        try:
            until_s = time.monotonic() + self._max_wait_s
            while not self._lock.acquire(timeout=_POLL_S):
                check()
                if time.monotonic() >= until_s:
                    raise ApiError(
                        503, "the model stayed busy", got=f"no turn in {self._max_wait_s:g} s",
                        do="Try again later.", kind="server_error", code="overloaded",
                        headers={"Retry-After": "1"},
                    )  # fmt: skip
        finally:
            with self._count_lock:
                self._n_waiting -= 1
