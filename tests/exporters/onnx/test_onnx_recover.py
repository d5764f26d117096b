"""Claims about the way back from an ONNX folder: exact for every scheme, faults found."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.artifact import Artifact
from edgekit.errors import FormatError
from edgekit.exporters.base import ExportOptions
from edgekit.exporters.onnx.exporter import OnnxExporter
from edgekit.exporters.staging import write_artifact
from edgekit.quantize.model import EncodedTensor
from tests.exporters.memory_model import TINY_SPEC, memory_model, tiny_spec

SCHEMES = ["fp32", "fp16", "int8", "int8-g64", "int4", "int4-g64"]
WITH_EVERYTHING = tiny_spec(
    is_tied=False, has_qkv_bias=True, has_o_bias=True, has_mlp_bias=True, sliding_window=8
)
MIXED = {
    "embed": "int8",
    "layers.0.v": "int8",
    "layers.1.k": "fp16",
    "layers.0.down": "int4-g128",
    "layers.1.o": "fp32",
}


def export(model, folder, **options) -> Artifact:
    return write_artifact(OnnxExporter(), model, folder, ExportOptions(**options))


def graph_of(artifact):
    return onnx.load(artifact.path / "model.onnx", load_external_data=False)


def external(tensor) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def recover(artifact):
    return list(OnnxExporter().recover(artifact))


def assert_same_tensor(got, wanted) -> None:
    assert type(got) is type(wanted)
    assert (got.name, got.encoding, got.shape) == (wanted.name, wanted.encoding, wanted.shape)
    if isinstance(wanted, EncodedTensor):
        np.testing.assert_array_equal(got.codes(), wanted.codes())
        np.testing.assert_array_equal(got.scales, wanted.scales)
        assert got.sha256() == wanted.sha256()
    else:
        np.testing.assert_array_equal(got.values, wanted.values)


@pytest.mark.parametrize("spec", [TINY_SPEC, WITH_EVERYTHING], ids=["tied", "everything"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_tensor_comes_back_exactly(tmp_path, scheme, spec):
    model = memory_model(spec, scheme, seed=3)
    recovered = recover(export(model, tmp_path / "a"))
    assert [tensor.name for tensor in recovered] == list(spec.weight_shapes())
    for tensor in recovered:
        assert_same_tensor(tensor, model.tensors[tensor.name])


def test_tensors_of_different_schemes_in_one_model_come_back_exactly(tmp_path):
    model = memory_model(TINY_SPEC, "int4", schemes=MIXED)
    artifact = export(model, tmp_path / "a")
    for tensor in recover(artifact):
        assert_same_tensor(tensor, model.tensors[tensor.name])
    names = {node.name for node in graph_of(artifact).graph.node}
    assert {"layers.0.q", "layers.0.k", "layers.0.v"} <= names
    assert "layers.0.qkv" not in names


@settings(max_examples=20, deadline=None)
@given(
    n_rows=st.integers(1, 70),
    n_groups=st.integers(1, 3),
    n_kv_heads=st.sampled_from([1, 2, 4]),
    scheme=st.sampled_from(SCHEMES),
    is_tied=st.booleans(),
    n_positions=st.integers(2, 40),
)
def test_odd_shapes_come_back_exactly(n_rows, n_groups, n_kv_heads, scheme, is_tied, n_positions):
    spec = tiny_spec(
        vocab_size=n_rows, hidden_width=32 * n_groups, n_kv_heads=n_kv_heads, is_tied=is_tied
    )
    model = memory_model(spec, scheme)
    with tempfile.TemporaryDirectory() as folder:
        for tensor in recover(export(model, Path(folder) / "a", context_length=n_positions)):
            assert_same_tensor(tensor, model.tensors[tensor.name])


def damage_graph(artifact, change) -> None:
    proto = graph_of(artifact)
    change(proto.graph)
    (artifact.path / "model.onnx").write_bytes(proto.SerializeToString())


def node_of(graph, name):
    return next(node for node in graph.node if node.name == name)


def set_attribute(name, attribute, value):
    def change(graph):
        next(a for a in node_of(graph, name).attribute if a.name == attribute).i = value

    return change


def move_weights(graph):
    tensor = next(t for t in graph.initializer if t.name == "layers.0.qkv.codes")
    tensor.external_data[0].value = "../weights.safetensors"


def initializer(graph, name):
    return next(t for t in graph.initializer if t.name == name)


def say(name, key, value):
    """Let the graph say something else of where a weight lies; None takes the entry out."""

    def change(graph):
        tensor = initializer(graph, name)
        entries = [(e.key, e.value) for e in tensor.external_data if e.key != key]
        del tensor.external_data[:]
        for k, v in entries + ([] if value is None else [(key, str(value))]):
            tensor.external_data.add(key=k, value=v)

    return change


def say_twice(graph):
    initializer(graph, "embed.codes").external_data.add(key="offset", value="0")


def swap_places(first, second):
    def change(graph):
        ours, theirs = initializer(graph, first), initializer(graph, second)
        ours.external_data[1].value, theirs.external_data[1].value = (
            theirs.external_data[1].value,
            ours.external_data[1].value,
        )

    return change


def another_head(graph):
    """The tied output matrix gets codes of its own, those of the embedding one byte later."""
    entry = initializer(graph, "lm_head.codes").external_data[1]
    entry.value = str(int(entry.value) + 1)


DAMAGE = {
    "another operator": lambda g: setattr(node_of(g, "layers.1.up"), "op_type", "MatMul"),
    "another width": set_attribute("layers.0.o", "bits", 8),
    "impossible width": set_attribute("layers.0.o", "bits", 3),
    "impossible block": set_attribute("embed.out", "block_size", 48),
    "another precision": set_attribute("layers.0.down", "accuracy_level", 0),
    "another head count": set_attribute("layers.0.attention", "num_heads", 2),
    "an initializer gone": lambda g: g.initializer.pop(3),
    "a node gone": lambda g: g.node.remove(node_of(g, "layers.0.qkv")),
    "a node more": lambda g: g.node.add(name="extra", op_type="Identity"),
    "a node twice": lambda g: g.node.append(g.node[3]),
    "an output gone": lambda g: g.output.pop(),
    "weights elsewhere": move_weights,
    "weights under an absolute path": say("embed.codes", "location", "/etc/passwd"),
    "weights in a folder below": say("embed.codes", "location", "sub/weights.safetensors"),
    "weights in no file": say("embed.codes", "location", ""),
    "weights in a file that is not there": say("embed.codes", "location", "other.bin"),
    "weights beyond the file": say("embed.codes", "offset", 10**9),
    "a negative offset": say("embed.codes", "offset", -64),
    "an offset that readers read differently": say("embed.codes", "offset", " 1_000"),
    "no offset": say("embed.codes", "offset", None),
    "no length": say("embed.codes", "length", None),
    "a length of another size": say("embed.codes", "length", 64),
    "a length of the whole address space": say("embed.codes", "length", 10**17),
    "an entry that nobody knows": say("embed.codes", "basepath", "/"),
    "an entry twice": say_twice,
    "an output matrix that is not the embedding": another_head,
    "rotary angles of elsewhere": swap_places("rope.cos", "rope.sin"),
    "a sparse weight": lambda g: g.sparse_initializer.add(),
    "a type more": lambda g: g.value_info.add(name="layers.0.o.out"),
}


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_changed_graph_is_a_format_error(tmp_path, change):
    artifact = export(memory_model(), tmp_path / "a")
    damage_graph(artifact, change)
    with pytest.raises(
        FormatError, match=r"model\.onnx|weights\.safetensors|rope\.cos|lm_head\.codes"
    ):
        recover(artifact)


def test_weights_are_read_where_the_graph_says(tmp_path):
    """As onnxruntime does; the header of the weight file has no say in it."""
    model = memory_model()
    artifact = export(model, tmp_path / "a")
    damage_graph(artifact, swap_places("layers.0.gate.codes", "layers.0.up.codes"))
    found = {tensor.name: tensor for tensor in recover(artifact)}
    for ours, theirs in (("layers.0.gate", "layers.0.up"), ("layers.0.up", "layers.0.gate")):
        np.testing.assert_array_equal(found[ours].codes(), model.tensors[theirs].codes())
        np.testing.assert_array_equal(found[ours].scales, model.tensors[ours].scales)


def test_whatever_else_is_in_the_model_is_a_format_error(tmp_path):
    artifact = export(memory_model(), tmp_path / "a")
    proto = graph_of(artifact)
    proto.functions.add(name="MatMulNBits", domain="com.microsoft")
    (artifact.path / "model.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(FormatError, match="differs from what the exporter writes") as caught:
        recover(artifact)
    assert caught.value.got == "functions"


def test_flipped_bits_of_the_graph_are_format_errors_or_other_weights(tmp_path):
    """Nothing foreign is raised, and what is read without a word is read where the file says."""
    artifact = export(memory_model(), tmp_path / "a")
    path = artifact.path / "model.onnx"
    whole, wanted = path.read_bytes(), hashes(artifact)
    random, n_refused, n_other = Random(5), 0, 0
    for _ in range(150):
        data = bytearray(whole)
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        path.write_bytes(data)
        try:
            n_other += hashes(artifact) != wanted
        except FormatError:
            n_refused += 1
    assert n_refused > 130
    assert n_refused + n_other <= 150


def hashes(artifact):
    return [t.sha256() if isinstance(t, EncodedTensor) else t.values.tobytes()
            for t in recover(artifact)]  # fmt: skip


def test_a_pipe_is_a_format_error_and_nobody_waits(tmp_path):
    artifact = export(memory_model(), tmp_path / "a")
    for name in ("weights.safetensors", "model.onnx"):
        (artifact.path / name).unlink()
        os.mkfifo(artifact.path / name)
        with pytest.raises(FormatError, match="not a plain file"):
            recover(artifact)


def test_what_the_checker_of_onnx_refuses_is_a_format_error(tmp_path):
    artifact = export(memory_model(), tmp_path / "a")
    os.link(artifact.path / "weights.safetensors", tmp_path / "another name")
    with pytest.raises(FormatError, match=r"onnx\.checker") as caught:
        recover(artifact)
    assert caught.value.do.startswith("Copy the artifact")


@pytest.mark.parametrize("file", ["model.onnx", "weights.safetensors"])
@pytest.mark.parametrize("n_kept", [0, 5, 1000])
def test_a_cut_off_file_is_a_format_error(tmp_path, file, n_kept):
    artifact = export(memory_model(), tmp_path / "a")
    path = artifact.path / file
    path.write_bytes(path.read_bytes()[:n_kept])
    with pytest.raises(FormatError):
        recover(artifact)


@pytest.mark.parametrize("file", ["model.onnx", "weights.safetensors"])
def test_an_absent_file_is_a_format_error(tmp_path, file):
    artifact = export(memory_model(), tmp_path / "a")
    (artifact.path / file).unlink()
    with pytest.raises(FormatError, match=file):
        recover(artifact)


def test_a_huge_graph_file_is_refused_unread(tmp_path):
    artifact = export(memory_model(), tmp_path / "a")
    with (artifact.path / "model.onnx").open("ab") as stream:
        stream.truncate(1 << 33)
    with pytest.raises(FormatError, match="graph size"):
        recover(artifact)


@pytest.mark.parametrize(
    "change",
    [
        {"n_layers": 10**9},
        {"n_layers": "2"},
        {"n_layers": 1.5},
        {"hidden_width": None},
        {"n_heads": {}},
        {"sliding_window": "8"},
        {"norm_offset": "much"},
        {"rope": None},
        {"rope": {"theta": [1.0]}},
        {"rope": {"theta": 1e4, "scaling": "much"}},
        {"rope": {"theta": 1e4, "rotary_width": "8"}},
    ],
    ids=str,
)
def test_a_damaged_decoder_in_the_manifest_is_a_format_error(tmp_path, change):
    artifact = export(memory_model(), tmp_path / "a")
    decoder = {**artifact.manifest.decoder, **change}
    damaged = replace(artifact, manifest=replace(artifact.manifest, decoder=decoder))
    with pytest.raises(FormatError, match="in the manifest"):
        recover(damaged)


def test_a_manifest_with_another_context_is_a_format_error(tmp_path):
    artifact = export(memory_model(), tmp_path / "a")
    damaged = replace(artifact, manifest=replace(artifact.manifest, context_length=63))
    with pytest.raises(FormatError, match=r"rope\.cos"):
        recover(damaged)


def test_a_norm_listed_as_fp16_that_is_not_is_a_format_error(tmp_path):
    artifact = export(memory_model(), tmp_path / "a")
    offset = next(
        int(external(t)["offset"])
        for t in graph_of(artifact).graph.initializer
        if t.name == "final_norm"
    )
    with (artifact.path / "weights.safetensors").open("r+b") as stream:
        stream.seek(offset)
        stream.write(np.float32(1 / 3).tobytes())
    with pytest.raises(FormatError, match="final_norm"):
        recover(artifact)


def test_recovery_reads_lazily(tmp_path):
    artifact = export(memory_model(), tmp_path / "a")
    tensors = OnnxExporter().recover(artifact)
    assert next(tensors).name == "embed"
    tensors.close()
