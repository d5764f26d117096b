"""The contract that every reader of untrusted bytes must keep.

Return a value that keeps its promises, or raise an ``EdgekitError``; in bounded time and memory,
with a message that can be printed. The script that fuzzes and the tests share this file.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

from edgekit.errors import EdgekitError

MAX_MESSAGE_CHARS: Final = 40_000
SEPARATOR: Final = b"\n-----8<-----\n"


class PromiseBroken(BaseException):
    """A reader accepted something and what it gave is not what its docstring says."""


class TooSlow(BaseException):
    """A reader used more processor time than its target allows."""


@dataclass(frozen=True)
class Target:
    """One reader under test.

    Attributes:
        name: As on the command line, and the folder of its corpus.
        run: Reads the bytes; may use the folder for files. Raises ``EdgekitError`` or returns.
        seeds: Valid inputs, written by other libraries or by edgekit's own writers.
        mutate: Changes an input so that its outer structure mostly survives.
        cpu_s: Processor time that one input may take.
        memory_factor: Bytes of memory that one byte of input may cost, beside ``memory_bytes``.
        memory_bytes: Memory that any input may cost.
    """

    name: str
    run: Callable[[bytes, Path], object]
    seeds: Callable[[], list[bytes]]
    mutate: Callable[[bytes, Random], bytes]
    cpu_s: float = 5.0
    memory_factor: int = 64
    memory_bytes: int = 24 << 20


def promise(is_kept: object, what: str) -> None:
    """Say that what follows from an accepted input must hold."""
    if not is_kept:
        raise PromiseBroken(what)


def check(target: Target, data: bytes, folder: Path) -> bool:
    """Hold one input against the contract; tell whether the reader accepted it.

    Raises:
        Anything but ``EdgekitError``: the contract is broken.
    """
    with cpu_limit(target.cpu_s):
        try:
            target.run(data, folder)
        except EdgekitError as error:
            check_message(error)
            return False
    return True


def check_message(error: EdgekitError) -> None:
    """A message fits on a screen and can be written to any terminal and as JSON."""
    text = str(error)
    text.encode("utf-8")
    promise(len(text) <= MAX_MESSAGE_CHARS, f"a message of {len(text)} characters")
    odd = [c for c in text if not c.isprintable() and c != "\n"]
    promise(not odd, f"a message with the control character {odd[:1]!r}")


@contextmanager
def cpu_limit(seconds: float) -> Any:
    """Raise ``TooSlow`` in the block after this much processor time, even when it never ends."""

    def expire(*_: object) -> None:
        raise TooSlow(f"more than {seconds:g} s")

    before = signal.signal(signal.SIGVTALRM, expire)
    start_s = time.thread_time()
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    used_s = time.thread_time() - start_s
    if used_s > seconds:
        raise TooSlow(f"{used_s:.1f} s of at most {seconds:g} s")


def join_parts(*parts: bytes) -> bytes:
    """Put several files into one input."""
    return SEPARATOR.join(parts)


def split_parts(data: bytes, n_parts: int) -> list[bytes]:
    """Take the files out of an input; absent ones are empty."""
    parts = data.split(SEPARATOR, n_parts - 1)
    return parts + [b""] * (n_parts - len(parts))


def mutate_part(
    data: bytes, rng: Random, mutators: list[Callable[[bytes, Random], bytes]]
) -> bytes:
    """Change one of the files of an input."""
    parts = split_parts(data, len(mutators))
    number = rng.randrange(len(mutators))
    parts[number] = mutators[number](parts[number], rng)
    return join_parts(*parts)
