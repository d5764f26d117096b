"""Claims that hold for every exporter in the registry: a new entry is tested by being there."""

from __future__ import annotations

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from edgekit.artifact import MANIFEST_NAME, Artifact, Format
from edgekit.decision import Accepted, Rejected
from edgekit.errors import ArtifactError, EdgekitError, ExportError
from edgekit.exporters import EXPORTERS, open_exporter
from edgekit.exporters.base import ExportOptions
from edgekit.exporters.staging import write_artifact, write_artifacts
from edgekit.families.rope_spec import Llama3Scaling, RopeSpec
from edgekit.families.spec import DecoderSpec
from edgekit.formats.safetensors import SafetensorsWriter
from edgekit.quantize.model import EncodedTensor, combine_hashes, encodings_of
from tests.builders import write_tiny_tokenizer
from tests.exporters.memory_model import MemoryModel, memory_model, stored_as, tiny_spec

SCHEMES = [
    "fp32",
    "fp16",
    "bf16",
    "int8",
    "int8-g64",
    "int4",
    "int4-g64",
    "uint4",
    "uint4-g64",
    "uint8",
    "lut4",
]
VARIANTS = {
    "llama": {"model_type": "llama"},
    "untied": {"is_tied": False},
    "multi-head": {"n_kv_heads": 4},
    "wide heads": {"head_width": 32},
    "attention biases": {"has_qkv_bias": True, "has_o_bias": True},
    "qkv biases only": {"has_qkv_bias": True},
    "mlp biases": {"has_mlp_bias": True},
    "sliding window": {"sliding_window": 16},
    "llama3 rope": {"rope": RopeSpec(1e4, Llama3Scaling(8.0, 1.0, 4.0, 32))},
    "linear rope": {"rope": RopeSpec(1e4, linear_factor=2.0)},
}
each_format = pytest.mark.parametrize("artifact_format", EXPORTERS, ids=lambda f: f.value)


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("assets")
    write_tiny_tokenizer(folder, 384)
    (folder / "generation_config.json").write_text('{"eos_token_id": 2}')
    return {path.name: path for path in folder.iterdir()}


def make_model(scheme: str, spec: DecoderSpec | None = None, **fields) -> MemoryModel:
    """Integer schemes come with an int8 embedding, as the plan has them."""
    schemes = {"embed": "int8"} if scheme.startswith("int") else None
    return memory_model(spec or tiny_spec(), scheme, schemes=schemes, **fields)


def assert_recovers_exactly(artifact: Artifact, model: MemoryModel) -> None:
    recovered = {t.name: t for t in open_exporter(artifact.format).recover(artifact)}
    assert set(recovered) == set(model.tensors)
    for name, wanted in model.tensors.items():
        got = recovered[name]
        assert type(got) is type(wanted), name
        if isinstance(wanted, EncodedTensor):
            assert got.encoding == wanted.encoding, name
            np.testing.assert_array_equal(got.codes(), wanted.codes(), err_msg=name)
            np.testing.assert_array_equal(got.scales, wanted.scales, err_msg=name)
            if wanted.zero_points is not None:
                np.testing.assert_array_equal(got.zero_points, wanted.zero_points, err_msg=name)
            assert got.sha256() == wanted.sha256(), name
        else:
            np.testing.assert_array_equal(got.values, wanted.values, err_msg=name)


def export_or_refuse(artifact_format: Format, model: MemoryModel, out) -> Artifact | None:
    """Export; where the format says no, check that it refuses cleanly and give None."""
    exporter = open_exporter(artifact_format)
    decision = exporter.supports(model.spec, encodings_of(model.entries))
    if isinstance(decision, Accepted):
        return write_artifact(exporter, model, out / "a")
    assert isinstance(decision, Rejected)
    assert len(decision.reason) > 10
    with pytest.raises(ExportError) as caught:
        write_artifact(exporter, model, out / "a")
    assert decision.reason in str(caught.value)
    assert not (out / "a").exists()
    return None


@each_format
@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_written_is_what_is_read_back_or_the_scheme_is_refused(
    tmp_path, artifact_format, scheme
):
    model = make_model(scheme)
    artifact = export_or_refuse(artifact_format, model, tmp_path)
    if artifact is not None:
        assert_recovers_exactly(artifact, model)


@each_format
@pytest.mark.parametrize("scheme", ["fp16", "int8", "int4"])
def test_the_main_schemes_are_accepted_everywhere(artifact_format, scheme):
    decision = open_exporter(artifact_format).supports(tiny_spec(), stored_as(tiny_spec(), scheme))
    assert isinstance(decision, Accepted)


