"""Claims: codes on the grid go in as they are; the plan says what happened to every other."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.encoding import Encoding
from edgekit.errors import CheckpointError
from edgekit.families import open_model
from edgekit.quantize.encoded_model import quantize_model
from edgekit.quantize.grid import round_scales
from edgekit.quantize.model import EncodedTensor
from edgekit.quantize.plan import plan_tensors
from edgekit.scheme import Scheme
from tests.checkpoint.prequantized.folders import (
    BF16,
    Grid,
    gptq_config,
    gptq_parts,
    write_coded,
    write_compressed,
)

PROJECTIONS = {
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj",
    "o": "self_attn.o_proj", "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
}  # fmt: skip
Q = "model.layers.0.self_attn.q_proj.weight"


def write_gptq(folder, grid, **more):
    return write_coded(folder, grid, gptq_parts, gptq_config(grid), **more)


def quantize(folder, scheme, out):
    source = open_model(folder)
    model = quantize_model(source, Scheme.parse(scheme), out)
    return model, {entry.name: entry for entry in model.entries}, source


def theirs(name):
    _, layer, part = name.split(".")
    return f"model.layers.{layer}.{PROJECTIONS[part]}.weight"


def is_projection(name):
    return name.rpartition(".")[2] in PROJECTIONS


@pytest.mark.parametrize(
    ("write", "grid", "scheme", "origin"),
    [
        (write_compressed, Grid(4, 32, BF16), "int4", "compressed-tensors"),
        (write_compressed, Grid(4, 128), "int4", "compressed-tensors"),
        (write_compressed, Grid(8, 64, BF16), "int8", "compressed-tensors"),
        (write_gptq, Grid(4, 128), "int4", "gptq"),
        (write_gptq, Grid(4, 64), "int4-g64", "gptq"),
        (write_gptq, Grid(8, 32), "int8", "gptq"),
    ],
)
def test_codes_on_the_grid_go_in_as_they_are(tmp_path, write, grid, scheme, origin):
    folder, made = write(tmp_path / "m", grid)
    model, entries, _ = quantize(folder, scheme, tmp_path / "q")
    label = f"{origin} int{grid.bits}-g{grid.group}"
    imported = {name for name, entry in entries.items() if entry.imported is not None}
    assert imported == {name for name in entries if is_projection(name)}
    for name in imported:
        entry, tensor, wanted = entries[name], model.get(name), made[theirs(name)]
        assert (entry.imported, entry.reason) == (label, f"imported from {label}")
        assert entry.encoding == f"int{grid.bits}-g{grid.group}"
        np.testing.assert_array_equal(tensor.codes(), wanted.codes)
        np.testing.assert_array_equal(tensor.scales, wanted.scales)
        np.testing.assert_array_equal(tensor.dequantize(), wanted.values)
        alone = EncodedTensor.of_codes(
            name, Encoding(f"int{grid.bits}", grid.group), wanted.codes, wanted.scales
        )
        assert tensor.sha256() == alone.sha256()


def test_scales_with_more_digits_are_rounded_and_said_so(tmp_path):
    folder, made = write_gptq(tmp_path / "m", Grid(4, 32, is_exact=False))
    model, entries, _ = quantize(folder, "int4", tmp_path / "q")
    wanted, tensor = made[Q], model.get("layers.0.q")
    n_off = int((round_scales(wanted.scales, 4) != wanted.scales).sum())
    assert n_off > 0
    assert entries["layers.0.q"].imported is None
    assert entries["layers.0.q"].reason == (
        f"requantized: {n_off} of 512 groups have a scale of more than 8 significant bits "
        "(gptq int4-g32); codes kept, scales rounded"
    )
    np.testing.assert_array_equal(tensor.codes(), wanted.codes)
    np.testing.assert_array_equal(tensor.scales, round_scales(wanted.scales, 4))
    assert np.abs(tensor.scales / wanted.scales - 1).max() <= 2.0**-8
    assert np.abs(tensor.dequantize() - wanted.values).max() <= np.abs(wanted.values).max() / 256


@pytest.mark.parametrize("bits", [4, 8])
def test_one_long_scale_is_enough_and_only_it_moves(tmp_path, bits):
    def change(tensors):
        scales = tensors["model.layers.0.self_attn.q_proj.weight_scale"]
        scales[4, 2] = np.float16(1 + 2.0**-9)

    folder, made = write_compressed(tmp_path / "m", Grid(bits, 32), change=change)
    model, entries, _ = quantize(folder, f"int{bits}", tmp_path / "q")
    assert entries["layers.0.q"].reason.startswith("requantized: 1 of 512 groups have a scale")
    assert entries["layers.1.q"].imported is not None
    wanted = made[Q].scales.copy()
    wanted[4, 2] = 1.0
    np.testing.assert_array_equal(model.get("layers.0.q").scales, wanted)


def check_made_from_floats(source, scheme, name, out):
    """Quantize the floats that the codes stand for, as a float checkpoint would be."""
    model = quantize_model(source, Scheme.parse(scheme), out, fold=False)
    again = model.get(name).dequantize()
    step = np.abs(model.get(name).scales).max()
    assert np.abs(again - source.tensor(name).read()).max() <= step


@pytest.mark.parametrize(
    ("grid", "scheme", "reason"),
    [
        (Grid(4, 32), "int8", "requantized: int8-g32 instead of compressed-tensors int4-g32"),
        (Grid(8, 32), "int4", "requantized: int4-g32 instead of compressed-tensors int8-g32"),
        (Grid(4, 32), "int4-g64", "requantized: int4-g64 instead of compressed-tensors int4-g32"),
    ],
)
def test_another_scheme_is_made_from_the_floats_and_said_so(tmp_path, grid, scheme, reason):
    folder, _ = write_compressed(tmp_path / "m", grid)
    _, entries, source = quantize(folder, scheme, tmp_path / "q")
    assert entries["layers.0.q"].imported is None
    assert entries["layers.0.q"].encoding == str(Scheme.parse(scheme))
    # No code of this layer is kept, so its channel scales move.
    assert entries["layers.0.q"].reason == f"{reason}; its input scales are in attn_norm"
    check_made_from_floats(source, scheme, "layers.0.q", tmp_path / "again")


@pytest.mark.parametrize("scheme", ["fp16", "fp32"])
def test_floats_are_the_values_of_the_codes(tmp_path, scheme):
    folder, made = write_compressed(tmp_path / "m", Grid())
    model, entries, _ = quantize(folder, scheme, tmp_path / "q")
    # Four bits times eight are exact in fp16 too.
    np.testing.assert_array_equal(model.get("layers.0.q").values, made[Q].values)
    assert entries["layers.0.q"].reason == (
        f"dequantized from compressed-tensors int4-g32: {scheme} was asked for"
    )


def test_a_coded_embedding_keeps_its_four_bits(tmp_path):
    folder, made = write_compressed(
        tmp_path / "m", Grid(), is_coded=lambda name: "_proj" in name or "embed" in name
    )
    model, entries, _ = quantize(folder, "int4", tmp_path / "q")
    assert (entries["embed"].encoding, entries["embed"].imported) == (
        "int4-g32",
        "compressed-tensors int4-g32",
    )
    np.testing.assert_array_equal(
        model.get("embed").codes(), made["model.embed_tokens.weight"].codes
    )


def test_a_coded_embedding_of_eight_bits_fits_int4_too(tmp_path):
    folder, _ = write_compressed(tmp_path / "m", Grid(8, 32), is_coded=lambda name: "embed" in name)
    _, entries, _ = quantize(folder, "int4", tmp_path / "q")
    assert entries["embed"].imported == "compressed-tensors int8-g32"
    assert entries["layers.0.q"].imported is None
    assert entries["layers.0.q"].reason == "as asked; its input scales are in attn_norm"


def set_scale(value, codes=None):
    def change(tensors):
        name = "model.layers.0.self_attn.q_proj.weight"
        tensors[f"{name}_scale"][4, 2] = value
        if codes is not None:
            # Words of group 2 (32 columns) in row 4.
            words = tensors[f"{name}_packed"][4].reshape(4, -1)
            words[2] = np.array(codes, np.uint32).view(np.int32)

    return change


def test_a_scale_of_zero_over_zeros_is_kept(tmp_path):
    change = set_scale(0, 0x88888888)
    folder, _ = write_compressed(tmp_path / "m", Grid(), change=change)
    model, entries, source = quantize(folder, "int4", tmp_path / "q")
    assert entries["layers.0.q"].imported is not None
    tensor = model.get("layers.0.q")
    np.testing.assert_array_equal(tensor.dequantize(), source.tensor("layers.0.q").read())
    assert not tensor.dequantize()[4, 64:96].any()


@pytest.mark.parametrize(
    ("grid", "value", "words"),
    [
        (Grid(), 0, "1 of 512 groups have the scale 0"),
        (Grid(8, 32), -0.25, "1 of 512 groups have a negative scale"),
        (Grid(4, 32, BF16), 2.0**-30, "1 of 512 groups have a scale outside fp16"),
    ],
)
def test_scales_that_the_grid_has_not_are_said(tmp_path, grid, value, words):
    folder, _ = write_compressed(tmp_path / "m", grid, change=set_scale(value))
    _, entries, source = quantize(folder, f"int{grid.bits}", tmp_path / "q")
    entry = entries["layers.0.q"]
    assert (entry.imported, entry.reason.startswith(f"requantized: {words}")) == (None, True)
    check_made_from_floats(source, f"int{grid.bits}", "layers.0.q", tmp_path / "again")


def test_a_negative_scale_of_four_bits_is_on_the_grid(tmp_path):
    folder, _ = write_compressed(tmp_path / "m", Grid(), change=set_scale(-0.25))
    model, entries, _ = quantize(folder, "int4", tmp_path / "q")
    assert entries["layers.0.q"].imported is not None
    assert model.get("layers.0.q").scales[4, 2] == -0.25


@pytest.mark.parametrize("scheme", ["int4", "fp16"])
def test_a_scale_that_is_no_number_is_refused(tmp_path, scheme):
    folder, _ = write_compressed(tmp_path / "m", Grid(), change=set_scale(np.nan))
    with pytest.raises(CheckpointError, match=r"q_proj.weight: scales.*NaN"):
        quantize(folder, scheme, tmp_path / "q")[0].get("layers.0.q")


def test_a_float_source_is_planned_as_before(tmp_path):
    folder, _ = write_compressed(tmp_path / "m", Grid(), is_coded=lambda name: False)
    _, entries, source = quantize(folder, "int4", tmp_path / "q")
    wanted = {item.name: item.reason for item in plan_tensors(source.spec, Scheme.parse("int4"))}
    assert {name: entry.reason.split(";")[0] for name, entry in entries.items()} == {
        name: reason.split(";")[0] for name, reason in wanted.items()
    }
    assert all(entry.imported is None for entry in entries.values())


@pytest.mark.parametrize("bits", [4, 8])
def test_every_code_stays_the_nearest_under_every_rounded_scale(bits):
    # All 1024 scales of 11 significant bits between two powers of two, and all codes.
    scales = np.ldexp(np.arange(1024, 2048, dtype=np.float32), -14)
    moved = round_scales(scales, bits)
    assert np.abs(moved / scales - 1).max() <= 2.0**-8
    codes = np.arange(2**bits) - 2 ** (bits - 1)
    steps = codes[:, None] * (scales.astype(np.float64) / moved)
    nearest = np.clip(np.rint(steps), codes[0], codes[-1])
    np.testing.assert_array_equal(nearest, np.broadcast_to(codes[:, None], steps.shape))
