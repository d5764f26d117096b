"""Claims about the ONNX folder: exact bytes, exact recovery, faults found, one array at a time."""

from __future__ import annotations

import gc
import json
import weakref
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
import onnx.external_data_helper
import pytest
import safetensors.numpy

from edgekit.artifact import Artifact
from edgekit.decision import Accepted, Rejected
from edgekit.encoding import FP32, Encoding
from edgekit.errors import ExportError, UsageError
from edgekit.exporters.base import ExportOptions
from edgekit.exporters.onnx.exporter import OnnxExporter
from edgekit.exporters.staging import write_artifact
from edgekit.families.rope import rope_tables
from edgekit.quantize.model import EncodedTensor, FloatTensor
from tests.exporters.memory_model import TINY_SPEC, MemoryModel, memory_model, tiny_spec

SCHEMES = ["fp32", "fp16", "int8", "int8-g64", "int4", "int4-g64"]
WITH_EVERYTHING = tiny_spec(
    is_tied=False, has_qkv_bias=True, has_o_bias=True, has_mlp_bias=True, sliding_window=8
)


def export(model, folder, **options) -> Artifact:
    return write_artifact(OnnxExporter(), model, folder, ExportOptions(**options))


def graph_of(artifact):
    return onnx.load(artifact.path / "model.onnx", load_external_data=False)


def external(tensor) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def test_a_block_worked_out_by_hand(tmp_path):
    model = memory_model()
    codes = np.tile(np.arange(16, dtype=np.uint8), (64, 4))
    scales = np.full((64, 2), -0.5, dtype=np.float32)
    hand = EncodedTensor.of_codes("layers.0.o", Encoding("int4", 32), codes, scales)
    model = replace(model, tensors={**model.tensors, "layers.0.o": hand})
    proto = onnx.load(export(model, tmp_path / "a").path / "model.onnx")
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    block = bytes.fromhex("1032547698badcfe") * 2
    assert arrays["layers.0.o.codes"].shape == (64, 2, 16)
    assert arrays["layers.0.o.codes"][7, 1].tobytes() == block
    np.testing.assert_array_equal(arrays["layers.0.o.scales"], scales)


def test_query_key_and_value_rows_follow_each_other(tmp_path):
    model = memory_model(WITH_EVERYTHING, "int8")
    proto = onnx.load(export(model, tmp_path / "a").path / "model.onnx")
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    parts = [model.tensors[f"layers.1.{part}"] for part in "qkv"]
    joined = np.concatenate([part.codes() for part in parts])
    np.testing.assert_array_equal(arrays["layers.1.qkv.codes"].reshape(joined.shape), joined)
    biases = np.concatenate([model.tensors[f"layers.1.{part}.bias"].values for part in "qkv"])
    np.testing.assert_array_equal(arrays["layers.1.qkv.bias"], biases)


@pytest.mark.parametrize("scheme", ["fp32", "fp16", "int4"])
def test_the_safetensors_library_and_the_onnx_library_read_the_same_bytes(tmp_path, scheme):
    artifact = export(memory_model(WITH_EVERYTHING, scheme), tmp_path / "a")
    proto = onnx.load(artifact.path / "model.onnx")
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    stored = safetensors.numpy.load_file(artifact.path / "weights.safetensors")
    shared = [name for name in stored if not name.startswith("padding.")]
    assert len(shared) > 20
    for name in shared:
        np.testing.assert_array_equal(arrays[name].reshape(stored[name].shape), stored[name])


def test_every_array_starts_on_64_bytes_even_when_sizes_do_not(tmp_path):
    model = memory_model(tiny_spec(vocab_size=97, is_tied=False), "int4")
    artifact = export(model, tmp_path / "a", context_length=7)
    places = [external(t) for t in graph_of(artifact).graph.initializer if t.external_data]
    assert {place["location"] for place in places} == {"weights.safetensors"}
    assert {int(place["offset"]) % 64 for place in places} == {0}
    stored = safetensors.numpy.load_file(artifact.path / "weights.safetensors")
    assert any(name.startswith("padding.") for name in stored)


