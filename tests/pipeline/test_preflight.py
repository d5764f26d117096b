"""What an export is said to take before it starts, against what it then takes."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest

from edgekit.artifact import MANIFEST_NAME, Format
from edgekit.errors import ExportError
from edgekit.families import open_model
from edgekit.pipeline import preflight, rates
from edgekit.pipeline.export import export
from edgekit.pipeline.preflight import ExportPrediction, check_room, predict_export
from edgekit.pipeline.rates import Rates
from edgekit.scheme import Scheme
from tests.builders import write_tiny_checkpoint

ALL = list(Format)
ROUND = Rates(
    n_threads=2,
    start_s=1.0,
    hash_s=1e-6,
    quantize_s={"int4": 1e-4, "int8": 2e-4, "fp16": 3e-4, "fp32": 4e-4},
    calibrate_s=5e-4,
    library_s={"onnx": 10.0, "mlx": 20.0, "coreml": 30.0},
    layer_s={"onnx": 0.5, "mlx": 0.25, "coreml": 2.0},
    write_s={
        name: {"int4": 1e-5, "int8": 1e-5, "fp16": 1e-5} for name in ("onnx", "mlx", "coreml")
    },
    process_bytes={"onnx": 1000, "mlx": 2000, "coreml": 3000},
)


@pytest.mark.parametrize("scheme", ["fp32", "fp16", "int8", "int4", "int4-g64"])
@pytest.mark.parametrize(
    "name", ["mistral", "llama-3.2", "qwen3", "gemma3_text", "phi3", "olmo2", "granite"]
)
def test_sizes_are_those_of_the_files(tmp_path, name, scheme):
    """Tiny models are mostly graph, which is estimated; their weight files are exact."""
    folder = write_tiny_checkpoint(tmp_path / "m", name)
    parsed, source = Scheme.parse(scheme), open_model(folder, headers_only=True)
    formats = preflight.accepting_formats(source, parsed)
    predicted = predict_export(source, parsed, formats)
    source.close()
    for artifact in export(folder, formats, parsed, tmp_path / "out"):
        manifest = (artifact.path / MANIFEST_NAME).stat().st_size
        measured = artifact.n_bytes + manifest
        off = predicted.artifact_bytes[artifact.format.value] - measured
        assert abs(off) < 80_000, (artifact.name, off, measured)
        if artifact.format is not Format.COREML:
            weights = max(entry.n_bytes for entry in artifact.manifest.files)
            assert abs(off) < 0.05 * weights + 20_000


def test_every_scheme_has_a_time_where_the_rates_are_known(tmp_path):
    source = open_model(write_tiny_checkpoint(tmp_path / "m"))
    times = {
        name: predict_export(source, Scheme.parse(name), [Format.ONNX], rates=ROUND).time_s
        for name in ("int4-g64", "uint4-g64", "uint8", "fp16", "fast", "tiny", "balanced")
    }
    assert all(time_s > 0 for time_s in times.values())
    assert times["uint4-g64"] == pytest.approx(times["int4-g64"], rel=0.01)
    source.close()


def test_a_prediction_worked_by_hand(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "m")
    source = open_model(folder)
    said = predict_export(source, Scheme.parse("int4"), [Format.ONNX, Format.MLX], rates=ROUND)
    n_embed, n_all, n_norms = 384 * 128, 344_704, 640
    sizes = said.artifact_bytes
    assert list(sizes) == ["onnx", "mlx"]
    stages_s = (
        1.0
        + 1e-6 * 2 * n_all
        + 1e-4 * (n_all - n_embed - n_norms)
        + 2e-4 * n_embed
        + 4e-4 * n_norms
        + 5e-4 * (n_all - n_embed - 128)  # all but the embedding and the last norm
        + (10.0 + 2 * 0.5 + 1e-5 * sizes["onnx"])
        + (20.0 + 2 * 0.25 + 1e-5 * sizes["mlx"])
    )
    assert said.time_s == pytest.approx(1.18 * stages_s)
    assert said.disk_bytes == source.checkpoint.assets_bytes + sum(sizes.values())
    # Two tables of 256 positions and 16 pairs for ONNX, and the scales of the embedding.
    assert said.memory_bytes == 2000 + 2 * 256 * 16 * 4 + n_embed // 32 * 4
    without = predict_export(source, Scheme.parse("int4"), [Format.ONNX])
    assert without.time_s is None
    assert without.memory_bytes > 100 << 20
    source.close()


def test_too_little_disk_is_refused_with_both_numbers(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=5 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ExportError, match=r"disk space.*got 5\.0 MiB free.*about 1\.00 GiB"):
        check_room(need(disk=1 << 30), tmp_path / "not" / "there")


def test_more_memory_than_there_is_is_refused(tmp_path, monkeypatch):
    host = dataclasses.replace(preflight.probe_host(), memory_bytes=8 << 30)
    for limit, shown in ((None, r"8\.00 GiB"), (2 << 30, r"2\.00 GiB")):
        facts = dataclasses.replace(host, memory_limit_bytes=limit)
        monkeypatch.setattr(preflight, "probe_host", lambda facts=facts: facts)
        with pytest.raises(ExportError, match=rf"memory.*got {shown}.*about 9\.00 GiB"):
            check_room(need(memory=9 << 30), tmp_path)


def test_tight_memory_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "available_memory", lambda: 1 << 20)
    [said] = check_room(need(memory=3 << 20), tmp_path)
    assert "3.0 MiB are needed and 1.0 MiB are free" in said
    monkeypatch.setattr(preflight, "available_memory", lambda: 1 << 30)
    assert check_room(need(memory=3 << 20), tmp_path) == []


def test_the_command_refuses_before_it_writes_anything(edgekit_cli, tmp_path, monkeypatch):
    folder = write_tiny_checkpoint(tmp_path / "m")
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    said = edgekit_cli("export", folder, "--out", tmp_path / "out")
    assert said.code == 1
    assert "not enough disk space" in said.err
    assert "choose another --out" in said.err
    assert not (tmp_path / "out").exists()


def test_rates_are_measured_once_and_shown(edgekit_cli, tmp_path, monkeypatch):
    """The real measurement; its figures are this machine's, so only their signs are known."""
    monkeypatch.setenv("EDGEKIT_HOME", str(tmp_path / "home"))
    folder = write_tiny_checkpoint(tmp_path / "m")
    assert rates.known_rates() is None
    without = edgekit_cli("inspect", folder, "--no-measure", "--json").data["export"]
    assert {item["time_s"] for item in without} == {None}
    said = edgekit_cli("inspect", folder, "--json")
    assert said.code == 0
    assert [item["scheme"] for item in said.data["export"]] == [
        "fp32",
        "fp16",
        "int8-g32",
        "int4-g32",
    ]
    assert all(item["time_s"] > 0 for item in said.data["export"])
    known = rates.known_rates()
    assert known is not None
    costs = [known.start_s, known.hash_s, *known.quantize_s.values(), *known.layer_s.values()]
    costs += [cost for by_kind in known.write_s.values() for cost in by_kind.values()]
    assert all(cost > 0 for cost in costs)
    assert {name: set(kinds) for name, kinds in known.write_s.items()} == {
        "onnx": {"fp32", "fp16", "int8", "int4"},
        "mlx": {"fp32", "fp16", "int8", "int4"},
        "coreml": {"fp16", "int8", "int4"},
        "gguf": {"fp32", "fp16", "int8", "int4"},
    }
    monkeypatch.setattr(rates, "_measure", lambda progress: pytest.fail("measured again"))
    assert rates.machine_rates() == known


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"n_threads": 1}', "nonsense", None])
def test_damaged_rates_count_as_none(tmp_path, monkeypatch, content):
    monkeypatch.setenv("EDGEKIT_HOME", str(tmp_path))
    rates._write(rates._path(), ROUND)
    assert rates.known_rates() == ROUND
    if content is None:
        data = json.loads(rates._path().read_text()) | {"another": 1}
        content = json.dumps(data)
    rates._path().write_text(content)
    assert rates.known_rates() is None


def need(disk: int = 1, memory: int = 1) -> ExportPrediction:
    return ExportPrediction("int4-g32", {"onnx": disk}, disk, memory, None)
