"""Fuzz one target in this process; ``scripts/fuzz.py`` starts it.

    python scripts/fuzzing/child.py TARGET SECONDS FOLDER

Statistics go to FOLDER/stats.json, broken inputs to FOLDER/findings; a finding does not end the
run. Coverage counts branches of the package only.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import pkgutil
import resource
import signal
import sys
import time
import warnings
from pathlib import Path
from random import Random
from typing import Any, Final

import atheris

ROOT: Final = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

with atheris.instrument_imports(include=["edgekit"]):
    import edgekit.checkpoint
    import edgekit.families
    import edgekit.hub
    import edgekit.text
    from tests.fuzz.contract import PromiseBroken, Target, check
    from tests.fuzz.targets import TARGETS

    for package in (edgekit.text, edgekit.hub, edgekit.checkpoint, edgekit.families):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)

from fuzzing.findings import keep, key_of, minimise  # noqa: E402 - after the instrumented imports

MAX_MEMORY_BYTES: Final = 6 << 30
MAX_INPUT_BYTES: Final = 1 << 18
_SAVE_EVERY_S: Final = 1.0
_ENGINE_SHARE: Final = 0.2  # of the changes are left to libFuzzer's own mutator


class Run:
    """One run: what was tried, and what broke."""

    def __init__(self, target: Target, folder: Path, work: Path) -> None:
        self._target, self._folder, self._work = target, folder, work
        self._findings: dict[str, int] = {}
        self._n_done = self._n_accepted = 0
        self._slowest_s, self._slowest = 0.0, b""
        self._start_s = self._saved_s = time.monotonic()
        # What a library costs when it is used first is no input's cost.
        self._try(target.seeds()[0])
        self._n_accepted = 0
        self._base_bytes = _peak_bytes()

    def one(self, data: bytes) -> None:
        """Hold one input against the contract."""
        # What a process that hangs or dies was doing.
        (self._work / "current.bin").write_bytes(data)
        before_bytes, start_s = _peak_bytes(), time.process_time()
        error = self._try(data)
        used_s = time.process_time() - start_s
        grown = _peak_bytes() - before_bytes
        allowed = self._target.memory_bytes + self._target.memory_factor * len(data)
        if error is None and grown > allowed:
            error = _raised(PromiseBroken(f"memory: {grown >> 20} MiB for {len(data)} bytes"))
        if used_s > self._slowest_s:
            self._slowest_s, self._slowest = used_s, data
        self._n_done += 1
        if error is not None:
            self._note(data, error)
        if time.monotonic() - self._saved_s > _SAVE_EVERY_S:
            self.save()

    def _try(self, data: bytes) -> BaseException | None:
        try:
            self._n_accepted += check(self._target, data, self._work)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever comes is what was looked for
            return error
        return None

    def _note(self, data: bytes, error: BaseException) -> None:
        key = key_of(error)
        self._findings[key] = self._findings.get(key, 0) + 1
        if self._findings[key] > 1:
            return

        def fails(shorter: bytes) -> bool:
            found = self._try(shorter)
            return found is not None and key_of(found) == key

        is_quick = type(error).__name__ not in ("TooSlow", "MemoryError")
        small = minimise(data, fails) if is_quick and fails(data) else data
        keep(self._folder / "findings", key, small, error)

    def save(self) -> None:
        """Write the statistics so far."""
        self._saved_s = time.monotonic()
        wall_s = self._saved_s - self._start_s
        stats = {
            "executions": self._n_done,
            "accepted": self._n_accepted,
            "wall_s": round(wall_s, 1),
            "peak_bytes": _peak_bytes(),
            "base_bytes": self._base_bytes,
            "slowest_s": round(self._slowest_s, 3),
            "findings": self._findings,
        }
        (self._folder / "slowest.bin").write_bytes(self._slowest)
        (self._folder / "stats.json").write_text(json.dumps(stats), encoding="utf-8")


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as raised:  # noqa: BLE001 - only to give it a traceback
        return raised


def main(name: str, seconds: str, folder_name: str) -> None:
    """Fuzz until the time is over."""
    target, folder = TARGETS[name], Path(folder_name)
    seeds = folder / "seeds"
    seeds.mkdir(parents=True, exist_ok=True)
    (folder / "corpus").mkdir(exist_ok=True)
    known = [path.read_bytes() for path in sorted((ROOT / "tests/fuzz/corpus" / name).glob("*"))]
    for number, data in enumerate((*target.seeds(), *known)):
        (seeds / f"seed-{number:03}").write_bytes(data)
    warnings.simplefilter("error")
    faulthandler.register(signal.SIGUSR1)  # where does it hang?
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    work = folder / "work"
    work.mkdir(exist_ok=True)
    run = Run(target, folder, work)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = Random(seed)
        if rng.random() < _ENGINE_SHARE:
            engine: Any = atheris.Mutate(data, max_size)
            return bytes(engine)
        try:
            return target.mutate(data, rng)[:max_size]
        except Exception:  # noqa: BLE001 - a mutator that meets odd bytes leaves them as they are
            return data

    options = [
        sys.argv[0],
        f"-max_total_time={seconds}",
        f"-max_len={MAX_INPUT_BYTES}",
        "-len_control=0",
        "-timeout=300",
        "-rss_limit_mb=0",
        "-print_final_stats=1",
        f"-artifact_prefix={folder}/",
        str(folder / "corpus"),
        str(seeds),
    ]
    atheris.Setup(options, run.one, custom_mutator=mutate)
    try:
        atheris.Fuzz()
    finally:
        run.save()


if __name__ == "__main__":
    main(*sys.argv[1:])
