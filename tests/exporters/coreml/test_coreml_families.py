"""Claims about Core ML packages of every decoder family: what they compute, hold and refuse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from edgekit.artifact import Artifact
from edgekit.decision import Rejected
from edgekit.dtypes import F32Array
from edgekit.encoding import FP32
from edgekit.errors import EngineLoadError
from edgekit.exporters.coreml.exporter import CoremlExporter
from edgekit.families import open_model
from edgekit.families.rope_spec import LongRopeScaling, RopeSpec
from edgekit.families.spec import Activation, DecoderSpec, NormPlacement
from edgekit.formats.mlpackage import (
    PACKAGE_NAME,
    main_block,
    read_spec,
    require_coremltools,
    weights_path,
)
from edgekit.quantize.encoded_model import quantize_model
from edgekit.quantize.model import EncodedTensor, FloatTensor, QuantizedModel
from edgekit.runtime.base import Decoder
from edgekit.runtime.mil import MilDecoder
from edgekit.runtime.mil_machine import MilMachine
from edgekit.runtime.mil_program import read_program
from edgekit.runtime.mlpackage import CHUNK_TOKENS, long_rope_switches
from edgekit.runtime.reference import ReferenceDecoder
from edgekit.scheme import Scheme
from tests.builders import write_tiny_checkpoint
from tests.exporters.coreml.coreml_edit import export
from tests.exporters.memory_model import MemoryModel, memory_model, stored_as, tiny_spec
from tests.tiny_families import TINY_CONFIGS

FP32_TOLERANCE: Final = 5e-5
"""Of the logits' standard deviation; measured up to 1.1e-5: float32 sums in another order."""

FP16_TOLERANCE: Final = 0.04
"""Of the logits' standard deviation; measured 0.004 (gemma3_text) to 0.016 (ministral)."""

REFUSED: Final[dict[str, str]] = {}
"""Members that Core ML cannot hold, and why: there are none."""

N_TOKENS: Final = 200
"""Beyond every window (24) and every change of the position encoding (64) of the members."""

each_member = pytest.mark.parametrize("name", [n for n in TINY_CONFIGS if n not in REFUSED])


@dataclass(frozen=True)
class Member:
    """A tiny family member and its fp16 artifact."""

    model: QuantizedModel
    artifact: Artifact


@pytest.fixture(scope="module")
def member(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Member]]:
    made: dict[str, Member] = {}

    def get(name: str) -> Member:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            model = quantized(name, "fp16", folder)
            made[name] = Member(model, export(model, folder))
        return made[name]

    yield get
    for one in made.values():
        one.model.close()  # type: ignore[attr-defined]


def quantized(name: str, scheme: str, folder: Path, **config: Any) -> QuantizedModel:
    checkpoint = write_tiny_checkpoint(folder / "model", name, dtype="fp32", **config)
    return quantize_model(open_model(checkpoint), Scheme.parse(scheme), folder / "files")


def some_ids(n_tokens: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(5).integers(4, 384, n_tokens)]


def in_pieces(decoder: Decoder, ids: list[int], *ends: int) -> F32Array:
    """Run ``ids`` in calls that end at ``ends``."""
    pairs = zip((0, *ends), ends, strict=False)
    return np.concatenate([decoder.forward(ids[a:b], n_past=a, n_logits=b - a) for a, b in pairs])


def error(got: F32Array, wanted: F32Array) -> float:
    return float(np.abs(got - wanted).max() / wanted.std())


def machine_of(artifact: Artifact) -> MilMachine:
    program = read_program(artifact.path / PACKAGE_NAME, rounds=False)
    return MilMachine(program, rounds=False, max_kept_bytes=1 << 30)


def ops_of(artifact: Artifact) -> list[Any]:
    return list(main_block(read_spec(artifact.path / PACKAGE_NAME)).operations)


def biases_of(artifact: Artifact) -> int:
    attending = [op for op in ops_of(artifact) if op.type == "scaled_dot_product_attention"]
    return len({op.inputs["attn_mask"].arguments[0].name for op in attending})


def test_every_member_is_accepted_unless_it_is_on_the_list(tmp_path: Path) -> None:
    refused = {}
    for name in TINY_CONFIGS:
        source = open_model(write_tiny_checkpoint(tmp_path / name, name))
        for scheme in ("fp16", "int8", "int4", "int4-g64"):
            decision = CoremlExporter().supports(source.spec, stored_as(source.spec, scheme))
            if isinstance(decision, Rejected):
                refused[name] = decision.reason
        source.close()
    assert refused == REFUSED


