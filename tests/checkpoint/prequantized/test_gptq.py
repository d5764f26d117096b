"""Claims: GPTQ and AutoRound codes read as the floats they stand for, turned the right way."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.errors import CheckpointError, UnknownKeyError
from edgekit.families import open_model
from tests.checkpoint.prequantized.folders import (
    BF16,
    Grid,
    auto_round_config,
    edit_config,
    gptq_config,
    gptq_parts,
    write_coded,
)

UP = "model.layers.0.mlp.up_proj"


def parts_with(offset, *left_out):
    def parts(name, coded, grid):
        made = gptq_parts(name, coded, grid, offset)
        return {key: values for key, values in made.items() if not key.endswith(left_out)}

    return parts


def write_gptq(folder, grid=None, *, config=None, parts=gptq_parts, **more):
    grid = grid or Grid()
    return write_coded(folder, grid, parts, config or gptq_config(grid), **more)


def check_read(folder, made, label):
    source = open_model(folder)
    for name, theirs in {"k": "self_attn.k_proj", "down": "mlp.down_proj"}.items():
        wanted = made[f"model.layers.1.{theirs}.weight"]
        tensor = source.tensor(f"layers.1.{name}")
        np.testing.assert_array_equal(tensor.read(), wanted.values)
        np.testing.assert_array_equal(tensor.read_rows(7, 31), wanted.values[7:31])
        np.testing.assert_array_equal(tensor.prequantized.codes(7, 31), wanted.codes[7:31])
        np.testing.assert_array_equal(tensor.prequantized.scales(7, 31), wanted.scales[7:31])
        assert tensor.prequantized.label == label


@pytest.mark.parametrize(
    "grid", [Grid(4, 32), Grid(4, 128, is_exact=False), Grid(8, 64), Grid(8, 32, BF16)]
)
def test_gptq_reads_as_the_floats_it_stands_for(tmp_path, grid):
    check_read(*write_gptq(tmp_path / "m", grid), f"gptq int{grid.bits}-g{grid.group}")


def test_gptq_v2_stores_zero_points_as_they_are(tmp_path):
    config = gptq_config(Grid(), checkpoint_format="gptq_v2")
    written = write_gptq(tmp_path / "m", config=config, parts=parts_with(0))
    check_read(*written, "gptq int4-g32")


def test_desc_act_is_fine_when_nothing_was_moved(tmp_path):
    config = gptq_config(Grid(), desc_act=True)
    check_read(*write_gptq(tmp_path / "m", config=config), "gptq int4-g32")


@pytest.mark.parametrize("bits", [4, 8])
def test_g_idx_may_be_absent(tmp_path, bits):
    grid = Grid(bits, 64)
    written = write_gptq(tmp_path / "m", grid, parts=parts_with(1, ".g_idx"))
    check_read(*written, f"gptq int{bits}-g64")


def test_a_group_of_minus_one_is_a_row(tmp_path):
    grid = Grid(4, 128)
    folder, made = write_gptq(
        tmp_path / "m",
        grid,
        config=gptq_config(grid, group_size=-1),
        parts=parts_with(1, ".g_idx"),
        is_coded=lambda name: "q_proj" in name,
    )
    wanted = made["model.layers.0.self_attn.q_proj.weight"].values
    np.testing.assert_array_equal(open_model(folder).tensor("layers.0.q").read(), wanted)


@pytest.mark.parametrize("offset", [0, 1])
def test_auto_round_stores_zero_points_either_way(tmp_path, offset):
    config = auto_round_config(Grid())
    written = write_gptq(tmp_path / "m", config=config, parts=parts_with(offset))
    check_read(*written, "auto-round int4-g32")


def test_single_modules_may_have_other_bits(tmp_path):
    def parts(name, coded, grid):
        return gptq_parts(name, coded, grid)

    folder, made = write_gptq(tmp_path / "m", Grid(8, 32), parts=parts)
    edit_config(folder, lambda c: c["quantization_config"].update(bits=4))
    check_read(folder, made, "gptq int8-g32")


def test_codes_and_fused_matrices_come_apart_by_rows(tmp_path):
    folder, made = write_gptq(tmp_path / "m", model_type="phi3")
    wanted = made["model.layers.1.mlp.gate_up_proj.weight"]
    up = open_model(folder).tensor("layers.1.up")
    np.testing.assert_array_equal(up.read(), wanted.values[256:])
    np.testing.assert_array_equal(up.prequantized.codes(0, 256), wanted.codes[256:])


def put(part, values):
    return lambda tensors: tensors.update({f"{UP}.{part}": values})


def edit(part, change):
    return lambda tensors: change(tensors[f"{UP}.{part}"])


FAULTS = {
    "no scales": (lambda t: t.pop(f"{UP}.scales"), "scales"),
    "no zeros": (lambda t: t.pop(f"{UP}.qzeros"), "qzeros"),
    "scales are integers": (put("scales", np.ones((4, 256), np.int32)), "scales"),
    "scales of another width": (put("scales", np.ones((4, 255), np.float16)), "scales"),
    "group does not divide": (put("scales", np.ones((3, 256), np.float16)), "group size"),
    "no groups": (put("scales", np.ones((0, 256), np.float16)), "group size"),
    "zeros of another shape": (put("qzeros", np.ones((4, 31), np.int32)), "qzeros"),
    "zeros elsewhere": (edit("qzeros", lambda z: z.fill(0x66666666)), "stored zero points"),
    "zeros of the other layout": (
        edit("qzeros", lambda z: z.view(np.uint32).fill(0x88888888)),
        "stored zero points",
    ),
    "one zero elsewhere": (
        edit("qzeros", lambda z: z.__setitem__((1, 3), 0x77777775)),
        "stored zero points",
    ),
    "inputs moved": (
        edit("g_idx", lambda g: g.__setitem__([0, 40], [1, 0])),
        "not in the order of their groups",
    ),
    "a group too high": (edit("g_idx", lambda g: g.__setitem__(5, 4)), "groups of inputs"),
    "a group below zero": (edit("g_idx", lambda g: g.__setitem__(5, -1)), "groups of inputs"),
    "g_idx is short": (put("g_idx", np.zeros(127, np.int32)), "packed codes"),
    "g_idx is long": (put("g_idx", np.zeros(512, np.int32)), "packed codes"),
    "codes are cut": (put("qweight", np.ones((15, 256), np.int32)), "packed codes"),
    "codes as bytes": (put("qweight", np.ones((64, 256), np.uint8)), "qweight"),
    "no outputs": (put("qweight", np.ones((16, 0), np.int32)), "scales"),
    "floats as well": (put("weight", np.ones((256, 128), np.float16)), "stored twice"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_parts_that_do_not_fit_are_named(tmp_path, fault):
    change, words = FAULTS[fault]
    folder, _ = write_gptq(tmp_path / "m", change=change)
    with pytest.raises(CheckpointError, match=words) as caught:
        open_model(folder)
    assert UP in caught.value.what
    assert caught.value.got
    assert caught.value.wanted


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"sym": False}, "sym is False"),
        ({"bits": 3}, "bits is 3"),
        ({"bits": None}, "bits is missing"),
        ({"group_size": 0}, "group_size is 0"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'"),
        ({"dynamic": {"+:.*down.*": {"bits": 4, "sym": False}}}, "sym is false"),
    ],
)
def test_config_keys_that_are_not_supported_are_named(tmp_path, keys, words):
    folder, _ = write_gptq(tmp_path / "m", config=gptq_config(Grid(), **keys))
    with pytest.raises(CheckpointError, match=words):
        open_model(folder)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"packing_format": "auto_round:auto_awq"}, "packing_format is 'auto_round:auto_awq'"),
        ({"packing_format": None, "backend": "auto_round:awq"}, "packing_format is 'auto_round:aw"),
        ({"data_type": "mx_fp"}, "data_type is 'mx_fp'"),
        ({"extra_config": {"a.b": {"bits": 16, "sym": False}}}, "extra_config.a.b.sym is false"),
    ],
)
def test_auto_round_keys_that_are_not_supported_are_named(tmp_path, keys, words):
    folder, _ = write_gptq(tmp_path / "m", config=auto_round_config(Grid(), **keys))
    with pytest.raises(CheckpointError, match=words):
        open_model(folder)


def test_an_unknown_key_is_named(tmp_path):
    folder, _ = write_gptq(tmp_path / "m", config=gptq_config(Grid(), rotation="hadamard"))
    with pytest.raises(UnknownKeyError, match=r"quantization_config.rotation"):
        open_model(folder)
