"""FP8 checkpoints: values times scales, per tensor and per block, as ml_dtypes rounds them."""

from __future__ import annotations

import json
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from edgekit.errors import CheckpointError
from edgekit.families import open_model
from tests.builders import write_tiny_checkpoint

CONFIG = {
    "quant_method": "fp8",
    "activation_scheme": "static",
    "weight_block_size": None,
    "modules_to_not_convert": ["lm_head"],
}


def write_fp8(folder, name="ministral3", block=None, change=None, **quantization):
    """Store every projection as FP8; give the folder and what each should read as."""
    write_tiny_checkpoint(folder, name)
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    stored, wanted = dict(tensors), {}
    for key, values in tensors.items():
        if "_proj" not in key:
            continue
        n_rows, n_cols = block or values.shape
        grid = values.astype(np.float32)
        scales = np.zeros((-(-grid.shape[0] // n_rows), -(-grid.shape[1] // n_cols)), np.float32)
        rounded = np.zeros(grid.shape, ml_dtypes.float8_e4m3fn)
        for i in range(scales.shape[0]):
            for j in range(scales.shape[1]):
                part = np.s_[i * n_rows : (i + 1) * n_rows, j * n_cols : (j + 1) * n_cols]
                scales[i, j] = np.abs(grid[part]).max() / 448
                rounded[part] = grid[part] / scales[i, j]
                grid[part] = rounded[part].astype(np.float32) * scales[i, j]
        stored[key] = rounded
        stored[f"{key}_scale_inv"] = scales if block else scales.reshape(())
        stored[key.replace("weight", "activation_scale")] = np.ones((), ml_dtypes.bfloat16)
        wanted[key] = grid
    if change is not None:
        change(stored, "model.layers.0.mlp.up_proj.weight_scale_inv")
    safetensors.numpy.save_file(stored, path)
    config = json.loads((folder / "config.json").read_text())
    size = list(block) if block else None
    config["quantization_config"] = {**CONFIG, "weight_block_size": size, **quantization}
    (folder / "config.json").write_text(json.dumps(config))
    return folder, wanted


@pytest.mark.parametrize("block", [None, (128, 128), (32, 64), (100, 48)])
def test_fp8_weights_read_as_values_times_scales(tmp_path, block):
    folder, wanted = write_fp8(tmp_path / "m", block=block)
    source = open_model(folder)
    q = source.tensor("layers.1.q")
    np.testing.assert_array_equal(q.read(), wanted["model.layers.1.self_attn.q_proj.weight"])
    down = wanted["model.layers.0.mlp.down_proj.weight"]
    rows = source.tensor("layers.0.down").read_rows(37, 90)
    np.testing.assert_array_equal(rows, down[37:90])


def test_a_multimodal_checkpoint_may_be_fp8(tmp_path):
    folder, wanted = write_fp8(tmp_path / "m", "mistral3")
    key = "language_model.model.layers.1.mlp.up_proj.weight"
    np.testing.assert_array_equal(open_model(folder).tensor("layers.1.up").read(), wanted[key])


def test_fused_matrices_may_be_fp8(tmp_path):
    folder, wanted = write_fp8(tmp_path / "m", "phi3", block=(64, 64))
    qkv = wanted["model.layers.0.self_attn.qkv_proj.weight"]
    np.testing.assert_array_equal(open_model(folder).tensor("layers.0.v").read(), qkv[192:])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t, k: t.pop(k), "FP8 values"),
        (lambda t, k: t.update({k: np.ones((3, 3), np.float32)}), "scale_inv: shape"),
        (lambda t, k: t.update({k: np.array(np.nan, np.float32)}), "scale_inv: scales"),
        (lambda t, k: t.update({k: np.array(-1, np.float32)}), "scale_inv: scales"),
    ],
)
def test_scales_that_are_absent_or_odd_are_refused(tmp_path, change, words):
    folder, _ = write_fp8(tmp_path / "m", change=change)
    with pytest.raises(CheckpointError) as caught:
        open_model(folder)
    assert words in caught.value.what


@pytest.mark.parametrize("size", [[0, 128], [128], "128", [128.0, 128.0]])
def test_a_block_size_that_is_none_is_refused(tmp_path, size):
    folder, _ = write_fp8(tmp_path / "m", weight_block_size=size)
    with pytest.raises(CheckpointError, match="weight_block_size"):
        open_model(folder)