def test_only_an_odd_number_of_rotated_channels_is_refused() -> None:
    supports = CoremlExporter().supports
    odd = RopeSpec(1e4, rotary_width=5)
    refused = supports(tiny_spec(local_rope=odd, sliding_window=8), {})
    assert isinstance(refused, Rejected)
    assert "pairs of channels" in refused.reason
    assert not isinstance(supports(tiny_spec(local_rope=odd), {}), Rejected)
    unturned = tiny_spec(head_width=15, no_rope_layers=(0, 1))
    assert not isinstance(supports(unturned, {}), Rejected)


@each_member
def test_package_computes_what_the_reference_computes(
    name: str, member: Callable[[str], Member]
) -> None:
    one, ids = member(name), some_ids(N_TOKENS)
    reference = ReferenceDecoder.from_quantized(one.model)
    whole = reference.forward(ids, n_past=0, n_logits=N_TOKENS)
    pieces = in_pieces(reference, ids, 50, 120, *range(121, N_TOKENS + 1))
    exact = MilDecoder.open(one.artifact, options={"arithmetic": "fp32"})
    assert error(exact.forward(ids, n_past=0, n_logits=N_TOKENS), whole) < FP32_TOLERANCE
    got = in_pieces(exact, ids, 50, 120, *range(121, N_TOKENS + 1))
    assert error(got, pieces) < FP32_TOLERANCE
    rounded = MilDecoder.open(one.artifact, options={"arithmetic": "fp16"})
    assert error(rounded.forward(ids, n_past=0, n_logits=N_TOKENS), whole) < FP16_TOLERANCE
    got = in_pieces(rounded, ids, 50, 120, *range(121, 125))
    assert error(got, pieces[:124]) < FP16_TOLERANCE


@each_member
def test_masks_of_other_callers_behave(name: str, member: Callable[[str], Member]) -> None:
    """swift-transformers: zeros [1, 1, 1, T + 1], slot 0 never written. Apple: -inf above."""
    one, ids = member(name), some_ids(60)
    wanted = ReferenceDecoder.from_quantized(one.model).forward(ids, n_past=0, n_logits=60)

    def call(machine: MilMachine, part: list[int], mask: F32Array) -> F32Array:
        feeds = {"inputIds": np.array([part], np.int32), "causalMask": mask}
        logits: F32Array = machine.run(feeds)[0]
        return logits

    swift = machine_of(one.artifact)
    got = [call(swift, ids[:50], np.zeros((1, 1, 1, 51), np.float32))]
    for i in range(50, 60):
        got.append(call(swift, [ids[i]], np.zeros((1, 1, 1, i + 2), np.float32)))
    assert error(np.concatenate(got), wanted) < FP32_TOLERANCE
    upper = np.triu(np.full((60, 60), -np.inf, np.float32), k=1)[None, None]
    apple = call(machine_of(one.artifact), ids, upper)
    assert error(apple, wanted) < FP32_TOLERANCE


@each_member
def test_recover_gives_back_every_bit(name: str, tmp_path: Path) -> None:
    model = quantized(name, "int4", tmp_path)
    artifact = export(model, tmp_path)
    recovered = list(CoremlExporter().recover(artifact))
    assert [tensor.name for tensor in recovered] == list(model.spec.weight_shapes())
    for tensor in recovered:
        source = model.get(tensor.name)
        assert tensor.encoding == source.encoding
        if isinstance(source, EncodedTensor):
            assert isinstance(tensor, EncodedTensor)
            np.testing.assert_array_equal(tensor.codes(), source.codes())
            np.testing.assert_array_equal(tensor.scales, source.scales)
            assert tensor.sha256() == source.sha256()
        else:
            assert isinstance(tensor, FloatTensor)
            np.testing.assert_array_equal(tensor.values, source.values)
    model.close()  # type: ignore[attr-defined]


def test_norm_weights_are_stored_without_their_offset(member: Callable[[str], Member]) -> None:
    """One plus a weight rounds: such a sum could not be turned back."""
    gemma = member("gemma3_text")
    stored = {t.name: t for t in CoremlExporter().recover(gemma.artifact)}
    for name in ("layers.0.q_norm", "layers.2.ffn_post_norm", "final_norm"):
        weights = stored[name].values  # type: ignore[union-attr]
        np.testing.assert_array_equal(weights, gemma.model.get(name).values)  # type: ignore[union-attr]
        assert ((np.float32(1) + weights) - np.float32(1) != weights).any()