@each_format
@pytest.mark.parametrize("change", VARIANTS.values(), ids=VARIANTS)
def test_every_decoder_is_held_exactly_or_refused_with_a_reason(tmp_path, artifact_format, change):
    model = make_model("int4", tiny_spec(**change))
    artifact = export_or_refuse(artifact_format, model, tmp_path)
    if artifact is not None:
        assert_recovers_exactly(artifact, model)


@each_format
def test_the_manifest_is_complete(tmp_path, artifact_format, assets):
    model = make_model("int4", tiny_spec(vocab_size=384), assets=assets)
    artifact = write_artifact(open_exporter(artifact_format), model, tmp_path / "a")
    manifest = artifact.manifest
    on_disk = {
        path.relative_to(artifact.path).as_posix()
        for path in artifact.path.rglob("*")
        if path.is_file()
    }
    assert {entry.path for entry in manifest.files} == on_disk - {MANIFEST_NAME}
    artifact.check_files()
    assert manifest.format is artifact_format
    assert manifest.tensors == model.entries
    assert manifest.weights_sha256 == combine_hashes(model.entries)
    assert DecoderSpec.from_dict(manifest.decoder) == model.spec
    assert 1 <= manifest.context_length <= model.spec.context_length
    assert "edgekit" in manifest.tool_versions
    assert all(isinstance(v, str) and v for v in manifest.tool_versions.values())
    assert json.loads(json.dumps(dict(manifest.settings))) == dict(manifest.settings)
    for name, path in assets.items():
        assert (artifact.path / name).is_file()
        if name.startswith("tokenizer"):
            assert (artifact.path / name).read_bytes() == path.read_bytes()


def test_all_formats_hold_the_same_weights(tmp_path):
    hashes = {
        write_artifact(
            open_exporter(f), make_model("int4"), tmp_path / f.value
        ).manifest.weights_sha256
        for f in EXPORTERS
    }
    assert len(hashes) == 1


@each_format
def test_an_export_is_the_same_every_time(tmp_path, artifact_format):
    one, two = (
        write_artifact(open_exporter(artifact_format), make_model("int4"), tmp_path / name)
        for name in "ab"
    )
    assert one.manifest == two.manifest


@each_format
def test_each_tensor_is_read_once(tmp_path, artifact_format):
    model = make_model("int4")
    write_artifact(open_exporter(artifact_format), model, tmp_path / "a")
    assert sorted(model.reads) == sorted(model.tensors)


@each_format
def test_progress_goes_from_nothing_to_all(tmp_path, artifact_format):
    steps = []
    write_artifact(
        open_exporter(artifact_format),
        make_model("int4"),
        tmp_path / "a",
        progress=lambda *step: steps.append(step),
    )
    assert all(0 <= n_done <= n_total for _, n_done, n_total in steps)
    for what in {what for what, _, _ in steps}:
        done = [n_done for name, n_done, _ in steps if name == what]
        assert done == sorted(done)
    assert steps[-1][1] == steps[-1][2]


@each_format
@pytest.mark.parametrize("scheme", ["int4", "uint4", "uint8"])
def test_tensors_come_in_any_order_and_some_rows_at_a_time(tmp_path, artifact_format, scheme):
    model = make_model(scheme)
    whole = export_or_refuse(artifact_format, model, tmp_path / "whole")
    if whole is None:
        return
    (tmp_path / "pieces").mkdir()
    sink = open_exporter(artifact_format).open(model, tmp_path / "pieces", ExportOptions())
    pieces = [
        (tensor, start)
        for tensor in model.tensors.values()
        for start in range(0, len_of(tensor), 6)
    ]
    with ThreadPoolExecutor(4) as pool:
        for task in [pool.submit(put_rows, sink, *piece) for piece in reversed(pieces)]:
            task.result()
    sink.finish(model.entries)
    for entry in whole.manifest.files:
        stored = (tmp_path / "pieces" / entry.path).read_bytes()
        assert stored == (whole.path / entry.path).read_bytes(), entry.path


def len_of(tensor):
    return tensor.shape[0]


def put_rows(sink, tensor, start):
    part = slice(start, start + 6)
    rows = (
        tensor.rows(part)
        if isinstance(tensor, EncodedTensor)
        else replace(tensor, values=tensor.values[part])
    )
    sink.put(rows, start)


