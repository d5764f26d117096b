"""Claims about the MLX folder: exact bytes, exact recovery, faults found, one tensor at a time."""

from __future__ import annotations

import json
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from edgekit.artifact import Artifact
from edgekit.dtypes import DType
from edgekit.encoding import FP16, FP32, Encoding
from edgekit.errors import ExportError, FormatError, UsageError
from edgekit.exporters.base import ExportOptions
from edgekit.exporters.mlx.arrays import narrow
from edgekit.exporters.mlx.exporter import MlxExporter
from edgekit.exporters.mlx.models import MODEL_FILES, choose_file, make_config
from edgekit.exporters.staging import write_artifact
from edgekit.formats.floats import to_float32
from edgekit.quantize.model import EncodedTensor, FloatTensor
from tests.exporters.memory_model import memory_model

SCHEMES = ["fp32", "fp16", "int8", "int8-g64", "int4", "int4-g64"]


@pytest.fixture
def source_config(tmp_path):
    """Write a source config.json with a torch_dtype and give it as assets."""

    def write(**config):
        folder = tmp_path / "source"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config))
        return {"config.json": folder / "config.json"}

    return write


def export(model, folder) -> Artifact:
    return write_artifact(MlxExporter(), model, folder)


def config_of(model) -> dict:
    choice = choose_file(model.spec)
    return make_config(choice, model.spec, model.entries, DType.FP32)


def assert_same_tensor(got, wanted) -> None:
    assert type(got) is type(wanted)
    assert (got.name, got.encoding, got.shape) == (wanted.name, wanted.encoding, wanted.shape)
    if isinstance(wanted, EncodedTensor):
        np.testing.assert_array_equal(got.codes(), wanted.codes())
        np.testing.assert_array_equal(got.scales, wanted.scales)
        assert got.sha256() == wanted.sha256()
    else:
        np.testing.assert_array_equal(got.values, wanted.values)


def test_a_block_worked_out_by_hand(tmp_path):
    model = memory_model(schemes={"layers.0.q": "int4"})
    codes = np.tile(np.arange(16, dtype=np.uint8), (64, 4))
    scales = np.full((64, 2), 0.5, dtype=np.float32)
    hand = EncodedTensor.of_codes("layers.0.q", Encoding("int4", 32), codes, scales)
    artifact = export(replace(model, tensors={**model.tensors, "layers.0.q": hand}), tmp_path / "a")
    arrays = mx.load(str(artifact.path / "model.safetensors"))
    module = "model.layers.0.self_attn.q_proj"
    # Eight codes a word, the first in the low bits; bias = -8 * 0.5.
    assert np.array(arrays[f"{module}.weight"])[0, :2].tolist() == [0x76543210, 0xFEDCBA98]
    assert np.array(arrays[f"{module}.biases"])[0].tolist() == [-4.0, -4.0]
    values = mx.dequantize(
        arrays[f"{module}.weight"],
        arrays[f"{module}.scales"],
        arrays[f"{module}.biases"],
        group_size=32,
        bits=4,
    )
    np.testing.assert_array_equal(np.array(values), hand.dequantize())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("torch_dtype", ["bfloat16", "float16", "float32"])
def test_codes_and_scales_come_back_exactly(tmp_path, source_config, scheme, torch_dtype):
    model = memory_model(
        scheme=scheme,
        schemes=None if scheme.startswith("fp") else {"embed": "int8"},
        assets=source_config(torch_dtype=torch_dtype),
    )
    artifact = export(model, tmp_path / "a")
    recovered = list(MlxExporter().recover(artifact))
    assert [t.name for t in recovered] == list(model.tensors)
    for tensor in recovered:
        wanted = model.tensors[tensor.name]
        # The norms of this model are exact in fp16; a bf16 artifact rounds them, and says so.
        if (
            isinstance(wanted, EncodedTensor)
            or artifact.manifest.settings["float_dtype"] != "bfloat16"
        ):
            assert_same_tensor(tensor, wanted)
    n_norms = sum(isinstance(t, FloatTensor) for t in model.tensors.values())
    is_rounded = artifact.manifest.settings["float_dtype"] == "bfloat16"
    assert artifact.manifest.settings["n_rounded_float_tensors"] == (n_norms if is_rounded else 0)


