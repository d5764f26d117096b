"""Claims: compressed-tensors codes read as the floats they stand for; damaged ones are named."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.errors import CheckpointError, UnknownKeyError
from edgekit.families import open_model
from edgekit.quantize.encoded_model import quantize_model
from edgekit.scheme import Scheme
from tests.checkpoint.prequantized.folders import (
    BF16,
    Grid,
    compressed_config,
    compressed_parts,
    edit_config,
    make_prequantized,
    pack_bits,
    write_coded,
    write_compressed,
)

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


def check_floats(folder, wanted, reason):
    source = open_model(folder)
    tensor = source.tensor("layers.0.up")
    np.testing.assert_array_equal(tensor.read(), wanted)
    np.testing.assert_array_equal(tensor.read_rows(9, 70), wanted[9:70])
    assert tensor.prequantized is None
    assert tensor.decoded.reason == reason
    return source


def test_moved_inputs_are_read_by_the_group_of_each(tmp_path):
    def change(tensors):
        for name in [key for key in tensors if key.endswith("weight_packed")]:
            index = np.arange(tensors[name].shape[1] * 8, dtype=np.int32) // 32
            orders[name] = rng.permutation(index)
            tensors[name.replace("packed", "g_idx")] = orders[name]

    rng, orders = np.random.default_rng(0), {}
    folder, made = write_compressed(tmp_path / "m", Grid(), {"actorder": "group"}, change=change)
    coded = made[f"{UP}.weight"]
    wanted = (coded.codes.astype(np.float32) - 8) * coded.scales[:, orders[f"{UP}.weight_packed"]]
    check_floats(folder, wanted, "inputs in another order (actorder)")


def test_an_index_that_was_not_filled_in_moves_nothing(tmp_path):
    def change(tensors):
        for name in [key for key in tensors if key.endswith("weight_packed")]:
            n_cols = tensors[name].shape[1] * 8
            tensors[name.replace("packed", "g_idx")] = np.full(n_cols, -1, np.int32)

    folder, made = write_compressed(tmp_path / "m", Grid(), {"actorder": "group"}, change=change)
    tensor = open_model(folder).tensor("layers.0.up")
    assert tensor.prequantized is not None
    np.testing.assert_array_equal(tensor.read(), made[f"{UP}.weight"].values)


@pytest.mark.parametrize("is_packed", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_zero_points_are_read_as_floats(tmp_path, bits, is_packed):
    """Packed along the output, or (before compressed-tensors 0.9) as int8."""

    def change(tensors):
        for name in [key for key in tensors if key.endswith("weight_scale")]:
            stored = rng.integers(0, 2**bits, tensors[name].shape)
            zeros[name] = stored
            made = (stored - 2 ** (bits - 1)).astype(np.int8)
            if is_packed:
                made = pack_bits(stored.T, bits).T
            tensors[name.replace("scale", "zero_point")] = made

    rng, zeros, grid = np.random.default_rng(0), {}, Grid(bits, 32)
    folder, made = write_compressed(tmp_path / "m", grid, {"symmetric": False}, change=change)
    coded = made[f"{UP}.weight"]
    taken = zeros[f"{UP}.weight_scale"].repeat(32, axis=1).astype(np.float32)
    wanted = (coded.codes.astype(np.float32) - taken) * coded.scales.repeat(32, axis=1)
    source = check_floats(folder, wanted, "zero points of their own (asymmetric)")
    model = quantize_model(source, Scheme.parse(f"int{bits}-g32"), tmp_path / "q")
    reasons = {entry.name: entry.reason for entry in model.entries}
    assert reasons["layers.0.up"] == (
        f"requantized: zero points of their own (asymmetric) (compressed-tensors int{bits}-g32); "
        "its input scales are in ffn_norm; takes the input scales of down"
    )


def test_groups_of_16_are_read_as_floats(tmp_path):
    folder, made = write_compressed(tmp_path / "m", Grid(4, 16))
    check_floats(folder, made[f"{UP}.weight"].values, "groups of 16 weights")


def test_codes_of_3_bits_of_older_versions_start_anew_in_each_word(tmp_path):
    def parts(name, coded, grid):
        codes = (coded.codes % 8).astype(np.uint32)
        wanted[name] = (codes - np.float32(4)) * coded.scales.repeat(32, axis=1)
        words = np.zeros((codes.shape[0], -(-codes.shape[1] // 10)), np.uint32)
        for column in range(codes.shape[1]):
            words[:, column // 10] |= codes[:, column] << np.uint32(3 * (column % 10))
        made = compressed_parts(name, coded, grid)
        return made | {f"{name}.weight_packed": words.view(np.int32)}

    wanted = {}
    config = compressed_config(Grid(), num_bits=3)
    folder, _ = write_coded(tmp_path / "m", Grid(), parts, config)
    check_floats(folder, wanted[UP], "3 bits")


def test_groups_of_modules_may_differ(tmp_path):
    eight = Grid(8, 128)

    def parts(name, coded, grid):
        if name == UP:
            made[name] = make_prequantized(coded.codes.shape, eight, np.random.default_rng(5))
            return compressed_parts(name, made[name], eight)
        return compressed_parts(name, coded, grid)

    made = {}
    config = compressed_config(Grid())
    groups = config["quantization_config"]["config_groups"]
    other = compressed_config(eight, strategy="channel", group_size=None)
    groups["group_1"] = other["quantization_config"]["config_groups"]["group_0"]
    groups["group_1"]["targets"] = ["re:.*up_proj.*"]
    config["quantization_config"]["format"] = "mixed-precision"
    folder, coded = write_coded(tmp_path / "m", Grid(), parts, config)
    source = open_model(folder)
    assert source.tensor("layers.0.up").prequantized.label == "compressed-tensors int8-g128"
    np.testing.assert_array_equal(source.tensor("layers.0.up").read(), made[UP].values)
    gate = coded["model.layers.0.mlp.gate_proj.weight"].values
    np.testing.assert_array_equal(source.tensor("layers.0.gate").read(), gate)


def test_int8_weights_beside_scales_are_kept_and_activations_said(tmp_path):
    def parts(name, coded, grid):
        codes = coded.codes.astype(np.int16) - 128
        wanted[name] = codes * coded.scales[:, :1]
        scales = coded.scales[:, :1].astype(np.float32)
        return {f"{name}.weight": codes.astype(np.int8), f"{name}.weight_scale": scales}

    wanted = {}
    config = compressed_config(Grid(8, 128), strategy="channel", group_size=None)
    section = config["quantization_config"]
    section["format"] = "int-quantized"
    section["config_groups"]["group_0"]["input_activations"] = {"num_bits": 8, "dynamic": True}
    folder, _ = write_coded(tmp_path / "m", Grid(8, 128), parts, config)
    source = open_model(folder)
    np.testing.assert_array_equal(source.tensor("layers.0.up").read(), wanted[UP])
    assert source.checkpoint.notes == [
        "the source quantizes activations while it runs; that is not kept"
    ]
    model = quantize_model(source, Scheme.parse("int8-g128"), tmp_path / "q")
    imported = {entry.name: entry.imported for entry in model.entries}
    assert imported["layers.0.up"] == "compressed-tensors int8-g128"
    np.testing.assert_array_equal(model.get("layers.0.up").dequantize(), wanted[UP])


def test_keys_are_judged_by_value(tmp_path):
    folder, made = write_compressed(tmp_path / "m", Grid())
    keys = {
        "moe_sparsity_config": None, "global_compression_ratio": None, "version": "0.20.0",
        "kv_cache_scheme": {"num_bits": 8, "type": "float"}, "sparsity_config": {"format": "dense"},
        "a_key_of_tomorrow": {}, "transform_config": None,
    }  # fmt: skip
    edit_config(folder, lambda config: config["quantization_config"].update(keys))
    source = open_model(folder)
    np.testing.assert_array_equal(source.tensor("layers.0.up").read(), made[f"{UP}.weight"].values)
    assert source.checkpoint.notes == [
        "the source quantizes keys and values while it runs; that is not kept"
    ]


def test_the_section_may_have_its_old_name(tmp_path):
    folder, made = write_compressed(tmp_path / "m", Grid())
    edit_config(folder, lambda c: c.update(compression_config=c.pop("quantization_config")))
    np.testing.assert_array_equal(
        open_model(folder).tensor("layers.0.up").read(), made[f"{UP}.weight"].values
    )
