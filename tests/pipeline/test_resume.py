"""Claims: a calibrated export that is stopped goes on, and ends with the same artifacts."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.artifact import Artifact
from edgekit.pipeline.calibration import Calibration
from edgekit.pipeline.export import LAYERS_NAME, export
from tests.builders import write_tiny_checkpoint

TEXT = Calibration(n_tokens=256)


class StoppedError(Exception):
    """Stands for a process that ends in the middle of its work."""


def stop_at(place: int):
    """Give a progress callback that stops the export at its n-th call."""
    n_calls = 0

    def report(what: str, n_done: int, n_total: int) -> None:
        nonlocal n_calls
        n_calls += 1
        if n_calls == place:
            raise StoppedError(what)

    return report


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }


@pytest.mark.parametrize("method", ["gptq", "auto"])
def test_an_export_stopped_at_any_place_goes_on(tmp_path, method):
    folder = write_tiny_checkpoint(tmp_path / "tiny", "llama")

    def run(out: Path, **options) -> None:
        export(
            folder, ["onnx", "mlx"], "uint4-g64", out, method=method, calibration=TEXT, **options
        )

    calls: list[str] = []
    run(tmp_path / "whole", progress=lambda what, *_: calls.append(what))
    whole = hashes(tmp_path / "whole")
    assert not (tmp_path / "whole" / LAYERS_NAME).exists()
    places = [i for i, what in enumerate(calls, start=1) if what == "calibrate and quantize"]
    assert len(places) == 2
    for place in (places[0], places[1], places[1] + 3):
        out = tmp_path / str(place)
        with pytest.raises(StoppedError):
            run(out, progress=stop_at(place))
        left = sorted(path.name for path in (out / LAYERS_NAME).rglob("*.safetensors"))
        assert len(left) == (1 if place == places[0] else 2)
        assert [path.name for path in out.iterdir()] == [LAYERS_NAME]
        run(out)
        assert hashes(out) == whole
        manifests = [Artifact.open(path).manifest for path in sorted(out.iterdir())]
        expected = [Artifact.open(p).manifest for p in sorted((tmp_path / "whole").iterdir())]
        assert [m.weights_sha256 for m in manifests] == [m.weights_sha256 for m in expected]


N_KILLS = 20
# Runs exports in children of its own, so that imports are paid once. A child counts what it does to
# the disk (files opened to write, renames, removals, new folders) and kills itself in front of one.
KILLED = """
import os, signal, sys
from pathlib import Path
from edgekit.pipeline.calibration import Calibration
from edgekit.pipeline.export import export

TOUCH = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}

def run(model, out, kill_at):
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    n_done = 0
    def watch(event, arguments):
        nonlocal n_done
        is_write = event == "open" and isinstance(arguments[1], str) and arguments[1][:1] in "wxa"
        if is_write or event in TOUCH:
            n_done += 1
            if n_done == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(watch)
    text = Calibration(n_tokens=256)
    export(model, ["onnx", "mlx", "gguf"], "uint4-g64", out, method="gptq", calibration=text)
    (Path(out) / "count").write_text(str(n_done))
    os._exit(0)

model, folder, n_kills = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
assert run(model, folder / "whole", 0) == 0
n_total = int((folder / "whole" / "count").read_text())
assert n_total > n_kills, n_total
for i in range(n_kills):
    out = folder / str(i)
    assert run(model, out, 1 + i * (n_total - 1) // (n_kills - 1)) == signal.SIGKILL, i
    left = sorted(out.rglob("*.safetensors")) if out.exists() else []
    print(len([path for path in left if ".edgekit-layers" in path.parts]), flush=True)
    assert run(model, out, 0) == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="its exports are forks of one process")
def test_an_export_killed_at_twenty_places_goes_on_to_the_same_bytes(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "tiny", "llama")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, str(folder), str(tmp_path), str(N_KILLS)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    n_layers_left = [int(line) for line in done.stdout.split()]
    # The places lie before, between and after the layers.
    assert {0, 1, 2} <= set(n_layers_left)
    whole = hashes(tmp_path / "whole")
    for i in range(N_KILLS):
        out = tmp_path / str(i)
        assert hashes(out).keys() - {"count"} == whole.keys() - {"count"}
        assert {name: value for name, value in hashes(out).items() if name != "count"} == {
            name: value for name, value in whole.items() if name != "count"
        }, i