def test_mlx_dequantizes_to_the_same_matrix_bit_for_bit(tmp_path):
    for scheme in ("int4", "int8-g64"):
        model = memory_model(scheme=scheme)
        artifact = export(model, tmp_path / scheme)
        arrays = mx.load(str(artifact.path / "model.safetensors"))
        for name, tensor in model.tensors.items():
            if isinstance(tensor, EncodedTensor):
                parts = [
                    arrays[f"{MODEL_FILES['mistral'].module_of(name)}.{p}"]
                    for p in ("weight", "scales", "biases")
                ]
                values = mx.dequantize(
                    *parts, group_size=tensor.encoding.block, bits=tensor.encoding.bits
                )
                np.testing.assert_array_equal(np.array(values), tensor.dequantize())


def test_every_scale_of_the_grid_and_its_bias_are_exact_in_bf16_and_fp16():
    bits = np.arange(1, 0x7C00, dtype=np.uint16)
    fp16 = bits.view(np.float16).astype(np.float32)
    fractions, _ = np.frexp(fp16)
    scales = fp16[(fractions * 256) % 1 == 0]
    # 30 exponents of 128 normals each; subnormals k * 2^-24: 255 of up to 8 bits, then every
    # second and every fourth k.
    assert len(scales) == 30 * 128 + 255 + 128 + 128
    for factor in (1, -8, -128):
        values = factor * scales
        np.testing.assert_array_equal(to_float32(narrow(values, DType.BF16), DType.BF16), values)
        small = values[np.abs(values) <= 65504]
        np.testing.assert_array_equal(to_float32(narrow(small, DType.FP16), DType.FP16), small)


def test_bf16_rounding_is_that_of_mlx():
    random = np.random.default_rng(0)
    values = random.standard_normal(4096).astype(np.float32)
    ties = np.array([1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8), 0.0, -0.0], dtype=np.float32)
    values = np.concatenate([values, ties])
    expected = np.array(mx.array(values).astype(mx.bfloat16).view(mx.uint16))
    np.testing.assert_array_equal(narrow(values, DType.BF16), expected)


@pytest.mark.parametrize(
    ("scheme", "torch_dtype", "stored"),
    [
        ("int4", "bfloat16", "bfloat16"),
        ("int4", "float16", "float16"),
        ("int8", "float32", "float32"),
        ("int8", None, "float32"),
        ("fp16", "bfloat16", "float16"),
        ("fp32", "bfloat16", "float32"),
    ],
)
def test_all_floats_of_an_artifact_share_one_type(
    tmp_path, source_config, scheme, torch_dtype, stored
):
    assets = source_config(**({} if torch_dtype is None else {"torch_dtype": torch_dtype}))
    artifact = export(memory_model(scheme=scheme, assets=assets), tmp_path / "a")
    arrays = mx.load(str(artifact.path / "model.safetensors"))
    kinds = {str(a.dtype).removeprefix("mlx.core.") for a in arrays.values()} - {"uint32"}
    assert kinds == {stored}
    assert json.loads((artifact.path / "config.json").read_text())["torch_dtype"] == stored


def test_transformers_5_spells_the_type_differently(tmp_path, source_config):
    artifact = export(memory_model(assets=source_config(dtype="bfloat16")), tmp_path / "a")
    assert artifact.manifest.settings["float_dtype"] == "bfloat16"


def test_an_unknown_source_type_is_refused_and_nothing_stays(tmp_path, source_config):
    model = memory_model(assets=source_config(torch_dtype="float8_e4m3fn"))
    with pytest.raises(ExportError, match="torch_dtype; got float8_e4m3fn"):
        export(model, tmp_path / "out" / "a")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_scale_that_is_not_exact_is_refused_and_nothing_stays(tmp_path, source_config):
    model = memory_model(assets=source_config(torch_dtype="bfloat16"))
    tensor = model.tensors["layers.1.up"]
    bad = replace(tensor, scales=tensor.scales * np.float32(1 + 2**-9))
    with pytest.raises(ExportError, match=r"layers\.1\.up: a scale or a bias is not exact in bf16"):
        export(replace(model, tensors={**model.tensors, bad.name: bad}), tmp_path / "out" / "a")
    assert list((tmp_path / "out").iterdir()) == []


