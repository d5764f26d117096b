"""A command line run inside the test process: its output and its exit code."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from edgekit.cli import main


@dataclass(frozen=True)
class Said:
    """What one run of the command line gave."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)

    def parts(self) -> dict[str, str]:
        """The parts of an error message; nothing else may be on stderr."""
        first, *rest = self.err.strip().splitlines()
        assert first.startswith("error: "), self.err
        found = {"what": first.removeprefix("error: ")}
        for line in rest:
            name, _, text = line.strip().partition(":")
            found[name] = text.strip()
        return found


Edgekit = Callable[..., Said]


def make_edgekit(capfd, monkeypatch) -> Iterator[Edgekit]:
    """Run ``edgekit`` in this process, as the installed script does."""
    handler = signal.getsignal(signal.SIGTERM)

    def run(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["edgekit", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        sys.stdout.flush()
        sys.stderr.flush()
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        code = caught.value.code
        return Said(0 if code is None else int(code), out, err)

    yield run
    signal.signal(signal.SIGTERM, handler)