@each_member
def test_coremltools_reads_the_package_again(name: str, member: Callable[[str], Member]) -> None:
    package = member(name).artifact.path / PACKAGE_NAME
    loaded = require_coremltools().models.MLModel(str(package), skip_model_load=True).get_spec()
    load = require_coremltools("coremltools.converters.mil.frontend.milproto.load").load
    weights = str(weights_path(package).parent)
    program = load(loaded, specification_version=9, file_weights_dir=weights)
    kinds = {op.op_type for op in program.functions["main"].operations}
    # The attention op takes no cap, so capped attention is written out.
    is_capped = member(name).model.spec.scores_softcap is not None
    attention = "softmax" if is_capped else "scaled_dot_product_attention"
    assert {attention, "coreml_update_state"} <= kinds


def test_biases_and_tables_are_shared_by_layers(member: Callable[[str], Member]) -> None:
    def count(name: str) -> tuple[int, int, int]:
        ops = ops_of(member(name).artifact)
        constants = [op.outputs[0].name for op in ops if op.type == "const"]
        tables = [n for n in constants if n.startswith("rope_")]
        turns = [op for op in ops if op.type == "split"]
        return biases_of(member(name).artifact), len(tables), len(turns)

    assert count("llama") == (1, 2, 4)
    assert count("ministral") == (2, 2, 8)  # 4 layers, 2 of them slide
    assert count("gemma3_text") == (2, 4, 6)  # windows and ropes go together
    assert count("smollm3") == (1, 2, 6)  # the last of 4 layers rotates nothing
    assert count("qwen2-window") == (2, 2, 4)


def test_a_window_as_long_as_the_context_is_none(tmp_path: Path) -> None:
    model = quantized("ministral", "fp16", tmp_path)
    assert biases_of(export(model, tmp_path / "longer", context_length=25)) == 2
    assert biases_of(export(model, tmp_path / "as long", context_length=24)) == 1
    model.close()  # type: ignore[attr-defined]


def test_the_plain_decoder_has_no_op_more_than_it_needs(member: Callable[[str], Member]) -> None:
    kinds = Counter(op.type for op in ops_of(member("llama").artifact))
    del kinds["const"]
    assert kinds == {
        "abs": 1, "add": 10, "cast": 20, "concat": 12, "expand_dims": 9, "gather": 1,
        "greater": 1, "linear": 15, "maximum": 2, "mul": 24, "read_state": 6, "reduce_max": 1,
        "reduce_mean": 5, "relu": 1, "reshape": 13, "rsqrt": 5,
        "scaled_dot_product_attention": 2, "shape": 2, "silu": 2, "slice_by_index": 12,
        "slice_update": 4, "split": 4, "square": 5, "sub": 3, "tile": 4, "transpose": 8,
        "write_state": 4,
    }  # fmt: skip


def table_rows(artifact: Artifact, name: str) -> int | None:
    for op in ops_of(artifact):
        if op.type == "const" and op.outputs[0].name == name:
            return int(op.attributes["val"].type.tensorType.dimensions[0].constant.size)
    return None


def test_tables_hold_what_the_context_can_reach(tmp_path: Path) -> None:
    """phi3: 64 short rows, then long ones. ministral3: queries grow from position 64 on."""
    phi = quantized("phi3", "fp16", tmp_path / "phi")
    ministral = quantized("ministral3", "fp16", tmp_path / "ministral")
    found = {}
    for n_positions in (64, 65, 200):
        at = str(n_positions)
        long_rope = export(phi, tmp_path / "phi" / at, context_length=n_positions)
        growing = export(ministral, tmp_path / "ministral" / at, context_length=n_positions)
        tables = table_rows(long_rope, "rope_sin"), table_rows(growing, "attention_temperatures")
        found[n_positions] = tables
    assert found == {64: (64, None), 65: (64 + 65, 65), 200: (64 + 200, 200)}
    phi.close()  # type: ignore[attr-defined]
    ministral.close()  # type: ignore[attr-defined]


def test_long_rope_sees_a_whole_call_though_it_is_cut(tmp_path: Path) -> None:
    n_switch, n_ids = CHUNK_TOKENS + 44, CHUNK_TOKENS + 144
    model = quantized(
        "phi3", "fp16", tmp_path,
        max_position_embeddings=600, original_max_position_embeddings=n_switch,
    )  # fmt: skip
    artifact = export(model, tmp_path)
    assert long_rope_switches(artifact) == (n_switch,)
    exact = MilDecoder.open(artifact, options={"arithmetic": "fp32"})
    reference = ReferenceDecoder.from_quantized(model)
    ids = some_ids(n_ids + 60)
    for start, end in ((0, n_ids), (n_ids, n_ids + 60), (0, n_switch), (n_switch, n_ids)):
        part = ids[start:end]
        wanted = reference.forward(part, n_past=start, n_logits=len(part))
        got = exact.forward(part, n_past=start, n_logits=len(part))
        assert error(got, wanted) < FP32_TOLERANCE
    short = reference.forward(ids[:n_switch], n_past=0)
    whole = reference.forward(ids[:n_ids], n_past=0, n_logits=n_ids)[n_switch - 1]
    assert error(short[0], whole) > 100 * FP32_TOLERANCE
    model.close()  # type: ignore[attr-defined]


