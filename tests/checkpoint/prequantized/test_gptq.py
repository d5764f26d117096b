"""Claims: GPTQ and AutoRound codes read as the floats they stand for, turned the right way."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgekit.errors import CheckpointError, UnknownKeyError
from edgekit.families import open_model
from edgekit.formats.open_file import OpenFile
from edgekit.quantize.encoded_model import quantize_model
from edgekit.scheme import Scheme
from tests.checkpoint.prequantized.folders import (
    BF16,
    Grid,
    auto_round_config,
    edit_config,
    gptq_config,
    gptq_parts,
    make_prequantized,
    pack_bits,
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
    "zeros of the other layout": (
        edit("qzeros", lambda z: z.view(np.uint32).fill(0x88888888)),
        "stored zero points",
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
        ({"bits": 9}, "bits is 9"),
        ({"bits": 1}, "bits is 1"),
        ({"bits": None}, "bits is missing"),
        ({"group_size": 0}, "group_size is 0"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'"),
        ({"checkpoint_format": None, "format": "bitblas"}, "checkpoint_format is 'bitblas'"),
        ({"is_marlin_format": True}, "checkpoint_format is 'marlin'"),
        ({"pack_dtype": "int64"}, "pack_dtype is 'int64'"),
    ],
)
def test_config_keys_that_are_not_supported_are_named(tmp_path, keys, words):
    folder, _ = write_gptq(tmp_path / "m", config=gptq_config(Grid(), **keys))
    with pytest.raises(CheckpointError, match=words):
        open_model(folder)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"packing_format": "auto_round:marlin"}, "packing_format is 'auto_round:marlin'"),
        ({"packing_format": None, "backend": "exllama"}, "packing_format is 'exllama'"),
        ({"data_type": "mx_fp"}, "data_type is 'mx_fp'"),
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


def gptq_tensors(name, codes, zeros, scales, bits, offset, index):
    """Store a matrix as GPTQ does, one bit at a time.

    Args:
        codes: (N, M).
        zeros: (N, groups).
        scales: (N, groups).
        index: Group of each input, or None to leave it out.
    """
    made = {
        f"{name}.qweight": pack_bits(codes, bits).T,
        f"{name}.qzeros": pack_bits((zeros.T - offset) % 2**bits, bits),
        f"{name}.scales": scales.T,
    }
    if index is not None:
        made[f"{name}.g_idx"] = np.asarray(index, np.int32)
    return {key: np.ascontiguousarray(values) for key, values in made.items()}


def write_any_gptq(
    folder, *, bits=4, group=32, offset=1, index=None, lowest=1, config=None, **more
):
    """Write a checkpoint with zero points anywhere; give it and the values it stands for."""
    rng, wanted = np.random.default_rng(1), {}

    def parts(name, coded, grid):
        n_rows, n_cols = coded.codes.shape
        size = n_cols if group == -1 else group
        n_groups = -(-n_cols // size)
        in_order = np.arange(n_cols) // size
        groups = in_order if index is None else index(in_order, rng)
        codes = rng.integers(0, 2**bits, (n_rows, n_cols))
        zeros = rng.integers(lowest, 2**bits, (n_rows, n_groups))
        scales = rng.uniform(0.001, 0.1, (n_rows, n_groups)).astype(np.float16)
        signed = (codes - zeros[:, groups]).astype(np.float32)
        wanted[name] = signed * scales.astype(np.float32)[:, groups]
        return gptq_tensors(name, codes, zeros, scales, bits, offset, groups)

    keys = {"bits": bits, "group_size": group, "sym": False, **(config or {})}
    folder, _ = write_gptq(folder, parts=parts, config=gptq_config(Grid(), **keys), **more)
    return folder, wanted


def check_floats(folder, wanted, label, reason):
    source = open_model(folder)
    for ours, theirs in {"k": "self_attn.k_proj", "down": "mlp.down_proj"}.items():
        tensor = source.tensor(f"layers.1.{ours}")
        values = wanted[f"model.layers.1.{theirs}"]
        np.testing.assert_array_equal(tensor.read(), values)
        np.testing.assert_array_equal(tensor.read_rows(7, 45), values[7:45])
        assert tensor.prequantized is None
        assert tensor.decoded.label == label
        assert reason in tensor.decoded.reason
    return source


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("layout", ["gptq", "gptq_v2"])
def test_zero_points_anywhere_are_read_as_floats(tmp_path, bits, layout):
    offset = 1 if layout == "gptq" else 0
    folder, wanted = write_any_gptq(
        tmp_path / "m",
        bits=bits,
        offset=offset,
        lowest=offset,
        config={"checkpoint_format": layout},
    )
    check_floats(folder, wanted, f"gptq int{bits}-g32", "zero points elsewhere")


def test_moved_inputs_are_read_by_the_group_of_each(tmp_path):
    folder, wanted = write_any_gptq(
        tmp_path / "m",
        index=lambda groups, rng: rng.permutation(groups),
        config={"desc_act": True, "static_groups": True},
    )
    source = check_floats(folder, wanted, "gptq int4-g32", "inputs in another order (desc_act)")
    (note,) = source.checkpoint.notes
    assert note.startswith("14 matrices are stored as gptq int4-g32 and read as floats, such as ")
    model = quantize_model(source, Scheme.parse("int4-g32"), tmp_path / "q")
    entry = next(entry for entry in model.entries if entry.name == "layers.0.up")
    assert entry.imported is None
    assert entry.reason.startswith("requantized: inputs in another order (desc_act), zero points")
    assert entry.reason.endswith(
        "(gptq int4-g32); its input scales are in ffn_norm; takes the input scales of down"
    )


def test_moved_inputs_alone_are_floats_too(tmp_path):
    def move(tensors):
        for name in tensors:
            if name.endswith("g_idx"):
                order[name] = rng.permutation(len(tensors[name]))
                tensors[name] = tensors[name][order[name]]

    rng, order = np.random.default_rng(0), {}
    folder, made = write_gptq(tmp_path / "m", change=move)
    coded = made["model.layers.0.mlp.up_proj.weight"]
    scales = coded.scales.repeat(32, axis=1)[:, order[f"{UP}.g_idx"]]
    wanted = (coded.codes.astype(np.float32) - 8) * scales
    np.testing.assert_array_equal(open_model(folder).tensor("layers.0.up").read(), wanted)


def test_an_index_of_zeros_means_that_inputs_are_in_order(tmp_path):
    def change(tensors):
        for name in tensors:
            if name.endswith("g_idx"):
                tensors[name] = np.zeros_like(tensors[name])

    check_read(*write_gptq(tmp_path / "m", change=change), "gptq int4-g32")


@pytest.mark.parametrize(("bits", "group"), [(3, -1), (4, 48), (4, 16), (2, 64), (8, 100)])
def test_any_group_is_read(tmp_path, bits, group):
    folder, wanted = write_any_gptq(tmp_path / "m", bits=bits, group=group)
    source = open_model(folder)
    np.testing.assert_array_equal(
        source.tensor("layers.0.down").read(), wanted["model.layers.0.mlp.down_proj"]
    )


@pytest.mark.parametrize("group", [32, 64])
def test_odd_groups_need_no_index(tmp_path, group):
    folder, wanted = write_any_gptq(
        tmp_path / "m",
        bits=3,
        group=group,
        change=lambda t: [t.pop(name) for name in [*t] if name.endswith("g_idx")],
    )
    np.testing.assert_array_equal(open_model(folder).tensor("layers.0.up").read(), wanted[UP])


@pytest.mark.parametrize("bits", [2, 3])
def test_symmetric_codes_of_other_bits_say_their_bits(tmp_path, bits):
    def parts(name, coded, grid):
        zeros = np.full(coded.scales.shape, 2 ** (bits - 1))
        codes = coded.codes % 2**bits
        wanted[name] = (codes - np.float32(2 ** (bits - 1))) * coded.scales.repeat(32, axis=1)
        return gptq_tensors(name, codes, zeros, coded.scales.astype(np.float16), bits, 1, None)

    wanted = {}
    config = gptq_config(Grid(), bits=bits)
    folder, _ = write_gptq(tmp_path / "m", config=config, parts=parts)
    check_floats(folder, wanted, f"gptq int{bits}-g32", f"{bits} bits")


def test_gptqmodel_takes_other_words_off_zero_points_of_3_bits(tmp_path):
    """Its constants for the first and the third word are each other's; sym tells."""

    def parts(name, coded, grid):
        codes, zeros = coded.codes % 8, np.full(coded.scales.shape, 4)
        wanted[name] = (codes - np.float32(4)) * coded.scales.repeat(32, axis=1)
        made = gptq_tensors(name, codes, zeros, coded.scales.astype(np.float16), 3, 0, None)
        words = made[f"{name}.qzeros"].view(np.uint32)
        for place, taken in enumerate((0x24924924, 0x92492492, 0x49249249)):
            words[:, place::3] -= np.uint32(taken)
        return made

    wanted = {}
    folder, _ = write_gptq(tmp_path / "m", config=gptq_config(Grid(), bits=3), parts=parts)
    check_floats(folder, wanted, "gptq int3-g32", "3 bits")


