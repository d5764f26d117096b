"""Claims about ONNX artifacts of every decoder family: none refused, logits right, bytes back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from edgekit.artifact import Artifact
from edgekit.decision import Rejected
from edgekit.exporters.base import ExportOptions
from edgekit.exporters.onnx.exporter import OnnxExporter
from edgekit.exporters.staging import write_artifact
from edgekit.families import open_model
from edgekit.families.rope_spec import LongRopeScaling, RopeSpec
from edgekit.families.spec import Activation, NormPlacement, QkNorm, QueryScaling
from edgekit.quantize.encoded_model import EncodedModel, quantize_model
from edgekit.quantize.methods import Method
from edgekit.quantize.model import EncodedTensor
from edgekit.runtime.onnxruntime import OnnxruntimeDecoder
from edgekit.runtime.reference import ReferenceDecoder
from edgekit.scheme import Scheme
from tests.builders import write_tiny_checkpoint
from tests.exporters.memory_model import float_weights, memory_model, tiny_spec
from tests.tiny_families import TINY_CONFIGS

# Of the standard deviation of the logits. Both sides compute in float32 and sum in another order,
# which gives about 1e-5; a wrong angle, window or norm gives more than 1e-2.
TOLERANCE = 2e-4
REFUSED: set[str] = set()
TOKENS = np.random.default_rng(7).integers(3, 384, 200).tolist()
PLAIN_OPS = {
    "ReduceSum": 1, "Sub": 1, "Shape": 1, "Cast": 2, "Gather": 1, "SimplifiedLayerNormalization": 1,
    "FusedMatMul": 11, "GroupQueryAttention": 2, "SkipSimplifiedLayerNormalization": 4,
    "QuickGelu": 2, "Mul": 2, "Slice": 1,
}  # fmt: skip
FLOAT_ACTIVATIONS = {"activation": "fp32"}


@dataclass(frozen=True)
class Member:
    """A tiny model of one family, quantized, and its ONNX artifact."""

    model: EncodedModel
    artifact: Artifact

    def engine(self, **options) -> OnnxruntimeDecoder:
        return OnnxruntimeDecoder.open(self.artifact, n_threads=1, options=options)

    def reference(self) -> ReferenceDecoder:
        return ReferenceDecoder.from_quantized(self.model)

    def graph(self):
        return onnx.load(self.artifact.path / "model.onnx", load_external_data=False).graph


def make_member(folder: Path, name: str, scheme="fp32", context_length=None, **config) -> Member:
    source = open_model(write_tiny_checkpoint(folder / "model", name, dtype="fp32", **config))
    model = quantize_model(source, Scheme.parse(scheme), folder / "store", method=Method.RTN)
    options = ExportOptions(context_length)
    return Member(model, write_artifact(OnnxExporter(), model, folder / "artifact", options))


@pytest.fixture(scope="module", params=TINY_CONFIGS)
def member(request, tmp_path_factory) -> Iterator[Member]:
    made = make_member(tmp_path_factory.mktemp(request.param), request.param)
    yield made
    made.model.close()


def run(decoder, ends: list[int]):
    """Run the tokens up to each end in calls of their own; all logits, (T, V)."""
    calls = [
        decoder.forward(TOKENS[start:end], n_past=start, n_logits=end - start)
        for start, end in pairwise([0, *ends])
    ]
    return np.concatenate(calls)


def assert_same_logits(got, wanted) -> None:
    assert wanted.std() > 0.5
    assert np.abs(got - wanted).max() <= TOLERANCE * wanted.std()


def assert_comes_back(artifact, model) -> None:
    recovered = list(OnnxExporter().recover(artifact))
    assert [tensor.name for tensor in recovered] == list(model.spec.weight_shapes())
    for tensor in recovered:
        wanted = model.get(tensor.name)
        assert (type(tensor), tensor.encoding) == (type(wanted), wanted.encoding)
        parts = ("packed", "scales") if isinstance(wanted, EncodedTensor) else ("values",)
        for part in parts:
            assert getattr(tensor, part).tobytes() == getattr(wanted, part).tobytes()


def attributes_of(graph) -> list[dict]:
    return [
        {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        for node in graph.node
        if node.op_type == "GroupQueryAttention"
    ]


def dims_of(graph) -> dict[str, list[int]]:
    return {tensor.name: list(tensor.dims) for tensor in graph.initializer}


def ops_of(graph) -> Counter[str]:
    return Counter(node.op_type for node in graph.node)


def test_these_members_are_refused_and_no_more(tmp_path):
    refused = set()
    for name in TINY_CONFIGS:
        source = open_model(write_tiny_checkpoint(tmp_path / name, name))
        if isinstance(OnnxExporter().supports(source.spec, {}), Rejected):
            refused.add(name)
        source.close()
    assert refused == REFUSED


def test_a_full_pass_gives_the_logits_of_the_reference(member):
    assert_same_logits(run(member.engine(), [200]), run(member.reference(), [200]))


def test_calls_of_many_lengths_give_the_logits_of_the_reference(member):
    ends = [50, 120, *range(121, 201)]
    assert_same_logits(run(member.engine(chunk=32), ends), run(member.reference(), ends))


def test_every_tensor_comes_back_bit_by_bit(member):
    assert_comes_back(member.artifact, member.model)


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "olmo2", "phi3", "ministral3"])
def test_four_bit_codes_under_float_activations_give_the_logits_of_the_reference(tmp_path, name):
    member = make_member(tmp_path, name, "int4")
    engine = member.engine(**FLOAT_ACTIVATIONS)
    assert_same_logits(run(engine, [50, 200]), run(member.reference(), [50, 200]))
    assert_comes_back(member.artifact, member.model)


@pytest.mark.parametrize("name", ["mistral", "llama", "llama-3.2", "llama-yarn"])
def test_a_plain_decoder_has_the_plain_nodes(tmp_path, name):
    assert ops_of(make_member(tmp_path, name).graph()) == PLAIN_OPS


def test_each_layer_attends_in_its_own_way(tmp_path):
    gemma = make_member(tmp_path / "gemma", "gemma3_text").graph()
    assert [a["local_window_size"] for a in attributes_of(gemma)] == [24, 24, -1]
    assert [a["scale"] for a in attributes_of(gemma)] == pytest.approx([48**-0.5] * 3)
    tables = [n.input[7:] for n in gemma.node if n.op_type == "GroupQueryAttention"]
    near, far = ["rope.cos", "rope.sin"], ["rope.1.cos", "rope.1.sin"]
    assert [list(names) for names in tables] == [near, near, far]
    smollm = make_member(tmp_path / "smollm", "smollm3").graph()
    assert [a["do_rotary"] for a in attributes_of(smollm)] == [1, 1, 1, 0]


def test_gains_are_added_up_once_while_loading(tmp_path):
    artifact = make_member(tmp_path, "gemma3_text", "int4").artifact
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(
        str(artifact.path / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    graph = onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph
    assert "Add" not in ops_of(graph)
    assert ops_of(graph)["SkipSimplifiedLayerNormalization"] == 6


PARTIAL = {
    # Channels rotated of 32: what the kernel rotates itself, and what a node before it must.
    "inside": (0.5, 8, 0),
    "before": (0.75, 12, 4),
}


@pytest.mark.parametrize("case", PARTIAL.values(), ids=PARTIAL.keys())
def test_long_rope_holds_from_the_first_chunk_of_a_long_call(tmp_path, case):
    share, n_pairs, n_nodes = case
    scaling = {
        "type": "longrope",
        "short_factor": [1.0 + 0.1 * i for i in range(n_pairs)],
        "long_factor": [2.0 + 0.5 * i for i in range(n_pairs)],
    }
    member = make_member(tmp_path, "phi3", partial_rotary_factor=share, rope_scaling=scaling)
    graph = member.graph()
    assert ops_of(graph)["RotaryEmbedding"] == n_nodes
    assert dims_of(graph)["rope.cos"] == [512, n_pairs]
    assert "call_length" in {value.name for value in graph.input}
    engine, reference = member.engine(chunk=16), member.reference()
    # Up to the original length, one token beyond it, far beyond it, and from the start again.
    for ends in ([64], [60, 64, 65], [65], [200], [40]):
        assert_same_logits(run(engine, ends), run(reference, ends))


def test_a_context_no_longer_than_the_original_needs_none_of_it(tmp_path):
    phi = make_member(tmp_path / "phi", "phi3", context_length=64)
    assert dims_of(phi.graph())["rope.cos"] == [64, 12]
    assert "call_length" not in {value.name for value in phi.graph().input}
    assert_same_logits(run(phi.engine(), [30, 64]), run(phi.reference(), [30, 64]))
    ministral = make_member(tmp_path / "ministral", "ministral3", context_length=64)
    assert ops_of(ministral.graph()) == PLAIN_OPS
    longer = make_member(tmp_path / "longer", "ministral3", context_length=65)
    assert dims_of(longer.graph())["attention_temperatures"] == [65, 1]


ODD_SPECS = {
    "heads of 8 channels": {"head_width": 8},
    "heads of 24 channels": {"head_width": 24, "qk_norm": QkNorm.FULL},
    "heads of 40 channels in a window": {"head_width": 40, "sliding_window": 6},
    "two channels rotated": {"rope": RopeSpec(1e4, rotary_width=2), "qk_norm": QkNorm.HEAD},
    "nothing rotated": {"no_rope_layers": (0, 1), "query_scaling": QueryScaling(0.3, 10)},
    "two long ropes": {
        "head_width": 32,
        "rope": RopeSpec(1e4, LongRopeScaling((1.0,) * 16, (4.0,) * 16, 12, 1.2)),
        "local_rope": RopeSpec(
            1e3, LongRopeScaling((1.5,) * 5, (3.0,) * 5, 30, 0.9), rotary_width=10
        ),
        "sliding_window": 9,
        "sliding_layers": (1,),
    },
    "heads normed after they rotate": {
        "qk_norm": QkNorm.HEAD_AFTER_ROPE,
        "no_rope_layers": (1,),
        "query_scaling": QueryScaling(0.3, 10),
    },
    "capped in a window": {
        "scores_softcap": 0.7,
        "logits_softcap": 1.3,
        "logits_scale": 2.0,
        "sliding_window": 5,
        "sliding_layers": (1,),
        "head_width": 24,
    },
    "everything else": {
        "norm_placement": NormPlacement.AFTER,
        "norm_offset": 0.3,
        "activation": Activation.GELU_TANH,
        "attention_scale": 0.1,
        "embed_scale": 3.0,
        "residual_scale": 0.7,
        "logits_scale": 1.7,
        "has_qkv_bias": True,
        "has_o_bias": True,
        "has_mlp_bias": True,
        "is_tied": False,
    },
}
# Stored unlike each other, so three matmuls instead of one.
MIXED = {"layers.0.v": "int8", "layers.1.k": "fp16", "layers.0.down": "int4-g128"}


@pytest.mark.parametrize("scheme", ["fp16", "mixed"])
@pytest.mark.parametrize("odd", ODD_SPECS.values(), ids=ODD_SPECS.keys())
def test_odd_shapes_and_combinations_give_the_logits_of_the_reference(tmp_path, odd, scheme):
    spec = tiny_spec(**odd)
    is_mixed = scheme == "mixed"
    model = memory_model(spec, "int4" if is_mixed else scheme, schemes=MIXED if is_mixed else None)
    artifact = write_artifact(OnnxExporter(), model, tmp_path / "a", ExportOptions())
    engine = OnnxruntimeDecoder.open(artifact, n_threads=1, options=FLOAT_ACTIVATIONS)
    reference = ReferenceDecoder(spec, float_weights(model).__getitem__)
    ids = [token % spec.vocab_size for token in TOKENS[:50]]
    for start, end in ((0, 11), (11, 40), (40, 41), (0, 50)):
        got, wanted = (
            d.forward(ids[start:end], n_past=start, n_logits=end - start)
            for d in (engine, reference)
        )
        assert np.abs(got - wanted).max() <= TOLERANCE * wanted.std()
    assert_comes_back(artifact, model)


def test_a_gain_that_rounds_away_comes_back_bit_by_bit(tmp_path):
    model = memory_model(tiny_spec(norm_offset=1.0), "fp32")
    tiny = replace(model.tensors["final_norm"], values=np.full(64, 1e-12, np.float32))
    model = replace(model, tensors={**model.tensors, "final_norm": tiny})
    artifact = write_artifact(OnnxExporter(), model, tmp_path / "a", ExportOptions())
    assert_comes_back(artifact, model)


def test_rows_of_different_length_in_a_batch_count_from_their_own_start(tmp_path):
    member = make_member(tmp_path, "phi3")
    session = onnxruntime.InferenceSession(
        str(member.artifact.path / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    lengths = [40, 25]
    ids, mask = np.zeros((2, 40), np.int64), np.zeros((2, 40), np.int64)
    for row, length in enumerate(lengths):
        ids[row, :length], mask[row, :length] = TOKENS[:length], 1
    spec = member.model.spec
    empty = np.empty((2, spec.n_kv_heads, 0, spec.head_width), np.float32)
    past = {value.name: empty for value in session.get_inputs() if "past" in value.name}
    feeds = {"input_ids": ids, "attention_mask": mask, "logits_start": np.array([-40]), **past}
    logits = session.run(["logits"], feeds)[0]
    for row, length in enumerate(lengths):
        assert_same_logits(logits[row, :length], run(member.reference(), [length]))