def write_any(folder, parts, config=None, name="llama", **more):
    """Store every projection by ``parts``; give the folder and what each should read as."""
    write_tiny_checkpoint(folder, name, num_hidden_layers=1, **more)
    path = folder / "model.safetensors"
    stored, wanted = {}, {}
    for key, values in safetensors.numpy.load_file(path).items():
        if "_proj.weight" in key:
            made, wanted[key] = parts(key, values.astype(np.float32))
            stored |= made
        else:
            stored[key] = values
    stored = {key: np.ascontiguousarray(values) for key, values in stored.items()}
    safetensors.numpy.save_file(stored, path)
    content = json.loads((folder / "config.json").read_text()) | (config or {})
    (folder / "config.json").write_text(json.dumps(content))
    return folder, wanted


def scaled(key, values, scales, name="weight_scale", dtype=ml_dtypes.float8_e4m3fn, stored=None):
    """Give FP8 values beside their scales, which spread over the matrix as they are."""
    wide = scales.astype(np.float32)
    if wide.ndim == 2:
        rows, cols = (-(-size // n) for size, n in zip(values.shape, wide.shape, strict=True))
        wide = wide.repeat(rows, axis=0).repeat(cols, axis=1)
        wide = wide[: values.shape[0], : values.shape[1]]
    elif wide.ndim == 1 and wide.size > 1:
        wide = wide[:, None]
    rounded = (values / wide).astype(dtype)
    made = {key: rounded, key.replace("weight", name): scales if stored is None else stored}
    return made, rounded.astype(np.float32) * wide


def of_tensor(key, values):
    return scaled(key, values, (np.abs(values).max() / 448).reshape(1))


def of_rows(key, values, shape=(-1, 1), **more):
    return scaled(key, values, (np.abs(values).max(axis=1) / 448).reshape(shape), **more)


def of_exponents(key, values):
    """Groups of 32 of a row, scaled by powers of two that are stored as bytes."""
    largest = np.abs(values).reshape(len(values), -1, 32).max(axis=2) / 448
    exponents = np.ceil(np.log2(largest))
    stored = (exponents + 127).astype(np.uint8)
    return scaled(key, values, np.exp2(exponents).astype(np.float32), stored=stored)


def with_input_scale(key, values):
    made, wanted = of_tensor(key, values)
    return made | {key.replace("weight", "input_scale"): np.ones(1, np.float32)}, wanted


def section(**keys):
    return {"quantization_config": keys}


MODELOPT = {
    "config_groups": {
        "group_0": {
            "input_activations": {"dynamic": False, "num_bits": 8, "type": "float"},
            "weights": {"dynamic": False, "num_bits": 8, "type": "float"},
        }
    },
    "ignore": ["lm_head"],
    "kv_cache_scheme": "FP8",
    "producer": {"name": "modelopt", "version": "0.31.0"},
    "quant_algo": "FP8",
}
FORMS = {
    "a scale for the tensor": (of_tensor, section(quant_method="fp8"), "fp8 e4m3"),
    "static activations": (
        with_input_scale,
        section(quant_method="fp8", activation_scheme="static", ignored_layers=["lm_head"]),
        "fp8 e4m3",
    ),
    "a scale for each row": (of_rows, section(quant_method="fp8"), "fp8 e4m3 by row"),
    "rows in one axis": (
        lambda key, values: of_rows(key, values, shape=(-1,)),
        section(quant_method="fp8"),
        "fp8 e4m3 by row",
    ),
    "fbgemm": (
        of_rows,
        section(quant_method="fbgemm_fp8", activation_scale_ub=1200.0, modules_to_not_convert=[]),
        "fp8 e4m3 by row",
    ),
    "e5m2": (
        lambda key, values: of_rows(key, values, dtype=ml_dtypes.float8_e5m2),
        section(quant_method="fp8", fmt="e5m2"),
        "fp8 e5m2 by row",
    ),
    "scales in bfloat16": (
        lambda key, values: scaled(key, values, np.full((2, 1), 2**-9, ml_dtypes.bfloat16)),
        section(quant_method="fp8"),
        "fp8 e4m3 by block",
    ),
    "exponents": (of_exponents, section(quant_method="fp8", scale_fmt="ue8m0"), "fp8 e4m3 by bl"),
    "no config": (of_tensor, None, "fp8 e4m3"),
    "the inverse's name, no config": (
        lambda key, values: of_rows(key, values, name="weight_scale_inv"),
        None,
        "fp8 e4m3 by row",
    ),
    "ModelOpt without its name": (with_input_scale, section(**MODELOPT), "fp8 e4m3"),
    "ModelOpt": (with_input_scale, section(quant_method="modelopt", quant_algo="FP8"), "fp8 e4m3"),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_fp8_read_as_values_times_scales(tmp_path, form):
    parts, config, label = FORMS[form]
    folder, wanted = write_any(tmp_path / "m", parts, config)
    source = open_model(folder)
    for ours, theirs in {"q": "self_attn.q_proj", "down": "mlp.down_proj"}.items():
        values = wanted[f"model.layers.0.{theirs}.weight"]
        tensor = source.tensor(f"layers.0.{ours}")
        np.testing.assert_array_equal(tensor.read(), values)
        np.testing.assert_array_equal(tensor.read_rows(37, 60), values[37:60])
        assert tensor.decoded.label.startswith(label)
    assert "stored as fp8" in source.checkpoint.notes[0]
    assert any("left out" in note for note in source.checkpoint.notes) == (
        parts is with_input_scale
    )


def test_fp8_without_a_scale_says_what_lies_there(tmp_path):
    def parts(key, values):
        made = {key: values.astype(ml_dtypes.float8_e4m3fn)}
        return made | {key.replace("weight", "input_scale"): np.ones(1, np.float32)}, values

    folder, _ = write_any(tmp_path / "m", parts)
    with pytest.raises(CheckpointError) as caught:
        open_model(folder)
    assert "down_proj.weight: FP8 values" in caught.value.what
    assert "no scale" in caught.value.got
    assert "down_proj.input_scale" in caught.value.got
    assert "weight_scale_inv or model.layers.0.mlp.down_proj.weight_scale" in caught.value.wanted


def test_scales_are_not_spread_over_the_matrix(tmp_path):
    folder, _ = write_fp8(tmp_path / "m", block=(128, 128))
    rows = open_model(folder).tensor("layers.1.up").decoded.rows
    tracemalloc.start()
    rows.read(0, 256)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Bytes, their places in the table of values (8 bytes each), and the values.
    assert peak < 256 * 128 * (1 + 8 + 4 + 1)


MAGNITUDES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)


def four_bits(key, values, group, is_nvfp4):
    """Give E2M1 codes, two to a byte, as ModelOpt stores them beside two levels of scales."""
    rng = np.random.default_rng(len(key))
    n_rows, n_cols = values.shape
    codes = rng.integers(0, 16, values.shape).astype(np.uint8)
    floats = MAGNITUDES[codes & 7] * np.where(codes & 8, np.float32(-1), np.float32(1))
    made = {key: codes[:, ::2] | codes[:, 1::2] << 4}
    if is_nvfp4:
        scales = rng.uniform(1, 448, (n_rows, n_cols // group)).astype(ml_dtypes.float8_e4m3fn)
        whole = np.float32(1 / 4096)
        made |= {f"{key}_scale": scales, f"{key}_scale_2": whole.reshape(())}
        wide = scales.astype(np.float32) * whole
    else:
        exponents = rng.integers(110, 130, (n_rows, n_cols // group)).astype(np.uint8)
        made |= {f"{key}_scale": exponents}
        wide = np.exp2(exponents.astype(np.float32) - 127)
    return made, floats * wide.repeat(group, axis=1)


@pytest.mark.parametrize("config", [None, section(quant_method="modelopt", quant_algo="NVFP4")])
def test_nvfp4_of_modelopt(tmp_path, config):
    folder, wanted = write_any(
        tmp_path / "m", lambda key, values: four_bits(key, values, 16, is_nvfp4=True), config
    )
    check_four_bits(folder, wanted, "modelopt nvfp4")


def test_mxfp4_of_modelopt(tmp_path):
    folder, wanted = write_any(
        tmp_path / "m",
        lambda key, values: four_bits(key, values, 32, is_nvfp4=False),
        section(quant_algo="MXFP4", producer={"name": "modelopt"}),
    )
    check_four_bits(folder, wanted, "modelopt mxfp4")


def test_scales_of_inputs_are_folded_into_columns(tmp_path):
    def parts(key, values):
        made, wanted = four_bits(key, values, 16, is_nvfp4=True)
        before = np.linspace(0.5, 2, values.shape[1]).astype(np.float32)
        return made | {key.replace("weight", "pre_quant_scale"): before}, wanted * before

    folder, wanted = write_any(tmp_path / "m", parts)
    check_four_bits(folder, wanted, "modelopt nvfp4")


def check_four_bits(folder, wanted, label):
    source = open_model(folder)
    for ours, theirs in {"q": "self_attn.q_proj", "down": "mlp.down_proj"}.items():
        values = wanted[f"model.layers.0.{theirs}.weight"]
        tensor = source.tensor(f"layers.0.{ours}")
        np.testing.assert_array_equal(tensor.read(), values)
        np.testing.assert_array_equal(tensor.read_rows(37, 60), values[37:60])
        assert tensor.decoded.label == label
        assert tensor.decoded.reason == "4-bit floats"


def test_an_algorithm_that_is_not_read_is_named(tmp_path):
    folder, _ = write_any(tmp_path / "m", of_tensor, section(quant_algo="W4A8_AWQ"))
    with pytest.raises(CheckpointError, match="quant_algo is 'W4A8_AWQ'"):
        open_model(folder)