def test_a_tied_embedding_is_one_piece_of_the_file_under_two_names(tmp_path):
    artifact = export(memory_model(TINY_SPEC, "int4"), tmp_path / "a")
    tensors = {t.name: t for t in graph_of(artifact).graph.initializer}
    assert external(tensors["embed.codes"]) == external(tensors["lm_head.codes"])
    assert list(tensors["embed.codes"].dims) == [96, 32]
    assert list(tensors["lm_head.codes"].dims) == [96, 2, 16]
    assert "lm_head.scales" not in tensors


def test_the_graph_is_what_fast_kernels_and_genai_want(tmp_path):
    artifact = export(memory_model(tiny_spec(n_layers=6), "int4-g64"), tmp_path / "a")
    proto = graph_of(artifact)
    assert (artifact.path / "model.onnx").stat().st_size < 50_000
    assert proto.ir_version == 10
    assert {o.domain: o.version for o in proto.opset_import} == {"": 21, "com.microsoft": 1}
    matmuls = [node for node in proto.graph.node if node.op_type == "MatMulNBits"]
    assert len(matmuls) == 6 * 5 + 1
    for node in matmuls:
        attributes = {a.name: a.i for a in node.attribute}
        assert (attributes["accuracy_level"], attributes["block_size"]) == (4, 64)
    logits = next(value for value in proto.graph.output if value.name == "logits")
    assert [d.dim_value or d.dim_param for d in logits.type.tensor_type.shape.dim] == [
        "batch_size",
        1,
        96,
    ]
    start = next(t for t in proto.graph.initializer if t.name == "logits_start")
    assert onnx.numpy_helper.to_array(start).tolist() == [-1]
    assert "logits_start" in {value.name for value in proto.graph.input}


def test_half_precision_weights_take_half_the_bytes(tmp_path):
    wide = export(memory_model(scheme="fp32"), tmp_path / "wide")
    half = export(memory_model(scheme="fp16"), tmp_path / "half")
    n_wide, n_half = ((a.path / "weights.safetensors").stat().st_size for a in (wide, half))
    assert n_half < 0.6 * n_wide


def test_genai_config_says_what_the_graph_is(tmp_path):
    artifact = export(memory_model(tiny_spec(eos_token_ids=(2, 5))), tmp_path / "a")
    config = json.loads((artifact.path / "genai_config.json").read_text())
    model, decoder = config["model"], config["model"]["decoder"]
    assert (model["type"], model["vocab_size"], model["eos_token_id"]) == ("mistral", 96, [2, 5])
    assert decoder["filename"] == "model.onnx"
    inputs = {value.name for value in graph_of(artifact).graph.input}
    assert decoder["inputs"]["past_key_names"] % 1 in inputs
    assert config["search"]["max_length"] == model["context_length"] == 64


@pytest.mark.parametrize(
    ("ours", "theirs"), [("ministral3", "mistral"), ("olmo2", "olmo"), ("granite", "granite")]
)
def test_a_family_goes_to_genai_as_itself_or_its_nearest_relative(tmp_path, ours, theirs):
    artifact = export(memory_model(tiny_spec(model_type=ours)), tmp_path / "a")
    model = json.loads((artifact.path / "genai_config.json").read_text())["model"]
    assert model["type"] == theirs


def test_a_family_that_genai_does_not_know_goes_as_llama_and_needs_no_ids(tmp_path):
    spec = tiny_spec(model_type="novel", bos_token_id=None, eos_token_ids=(), pad_token_id=None)
    artifact = export(memory_model(spec), tmp_path / "a")
    model = json.loads((artifact.path / "genai_config.json").read_text())["model"]
    assert (model["type"], model["pad_token_id"]) == ("llama", 0)
    assert not {"bos_token_id", "eos_token_id"} & set(model)


def test_assets_are_carried_along(tmp_path):
    source = tmp_path / "tokenizer.json"
    source.write_bytes(b"{}")
    artifact = export(memory_model(assets={"tokenizer.json": source}), tmp_path / "a")
    assert (artifact.path / "tokenizer.json").read_bytes() == b"{}"


def test_a_missing_asset_is_an_export_error(tmp_path):
    model = memory_model(assets={"tokenizer.json": tmp_path / "absent.json"})
    with pytest.raises(ExportError, match=r"absent\.json"):
        export(model, tmp_path / "a")


def test_the_tables_are_as_long_as_the_context(tmp_path):
    short = export(memory_model(), tmp_path / "short", context_length=10)
    stored = safetensors.numpy.load_file(short.path / "weights.safetensors")
    cos, sin = rope_tables(TINY_SPEC.rope, TINY_SPEC.head_width, 10)
    np.testing.assert_array_equal(stored["rope.cos"], cos)
    np.testing.assert_array_equal(stored["rope.sin"], sin)


