"""Answer one question: what does the child process of a measurement do?

``python -m edgekit.profiler.worker``: read one job from stdin, run its task, write one result. The
other side of the pipe, and the protocol, are in ``isolate.py``. An unexpected exception is left to
Python: its last line on stderr becomes the reason in the parent.
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
    # The answer is out. Taking a runtime apart can cost a second, and nobody measures it.
    os._exit(status)