@each_format
@pytest.mark.parametrize("n_times", [0, 2])
def test_a_tensor_that_is_absent_or_comes_twice_is_refused(tmp_path, artifact_format, n_times):
    model = make_model("int4")
    sink = open_exporter(artifact_format).open(model, tmp_path, ExportOptions())
    for name, tensor in model.tensors.items():
        for _ in range(n_times if name == "layers.1.up" else 1):
            sink.put(tensor)
    with pytest.raises(ExportError):
        sink.finish(model.entries)
    sink.discard()


def test_all_formats_are_written_in_one_walk(tmp_path):
    model = make_model("int4")
    exporters = {tmp_path / form.value: open_exporter(form) for form in Format}
    artifacts = write_artifacts(exporters, model, n_threads=3)
    assert [artifact.format for artifact in artifacts] == list(Format)
    assert sorted(model.reads) == sorted(model.tensors)
    assert len({artifact.manifest.weights_sha256 for artifact in artifacts}) == 1


@each_format
def test_one_flipped_code_does_not_pass_unseen(tmp_path, artifact_format):
    model = make_model("int4")
    artifact = write_artifact(open_exporter(artifact_format), model, tmp_path / "a")
    gate = model.tensors["layers.0.gate"]
    packed = gate.packed.tobytes()
    signed = bytes(byte ^ 0x88 for byte in packed)  # Core ML's int4 is the same bits, signed
    block = gate.codes()[0, :32].tolist()  # GGUF: 16 low halves and 16 high halves of a block
    halves = bytes(low | high << 4 for low, high in zip(block[:16], block[16:], strict=True))
    for entry in artifact.manifest.files:
        path = artifact.path / entry.path
        data = bytearray(path.read_bytes())
        at = max(data.find(packed), data.find(signed), data.find(halves))
        if at >= 0:
            data[at] ^= 1
            path.write_bytes(data)
            break
    else:
        raise AssertionError("the packed codes are in no file")
    with pytest.raises(ArtifactError, match="changed since the export"):
        artifact.check_files()
    recovered = {t.name: t for t in open_exporter(artifact_format).recover(artifact)}
    gate = model.tensors["layers.0.gate"].codes()
    assert int((recovered["layers.0.gate"].codes() != gate).sum()) == 1


@each_format
def test_a_file_cut_in_half_is_an_error_with_a_name(tmp_path, artifact_format):
    artifact = write_artifact(open_exporter(artifact_format), make_model("int4"), tmp_path / "a")
    largest = max(artifact.manifest.files, key=lambda entry: entry.n_bytes)
    path = artifact.path / largest.path
    path.write_bytes(path.read_bytes()[: largest.n_bytes // 2])
    with pytest.raises(EdgekitError):
        list(open_exporter(artifact_format).recover(artifact))
    with pytest.raises(ArtifactError, match="size"):
        Artifact.open(artifact.path)


@each_format
def test_a_failed_export_leaves_the_earlier_artifact_alone(tmp_path, artifact_format):
    model = make_model("int4")
    artifact = write_artifact(open_exporter(artifact_format), model, tmp_path / "a")
    tensors = dict(model.tensors)
    del tensors["final_norm"]

    class Broken(MemoryModel):
        @property
        def entries(self):
            return model.entries

    broken = Broken(model.spec, model.scheme, tensors)
    with pytest.raises(EdgekitError, match="final_norm"):
        write_artifact(open_exporter(artifact_format), broken, tmp_path / "a")
    Artifact.open(artifact.path).check_files()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@each_format
def test_a_model_may_hold_single_tensors_in_other_schemes(tmp_path, artifact_format):
    model = memory_model(
        scheme="int4", schemes={"embed": "int8", "layers.1.down": "int8", "layers.0.v": "fp16"}
    )
    artifact = export_or_refuse(artifact_format, replace(model), tmp_path)
    assert artifact is not None
    assert_recovers_exactly(artifact, model)


@pytest.mark.parametrize("artifact_format", [Format.ONNX, Format.MLX], ids=lambda f: f.value)
def test_a_full_disk_is_told_of_the_folder_that_was_asked_for(
    artifact_format, tmp_path, monkeypatch
):
    def write(self, name, data, first_byte=0):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    monkeypatch.setattr(SafetensorsWriter, "write", write)
    with pytest.raises(ExportError) as caught:
        write_artifact(open_exporter(artifact_format), make_model("int4"), tmp_path / "a")
    assert caught.value.what == f"no space left while writing {tmp_path / 'a'}"
    assert list(tmp_path.iterdir()) == []
