"""The server side of a comparison: a hosted artifact, an existing endpoint, or a recording."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgekit.artifact import Artifact
from edgekit.errors import ServerError, UsageError
from edgekit.hosted.recording import RecordingBackend
from edgekit.hosted.replay import ReplayBackend
from edgekit.runtime.base import ChatBackend
from edgekit.runtime.server import ServerBackend

STOP_TIMEOUT_S: Final = 10.0
KEY_VARIABLE: Final = "OPENAI_API_KEY"
_SERVING: Final = re.compile(r"at (http://\S+)")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A running server: its base URL and the model name that it accepts."""

    url: str
    model: str


@contextlib.contextmanager
def hosted(artifact: Artifact) -> Iterator[Endpoint]:
    """Run ``edgekit serve`` on a free loopback port while the block runs.

    Raises:
        ServerError: The server ended before it could answer.
    """
    child = subprocess.Popen(
        [sys.executable, "-m", "edgekit", "serve", str(artifact.path), "--port", "0", "--quiet"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield Endpoint(_wait_for_url(child), artifact.path.resolve().name)
    finally:
        child.terminate()
        try:
            child.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        if child.stderr is not None:
            child.stderr.close()


@contextlib.contextmanager
def open_server(
    url: str | None,
    model: str | None,
    *,
    api_key_env: str,
    timeout_s: float,
    record: Path | None,
    replay: Path | None,
) -> Iterator[ChatBackend]:
    """Open the server side of a comparison: an endpoint, perhaps recorded, or a recording.

    Raises:
        UsageError: Neither or both of a URL and a recording, no model name, or no key.
        FormatError: The recording is damaged.
    """
    if (url is None) == (replay is None):
        raise UsageError(
            "exactly one server is needed",
            got="both --server and --replay" if url else "neither",
            wanted="--server URL --server-model NAME, or --replay FILE",
        )
    if replay is not None and record is not None:
        raise UsageError(
            "--record cannot be used with --replay",
            got="both",
            wanted="one of them",
            do="A replay asks no server, so leave --record out.",
        )
    backend: ChatBackend
    if replay is not None:
        backend = ReplayBackend.open(replay, model=model)
    else:
        backend = ServerBackend.open(
            url or "", model or "", api_key=_read_key(api_key_env), timeout_s=timeout_s
        )
    with contextlib.closing(backend):
        if record is None:
            yield backend
            return
        with RecordingBackend(backend, record) as recording:
            yield recording


def _read_key(variable: str) -> str | None:
    """Read the API key. If the user names a variable, no other key is used in its place."""
    key = os.environ.get(variable)
    if key is None and variable != KEY_VARIABLE:
        raise UsageError(
            f"environment variable {variable}",
            got="not set",
            wanted="the key of the server",
            do="Set it, or leave --api-key-env out.",
        )
    return key


def _wait_for_url(child: subprocess.Popen[str]) -> str:
    said = []
    for line in child.stderr or ():
        if match := _SERVING.search(line):
            return match[1]
        said.append(line.strip())
    raise ServerError("the local server did not start", got=" ".join(said)[-400:] or "no message")
