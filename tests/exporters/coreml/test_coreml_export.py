"""Claims about the Core ML artifact: its contract, its bytes, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.artifact import Artifact
from edgekit.decision import Accepted, Rejected
from edgekit.encoding import FP32
from edgekit.errors import ExportError, FormatError, UsageError
from edgekit.exporters.coreml.exporter import CoremlExporter
from edgekit.exporters.coreml.lint import lint_package
from edgekit.file_hashes import hash_file
from edgekit.formats.mil_blob import BlobReader, BlobType
from edgekit.formats.mlpackage import (
    PACKAGE_NAME,
    main_block,
    read_spec,
    require_coremltools,
    spec_path,
    stored_at,
    weights_path,
)
from edgekit.quantize.model import EncodedTensor, FloatTensor
from tests.exporters.coreml.coreml_edit import copy, edited, export, find_op, merge_state_reads
from tests.exporters.memory_model import TINY_SPEC, memory_model, stored_as, tiny_spec

FULL = {"has_qkv_bias": True, "has_o_bias": True, "has_mlp_bias": True, "is_tied": False}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return export(memory_model(), tmp_path_factory.mktemp("tiny"))


TINY_SCHEMES = {name: tensor.encoding for name, tensor in memory_model().tensors.items()}


def sizes(feature: Any) -> list[tuple[int, int]]:
    ranges = feature.type.multiArrayType.shapeRange.sizeRanges
    return [(size.lowerBound, size.upperBound) for size in ranges]


def test_interface_is_that_of_apples_sample_and_swift_transformers(tmp_path: Path) -> None:
    artifact = export(memory_model(), tmp_path, context_length=48)
    model = require_coremltools().models.MLModel(
        str(artifact.path / PACKAGE_NAME), skip_model_load=True
    )
    spec = model.get_spec()
    assert spec.specificationVersion == 9
    ids, mask = spec.description.input
    arrays = require_coremltools("coremltools.proto.FeatureTypes_pb2").ArrayFeatureType
    assert (ids.name, ids.type.multiArrayType.dataType) == ("inputIds", arrays.INT32)
    assert sizes(ids) == [(1, 1), (1, 48)]
    assert (mask.name, mask.type.multiArrayType.dataType) == ("causalMask", arrays.FLOAT16)
    assert sizes(mask) == [(1, 1), (1, 1), (1, 48), (1, 48)]
    states = [(s.name, s.type.stateType.arrayType) for s in spec.description.state]
    assert [name for name, _ in states] == ["keyCache", "valueCache"]
    for _, array in states:
        assert list(array.shape) == [2, 1, 2, 48, 16]
        assert array.dataType == arrays.FLOAT16
    (logits,) = spec.description.output
    assert (logits.name, logits.type.multiArrayType.dataType) == ("logits", arrays.FLOAT16)
    assert list(spec.mlProgram.functions["main"].block_specializations) == ["CoreML8"]
    assert artifact.manifest.context_length == 48


def test_coremltools_parses_the_program_again(tmp_path: Path) -> None:
    artifact = export(memory_model(tiny_spec(**FULL)), tmp_path)
    package = artifact.path / PACKAGE_NAME
    load = require_coremltools("coremltools.converters.mil.frontend.milproto.load").load
    weights = str(weights_path(package).parent)
    program = load(read_spec(package), specification_version=9, file_weights_dir=weights)
    types = require_coremltools("coremltools.converters.mil.mil").types
    kinds = [
        op.data.dtype
        for op in program.functions["main"].operations
        if op.op_type == "constexpr_blockwise_shift_scale"
    ]
    assert kinds == [types.int4] * 16


@pytest.mark.parametrize("scheme", ["int4-g32", "int4-g64", "int8-g32", "fp16"])
@pytest.mark.parametrize("overrides", [{}, FULL], ids=["tied", "untied with biases"])
def test_recover_gives_back_every_bit(
    tmp_path: Path, scheme: str, overrides: dict[str, Any]
) -> None:
    spec = tiny_spec(**overrides)
    mixed = {"embed": "int8", "layers.1.o": "fp16", "layers.0.down": "int4-g128"}
    model = memory_model(spec, scheme, schemes=mixed)
    artifact = export(model, tmp_path)
    recovered = list(CoremlExporter().recover(artifact))
    assert [tensor.name for tensor in recovered] == list(spec.weight_shapes())
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


def test_fp32_norms_and_biases_stay_exact(tmp_path: Path) -> None:
    model = memory_model(tiny_spec(**FULL), "int4")
    odd = np.float32(1) + np.float32(2**-20)
    vectors = {
        name: FloatTensor(name, FP32, tensor.values * odd)
        for name, tensor in model.tensors.items()
        if isinstance(tensor, FloatTensor)
    }
    model = replace(model, tensors={**model.tensors, **vectors})
    for tensor in CoremlExporter().recover(export(model, tmp_path)):
        if tensor.name in vectors:
            assert isinstance(tensor, FloatTensor)
            assert tensor.encoding == FP32
            np.testing.assert_array_equal(tensor.values, vectors[tensor.name].values)


def test_both_blob_readers_see_the_same(tiny: Artifact) -> None:
    package = tiny.path / PACKAGE_NAME
    blobs = BlobReader(weights_path(package))
    recovered = {t.name: t for t in CoremlExporter().recover(tiny)}
    op = find_op(read_spec(package), lambda op: op.type.startswith("constexpr"))
    offset, kind, shape = stored_at(op.inputs["data"].arguments[0].value)
    embed = recovered["embed"]
    assert kind is BlobType.INT4
    assert isinstance(embed, EncodedTensor)
    np.testing.assert_array_equal(blobs.read(offset, kind, shape) + np.int8(8), embed.codes())


def test_every_tensor_is_read_once(tmp_path: Path) -> None:
    model = memory_model(tiny_spec(**FULL))
    export(model, tmp_path)
    assert sorted(model.reads) == sorted(model.tensors)


def test_same_model_gives_same_bytes_in_another_process(tmp_path: Path) -> None:
    first = export(memory_model(), tmp_path / "a")
    again = export(memory_model(), tmp_path / "b")
    code = (
        "import sys; from pathlib import Path\n"
        "from tests.exporters.coreml.coreml_edit import export\n"
        "from tests.exporters.memory_model import memory_model\n"
        "export(memory_model(), Path(sys.argv[1]))"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "c")],
        check=True, cwd=Path(__file__).parents[2], env={"PYTHONHASHSEED": "7", "PATH": ""},
    )  # fmt: skip
    for entry in first.manifest.files:
        digests = {hash_file(tmp_path / name / "coreml" / entry.path) for name in "abc"}
        assert digests == {entry.sha256}, entry.path
    assert again.manifest.weights_sha256 == first.manifest.weights_sha256


def test_int4_takes_half_a_byte(tiny: Artifact) -> None:
    model, package = memory_model(), tiny.path / PACKAGE_NAME
    kinds = [record.type for record in BlobReader(weights_path(package)).walk()]
    assert kinds.count(BlobType.INT4) == 15
    n_codes = sum(t.codes().size for t in model.tensors.values() if isinstance(t, EncodedTensor))
    stored = [r for r in BlobReader(weights_path(package)).walk() if r.type is BlobType.INT4]
    assert sum(record.n_bytes for record in stored) == n_codes // 2


def test_metadata_names_model_and_scheme(tiny: Artifact) -> None:
    given = dict(read_spec(tiny.path / PACKAGE_NAME).description.metadata.userDefined)
    assert given["co.huggingface.exporters.name"] == "tiny"
    assert given["edgekit.scheme"] == "int4-g32"
    assert given["edgekit.context_length"] == "64"
    assert given["edgekit.eos_token_ids"] == "2"
    assert given["edgekit.weights_sha256"] == tiny.manifest.weights_sha256


@pytest.mark.parametrize(
    ("named", "written"),
    [
        ("LlamaTokenizerFast", "LlamaTokenizerFast"),
        ("Qwen2Tokenizer", "Qwen2Tokenizer"),
        ("MistralCommonTokenizer", "PreTrainedTokenizerFast"),
        (None, "PreTrainedTokenizerFast"),
    ],
)
def test_tokenizer_class_is_one_that_swift_knows(
    tmp_path: Path, named: str | None, written: str
) -> None:
    config = {"chat_template": "{{ 'ä' }}"} | ({"tokenizer_class": named} if named else {})
    source = tmp_path / "tokenizer_config.json"
    source.write_text(json.dumps(config), encoding="utf-8")
    other = tmp_path / "tokenizer.json"
    other.write_bytes(b"{}")
    assets = {source.name: source, other.name: other}
    artifact = export(memory_model(assets=assets), tmp_path)
    text = (artifact.path / source.name).read_text(encoding="utf-8")
    assert json.loads(text) == {**config, "tokenizer_class": written}
    assert (artifact.path / "tokenizer.json").read_bytes() == b"{}"


def test_broken_tokenizer_config_leaves_nothing_behind(tmp_path: Path) -> None:
    source = tmp_path / "tokenizer_config.json"
    source.write_text("{", encoding="utf-8")
    with pytest.raises(ExportError, match="not JSON"):
        export(memory_model(assets={source.name: source}), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_supports_says_what_and_why() -> None:
    exporter = CoremlExporter()
    refused = exporter.supports(TINY_SPEC, stored_as(TINY_SPEC, FP32))
    assert isinstance(refused, Rejected)
    assert "use fp16" in refused.reason
    assert isinstance(exporter.supports(tiny_spec(head_width=15), {}), Rejected)
    for text in ("fp16", "int8", "int4-g128"):
        assert isinstance(exporter.supports(TINY_SPEC, stored_as(TINY_SPEC, text)), Accepted)


@pytest.mark.parametrize("asked", [1, 65, 0])
def test_context_length_must_fit(tmp_path: Path, asked: int) -> None:
    with pytest.raises(UsageError, match=r"2 \.\. 64"):
        export(memory_model(), tmp_path, context_length=asked)


def test_context_beyond_16384_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"2 \.\. 16384, packages of 32,768"):
        export(memory_model(tiny_spec(context_length=32768)), tmp_path, context_length=32768)


def test_fp32_matrix_inside_another_scheme_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"layers\.0\.q"):
        export(memory_model(schemes={"layers.0.q": "fp32"}), tmp_path)


def test_scale_that_fp16_rounds_is_refused(tmp_path: Path) -> None:
    model = memory_model()
    tensor = model.tensors["layers.0.q"]
    assert isinstance(tensor, EncodedTensor)
    rounded = replace(tensor, scales=tensor.scales * np.float32(1 + 2**-20))
    model = replace(model, tensors={**model.tensors, tensor.name: rounded})
    with pytest.raises(ExportError, match=r"layers\.0\.q: scales"):
        export(model, tmp_path)


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    model = memory_model()
    rest = {name: t for name, t in model.tensors.items() if name != "layers.1.up"}
    with pytest.raises(ExportError, match=r"layers\.1\.up"):
        export(replace(model, tensors=rest), tmp_path)


def test_damaged_packages_are_format_errors(tmp_path: Path, tiny: Artifact) -> None:
    def recover(name: str, damage: Any) -> None:
        artifact = copy(tiny, tmp_path / name)
        damage(artifact.path / PACKAGE_NAME)
        with pytest.raises(FormatError):
            list(CoremlExporter().recover(artifact))

    recover(
        "cut weights", lambda p: weights_path(p).write_bytes(weights_path(p).read_bytes()[:999])
    )
    recover("no weights", lambda p: weights_path(p).unlink())
    recover("no spec", lambda p: spec_path(p).unlink())
    recover("garbage", lambda p: spec_path(p).write_bytes(b"\x00" * 100))


def test_recover_refuses_other_programs(tmp_path: Path, tiny: Artifact) -> None:
    artifact = copy(tiny, tmp_path)
    with edited(artifact) as spec:
        op = find_op(spec, lambda op: op.outputs and op.outputs[0].name == "layers_0_q")
        op.outputs[0].name = "renamed"
    with pytest.raises(FormatError, match=r"layers\.0\.q"):
        list(CoremlExporter().recover(artifact))


def test_merged_state_reads_are_refused_by_the_lint(tmp_path: Path, tiny: Artifact) -> None:
    artifact = copy(tiny, tmp_path)
    package = artifact.path / PACKAGE_NAME
    lint_package(package, TINY_SCHEMES, 64)
    with edited(artifact) as spec:
        merge_state_reads(spec)
    with pytest.raises(ExportError, match=r"write of keyCache builds on read_state_0"):
        lint_package(package, TINY_SCHEMES, 64)


def break_type(spec: Any) -> None:
    op = find_op(spec, lambda op: op.type == "constexpr_blockwise_shift_scale")
    types = require_coremltools("coremltools.proto.MIL_pb2")
    op.inputs["data"].arguments[0].value.type.tensorType.dataType = types.INT8


def break_shape(spec: Any) -> None:
    op = find_op(spec, lambda op: op.outputs and op.outputs[0].name == "rope_cos")
    op.attributes["val"].type.tensorType.dimensions[0].constant.size = 63


def break_range(spec: Any) -> None:
    del spec.description.input[0].type.multiArrayType.shapeRange.sizeRanges[:]


def break_wide(spec: Any) -> None:
    types = require_coremltools("coremltools.proto.MIL_pb2")
    op = find_op(spec, lambda op: op.type == "linear")
    op.outputs[0].type.tensorType.dataType = types.FLOAT32


def break_read(spec: Any) -> None:
    block = main_block(spec)
    read = find_op(spec, lambda op: op.type == "read_state")
    copy = block.operations.add()
    copy.CopyFrom(read)
    copy.outputs[0].name = "read_again"
    ops = [type(copy).FromString(op.SerializeToString()) for op in block.operations]
    ops.insert(ops.index(read) + 1, ops.pop())
    del block.operations[:]
    block.operations.extend(ops)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (break_type, "stored as INT8, wanted INT4"),
        (break_shape, r"rope_cos: .*1024 values of FP32; wanted 1008"),
        (break_range, r"'inputIds': \('INT32', \[\]\)"),
        (break_wide, "linear gives FLOAT32"),
        (break_read, "read_again: second read_state of keyCache"),
    ],
)
def test_lint_names_what_is_wrong(tmp_path: Path, tiny: Artifact, damage: Any, words: str) -> None:
    artifact = copy(tiny, tmp_path)
    with edited(artifact) as spec:
        damage(spec)
    with pytest.raises(ExportError, match=words):
        lint_package(artifact.path / PACKAGE_NAME, TINY_SCHEMES, 64)
