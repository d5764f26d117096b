"""The export rates of this machine: time and memory costs that predictions are made from.

They are measured once for each machine and version of edgekit, by exporting a random model in a
process of its own (rates_task.py), and kept in the cache. A cost is a time for each weight, byte or
layer, so that it applies to other models; costs of converting other source types are not included.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from edgekit.devices.probe import probe_host
from edgekit.errors import MeasureError
from edgekit.paths import cache_dir
from edgekit.profiler.isolate import Failed, Job, run_isolated
from edgekit.progress import Progress, ignore_progress

_TASK: Final = "edgekit.pipeline.rates_task:rates_task"
_TIMEOUT_S: Final = 600.0
_MAX_FILE_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Rates:
    """Costs of an export on one machine, with ``n_threads`` threads.

    Attributes:
        start_s: From the start of the command to its first work.
        hash_s: For each byte of the source.
        quantize_s: Kind of scheme -> for each weight, reading and storing it included.
        calibrate_s: For each weight of the layers, where channel scales are moved.
        library_s: Format -> importing its library.
        layer_s: Format -> for each layer of the graph.
        write_s: Format -> kind of scheme -> for each byte of the artifact.
        process_bytes: Format -> memory of the process when it writes this format after those
            before it, without the largest weight.
    """

    n_threads: int
    start_s: float
    hash_s: float
    quantize_s: Mapping[str, float]
    calibrate_s: float
    library_s: Mapping[str, float]
    layer_s: Mapping[str, float]
    write_s: Mapping[str, Mapping[str, float]]
    process_bytes: Mapping[str, int]


def known_rates() -> Rates | None:
    """Give the rates of this machine if they were measured before."""
    return _read(_path())


def machine_rates(*, is_fresh: bool = False, progress: Progress = ignore_progress) -> Rates:
    """Give the rates of this machine; they are measured now if they are not known yet.

    Args:
        is_fresh: Measure again.
        progress: Called while it measures, which takes some seconds.

    Raises:
        MeasureError: The measurement failed.
    """
    known = None if is_fresh else known_rates()
    if known is not None:
        return known
    rates = _measure(progress)
    _write(_path(), rates)
    return rates


def _path() -> Path:
    return cache_dir() / f"rates-{_machine_key()}.json"


def _machine_key() -> str:
    host = probe_host()
    said = [version("edgekit"), host.cpu, host.n_cores, host.python, version("numpy"), host.os]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def _measure(progress: Progress) -> Rates:
    n_threads = os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix="edgekit-rates-") as folder:
        job = Job(_TASK, {"folder": folder, "n_threads": n_threads}, n_threads)
        outcome = run_isolated(
            job,
            timeout_s=_TIMEOUT_S,
            on_event=lambda event, said: (
                progress("measure this machine (once)", said["n_done"], said["n_total"])
                if event == "stage"
                else None
            ),
        )
    if isinstance(outcome, Failed):
        raise MeasureError(
            "the export speed of this machine could not be measured",
            got=outcome.reason,
            do="Run edgekit inspect --no-measure to continue without times.",
        )
    return Rates(**outcome.result)


def _read(path: Path) -> Rates | None:
    """Read stored rates; None if there is no file or it is not what ``_write`` writes."""
    try:
        with path.open("rb") as stream:
            data: dict[str, Any] = json.loads(stream.read(_MAX_FILE_BYTES))
        return Rates(**data) if data.keys() == {f.name for f in fields(Rates)} else None
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _write(path: Path, rates: Rates) -> None:
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(asdict(rates), indent=1) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError:
        return  # a cache that cannot be written costs time, but does not change the answer
