"""Claims: codes of a quantized source reach every format unchanged, and the commands say so."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgekit.artifact import Format, Manifest
from edgekit.exporters import open_exporter
from edgekit.pipeline.export import describe_import, export
from edgekit.pipeline.inspect import inspect
from edgekit.pipeline.verify import VerifyPlan, verify
from tests.checkpoint.prequantized.folders import (
    Grid,
    gptq_config,
    gptq_parts,
    is_matrix,
    mlx_config,
    mlx_parts,
    write_coded,
    write_compressed,
)


@pytest.fixture(scope="module")
def coded_embedding(tmp_path_factory):
    """A folder whose embedding and head are 4-bit codes too, which edgekit never makes."""
    folder = tmp_path_factory.mktemp("mlx") / "coded"
    return write_coded(
        folder, Grid(4, 64), mlx_parts, mlx_config(Grid(4, 64)), is_coded=is_matrix,
        tie_word_embeddings=False,
    )  # fmt: skip


@pytest.mark.parametrize("form", ["onnx", "mlx", "coreml"])
def test_every_format_holds_the_imported_codes(coded_embedding, tmp_path, form):
    folder, made = coded_embedding
    (artifact,) = export(folder, form, "int4", tmp_path)
    entries = {entry.name: entry for entry in artifact.manifest.tensors}
    assert {e.imported for e in entries.values() if len(e.shape) == 2} == {"mlx int4-g64"}
    assert entries["embed"].encoding == entries["lm_head"].encoding == "int4-g64"
    recovered = {tensor.name: tensor for tensor in open_exporter(Format(form)).recover(artifact)}
    theirs = {"embed": "model.embed_tokens", "lm_head": "lm_head"}
    theirs["layers.1.down"] = "model.layers.1.mlp.down_proj"
    for name, module in theirs.items():
        wanted, tensor = made[f"{module}.weight"], recovered[name]
        np.testing.assert_array_equal(tensor.codes(), wanted.codes)
        np.testing.assert_array_equal(tensor.scales, wanted.scales)


def test_all_formats_agree_on_weights_and_logits(coded_embedding, tmp_path):
    artifacts = export(coded_embedding[0], "all", "int4", tmp_path)
    for record in verify(artifacts, VerifyPlan(n_tokens=16, n_prompts=1, n_new_tokens=4)):
        assert record.weights.is_met
        assert record.not_run or record.logits.is_met


def test_the_commands_say_what_was_imported(edgekit_cli, tmp_path):
    grid = Grid(4, 32)
    folder, _ = write_compressed(tmp_path / "m", grid)
    said = edgekit_cli("inspect", folder, "--no-measure")
    assert "already quantized" in said.out
    assert "14 matrices as compressed-tensors int4-g32" in said.out
    data = edgekit_cli("inspect", folder, "--no-measure", "--json").data
    assert data["prequantized"] == {"compressed-tensors int4-g32": 14}
    assert "compressed-tensors int4-g32" in data["dtypes"]
    said = edgekit_cli("export", folder, "--format", "mlx", "--out", tmp_path / "out")
    assert "14 matrices imported unchanged from compressed-tensors int4-g32" in said.err


def test_lines_count_what_became_of_the_codes(tmp_path):
    grid = Grid(4, 32, is_exact=False)
    folder, _ = write_coded(tmp_path / "m", grid, gptq_parts, gptq_config(grid))
    (artifact,) = export(folder, "mlx", "int4", tmp_path / "out")
    (line,) = describe_import(artifact.manifest)
    assert line.startswith("14 matrices requantized, such as layers.0.q: ")
    (artifact,) = export(folder, "mlx", "fp16", tmp_path / "out")
    (line,) = describe_import(artifact.manifest)
    assert line.startswith("14 matrices dequantized, such as layers.0.q: dequantized from gptq")
    assert inspect(folder).summary.prequantized == {"gptq int4-g32": 14}


def test_a_manifest_from_before_imports_still_reads(tmp_path):
    folder, _ = write_compressed(tmp_path / "m", Grid())
    (artifact,) = export(folder, "mlx", "int4", tmp_path / "out")
    data = json.loads(artifact.manifest.to_json())
    for entry in data["tensors"]:
        del entry["imported"]
    manifest = Manifest.from_json(json.dumps(data), where="test")
    assert {entry.imported for entry in manifest.tensors} == {None}