def with_value(model, name, value):
    """Give the model with one value of a float tensor changed."""
    tensor = model.tensors[name]
    values = tensor.values.copy()
    values[1] = value
    return replace(model, tensors={**model.tensors, name: replace(tensor, values=values)})


@pytest.mark.parametrize("value", [65520.0, -70000.0, 1e30])
@pytest.mark.parametrize("name", ["final_norm", "layers.1.ffn_norm"])
def test_a_float_beyond_fp16_makes_the_artifact_bf16_and_it_is_said(
    tmp_path, source_config, name, value
):
    model = memory_model(scheme="int4", assets=source_config(torch_dtype="float16"))
    artifact = export(with_value(model, name, value), tmp_path / "a")
    arrays = mx.load(str(artifact.path / "model.safetensors"))
    assert all(np.isfinite(np.array(a.astype(mx.float32))).all() for a in arrays.values())
    assert {str(a.dtype) for a in arrays.values()} == {"mlx.core.bfloat16", "mlx.core.uint32"}
    assert artifact.manifest.settings["float_dtype"] == "bfloat16"
    (note,) = [n for n in artifact.manifest.notes if "bf16" in n]
    assert note == (
        f"floats are bf16, not the source's fp16, which cannot hold {name} "
        f"(a value of {abs(np.float32(value)):g})"
    )
    recovered = {tensor.name: tensor for tensor in MlxExporter().recover(artifact)}
    assert recovered[name].values[1] == pytest.approx(value, rel=2**-8)


def test_the_largest_fp16_stays_fp16(tmp_path, source_config):
    model = memory_model(scheme="int4", assets=source_config(torch_dtype="float16"))
    artifact = export(with_value(model, "final_norm", 65519.0), tmp_path / "a")
    assert artifact.manifest.settings["float_dtype"] == "float16"
    assert artifact.manifest.notes == ()


@pytest.mark.parametrize(
    ("scheme", "torch_dtype", "value", "words"),
    [
        ("fp16", "float16", 70000.0, r"fp16.*; got a value of 70000,.*; wanted at most 65504"),
        ("int4", "bfloat16", 3.4e38, r"bf16.*; got a value of 3\.4e\+38,.*; wanted at most 3\.38"),
        ("int4", "float16", 3.4e38, r"bf16.*; got a value of 3\.4e\+38"),
    ],
)
def test_a_float_that_no_type_of_the_scheme_holds_is_refused(
    tmp_path, source_config, scheme, torch_dtype, value, words
):
    model = memory_model(scheme=scheme, assets=source_config(torch_dtype=torch_dtype))
    with pytest.raises(ExportError, match=f"final_norm does not fit {words}"):
        export(with_value(model, "final_norm", value), tmp_path / "out" / "a")
    assert list((tmp_path / "out").iterdir()) == []


def test_each_tensor_is_read_once_and_in_file_order(tmp_path):
    model = memory_model()
    export(model, tmp_path / "a")
    assert model.reads == list(model.tensors)


def test_two_exports_are_the_same_files(tmp_path):
    one, two = (export(memory_model(), tmp_path / name) for name in "ab")
    assert one.manifest == two.manifest


def test_progress_counts_every_tensor(tmp_path):
    seen = []
    model = memory_model()
    write_artifact(MlxExporter(), model, tmp_path / "a", None, lambda *step: seen.append(step))
    n_total = len(model.tensors)
    names = list(model.tensors)
    assert seen == [
        (f"quantize and write {name}", n, n_total) for n, name in enumerate(names, start=1)
    ]


def test_tokenizer_files_are_carried_along_but_not_the_source_config(tmp_path, source_config):
    assets = source_config(torch_dtype="float32", model_file="evil.py", quantize_activations=True)
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text("{}")
    artifact = export(memory_model(assets={**assets, "tokenizer.json": tokenizer}), tmp_path / "a")
    assert (artifact.path / "tokenizer.json").read_text() == "{}"
    config = json.loads((artifact.path / "config.json").read_text())
    assert not {"model_file", "quantize_activations"} & set(config)


