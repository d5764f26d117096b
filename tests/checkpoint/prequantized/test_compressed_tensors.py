"""Claims: compressed-tensors codes read as the floats they stand for; damaged ones are named."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.errors import CheckpointError, UnknownKeyError
from edgekit.families import open_model
from tests.checkpoint.prequantized.folders import BF16, Grid, edit_config, write_compressed

UP = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    "grid",
    [
        Grid(4, 32),
        Grid(4, 64, BF16),
        Grid(4, 128),
        Grid(8, 32, BF16),
        Grid(8, 128, np.float32),
        Grid(4, 64, is_exact=False),
    ],
)
def test_weights_read_as_the_floats_they_stand_for(tmp_path, grid):
    folder, made = write_compressed(tmp_path / "m", grid)
    source = open_model(folder)
    for name, theirs in {"q": "self_attn.q_proj", "down": "mlp.down_proj"}.items():
        wanted = made[f"model.layers.1.{theirs}.weight"]
        tensor = source.tensor(f"layers.1.{name}")
        np.testing.assert_array_equal(tensor.read(), wanted.values)
        np.testing.assert_array_equal(tensor.read_rows(5, 40), wanted.values[5:40])
        coded = tensor.prequantized
        assert coded.label == f"compressed-tensors int{grid.bits}-g{grid.group}"
        np.testing.assert_array_equal(coded.codes(3, 9), wanted.codes[3:9])
        np.testing.assert_array_equal(coded.scales(3, 9), wanted.scales[3:9])
    assert source.tensor("embed").prequantized is None


def test_one_scale_for_a_row_is_read(tmp_path):
    grid = Grid(8, 128)
    change = {"strategy": "channel", "group_size": None}
    folder, made = write_compressed(
        tmp_path / "m", grid, change, is_coded=lambda name: "q_proj" in name
    )
    wanted = made["model.layers.0.self_attn.q_proj.weight"].values
    np.testing.assert_array_equal(open_model(folder).tensor("layers.0.q").read(), wanted)


def test_a_long_group_is_several_groups_with_the_same_scale(tmp_path):
    folder, made = write_compressed(
        tmp_path / "m", Grid(4, 256), is_coded=lambda name: "down_proj" in name
    )
    wanted, coded = made["model.layers.0.mlp.down_proj.weight"], None
    coded = open_model(folder).tensor("layers.0.down").prequantized
    assert (coded.source_group, coded.group) == (256, 128)
    np.testing.assert_array_equal(coded.read(), wanted.values)
    np.testing.assert_array_equal(coded.scales(0, 2), wanted.scales[:2].repeat(2, axis=1))


def test_fused_matrices_come_apart_by_rows(tmp_path):
    folder, made = write_compressed(tmp_path / "m", Grid(), model_type="phi3")
    source = open_model(folder)
    qkv = made["model.layers.0.self_attn.qkv_proj.weight"]
    v = source.tensor("layers.0.v")
    np.testing.assert_array_equal(v.read(), qkv.values[192:])
    np.testing.assert_array_equal(v.prequantized.codes(0, 64), qkv.codes[192:])
    np.testing.assert_array_equal(v.prequantized.scales(1, 64), qkv.scales[193:])


def put(name, values):
    return lambda tensors: tensors.update({name: values})


FAULTS = {
    "no scales": (lambda t: t.pop(f"{UP}.weight_scale"), "weight_scale"),
    "no shape": (lambda t: t.pop(f"{UP}.weight_shape"), "weight_shape"),
    "scales are integers": (put(f"{UP}.weight_scale", np.ones((256, 4), np.int32)), "weight_scale"),
    "scales of another height": (
        put(f"{UP}.weight_scale", np.ones((255, 4), np.float16)),
        "weight_scale",
    ),
    "group does not divide": (put(f"{UP}.weight_scale", np.ones((256, 3), np.float16)), "group"),
    "no scales in a row": (put(f"{UP}.weight_scale", np.ones((256, 0), np.float16)), "group"),
    "group of 16": (put(f"{UP}.weight_scale", np.ones((256, 8), np.float16)), "group"),
    "another group": (put(f"{UP}.weight_scale", np.ones((256, 2), np.float16)), "not what"),
    "another width": (put(f"{UP}.weight_shape", np.array([256, 96])), "packed codes"),
    "another height": (put(f"{UP}.weight_shape", np.array([255, 128])), "weight_shape"),
    "a huge width": (put(f"{UP}.weight_shape", np.array([256, 2**62])), "packed codes"),
    "a negative width": (put(f"{UP}.weight_shape", np.array([256, -128])), "weight_shape"),
    "a shape of three": (put(f"{UP}.weight_shape", np.array([256, 128, 1])), "weight_shape"),
    "packed as bytes": (put(f"{UP}.weight_packed", np.ones((256, 64), np.uint8)), "weight_packed"),
    "packed has three axes": (
        put(f"{UP}.weight_packed", np.ones((256, 16, 1), np.int32)),
        "weight_packed",
    ),
    "packed is short": (put(f"{UP}.weight_packed", np.ones((256, 15), np.int32)), "packed codes"),
    "floats as well": (put(f"{UP}.weight", np.ones((256, 128), np.float16)), "stored twice"),
    "zero points": (put(f"{UP}.weight_zero_point", np.ones((32, 4), np.int32)), "config.json"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_parts_that_do_not_fit_are_named(tmp_path, fault):
    change, words = FAULTS[fault]
    folder, _ = write_compressed(tmp_path / "m", Grid(), change=change)
    with pytest.raises(CheckpointError, match=words) as caught:
        open_model(folder)
    assert caught.value.got
    assert caught.value.wanted


def test_a_shape_that_config_json_does_not_have_is_named(tmp_path):
    folder, _ = write_compressed(tmp_path / "m", Grid())
    edit_config(folder, lambda config: config.update(intermediate_size=320))
    with pytest.raises(CheckpointError, match=r"up_proj.weight has shape \[256, 128\]"):
        open_model(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scales_that_are_no_numbers_are_refused_on_reading(tmp_path, value):
    def change(tensors):
        tensors[f"{UP}.weight_scale"][3, 1] = value

    folder, _ = write_compressed(tmp_path / "m", Grid(), change=change)
    with pytest.raises(CheckpointError, match="1 of 1024 are NaN or infinite"):
        open_model(folder).tensor("layers.0.up").read()


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"num_bits": 9}, "num_bits is 9"),
        ({"num_bits": 3}, "not what quantization_config says"),
        ({"symmetric": False}, "weight_zero_point"),
        ({"type": "float"}, "not what quantization_config says"),
        ({"type": "complex"}, "type is 'complex'"),
        ({"strategy": "token"}, "strategy is 'token'"),
        ({"strategy": "tensor"}, "not what quantization_config says"),
        ({"dynamic": True}, "dynamic is True"),
        ({"group_size": 64}, "not what quantization_config says"),
        ({"group_size": None}, "group_size is missing"),
    ],
)
def test_weights_sections_that_are_not_supported_are_named(tmp_path, weights, words):
    folder, _ = write_compressed(tmp_path / "m", Grid(), weights)
    with pytest.raises(CheckpointError, match=words):
        open_model(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "marlin-24"}, "format is 'marlin-24'"),
        ({"transform_config": {"config_groups": {"R1": {}}}}, "transform_config is set"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config is set"),
        ({"config_groups": {}}, "config_groups is missing or empty"),
        ({"config_groups": {"a": {"targets": []}}}, "weights is missing"),
        ({"quant_method": "aqlm"}, "quant_method is 'aqlm', which is not read: its weights are"),
    ],
)
def test_config_keys_that_are_not_supported_are_named(tmp_path, change, words):
    folder, _ = write_compressed(tmp_path / "m", Grid())
    edit_config(folder, lambda config: config["quantization_config"].update(change))
    with pytest.raises(CheckpointError, match=words):
        open_model(folder)


def test_an_unknown_key_is_named_with_its_place(tmp_path):
    folder, _ = write_compressed(tmp_path / "m", Grid(), {"surprise": 1})
    with pytest.raises(UnknownKeyError, match=r"weights.surprise"):
        open_model(folder)