def pack_planes(codes, bits):
    """Put 32 codes into planes of 4, 2 and 1 bits (of 2 and 1 for 3 bits), low bits first."""
    planes = {3: (2, 1), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1)}[bits]
    blocks = codes.reshape(codes.shape[0], -1, 32).astype(np.uint32)
    words, shift = [], 0
    for width in planes:
        part = (blocks >> np.uint32(shift)) & np.uint32(2**width - 1)
        each = part.reshape(*blocks.shape[:2], width, 32 // width)
        places = np.arange(32 // width, dtype=np.uint32) * np.uint32(width)
        words.append((each << places).sum(axis=3, dtype=np.uint32))
        shift += width
    packed = np.concatenate(words, axis=2).reshape(codes.shape[0], -1)
    return np.ascontiguousarray(packed).view(np.int32)


@pytest.mark.parametrize(
    ("bits", "layout"), [(3, "gptq_p"), (5, "gptq_v2"), (6, "gptq"), (7, "gptq")]
)
def test_codes_split_into_planes(tmp_path, bits, layout):
    offset, rng, wanted = int(layout == "gptq"), np.random.default_rng(2), {}

    def parts(name, coded, grid):
        codes = rng.integers(0, 2**bits, coded.codes.shape)
        zeros = rng.integers(0, 2**bits, coded.scales.shape)
        scales = coded.scales.astype(np.float16)
        signed = (codes - zeros.repeat(32, axis=1)).astype(np.float32)
        wanted[name] = signed * scales.astype(np.float32).repeat(32, axis=1)
        return {
            f"{name}.qweight": np.ascontiguousarray(pack_planes(codes, bits).T),
            f"{name}.qzeros": pack_planes((zeros.T - offset) % 2**bits, bits),
            f"{name}.scales": np.ascontiguousarray(scales.T),
            f"{name}.g_idx": (np.arange(codes.shape[1]) // 32).astype(np.int32),
        }

    config = gptq_config(Grid(), bits=bits, sym=False, checkpoint_format=layout)
    folder, _ = write_gptq(tmp_path / "m", config=config, parts=parts)
    check_floats(folder, wanted, f"gptq int{bits}-g32", "zero points elsewhere")


def test_a_zero_point_of_zero_borrows_from_its_neighbour(tmp_path):
    """GPTQModel takes 1 off all codes of a word at once, and puts it back in the same way."""

    def change(tensors):
        words = tensors[f"{UP}.qzeros"].view(np.uint32)
        words[0, 0] = np.uint32(0x88888880) - np.uint32(0x11111111)

    folder, made = write_gptq(tmp_path / "m", config=gptq_config(Grid(), sym=False), change=change)
    coded = made[f"{UP}.weight"]
    wanted = coded.values.copy()
    wanted[0, :32] = coded.codes[0, :32] * coded.scales[0, 0]
    np.testing.assert_array_equal(open_model(folder).tensor("layers.0.up").read(), wanted)


def test_single_modules_may_differ_and_the_head_may_be_codes(tmp_path):
    eight = Grid(8, 64)

    def parts(name, coded, grid):
        if name in (UP, "lm_head"):
            rng = np.random.default_rng(5)
            made[name] = make_prequantized(coded.codes.shape, eight, rng)
            return gptq_parts(name, made[name], eight)
        return gptq_parts(name, coded, grid)

    made = {}
    dynamic = {"+:.*up_proj": {"bits": 8, "group_size": 64, "sym": True}, "-:.*gate_proj": {}}
    config = gptq_config(Grid(), dynamic=dynamic, lm_head=True)
    folder, _ = write_gptq(
        tmp_path / "m",
        config=config,
        parts=parts,
        is_coded=lambda name: ("_proj" in name and "gate" not in name) or name == "lm_head.weight",
        tie_word_embeddings=False,
        vocab_size=512,
    )
    source = open_model(folder)
    np.testing.assert_array_equal(source.tensor("layers.0.up").read(), made[UP].values)
    np.testing.assert_array_equal(source.tensor("lm_head").read(), made["lm_head"].values)
    assert source.tensor("lm_head").prequantized.label == "gptq int8-g64"
    assert source.tensor("layers.0.gate").prequantized is None


def test_keys_that_ask_for_nothing_pass(tmp_path):
    keys = {"rotation": None, "adapter": None, "format": "gptq", "new_key": [], "other": False}
    keys |= {"meta": {"mse": 0.0, "uri": "x"}, "act_group_aware": True, "pack_dtype": "int32"}
    keys |= {"damp_auto_increment": 0.0025, "static_groups": True, "true_sequential": False}
    check_read(*write_gptq(tmp_path / "m", config=gptq_config(Grid(), **keys)), "gptq int4-g32")


def test_rows_are_read_once_and_alone(tmp_path, monkeypatch):
    folder, _ = write_any_gptq(tmp_path / "m")
    tensor, n_read = open_model(folder).tensor("layers.0.up"), []
    read_at = OpenFile.read_at

    def count(self, begin, n_bytes):
        n_read.append(n_bytes)
        return read_at(self, begin, n_bytes)

    monkeypatch.setattr(OpenFile, "read_at", count)
    for start in range(0, 256, 32):
        tensor.read_rows(start, start + 32)
    n_all = 256 * 128 // 2 + 4 * 256 * 2 + 4 * 256 // 2  # codes, scales, zero points
    assert sum(n_read) == n_all


def test_fp16_from_codes_that_cannot_be_kept_says_so(tmp_path):
    folder, _ = write_any_gptq(tmp_path / "m", bits=3)
    model = quantize_model(open_model(folder), Scheme.parse("fp16"), tmp_path / "q")
    entries = {entry.name: entry for entry in model.entries}
    wanted = "dequantized from gptq int3-g32: fp16 was asked for"
    assert entries["layers.0.up"].reason == wanted
    assert entries["embed"].reason == "as asked"


def test_the_section_may_lie_in_a_file_beside_the_config(tmp_path):
    """AutoGPTQ wrote quantize_config.json, and nothing into config.json."""
    folder, made = write_gptq(tmp_path / "m", Grid(4, 64))
    sections = {}
    edit_config(folder, lambda c: sections.update(c.pop("quantization_config")))
    del sections["quant_method"]
    (folder / "quantize_config.json").write_text(json.dumps(sections))
    check_read(folder, made, "gptq int4-g64")
    (folder / "quantize_config.json").write_text(json.dumps({**sections, "rotation": "hadamard"}))
    with pytest.raises(UnknownKeyError, match="rotation"):
        open_model(folder)
