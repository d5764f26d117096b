"""Claims: a calibrated export that is stopped goes on, and ends with the same artifacts."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from edgekit.artifact import Artifact
from edgekit.pipeline.export import LAYERS_NAME, export
from tests.builders import write_tiny_checkpoint


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
        export(folder, ["onnx", "mlx"], "uint4-g64", out, method=method, **options)

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
