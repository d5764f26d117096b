"""What will be refused is refused before anything is measured, downloaded or written."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple

import pytest

from edgekit.errors import CheckpointError, EdgekitError, ExportError, UsageError
from edgekit.pipeline import rates
from edgekit.pipeline.export import export
from edgekit.pipeline.export_optimum import export_via_optimum
from edgekit.pipeline.quality_cost import CostPlan, parse_settings, quality_cost
from tests.builders import write_tiny_checkpoint
from tests.hub.hub_case import SHARD
from tests.hub.hub_server import HubServer

OTHER_SHARD = "model-00002-of-00002.safetensors"


def edit_config(hub: HubServer, **changes: object) -> None:
    path = hub.folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def weights_asked(hub: HubServer) -> list[str]:
    """The ranges of weight files that were asked for, without those of their headers."""
    found = []
    for name in (SHARD, OTHER_SHARD):
        n_header = int.from_bytes((hub.folder / name).read_bytes()[:8], "little")
        headers = {"bytes=0-7", f"bytes=8-{7 + n_header}"}
        found += [f"{name} {a.range}" for a in hub.asked(name) if a.range not in headers]
    return found


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"formats": "coreml", "scheme": "fp32"}, ExportError),
        ({"scheme": "int4-g96"}, EdgekitError),
        ({"context_length": 0}, UsageError),
        ({"context_length": 257}, UsageError),
    ],
)
def test_a_request_that_cannot_be_met_downloads_no_weight(hub, tmp_path, options, error):
    with pytest.raises(error):
        export("owner/name", out=tmp_path / "out", **options)
    assert weights_asked(hub) == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "qwen3_next"},
        {"rope_scaling": {"rope_type": "proportional"}},
        {"intermediate_size": 300},
        {"hidden_act": "relu6"},
    ],
)
def test_a_model_that_cannot_be_read_downloads_no_weight(hub, tmp_path, changes):
    edit_config(hub, **changes)
    with pytest.raises(CheckpointError):
        export("owner/name", out=tmp_path / "out")
    assert weights_asked(hub) == []


def test_a_damaged_tokenizer_downloads_no_weight(hub, tmp_path):
    (hub.folder / "tokenizer.json").write_text('{"model": 7}')
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        export("owner/name", out=tmp_path / "out")
    assert weights_asked(hub) == []


def test_what_optimum_refuses_downloads_no_weight(hub, tmp_path):
    with pytest.raises(UsageError, match="--via optimum cannot write this scheme"):
        export_via_optimum("owner/name", "int4", tmp_path / "out")
    with pytest.raises(UsageError, match="optimum's graph; got 257"):
        export_via_optimum("owner/name", "fp32", tmp_path / "out", context_length=257)
    assert weights_asked(hub) == []


def test_a_disk_without_room_for_model_and_artifacts_downloads_no_weight(
    hub, tmp_path, monkeypatch
):
    """There is room for the download alone, and for the artifacts alone, but not for both."""
    n_weights = sum((hub.folder / name).stat().st_size for name in (SHARD, OTHER_SHARD))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1 << 40, 0, int(1.4 * n_weights)))
    with pytest.raises(ExportError, match=r"not enough disk space to download \S+ \S+ and export"):
        export("owner/name", "onnx", "int4", tmp_path / "out")
    assert weights_asked(hub) == []


def test_a_model_that_passes_is_exported_after_all(hub, tmp_path):
    (artifact,) = export("owner/name", "onnx", "int8", tmp_path / "out")
    assert artifact.manifest.source == "owner/name"
    assert len(weights_asked(hub)) == 2


def test_what_quantizing_costs_is_measured_after_one_download(hub, tmp_path):
    plan = CostPlan(parse_settings("int8,int4"), n_tokens=30)
    record = quality_cost("owner/name", plan, tmp_path / "out")
    assert [point.name for point in record.points] == ["int8-g32", "int4-g32"]
    assert len(weights_asked(hub)) == 2


def test_inspect_refuses_before_it_measures(edgekit_cli, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_HOME", str(tmp_path / "home"))
    measured = []
    monkeypatch.setattr(rates, "machine_rates", lambda **_: measured.append(1))
    folder = write_tiny_checkpoint(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "gpt_neo"}
    (folder / "config.json").write_text(json.dumps(config))
    for asked in (folder, tmp_path / "absent", "no-such-model"):
        said = edgekit_cli("inspect", asked)
        assert said.code == 1
        assert "measuring" not in said.err
    assert measured == []


def test_a_second_scheme_that_is_refused_stops_the_first(edgekit_cli, tiny_model, tmp_path):
    said = edgekit_cli(
        "export", tiny_model, "--scheme", "int8", "--scheme", "fp32", "--out", tmp_path / "out"
    )
    assert (said.code, "fp32" in said.err) == (1, True)
    assert not (tmp_path / "out").exists()