@pytest.mark.parametrize("context_length", [0, -1, 65])
def test_an_impossible_context_is_refused(tmp_path, context_length):
    with pytest.raises(
        UsageError, match=r"--context is not possible for onnx; got -?\d+; wanted 2 \.\. 64"
    ):
        export(memory_model(), tmp_path / "a", context_length=context_length)


def test_what_the_attention_kernel_cannot_do_is_refused_before_any_work(tmp_path):
    exporter = OnnxExporter()
    assert exporter.supports(TINY_SPEC, {}) == Accepted()
    narrow = exporter.supports(tiny_spec(head_width=12), {})
    assert isinstance(narrow, Rejected)
    assert "GroupQueryAttention needs a head width that is a multiple of 8" in narrow.reason
    assert isinstance(exporter.supports(tiny_spec(n_kv_heads=3), {}), Rejected)
    with pytest.raises(ExportError, match="multiple of 8"):
        model = memory_model(tiny_spec(head_width=12, n_heads=8))
        exporter.open(model, tmp_path, ExportOptions())
    assert not list(tmp_path.iterdir())


def test_a_window_no_shorter_than_the_context_is_no_window(tmp_path):
    def window(length: int, context: int) -> int:
        model = memory_model(tiny_spec(sliding_window=length))
        graph = graph_of(export(model, tmp_path / f"{length}", context_length=context)).graph
        node = next(node for node in graph.node if node.op_type == "GroupQueryAttention")
        return next(a.i for a in node.attribute if a.name == "local_window_size")

    assert (window(8, 32), window(32, 32)) == (8, -1)


def test_writing_twice_gives_the_same_bytes(tmp_path):
    first = export(memory_model(WITH_EVERYTHING), tmp_path / "1")
    second = export(memory_model(WITH_EVERYTHING), tmp_path / "2")
    assert first.manifest.files == second.manifest.files


def test_each_tensor_is_read_once(tmp_path):
    model = memory_model(WITH_EVERYTHING, "int4")
    export(model, tmp_path / "a")
    assert sorted(model.reads) == sorted(WITH_EVERYTHING.weight_shapes())


@dataclass(frozen=True)
class CountingModel(MemoryModel):
    """Hands out copies and notes how many of them are alive at once."""

    handed: list[weakref.finalize] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)

    def get(self, name):
        tensor = self.tensors[name]
        part = "packed" if isinstance(tensor, EncodedTensor) else "values"
        array = getattr(tensor, part).copy()
        self.handed.append(weakref.finalize(array, int))
        gc.collect()
        self.peaks.append(sum(handle.alive for handle in self.handed))
        return replace(tensor, **{part: array})


def test_no_more_tensors_than_are_waited_for_are_in_memory(tmp_path):
    base = memory_model(WITH_EVERYTHING, "int4")
    model = CountingModel(base.spec, base.scheme, base.tensors)
    export(model, tmp_path / "a")
    # One is being encoded, one is waited for, one was just taken.
    assert max(model.peaks) <= 3


def test_a_tensor_that_is_not_what_its_entry_says_is_an_export_error(tmp_path):
    honest = memory_model(TINY_SPEC, "int4")
    wider = memory_model(tiny_spec(ffn_width=256), "int4").tensors["layers.0.up"]
    floats = FloatTensor("layers.0.up", FP32, np.zeros((128, 64), np.float32))
    for wrong in (wider, floats):
        folder = tmp_path / str(wrong.encoding)
        folder.mkdir()
        sink = OnnxExporter().open(honest, folder, ExportOptions())
        with pytest.raises(ExportError, match=r"layers\.0\.up"):
            sink.put(wrong)
        sink.discard()
        assert not list(folder.iterdir())


def test_a_model_that_lacks_a_tensor_is_an_export_error(tmp_path):
    model = memory_model()
    del model.tensors["layers.1.down"]
    with pytest.raises(ExportError, match=r"layers\.1\.down"):
        export(model, tmp_path / "a")


def test_an_unwritable_folder_is_an_export_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ExportError, match=r"cannot write .*file.a"):
        write_artifact(OnnxExporter(), memory_model(), tmp_path / "file" / "a")