def test_the_quantization_entry_names_every_module_that_differs():
    model = memory_model(scheme="int4", schemes={"embed": "int8", "layers.0.down": "int4-g64"})
    config = config_of(model)
    assert config["quantization"] == {
        "group_size": 32,
        "bits": 4,
        "mode": "affine",
        "model.embed_tokens": {"group_size": 32, "bits": 8, "mode": "affine"},
        "model.layers.0.mlp.down_proj": {"group_size": 64, "bits": 4, "mode": "affine"},
    }


@pytest.mark.parametrize("scheme", [FP32, FP16])
def test_float_artifacts_have_no_quantization_entry(scheme):
    model = memory_model(scheme=scheme)
    assert "quantization" not in config_of(model)


def test_more_context_than_the_model_has_is_refused(tmp_path):
    with pytest.raises(
        UsageError, match=r"--context is not possible for mlx; got 65; wanted 2 \.\. 64"
    ):
        write_artifact(MlxExporter(), memory_model(), tmp_path / "a", ExportOptions(65))


def test_a_shorter_context_is_kept_in_the_manifest(tmp_path):
    artifact = write_artifact(MlxExporter(), memory_model(), tmp_path / "a", ExportOptions(16))
    assert artifact.manifest.context_length == 16


class TestDamage:
    """Every fault of the files is a FormatError that names the place."""

    @pytest.fixture
    def artifact(self, tmp_path) -> Artifact:
        return export(memory_model(), tmp_path / "a")

    def rewrite(self, artifact, change) -> None:
        path = artifact.path / "model.safetensors"
        arrays = {name: mx.array(np.array(array)) for name, array in mx.load(str(path)).items()}
        change(arrays)
        mx.save_safetensors(str(path), arrays, metadata={"format": "mlx"})

    def recover(self, artifact, match) -> None:
        with pytest.raises(FormatError, match=match):
            list(MlxExporter().recover(artifact))

    def test_cut_off(self, artifact):
        path = artifact.path / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-10])
        self.recover(artifact, "data is cut off")

    def test_absent(self, artifact):
        (artifact.path / "model.safetensors").unlink()
        self.recover(artifact, "cannot be read")

    def test_a_tensor_too_few(self, artifact):
        self.rewrite(artifact, lambda arrays: arrays.pop("model.layers.1.mlp.up_proj.scales"))
        self.recover(artifact, r"array model\.layers\.1\.mlp\.up_proj\.scales; got none")

    def test_a_tensor_too_many(self, artifact):
        self.rewrite(artifact, lambda arrays: arrays.update(extra=mx.zeros((2,))))
        self.recover(artifact, "does not list; got extra")

    def test_wrong_shape(self, artifact):
        self.rewrite(artifact, lambda arrays: arrays.update({"model.norm.weight": mx.zeros((2,))}))
        self.recover(artifact, r"got \(2,\); wanted \(64,\)")

    def test_a_bias_that_is_not_minus_eight_scales(self, artifact):
        name = "model.layers.0.mlp.gate_proj.biases"
        self.rewrite(artifact, lambda arrays: arrays.update({name: arrays[name] * 1.5}))
        self.recover(artifact, r"layers\.0\.gate: biases")

    def test_codes_of_another_type(self, artifact):
        name = "model.layers.0.mlp.gate_proj.weight"
        self.rewrite(
            artifact, lambda arrays: arrays.update({name: arrays[name].astype(mx.float32)})
        )
        self.recover(artifact, "codes; got float32")

    @pytest.mark.parametrize(
        ("quantization", "match"),
        [
            ({"group_size": 32, "bits": 8}, "got int8-g32; wanted int4-g32"),
            ({"group_size": 32, "bits": 4, "mode": "mxfp4"}, "mode; got mxfp4"),
            ({"bits": 4}, "quantization of"),
            ({"group_size": 16, "bits": 4}, "quantization of"),
            (None, "config.json quantization; wanted int4-g32"),
            ({"group_size": 32, "bits": 4, "model.embed_tokens": 7}, "quantization of"),
        ],
    )
    def test_a_config_that_says_another_scheme(self, artifact, quantization, match):
        path = artifact.path / "config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps({**config, "quantization": quantization}))
        self.recover(artifact, match)

    def test_a_config_that_is_no_json(self, artifact):
        (artifact.path / "config.json").write_text("{")
        self.recover(artifact, "not valid JSON")
