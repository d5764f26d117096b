"""The child process of a measurement: ``python -m edgekit.profiler.worker``.

It reads one job from stdin, runs its task and writes one result. ``isolate.py`` has the other side
of the pipe and the protocol. An unexpected exception is left to Python: its last line on stderr
becomes the reason in the parent.
"""

from __future__ import annotations

import json
import os
import sys
from typing import IO, Any

from edgekit.errors import EdgekitError
from edgekit.lazy import load_object


def main() -> int:
    """Run one job.

    Returns:
        Exit status: 0 with a result, 1 when the task refused.
    """
    channel = _take_stdout()
    job = json.loads(sys.stdin.readline())

    def report(event: str, **fields: Any) -> None:
        _write(channel, {"event": event, **fields})

    report("started")
    try:
        task = load_object(job["task"])
        result = task({**job["arguments"], "spawn_s": job["spawn_s"]}, report)
    except EdgekitError as error:
        _write(channel, {"error": type(error).__name__, "message": str(error)})
        return 1
    _write(channel, {"result": result})
    return 0


def _take_stdout() -> IO[str]:
    """Keep stdout for the protocol and send everything else that is printed to stderr."""
    kept = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(kept, "w", encoding="utf-8")


def _write(channel: IO[str], message: dict[str, Any]) -> None:
    channel.write(json.dumps(message, allow_nan=False) + "\n")
    channel.flush()


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    # The result is sent. Closing a runtime properly can take a second, which is not measured.
    os._exit(status)
