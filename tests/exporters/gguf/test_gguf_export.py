"""Claims about GGUF artifacts: mlx, the gguf package and edgekit itself read the same weights."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import gguf
import mlx.core as mx
import numpy as np
import pytest

import edgekit
from edgekit.artifact import Artifact, Format
from edgekit.decision import Rejected
from edgekit.encoding import FP32
from edgekit.errors import ExportError, FormatError, UsageError
from edgekit.exporters.base import ExportOptions
from edgekit.exporters.gguf.exporter import GgufExporter
from edgekit.exporters.gguf.graphs import GRAPHS, choose_graph
from edgekit.exporters.staging import write_artifact
from edgekit.families import open_model
from edgekit.families.rope_spec import Llama3Scaling, LongRopeScaling, RopeSpec, YarnScaling
from edgekit.families.spec import QkNorm, QueryScaling
from edgekit.pipeline.agreement import reference_decoder
from edgekit.pipeline.claims import false_claims, recover_entries
from edgekit.quantize.model import EncodedTensor, FloatTensor
from edgekit.runtime.reference import ReferenceDecoder
from edgekit.text.tokenizer import Tokenizer
from tests.builders import write_tiny_checkpoint
from tests.exporters.memory_model import memory_model, stored_as, tiny_spec
from tests.tiny_families import TINY_CONFIGS

YARN = YarnScaling(4.0, 32.0, 1.0, 64, 1.1386294361119891)
# What a config must say for llama.cpp to compute it, where the tiny one says otherwise.
AS_PUBLISHED = {
    "gemma3_text": {"query_pre_attn_scalar": 64},
    "gemma2": {"query_pre_attn_scalar": 32},
    "phi3": {"original_max_position_embeddings": 256, "max_position_embeddings": 512},
    "exaone4": {"head_dim": None},
}
TEXTS = ("the rain in spain", "  a\n\n b</s>c", "x123 \N{GREEK SMALL LETTER ALPHA}", "")
NOT_READ = {"granitemoehybrid-nope"}  # edgekit refuses a file of that architecture without rope
REFUSED = {"exaone4-window": "layers slide exactly where there are 64 of them"}
MEMBERS = [name for name in TINY_CONFIGS if name not in {*REFUSED, *NOT_READ}]


def write(tmp_path, model, **options) -> Artifact:
    return write_artifact(GgufExporter(), model, tmp_path / "a", ExportOptions(**options))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    model = memory_model(tiny_spec(), "int4-g64", schemes={"embed": "int8"})
    return model, write(tmp_path_factory.mktemp("llama"), model)


def test_mlx_loads_the_same_codes(llama):
    model, artifact = llama
    arrays = mx.load(str(artifact.path / "model.gguf"))
    for name, ours in (("ffn_gate", "gate"), ("ffn_down", "down"), ("attn_v", "v")):
        tensor = model.tensors[f"layers.1.{ours}"]
        blocks = [arrays[f"blk.1.{name}.{part}"] for part in ("weight", "scales", "biases")]
        assert blocks[0].size * 8 == tensor.codes().size
        wide = [blocks[0], *(block.astype(mx.float32) for block in blocks[1:])]
        theirs = np.array(mx.dequantize(*wide, group_size=32, bits=4))
        np.testing.assert_array_equal(theirs, tensor.dequantize())
        scales = np.array(blocks[1].astype(mx.float32))
        np.testing.assert_array_equal(scales, np.repeat(tensor.scales, 2, axis=1))


def test_the_rows_of_q_and_k_are_where_llama_cpp_rotates_neighbours(llama):
    model, artifact = llama
    reader = gguf.GGUFReader(artifact.path / "model.gguf")
    stored = {tensor.name: tensor for tensor in reader.tensors}
    for part, n_heads in (("q", 4), ("k", 2)):
        tensor = stored[f"blk.0.attn_{part}.weight"]
        theirs = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        ours = model.tensors[f"layers.0.{part}"].dequantize()
        # The converter of llama.cpp: (heads, 2 halves, pairs, width) to (heads, pairs, 2, width).
        moved = ours.reshape(n_heads, 2, 8, 64).swapaxes(1, 2).reshape(ours.shape)
        np.testing.assert_array_equal(theirs, moved)


@pytest.mark.parametrize("n_rows", [None, 2, 6, 16])
def test_weights_may_come_in_any_order_and_by_rows(llama, tmp_path, n_rows):
    model, artifact = llama
    pieces = [
        (name, first)
        for name, tensor in model.tensors.items()
        for first in range(0, tensor.shape[0], n_rows or tensor.shape[0])
    ]
    random.Random(1).shuffle(pieces)
    sink = GgufExporter().open(model, tmp_path, ExportOptions())
    for name, first in pieces:
        tensor = model.tensors[name]
        part = slice(first, first + (n_rows or tensor.shape[0]))
        if isinstance(tensor, EncodedTensor):
            sink.put(tensor.rows(part), first)
        else:
            sink.put(replace(tensor, values=tensor.values[part]), first)
    sink.finish(model.entries)
    wanted = (artifact.path / "model.gguf").read_bytes()
    assert (tmp_path / "model.gguf").read_bytes() == wanted


def test_a_tensor_that_was_not_planned_is_refused(llama, tmp_path):
    model, _ = llama
    gate = model.tensors["layers.0.gate"]
    sink = GgufExporter().open(model, tmp_path, ExportOptions())
    for odd in (
        replace(gate, name="layers.7.gate"),
        FloatTensor("layers.0.gate", FP32, gate.dequantize()),
    ):
        with pytest.raises(ExportError, match="wanted what the model's entries say"):
            sink.put(odd)
    with pytest.raises(ExportError, match="wanted what the model's entries say"):
        sink.put(gate, 2)
    with pytest.raises(ExportError, match="the model is not what its entries say"):
        sink.finish(model.entries)
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.parametrize("member", MEMBERS)
def test_edgekit_reads_the_same_model_from_its_own_file(member, tmp_path):
    changes = AS_PUBLISHED.get(member, {})
    source = write_tiny_checkpoint(tmp_path / "m", member, dtype="fp32", **changes)
    onnx, artifact = edgekit.export(source, ["onnx", "gguf"], "int8", tmp_path / "out", fold=False)
    assert artifact.manifest.weights_sha256 == onnx.manifest.weights_sha256
    again = open_model(artifact.path / "model.gguf")
    n_positions = artifact.manifest.context_length
    assert again.spec.context_length == n_positions
    recovered = {tensor.name: tensor for tensor in GgufExporter().recover(artifact)}
    for name, tensor in recovered.items():
        is_codes = isinstance(tensor, EncodedTensor)
        values = tensor.dequantize() if is_codes else tensor.values
        np.testing.assert_array_equal(again.tensor(name).read(), values, err_msg=name)
        if is_codes and again.tensor(name).prequantized is not None:
            codes = again.tensor(name).prequantized.codes(0, tensor.shape[0])
            np.testing.assert_array_equal(codes, tensor.codes(), err_msg=name)
    ids = [(7 * i * i + 3 * i) % 380 for i in range(min(n_positions, 80))]
    wanted, got = (
        decoder.forward(ids, n_past=0, n_logits=len(ids))
        for decoder in (reference_decoder(artifact), ReferenceDecoder.from_source(again))
    )
    # The file has float32 where a config has any number.
    assert np.abs(got - wanted).max() / wanted.std() < 1e-4
    tokenizers = [Tokenizer.open(source), Tokenizer.open(again.checkpoint.text_files)]
    for text in TEXTS:
        ours, theirs = (t.encode(text, allow_special=True, add_special=True) for t in tokenizers)
        assert ours == theirs
    assert set(again.spec.eos_token_ids) >= set(wanted_ends(artifact))


def wanted_ends(artifact):
    return artifact.manifest.decoder["eos_token_ids"]


@pytest.mark.parametrize(("member", "reason"), REFUSED.items())
def test_what_llama_cpp_does_not_compute_is_refused_with_a_reason(member, reason, tmp_path):
    source = write_tiny_checkpoint(tmp_path / "m", member)
    with pytest.raises(ExportError, match=reason):
        edgekit.export(source, "gguf", "int8", tmp_path / "out")
    said = []
    artifacts = edgekit.export(source, "all", "int8", tmp_path / "out", warn=said.append)
    assert [a.format for a in artifacts] == [Format.ONNX, Format.MLX, Format.COREML]
    (left_out,) = (text for text in said if text.startswith("left out: gguf"))
    assert reason in left_out


CASES = {
    "a window that no layer of llama.cpp's llama has": ({"sliding_window": 16}, "llama", 16),
    "two kinds of layers": ({"sliding_window": 16, "sliding_layers": (0,)}, "llama", 16),
    "llama 3 scaling": ({"rope": RopeSpec(1e4, Llama3Scaling(8.0, 1.0, 4.0, 32))}, "llama", 64),
    "yarn": ({"rope": RopeSpec(1e4, YARN)}, "llama", 64),
    "yarn with another ramp": (
        {"rope": RopeSpec(1e4, replace(YARN, beta_fast=16.0))}, "mistral3", 64
    ),
    "a factor of queries": (
        {"rope": RopeSpec(1e4, YARN), "query_scaling": QueryScaling(0.1, 64)}, "mistral3", 64
    ),
    "norms of heads": ({"qk_norm": QkNorm.HEAD}, "qwen3", 64),
    "a factor of the residual": ({"residual_scale": 0.5}, "granite", 64),
    "no positions at all": ({"no_rope_layers": (0, 1)}, "granite", 64),
    "a part of a head": ({"rope": RopeSpec(1e4, rotary_width=8)}, "phi3", 64),
}  # fmt: skip


@pytest.mark.parametrize(("change", "name", "n"), CASES.values(), ids=CASES)
def test_an_architecture_is_chosen_by_what_it_computes(change, name, n):
    chosen = choose_graph(tiny_spec(**change))
    assert (chosen.graph.name, chosen.n_positions) == (name, n)


REFUSALS = {
    "windows and capped scores": {"sliding_window": 16, "scores_softcap": 50.0},
    "yarn not rounded": {"rope": RopeSpec(1e4, replace(YARN, is_truncated=False))},
    "two scalings": {"rope": RopeSpec(1e4, YARN, linear_factor=2.0)},
    "longrope for less than a cache": {
        "rope": RopeSpec(1e4, LongRopeScaling((1.0,) * 8, (2.0,) * 8, 64, 1.0))
    },
    "rope in some layers": {"no_rope_layers": (1,)},
}


@pytest.mark.parametrize("change", REFUSALS.values(), ids=REFUSALS)
def test_what_no_architecture_computes_is_refused_before_any_work(change):
    exporter, spec = GgufExporter(), tiny_spec(**change)
    decision = exporter.supports(spec, stored_as(spec, FP32))
    assert isinstance(decision, Rejected)
    assert decision.reason.startswith("llama.cpp's llama: ")
    for act in (
        lambda: exporter.positions(spec),
        lambda: exporter.predict(memory_model(spec), ExportOptions()),
    ):
        with pytest.raises(ExportError, match="GGUF cannot hold this model"):
            act()


def test_longrope_holds_the_positions_of_its_first_factors():
    scaling = LongRopeScaling((1.0,) * 8, (2.0,) * 8, 4096, 1.2)
    spec = tiny_spec(rope=RopeSpec(1e4, scaling), context_length=131072)
    exporter = GgufExporter()
    held = exporter.positions(spec)
    assert (held.default, held.longest) == (4096, 4096)
    assert "by the size of its cache" in held.reason
    assert "4096 of 131072" in exporter.supports(spec, stored_as(spec, FP32)).notes[0]


def test_the_keys_of_a_decoder_are_those_that_llama_cpp_reads(tmp_path):
    spec = tiny_spec(rope=RopeSpec(5e5, YARN), norm_eps=1e-6, context_length=128)
    artifact = write(tmp_path, memory_model(spec, "int4"), context_length=100)
    fields = gguf.GGUFReader(artifact.path / "model.gguf").fields
    found = {
        key.removeprefix("llama."): field.contents()
        for key, field in fields.items()
        if key.startswith("llama.")
    }
    assert found == {
        "block_count": 2, "context_length": 100, "embedding_length": 64, "vocab_size": 96,
        "feed_forward_length": 128, "attention.head_count": 4, "attention.head_count_kv": 2,
        "attention.key_length": 16, "attention.value_length": 16, "rope.dimension_count": 16,
        "attention.layer_norm_rms_epsilon": pytest.approx(1e-6), "rope.freq_base": 5e5,
        "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 64, "rope.scaling.yarn_beta_fast": 32.0,
        "rope.scaling.yarn_beta_slow": 1.0,
        # llama.cpp itself multiplies by 1 + 0.1 ln(4), which is the decoder's factor.
        "rope.scaling.attn_factor": pytest.approx(1.0),
    }  # fmt: skip
    assert fields["general.architecture"].contents() == "llama"
    assert fields["general.file_type"].contents() == 2
    assert fields["general.name"].contents() == "tiny"
    assert artifact.manifest.context_length == 100


def test_matrices_in_one_tensor_must_have_one_type(tmp_path):
    spec = tiny_spec(rope=RopeSpec(1e4, rotary_width=8))
    assert choose_graph(spec).graph.name == "phi3"
    model = memory_model(spec, "int4", schemes={"layers.0.up": "int8"})
    with pytest.raises(ExportError, match=r"holds layers\.0\.gate and layers\.0\.up in one tensor"):
        write(tmp_path, model)
    assert not (tmp_path / "a").exists()


def test_more_positions_than_it_holds_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no sliding window"):
        write(tmp_path, memory_model(tiny_spec(sliding_window=16)), context_length=17)


@pytest.mark.parametrize("scheme", ["fp16", "int8", "int4"])
def test_the_size_is_predicted(tmp_path, scheme):
    spec = tiny_spec(hidden_width=256, ffn_width=512, vocab_size=512)
    model = memory_model(spec, scheme)
    said = GgufExporter().predict(model, ExportOptions()).disk_bytes
    real = (write(tmp_path, model).path / "model.gguf").stat().st_size
    assert said - 36 * 512 == pytest.approx(real, abs=512)  # this model has no vocabulary


def test_a_model_without_a_tokenizer_says_so_to_llama_cpp(llama):
    _, artifact = llama
    fields = gguf.GGUFReader(artifact.path / "model.gguf").fields
    assert fields["tokenizer.ggml.model"].contents() == "none"
    assert fields["llama.vocab_size"].contents() == 96


def test_recover_refuses_a_file_of_another_decoder(llama, tmp_path):
    _, artifact = llama
    other = replace(artifact.manifest, decoder=tiny_spec(n_kv_heads=4).as_dict())
    entries = [replace(e, encoding="int8-g32") for e in artifact.manifest.tensors if e.sha256]
    for manifest, match in (
        (replace(artifact.manifest, tensors=tuple(entries)), "tensor blk.0.attn_q.weight"),
        (replace(other, decoder={}), "decoder in the manifest"),
    ):
        with pytest.raises(FormatError, match=match):
            list(GgufExporter().recover(Artifact(artifact.path, manifest)))


def test_every_graph_is_one_that_edgekit_reads_and_is_named_once():
    assert [graph.name for graph in GRAPHS.values()] == list(GRAPHS)
    for graph in GRAPHS.values():
        assert graph.tensor_name("embed") == "token_embd.weight"
        assert graph.tensor_name("layers.7.down") == "blk.7.ffn_down.weight"
        with pytest.raises(FormatError, match="has no weight"):
            graph.tensor_name("layers.0.gating")


def test_a_modelfile_names_the_file_and_the_ends(tmp_path):
    source = write_tiny_checkpoint(tmp_path / "m", "llama")
    (artifact,) = edgekit.export(source, "gguf", "int8", tmp_path / "out")
    text = (artifact.path / "Modelfile").read_text(encoding="utf-8")
    assert text.splitlines()[:2] == ["FROM ./model.gguf", "PARAMETER num_ctx 256"]
    assert 'PARAMETER stop "</s>"' in text.splitlines()
    assert json.loads((artifact.path / "manifest.json").read_text())["settings"]["types"]["Q8_0"]


LIES = {
    "architecture": lambda m: replace(m, settings={**m.settings, "architecture": "qwen2"}),
    "types": lambda m: replace(m, settings={**m.settings, "types": {"F32": 1}}),
    "general.name": lambda m: replace(m, model_name="another"),
    "context_length": lambda m: replace(m, context_length=m.context_length - 1),
    "general.file_type": lambda m: replace(
        m, tensors=tuple(replace(e, encoding="int4-g32") for e in m.tensors)
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_manifest_that_says_otherwise_than_the_file_is_found(lie, tmp_path):
    source = write_tiny_checkpoint(tmp_path / "m", "llama")
    (artifact,) = edgekit.export(source, "gguf", "int8", tmp_path / "out")
    entries = recover_entries(artifact)
    assert false_claims(artifact, entries) == []
    lying = Artifact(artifact.path, LIES[lie](artifact.manifest))
    assert any(lie in claim for claim in false_claims(lying, entries))


def test_a_changed_modelfile_is_found(tmp_path):
    source = write_tiny_checkpoint(tmp_path / "m", "llama")
    (artifact,) = edgekit.export(source, "gguf", "int8", tmp_path / "out")
    (artifact.path / "Modelfile").write_text("FROM ./other.gguf\n")
    (claim,) = false_claims(artifact, recover_entries(artifact))
    assert claim.startswith("Modelfile: the manifest says FROM ./model.gguf")
