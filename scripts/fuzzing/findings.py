"""Findings of a fuzzer: their keys, their smallest inputs, and where they are kept."""

from __future__ import annotations

import hashlib
import re
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final

MINIMISE_S: Final = 6.0


def key_of(error: BaseException) -> str:
    """Name a finding by its error and the innermost line of the package that it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/edgekit/" in f.filename and "/.venv/" not in f.filename]
    is_promise = type(error).__name__ == "PromiseBroken"
    targets = [f for f in frames if "/targets_" in f.filename]
    last = ((targets if is_promise else own) or frames)[-1]
    what = re.sub(r"\d+", "", str(error))[:40] if is_promise else ""
    place = f"{Path(last.filename).stem}-{last.name}-{last.lineno}"
    tag = hashlib.sha256(what.encode()).hexdigest()[:6] if what else ""
    return "-".join(filter(None, (type(error).__name__, place, tag)))


def minimise(data: bytes, fails: Callable[[bytes], bool]) -> bytes:
    """Delete ever smaller pieces while the input still fails; bounded by ``MINIMISE_S``."""
    deadline_s = time.monotonic() + MINIMISE_S
    size = max(1, len(data) // 2)
    while size >= 1 and time.monotonic() < deadline_s:
        at, is_smaller = 0, False
        while at < len(data) and time.monotonic() < deadline_s:
            shorter = data[:at] + data[at + size :]
            if fails(shorter):
                data, is_smaller = shorter, True
            else:
                at += size
        size = size if is_smaller and size == 1 else size // 2
    return data


def keep(folder: Path, key: str, data: bytes, error: BaseException) -> None:
    """Write the input and the traceback of a finding."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{key}.bin").write_bytes(data)
    text = "".join(traceback.format_exception(error))
    (folder / f"{key}.txt").write_text(text[-8000:], encoding="utf-8", errors="backslashreplace")
