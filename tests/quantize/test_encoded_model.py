"""Claims: a model is quantized once, to the same bytes every time, and read back exactly."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from edgekit.artifact import Format
from edgekit.errors import CheckpointError, ExportError, QuantError
from edgekit.exporters import open_exporter
from edgekit.exporters.staging import write_artifacts
from edgekit.families import open_model
from edgekit.quantize import encoded_model
from edgekit.quantize.encoded_model import quantize_model
from edgekit.quantize.methods import Method
from edgekit.quantize.model import EncodedTensor
from edgekit.scheme import Scheme
from tests.builders import write_tiny_checkpoint
from tests.quantize.whole_matrix import quantize_matrix

SCHEMES = ["fp32", "fp16", "int8", "int4", "int4-g64", "int4-g128"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    write_tiny_checkpoint(folder, "llama", tie_word_embeddings=False, attention_bias=True)
    model = open_model(folder)
    yield model
    model.close()


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def hash_of(model, name: str) -> str:
    tensor = model.get(name)
    return tensor.sha256() if isinstance(tensor, EncodedTensor) else ""


@pytest.mark.parametrize("scheme", SCHEMES)
def test_each_tensor_comes_back_as_quantizing_it_alone_gives_it(source, tmp_path, scheme):
    model = quantize_model(source, Scheme.parse(scheme), tmp_path, fold=False)
    assert {entry.name: entry.shape for entry in model.entries} == source.spec.weight_shapes()
    assert model.scheme == Scheme.parse(scheme)
    for entry in model.entries:
        tensor, weights = model.get(entry.name), source.tensor(entry.name).read()
        assert str(tensor.encoding) == entry.encoding
        assert entry.sha256 is None
        if isinstance(tensor, EncodedTensor):
            alone = quantize_matrix(entry.name, weights, tensor.encoding)
            assert tensor.sha256() == alone.sha256()
        else:
            half = weights.astype(np.float16).astype(np.float32)
            np.testing.assert_array_equal(
                tensor.values, half if entry.encoding == "fp16" else weights
            )


def test_a_model_says_where_its_weights_came_from(source, tmp_path):
    made = quantize_model(source, Scheme.parse("int4-g32"), tmp_path, method=Method.RTN)
    assert (made.spec, made.source.name) == (source.spec, "tiny")
    assert made.source_sha256 == source.checkpoint.sha256()


def test_assets_are_carried_along(source, tmp_path):
    model = quantize_model(source, Scheme.parse("int8-g32"), tmp_path)
    assert set(model.assets) == set(source.checkpoint.assets)
    assert "tokenizer.json" in model.assets
    for name, path in model.assets.items():
        assert path.read_bytes() == source.checkpoint.assets[name].read_bytes()
        assert path.is_relative_to(tmp_path)


@pytest.mark.parametrize("scheme", ["fp16", "int4", "uint4"])
def test_artifacts_do_not_depend_on_the_run_or_the_thread_count(
    source, tmp_path, scheme, monkeypatch
):
    monkeypatch.setattr(encoded_model, "_BLOCK_ELEMENTS", 1 << 10)  # several blocks a tensor
    for name, n_threads in (("a", 1), ("b", 1), ("c", 3)):
        model = quantize_model(source, Scheme.parse(scheme), tmp_path / "files" / name)
        exporters = {tmp_path / name / form.value: open_exporter(form) for form in Format}
        for artifact in write_artifacts(exporters, model, n_threads=n_threads):
            for entry in artifact.manifest.tensors:
                tensor = model.get(entry.name)
                own = tensor.sha256() if isinstance(tensor, EncodedTensor) else None
                assert entry.sha256 == own
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b") == hashes(tmp_path / "c")


def test_method_scheme_and_weights_each_change_the_hash(source, tmp_path):
    other = write_tiny_checkpoint(
        tmp_path / "other", "llama", seed=1, tie_word_embeddings=False, attention_bias=True
    )
    int4 = Scheme.parse("int4-g32")
    runs = [
        quantize_model(source, int4, tmp_path / "search"),
        quantize_model(source, int4, tmp_path / "rtn", method=Method.RTN),
        quantize_model(source, Scheme.parse("int4-g64"), tmp_path / "g64"),
        quantize_model(open_model(other), int4, tmp_path / "seed"),
    ]
    found = {tuple(hash_of(model, plan.name) for plan in model.plans) for model in runs}
    assert len(found) == len(runs)


def test_progress_counts_every_layer(source, tmp_path):
    calls: list[tuple[str, int, int]] = []
    model = quantize_model(
        source, Scheme.parse("int4-g32"), tmp_path, progress=lambda *call: calls.append(call)
    )
    n_layers = model.spec.n_layers
    assert calls == [("calibrate", i, n_layers) for i in range(1, n_layers + 1)]


def test_an_unknown_tensor_is_named(source, tmp_path):
    model = quantize_model(source, Scheme.parse("int4-g32"), tmp_path)
    with pytest.raises(QuantError) as caught:
        model.get("layers.9.q")
    assert caught.value.got == "layers.9.q"


def test_a_weight_that_is_no_number_is_refused(tmp_path):
    damaged = write_tiny_checkpoint(tmp_path / "damaged", dtype="fp32")
    weights = damaged / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-4:] = np.float32(np.nan).tobytes()
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match="not finite"):
        model = quantize_model(open_model(damaged), Scheme.parse("int4-g32"), tmp_path / "files")
        for plan in model.plans:
            model.get(plan.name)


def test_a_weight_too_large_for_fp16_is_named(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "large", dtype="fp32")
    content = load_file(folder / "model.safetensors")
    weights = content["model.layers.1.mlp.up_proj.weight"]
    raw = (folder / "model.safetensors").read_bytes()
    start = raw.index(weights.tobytes()) + 4 * (5 * weights.shape[1] + 2)
    changed = raw[:start] + np.float32(1e30).tobytes() + raw[start + 4 :]
    (folder / "model.safetensors").write_bytes(changed)
    for scheme in ("fp16", "int8"):
        with pytest.raises(QuantError) as caught:
            model = quantize_model(open_model(folder), Scheme.parse(scheme), tmp_path / scheme)
            model.get("layers.1.up")
        assert caught.value.what == "layers.1.up[5, 2]: unusable weight"


def test_widths_that_no_group_divides_leave_nothing_behind(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "odd", intermediate_size=200)
    with pytest.raises(QuantError, match=r"layers.0.down \(200\)"):
        quantize_model(open_model(folder), Scheme.parse("int4-g32"), tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_path_that_is_a_file_is_an_export_error(source, tmp_path):
    (tmp_path / "store").write_text("in the way")
    with pytest.raises(ExportError, match="cannot write"):
        quantize_model(source, Scheme.parse("int4-g32"), tmp_path / "store")
