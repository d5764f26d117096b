"""Tasks that the isolation tests run in a real child process."""

from __future__ import annotations

import mmap
import os
import signal
import sys
import time
from pathlib import Path

from edgekit.errors import UsageError


def echo(arguments, report):
    report("hello", n=1)
    report("hello", n=2)
    return {
        "said": arguments["say"],
        "pid": os.getpid(),
        "parent": os.getppid(),
        "omp": os.environ["OMP_NUM_THREADS"],
        "spawn_s": arguments["spawn_s"],
        "now_s": time.monotonic(),
    }


def chatter(arguments, report):
    sys.stdout.write('{"result": {"said": "a lie"}}\n')
    sys.stdout.flush()
    os.write(1, b"raw bytes on descriptor 1\n")
    return {"said": "the truth"}


def refuse(arguments, report):
    raise UsageError("no such layer", got=7, wanted="0 .. 5")


def fail(arguments, report):
    raise RuntimeError("the bits fell out")


def leave(arguments, report):
    os._exit(7)


def kill_itself(arguments, report):
    os.kill(os.getpid(), signal.SIGKILL)


def abort(arguments, report):
    os.abort()


def hang(arguments, report):
    Path(arguments["pid_file"]).write_text(str(os.getpid()))
    grandchild = os.fork()
    if grandchild == 0:
        time.sleep(60)
        os._exit(0)
    Path(arguments["grandchild_file"]).write_text(str(grandchild))
    time.sleep(60)


def allocate(arguments, report):
    block = bytearray(arguments["n_bytes"])
    block[::4096] = b"x" * len(block[::4096])
    time.sleep(arguments["hold_s"])
    return {"n": len(block)}


def map_file(arguments, report):
    with Path(arguments["path"]).open("rb") as stream:
        view = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        total = sum(view[i] for i in range(0, len(view), 4096))
        time.sleep(arguments["hold_s"])
        view.close()
    return {"total": total}


def do_nothing(arguments, report):
    time.sleep(arguments["hold_s"])
    return {"modules": sorted(sys.modules)}


def bad_number(arguments, report):
    return {"value": float("nan")}
