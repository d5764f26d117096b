"""Claims: AWQ's three layouts read as (code - zero point) * scale; symmetric codes are kept."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgekit.errors import CheckpointError
from edgekit.families import open_model
from edgekit.quantize.encoded_model import quantize_model
from edgekit.scheme import Scheme
from tests.checkpoint.prequantized.folders import (
    Grid,
    auto_round_config,
    awq_config,
    awq_gemm_words,
    pack_bits,
    write_coded,
)

UP = "model.layers.0.mlp.up_proj"
GROUP = 32


def gemm(name, codes, zeros, scales):
    return {
        f"{name}.qweight": awq_gemm_words(codes.T),
        f"{name}.qzeros": awq_gemm_words(zeros.T),
        f"{name}.scales": np.ascontiguousarray(scales.T),
    }


def gemv(name, codes, zeros, scales):
    """Rows of scales and zero points are padded to a multiple of 8 groups (of 32: of 32)."""
    n_groups = scales.shape[1]
    width = -(-n_groups // 8)
    width = -(-width // 4) * 4 * 8
    padding = ((0, 0), (0, width - n_groups))
    return {
        f"{name}.qweight": pack_bits(codes, 4),
        f"{name}.qzeros": pack_bits(np.pad(zeros, padding), 4),
        f"{name}.scales": np.pad(scales, padding),
    }


def gemv_fast(name, codes, zeros, scales, zeros_name="qzeros"):
    """Four rows interleaved, 64 inputs at a time, and inputs of each 32 reordered."""
    n_rows, n_cols = codes.shape
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    pairs = [0, 1, 8, 9, 16, 17, 24, 25]
    places = [[pair + 2 * eight for pair in pairs] for eight in range(4)]
    stored = [places[eight][place] for eight in range(4) for place in order]
    moved = np.empty_like(codes)
    for first in range(0, n_cols, 32):
        for place, column in enumerate(stored):
            moved[:, first + place] = codes[:, first + column]
    words = np.zeros((n_rows // 4, n_cols), np.uint16)
    for four in range(n_rows // 4):
        for first in range(0, n_cols, 64):
            flat = moved[4 * four : 4 * four + 4, first : first + 64].reshape(-1)
            for place in range(256):
                word = np.uint16(int(flat[place]) << (4 * (place % 4)))
                words[four, first + place // 4] |= word
    padding = ((0, 32 - scales.shape[1]), (0, 0))
    biases = -(scales.astype(np.float32) * zeros).astype(np.float16)
    return {
        f"{name}.qweight": words.view(np.int16),
        f"{name}.{zeros_name}": np.pad(biases.T, padding),
        f"{name}.scales": np.pad(scales.T, padding),
    }


LAYOUTS = {"gemm": gemm, "gemv": gemv, "gemv_fast": gemv_fast}


def write_awq(folder, layout="gemm", *, middle=False, config=None, pack=None, **more):
    rng, wanted = np.random.default_rng(3), {}

    def parts(name, coded, grid):
        codes = rng.integers(0, 16, coded.codes.shape)
        shape = coded.scales.shape
        zeros = np.full(shape, 8) if middle else rng.integers(0, 16, shape)
        # Few digits, so that a scale times a zero point is an fp16 number as well.
        scales = (rng.integers(1, 128, shape) / 2.0**12).astype(np.float16)
        signed = (codes - zeros.repeat(GROUP, axis=1)).astype(np.float32)
        wanted[name] = signed * scales.astype(np.float32).repeat(GROUP, axis=1)
        return (pack or LAYOUTS[layout])(name, codes, zeros, scales)

    config = config or awq_config(Grid(), version=layout)
    folder, _ = write_coded(folder, Grid(), parts, config, num_hidden_layers=1, **more)
    return folder, wanted


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_read_as_the_floats_they_stand_for(tmp_path, layout):
    folder, wanted = write_awq(tmp_path / "m", layout)
    source = open_model(folder)
    for ours, theirs in {"k": "self_attn.k_proj", "down": "mlp.down_proj"}.items():
        values = wanted[f"model.layers.0.{theirs}"]
        tensor = source.tensor(f"layers.0.{ours}")
        np.testing.assert_array_equal(tensor.read(), values)
        np.testing.assert_array_equal(tensor.read_rows(3, 41), values[3:41])
    model = quantize_model(source, Scheme.parse("int4-g32"), tmp_path / "q")
    entry = next(entry for entry in model.entries if entry.name == "layers.0.up")
    assert entry.imported is None
    assert "zero point" in entry.reason
    assert "elsewhere" in entry.reason


@pytest.mark.parametrize("layout", LAYOUTS)
def test_symmetric_codes_are_kept(tmp_path, layout):
    folder, wanted = write_awq(tmp_path / "m", layout, middle=True)
    model = quantize_model(open_model(folder), Scheme.parse("int4-g32"), tmp_path / "q")
    entry = next(entry for entry in model.entries if entry.name == "layers.0.up")
    assert entry.imported == "awq int4-g32"
    np.testing.assert_array_equal(model.get("layers.0.up").dequantize(), wanted[UP])


def test_without_zero_points_they_are_in_the_middle(tmp_path):
    folder, wanted = write_awq(
        tmp_path / "m",
        middle=True,
        config=awq_config(Grid(), zero_point=False, modules_to_not_convert=["lm_head"]),
        change=lambda t: [t.pop(name) for name in [*t] if name.endswith("qzeros")],
    )
    tensor = open_model(folder).tensor("layers.0.up")
    assert tensor.prequantized.label == "awq int4-g32"
    np.testing.assert_array_equal(tensor.read(), wanted[UP])


def test_llm_awq_calls_its_zero_points_otherwise(tmp_path):
    folder, wanted = write_awq(
        tmp_path / "m",
        config=awq_config(Grid(), version="gemm", backend="llm-awq"),
        pack=lambda *parts: gemv_fast(*parts, zeros_name="scaled_zeros"),
    )
    np.testing.assert_array_equal(open_model(folder).tensor("layers.0.up").read(), wanted[UP])


def test_auto_round_may_pack_like_awq(tmp_path):
    config = auto_round_config(Grid(), packing_format="auto_round:auto_awq", sym=False)
    folder, wanted = write_awq(tmp_path / "m", config=config)
    tensor = open_model(folder).tensor("layers.0.up")
    np.testing.assert_array_equal(tensor.read(), wanted[UP])
    assert tensor.decoded.label == "auto-round int4-g32"


def put(part, values):
    return lambda tensors: tensors.update({f"{UP}.{part}": values})


@pytest.mark.parametrize(
    ("layout", "change", "words"),
    [
        ("gemm", lambda t: t.pop(f"{UP}.scales"), "scales"),
        ("gemm", put("qzeros", np.ones((4, 31), np.int32)), "qzeros"),
        ("gemm", put("qweight", np.ones((120, 32), np.int32)), "group size"),
        ("gemm", put("weight", np.ones((256, 128), np.float16)), "stored twice"),
        ("gemv", put("scales", np.ones((256, 3), np.float16)), "groups"),
        ("gemv", put("qzeros", np.ones((255, 4), np.int32)), "qzeros"),
        ("gemv_fast", put("scales", np.ones((3, 256), np.float16)), "qzeros"),
        ("gemv_fast", put("qweight", np.ones((64, 96), np.int16)), "multiple of 64"),
        ("gemv_fast", put("qweight", np.ones((64, 128), np.int32)), "qweight"),
    ],
)
def test_parts_that_do_not_fit_are_named(tmp_path, layout, change, words):
    folder, _ = write_awq(tmp_path / "m", layout, change=change)
    with pytest.raises(CheckpointError, match=words):
        open_model(folder)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"version": "marlin"}, "version is 'marlin'"),
        ({"bits": 8}, "bits is 8"),
        ({"group_size": 0}, "group_size is 0"),
        ({"group_size": 64}, "group size"),
    ],
)
def test_config_keys_that_are_not_supported_are_named(tmp_path, keys, words):
    folder, _ = write_awq(tmp_path / "m", config=awq_config(Grid(), **keys))
    with pytest.raises(CheckpointError, match=words):
        open_model(folder)


def test_the_section_may_lie_in_a_file_beside_the_config(tmp_path):
    """AutoAWQ wrote quant_config.json once, with other names of the keys."""
    folder, wanted = write_awq(tmp_path / "m", config={"quantization_config": None})
    section = {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}
    (folder / "quant_config.json").write_text(json.dumps(section))
    np.testing.assert_array_equal(open_model(folder).tensor("layers.0.up").read(), wanted[UP])
