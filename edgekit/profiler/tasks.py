"""The tasks that the child processes of a profile run.

``load_task`` opens the artifact, and then again ``n_opens`` times; ``speed_task`` opens it once and
times runs. They are separate so that the memory of the second holds one open model and nothing
else. Only the child loads this module, by name.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any, Protocol

from edgekit.artifact import Artifact
from edgekit.errors import MeasureError
from edgekit.profiler.memory import MemoryUse, read_memory
from edgekit.profiler.speed import measure_speed
from edgekit.records import Workload, from_data, to_data
from edgekit.runtime import open_decoder
from edgekit.runtime.base import Decoder


class Report(Protocol):
    """Sends one event to the parent."""

    def __call__(self, event: str, **fields: Any) -> None:
        """Send ``event`` with JSON-ready fields."""
        ...


def load_task(arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Open the artifact, then open it again ``n_opens`` times.

    Returns:
        ``load_s``: spawn to the first ready model; ``opens_s``: each later open call.
    """
    artifact = Artifact.open(arguments["artifact"])
    decoder = _open(artifact, arguments)
    load_s = time.monotonic() - arguments["spawn_s"]
    opens_s = []
    for _ in range(arguments["n_opens"]):
        decoder.close()
        began_s = time.perf_counter()
        decoder = _open(artifact, arguments)
        opens_s.append(time.perf_counter() - began_s)
    decoder.close()
    report("loaded", load_s=load_s)
    return {"load_s": load_s, "opens_s": opens_s}


def speed_task(arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Open the artifact once and time runs.

    Returns:
        ``load_s``, ``engine`` (EngineInfo), ``runs`` (RunTimes), and memory before and after the
        model was opened.
    """
    artifact = Artifact.open(arguments["artifact"])
    baseline = _own_memory()
    decoder = _open(artifact, arguments)
    load_s = time.monotonic() - arguments["spawn_s"]
    loaded = _own_memory()
    report("loaded", load_s=load_s)
    runs = measure_speed(
        decoder,
        from_data(Workload, arguments["workload"]),
        on_run=lambda n_done, n_total: report("run", n_done=n_done, n_total=n_total),
    )
    engine = decoder.info
    decoder.close()
    return {
        "load_s": load_s,
        "engine": to_data(engine),
        "runs": to_data(runs),
        "baseline": to_data(baseline),
        "loaded": to_data(loaded),
    }


def _open(artifact: Artifact, arguments: Mapping[str, Any]) -> Decoder:
    return open_decoder(
        artifact,
        engine=arguments["engine"],
        n_threads=arguments["n_threads"],
        context_length=arguments["context_length"],
    )


def _own_memory() -> MemoryUse:
    use = read_memory(os.getpid())
    if use is None:
        raise MeasureError("this process cannot read its own memory use")
    return use
