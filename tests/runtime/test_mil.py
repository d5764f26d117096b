"""Claims about the mil engine: the saved package computes what the plain forward computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from edgekit.artifact import Artifact
from edgekit.dtypes import F32Array
from edgekit.errors import EngineCrashError, EngineLoadError, UsageError
from edgekit.formats.mlpackage import PACKAGE_NAME, main_block, spec_path, weights_path
from edgekit.quantize.model import QuantizedModel
from edgekit.runtime import mil_machine, open_decoder
from edgekit.runtime.mil import MilDecoder
from edgekit.runtime.mil_machine import MilMachine
from edgekit.runtime.mil_program import read_program
from edgekit.runtime.mlpackage import CHUNK_TOKENS
from edgekit.runtime.reference import ReferenceDecoder
from tests.exporters.coreml.coreml_edit import copy, edited, export, find_op, merge_state_reads
from tests.exporters.memory_model import memory_model, tiny_spec

FP16_TOLERANCE: Final = 0.02
"""Of the logits' standard deviation; measured 0.003 to 0.007 on these models. Matrix products,
attention, cache and logits are rounded to 11 significant bits; norms, rope and residual not."""

FP32_TOLERANCE: Final = 2e-5
"""Of the logits' standard deviation; measured up to 3e-6: float32 sums in another order. What
the graph stores in fp16 is exact, so nothing else may differ."""

FULL = {"has_qkv_bias": True, "has_o_bias": True, "has_mlp_bias": True, "is_tied": False}
VARIANTS: Final[dict[str, dict[str, Any]]] = {
    "grouped": {},
    "biases, untied": FULL,
    "one kv head": {"n_kv_heads": 1},
    "no groups": {"n_kv_heads": 4},
    "sliding window": {"sliding_window": 7},
    "wide heads": {"head_width": 32},
    "one layer": {"n_layers": 1},
}


def some_ids(n_tokens: int, seed: int = 0) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(0, 96, n_tokens)]


def right_logits(model: QuantizedModel, ids: list[int]) -> F32Array:
    reference_decoder = ReferenceDecoder.from_quantized(model, np.float64)
    return reference_decoder.forward(ids, n_past=0, n_logits=len(ids))


def in_pieces(decoder: MilDecoder, ids: list[int], ends: tuple[int, ...]) -> F32Array:
    starts = (0, *ends)
    blocks = [
        decoder.forward(ids[a:b], n_past=a, n_logits=b - a)
        for a, b in zip(starts, (*ends, len(ids)), strict=True)
    ]
    return np.concatenate(blocks)


def error(got: F32Array, wanted: F32Array) -> float:
    return float(np.abs(got - wanted).max() / wanted.std())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[QuantizedModel, Artifact]:
    model = memory_model(schemes={"embed": "int8"})
    return model, export(model, tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize(
    ("name", "scheme"),
    [*((name, "int4") for name in VARIANTS), ("grouped", "int8"), ("biases, untied", "fp16")],
)
def test_package_computes_the_plain_forward(tmp_path: Path, name: str, scheme: str) -> None:
    model = memory_model(tiny_spec(**VARIANTS[name]), scheme, schemes={"embed": "int8"})
    artifact = export(model, tmp_path)
    ids = some_ids(40)
    wanted = right_logits(model, ids)
    for arithmetic, tolerance in (("fp16", FP16_TOLERANCE), ("fp32", FP32_TOLERANCE)):
        decoder = MilDecoder.open(artifact, options={"arithmetic": arithmetic})
        got = in_pieces(decoder, ids, (10, 11, 20, *range(21, 40)))
        assert got.dtype == np.float32
        assert error(got, wanted) < tolerance


def test_long_prompts_are_chunked(tmp_path: Path) -> None:
    model = memory_model(tiny_spec(context_length=CHUNK_TOKENS * 2, sliding_window=300))
    decoder = MilDecoder.open(export(model, tmp_path), options={"arithmetic": "fp32"})
    ids = some_ids(CHUNK_TOKENS + 60)
    wanted = right_logits(model, ids)
    for n_logits in (1, 60, 61, len(ids)):
        got = decoder.forward(ids, n_past=0, n_logits=n_logits)
        assert got.shape == (n_logits, 96)
        assert error(got, wanted[-n_logits:]) < FP32_TOLERANCE


def test_rewinding_forgets(tiny: tuple[QuantizedModel, Artifact]) -> None:
    artifact = tiny[1]
    decoder = MilDecoder.open(artifact)
    ids = some_ids(30)
    first = decoder.forward(ids, n_past=0, n_logits=30)
    decoder.forward(some_ids(20, seed=9), n_past=10)
    again = decoder.forward(ids[10:], n_past=10, n_logits=20)
    np.testing.assert_allclose(again, first[10:], atol=FP16_TOLERANCE * first.std())
    # What stood behind the first ten positions leaves no trace. The first call is the same: how
    # many rows a product has can move its last bit.
    other = MilDecoder.open(artifact)
    other.forward(ids, n_past=0)
    other.forward(some_ids(15, seed=11), n_past=10)
    np.testing.assert_array_equal(other.forward(ids[10:], n_past=10, n_logits=20), again)
    with pytest.raises(UsageError, match="n_past"):
        decoder.forward(ids, n_past=31)


def test_result_is_the_callers_to_keep(tiny: tuple[QuantizedModel, Artifact]) -> None:
    decoder = MilDecoder.open(tiny[1])
    kept = decoder.forward([5], n_past=0)
    copy = kept.copy()
    decoder.forward([6], n_past=1)
    np.testing.assert_array_equal(kept, copy)
    kept[:] = 0
    np.testing.assert_array_equal(decoder.forward([5], n_past=0), copy)


def test_weights_made_anew_give_the_same(tiny: tuple[QuantizedModel, Artifact]) -> None:
    ids = some_ids(12)
    kept = MilDecoder.open(tiny[1])
    anew = MilDecoder.open(tiny[1], options={"max_kept_bytes": 0})
    assert (kept.info.settings["weights_kept"], anew.info.settings["weights_kept"]) == (True, False)
    np.testing.assert_array_equal(
        kept.forward(ids, n_past=0, n_logits=12), anew.forward(ids, n_past=0, n_logits=12)
    )


def test_swift_transformers_zero_mask_behaves(tiny: tuple[QuantizedModel, Artifact]) -> None:
    """All-zero mask [1, 1, 1, T + 1] at prefill: no causality, and slot 0 never written."""
    model, artifact = tiny
    program = read_program(artifact.path / PACKAGE_NAME, rounds=True)
    machine = MilMachine(program, rounds=True, max_kept_bytes=1 << 30)
    ids = some_ids(40)
    wanted = right_logits(model, ids)

    def call(part: list[int], n_mask: int) -> F32Array:
        feeds = {
            "inputIds": np.array([part], np.int32),
            "causalMask": np.zeros((1, 1, 1, n_mask), np.float32),
        }
        logits: F32Array = machine.run(feeds)[0]
        return logits

    got = [call(ids[:20], 21)]
    got += [call([ids[i]], i + 2) for i in range(20, 40)]
    assert error(np.concatenate(got), wanted) < FP16_TOLERANCE
    assert (np.concatenate(got).argmax(axis=1) == wanted.argmax(axis=1)).all()


def test_apples_mask_of_minus_infinity_behaves(tiny: tuple[QuantizedModel, Artifact]) -> None:
    model, artifact = tiny
    program = read_program(artifact.path / PACKAGE_NAME, rounds=True)
    machine = MilMachine(program, rounds=True, max_kept_bytes=1 << 30)
    ids = some_ids(20)
    mask = np.triu(np.full((20, 20), -np.inf, np.float32), k=1)[None, None]
    got = machine.run({"inputIds": np.array([ids], np.int32), "causalMask": mask})[0]
    assert error(got, right_logits(model, ids)) < FP16_TOLERANCE


def test_merged_state_reads_give_wrong_logits(
    tmp_path: Path, tiny: tuple[QuantizedModel, Artifact]
) -> None:
    """The interpreter must show what a pass of coremltools does to a naive cache."""
    model, artifact = tiny[0], copy(tiny[1], tmp_path)
    with edited(artifact) as spec:
        merge_state_reads(spec)
    ids = some_ids(20)
    got = in_pieces(MilDecoder.open(artifact), ids, (10, 15))
    assert error(got, right_logits(model, ids)) > 10 * FP16_TOLERANCE


def test_states_are_updated_in_place_unless_that_would_be_wrong(
    tmp_path: Path, tiny: tuple[QuantizedModel, Artifact]
) -> None:
    def count(artifact: Artifact) -> tuple[int, int]:
        program = read_program(artifact.path / PACKAGE_NAME, rounds=True)
        updates = [node for node in program.nodes if node.type == "slice_update"]
        found = mil_machine.find_in_place(list(program.nodes), program.output)
        return len(found), len(updates)

    assert count(tiny[1]) == (4, 4)
    stale = copy(tiny[1], tmp_path)
    with edited(stale) as spec:
        merge_state_reads(spec)
    assert count(stale) == (0, 4)


def test_wrong_declared_shape_names_the_operation(
    tmp_path: Path, tiny: tuple[QuantizedModel, Artifact]
) -> None:
    artifact = copy(tiny[1], tmp_path)
    with edited(artifact) as spec:
        op = find_op(spec, lambda op: op.type == "silu")
        name = op.outputs[0].name
        op.outputs[0].type.tensorType.dimensions[2].constant.size = 127
    decoder = MilDecoder.open(artifact)
    with pytest.raises(EngineCrashError, match=f"silu {name}: shape") as caught:
        decoder.forward([1, 2], n_past=0)
    assert caught.value.got == "(1, 2, 128)"


def test_wrong_declared_type_names_the_operation(
    tmp_path: Path, tiny: tuple[QuantizedModel, Artifact]
) -> None:
    artifact = copy(tiny[1], tmp_path)
    with edited(artifact) as spec:
        op = find_op(spec, lambda op: op.outputs and op.outputs[0].name == "n_new")
        floats = find_op(spec, lambda op: op.type == "silu").outputs[0].type.tensorType
        op.outputs[0].type.tensorType.dataType = floats.dataType
    with pytest.raises(EngineCrashError, match="slice_by_index n_new: type"):
        MilDecoder.open(artifact).forward([1, 2], n_past=0)


def test_operations_that_fail_are_named(
    tmp_path: Path, tiny: tuple[QuantizedModel, Artifact]
) -> None:
    artifact = copy(tiny[1], tmp_path)
    with edited(artifact) as spec:
        op = find_op(spec, lambda op: op.type == "transpose")
        name = op.outputs[0].name
        perm = op.inputs["perm"].arguments[0].name
        const = find_op(spec, lambda op: op.outputs and op.outputs[0].name == perm)
        const.attributes["val"].immediateValue.tensor.ints.values[0] = 7
    with pytest.raises(EngineCrashError, match=f"transpose {name}"):
        MilDecoder.open(artifact).forward([1, 2], n_past=0)


def damage_op(spec: Any) -> None:
    find_op(spec, lambda op: op.type == "silu").type = "erf"


def damage_parameter(spec: Any) -> None:
    del find_op(spec, lambda op: op.type == "transpose").inputs["perm"]


def damage_operand(spec: Any) -> None:
    del find_op(spec, lambda op: op.type == "silu").inputs["x"]


def damage_name(spec: Any) -> None:
    find_op(spec, lambda op: op.type == "silu").inputs["x"].arguments[0].name = "nobody"


def damage_offset(spec: Any) -> None:
    op = find_op(spec, lambda op: op.type.startswith("constexpr"))
    op.inputs["data"].arguments[0].value.blobFileValue.offset = 128


def damage_scale(spec: Any) -> None:
    op = find_op(spec, lambda op: op.type.startswith("constexpr"))
    op.inputs["scale"].arguments[0].value.type.tensorType.dimensions[0].constant.size = 1


def damage_file(spec: Any) -> None:
    op = find_op(spec, lambda op: op.type.startswith("constexpr"))
    op.inputs["data"].arguments[0].value.blobFileValue.fileName = "/etc/passwd"


def damage_outputs(spec: Any) -> None:
    del main_block(spec).outputs[:]


def damage_input(spec: Any) -> None:
    spec.mlProgram.functions["main"].inputs[0].name = "input_ids"


def damage_function(spec: Any) -> None:
    del spec.mlProgram.functions["main"]


def damage_state(spec: Any) -> None:
    named = spec.mlProgram.functions["main"].inputs[2]
    dims = named.type.stateType.wrappedType.tensorType.dimensions
    dims[3].constant.size = 1 << 50


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_op, "got erf"),
        (damage_parameter, "perm"),
        (damage_operand, "parameters are missing; got x"),
        (damage_name, "nobody"),
        (damage_offset, "blob at 128"),
        (damage_scale, "blob at"),
        (damage_file, "/etc/passwd"),
        (damage_outputs, "outputs"),
        (damage_input, "input_ids"),
        (damage_function, "main"),
        (damage_state, "keyCache"),
    ],
)
def test_damaged_programs_are_refused(
    tmp_path: Path, tiny: tuple[QuantizedModel, Artifact], damage: Any, words: str
) -> None:
    artifact = copy(tiny[1], tmp_path)
    with edited(artifact) as spec:
        damage(spec)
    with pytest.raises(EngineLoadError, match=words):
        MilDecoder.open(artifact)


def test_damaged_files_are_refused(tmp_path: Path, tiny: tuple[QuantizedModel, Artifact]) -> None:
    artifact = copy(tiny[1], tmp_path)
    package = artifact.path / PACKAGE_NAME
    raw = weights_path(package).read_bytes()
    for content in (b"", raw[:1000]):
        weights_path(package).write_bytes(content)
        with pytest.raises(EngineLoadError):
            MilDecoder.open(artifact)
    weights_path(package).write_bytes(raw)
    spec_path(package).write_bytes(b"\xff" * 64)
    with pytest.raises(EngineLoadError):
        MilDecoder.open(artifact)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"n_threads": 2}, "n_threads"),
        ({"context_length": 65}, r"1 \.\. 64"),
        ({"context_length": 0}, r"1 \.\. 64"),
        ({"options": {"arithmetic": "bf16"}}, "fp16 or fp32"),
        ({"options": {"max_kept_bytes": -1}}, "0 or more"),
        ({"options": {"colour": 1}}, "colour"),
    ],
)
def test_impossible_choices_are_usage_errors(
    tiny: tuple[QuantizedModel, Artifact], asked: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        MilDecoder.open(tiny[1], **asked)


def test_records_say_emulated(tiny: tuple[QuantizedModel, Artifact]) -> None:
    with_limit = open_decoder(tiny[1], engine="mil", context_length=16)
    assert with_limit.info.engine == "mil"
    assert with_limit.info.is_emulated
    assert with_limit.info.model == "tiny coreml int4-g32"
    assert (with_limit.vocab_size, with_limit.context_length) == (96, 16)
    with pytest.raises(UsageError, match="longer than the context"):
        with_limit.forward(some_ids(17), n_past=0)


def test_a_closed_decoder_says_so(tiny: tuple[QuantizedModel, Artifact]) -> None:
    decoder = MilDecoder.open(tiny[1])
    decoder.close()
    decoder.close()
    with pytest.raises(EngineCrashError, match="closed"):
        decoder.forward([1], n_past=0)
