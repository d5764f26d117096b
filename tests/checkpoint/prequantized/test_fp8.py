"""FP8 checkpoints: values times scales, per tensor and per block, as ml_dtypes rounds them."""

from __future__ import annotations

import json

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