def test_a_manifest_without_a_decoder_is_refused(member: Callable[[str], Member]) -> None:
    artifact = member("llama").artifact
    manifest = replace(artifact.manifest, decoder={"rope": 5, "vocab_size": 384})
    with pytest.raises(EngineLoadError, match="manifest of the decoder"):
        MilDecoder.open(replace(artifact, manifest=manifest))


SANDWICH: Final = {
    "norm_placement": NormPlacement.BOTH,
    "norm_offset": 1.0,
    "activation": Activation.GELU_TANH,
}


def times(model: MemoryModel, factors: dict[str, float]) -> MemoryModel:
    """Multiply tensors by factors, by the ends of their names; fp16 stays exact."""
    tensors = dict(model.tensors)
    for name, tensor in model.tensors.items():
        for end, factor in factors.items():
            if name.endswith(end):
                assert isinstance(tensor, FloatTensor)
                tensors[name] = replace(tensor, values=tensor.values * np.float32(factor))
    return replace(model, tensors=tensors)


def test_what_leaves_fp16_between_norms_does_no_harm(tmp_path: Path) -> None:
    """Gate times up to 1e6 and a stream to 1e5, as Gemma 3 has them; fp16 ends at 65504."""
    model = times(
        memory_model(tiny_spec(**SANDWICH), "fp16"),
        {".gate": 256.0, ".up": 256.0, "attn_post_norm": 2.0**15},
    )
    ids = [i % 96 for i in some_ids(40)]
    wanted = ReferenceDecoder.from_quantized(model).forward(ids, n_past=0, n_logits=40)
    artifact = export(model, tmp_path)
    for arithmetic, tolerance in (("fp32", FP32_TOLERANCE), ("fp16", FP16_TOLERANCE)):
        decoder = MilDecoder.open(artifact, options={"arithmetic": arithmetic})
        got = decoder.forward(ids, n_past=0, n_logits=40)
        assert np.isfinite(got).all()
        assert error(got, wanted) < tolerance


def widened(model: MemoryModel) -> MemoryModel:
    """Keep biases in fp32, as the plan does."""
    tensors = {
        name: replace(tensor, encoding=FP32, values=tensor.values * np.float32(1 + 2**-20))
        if isinstance(tensor, FloatTensor) and name.endswith(".bias")
        else tensor
        for name, tensor in model.tensors.items()
    }
    return replace(model, tensors=tensors)


LONG: Final = LongRopeScaling((1.0, 1.2, 1.4, 1.6), (1.0, 2.0, 3.0, 4.0), 20, 1.3)
MIXTURES: Final[dict[str, DecoderSpec]] = {
    "biases inside a sandwich": tiny_spec(**SANDWICH, has_mlp_bias=True, has_o_bias=True),
    "gelu behind a norm": tiny_spec(activation=Activation.GELU_TANH, has_mlp_bias=True),
    "silu between norms": tiny_spec(norm_placement=NormPlacement.BOTH, residual_scale=0.3),
    "two long ropes, one partial": tiny_spec(
        rope=RopeSpec(1e4, replace(LONG, original_context_length=30), rotary_width=8),
        local_rope=RopeSpec(1e3, LONG, rotary_width=8),
        sliding_window=9,
        sliding_layers=(1,),
        attention_scale=0.4,
    ),
    "no rope at all": tiny_spec(no_rope_layers=(0, 1), logits_scale=0.2, embed_scale=5.0),
}


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("has_wide_biases", [False, True])
def test_mixtures_that_no_member_has(tmp_path: Path, name: str, has_wide_biases: bool) -> None:
    model = memory_model(MIXTURES[name], "int8")
    model = widened(model) if has_wide_biases else model
    ids = [i % 96 for i in some_ids(50)]
    reference = ReferenceDecoder.from_quantized(model)
    exact = MilDecoder.open(export(model, tmp_path), options={"arithmetic": "fp32"})
    wanted, got = (in_pieces(d, ids, 15, 33, 34, 50) for d in (reference, exact))
    assert error(got, wanted) < FP32_TOLERANCE
