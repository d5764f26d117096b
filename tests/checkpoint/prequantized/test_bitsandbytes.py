"""Claims: bitsandbytes' codebooks and rows read as the formulas of its documentation say.

The library's own values are compared in test_golden.py.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgekit.errors import CheckpointError
from edgekit.families import open_model
from edgekit.quantize.encoded_model import quantize_model
from edgekit.scheme import Scheme
from tests.checkpoint.prequantized.folders import BF16, Grid, write_coded

UP = "model.layers.0.mlp.up_proj"
TABLE = np.linspace(-1, 1, 16).astype(np.float32)
CONFIG = {
    "quantization_config": {
        "_load_in_4bit": True,
        "_load_in_8bit": False,
        "bnb_4bit_compute_dtype": "bfloat16",
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": None,
        "llm_int8_threshold": 6.0,
        "load_in_4bit": True,
        "load_in_8bit": False,
        "quant_method": "bitsandbytes",
    }
}


def write_bnb(folder, *, block=64, nested=True, kind="nf4", storage=None, across=False, **more):
    """Write matrices as codes of a table; give the folder and what they stand for."""
    rng, wanted = np.random.default_rng(4), {}

    def parts(name, coded, grid):
        n_rows, n_cols = coded.codes.shape
        codes = rng.integers(0, 16, n_rows * n_cols).astype(np.uint8)
        n_blocks = -(-codes.size // block)
        weight = f"{name}.weight"
        packed = (codes[::2] << 4 | codes[1::2]).reshape(-1, 1)
        state = {"quant_type": kind, "blocksize": block, "dtype": "bfloat16"}
        made = {weight: packed.T if across else packed, f"{weight}.quant_map": TABLE}
        if nested:
            small = rng.integers(0, 256, n_blocks).astype(np.uint8)
            table = np.linspace(0, 1, 256).astype(np.float32)
            largest = rng.uniform(0.5, 1, -(-n_blocks // 256)).astype(np.float32)
            offset = np.float32(0.125)
            scales = table[small] * largest[np.arange(n_blocks) // 256] + offset
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.125}
            made |= {
                f"{weight}.absmax": small,
                f"{weight}.nested_absmax": largest,
                f"{weight}.nested_quant_map": table,
            }
        else:
            scales = rng.uniform(0.1, 1, n_blocks).astype(np.float32)
            made[f"{weight}.absmax"] = scales
        state["shape"] = [n_rows, n_cols]
        text = np.frombuffer(json.dumps(state).encode(), np.uint8)
        made[f"{weight}.quant_state.bitsandbytes__{kind}"] = text
        if storage is not None:
            made[weight] = np.ascontiguousarray(made[weight]).reshape(-1).view(storage)[:, None]
        wanted[name] = (TABLE[codes] * scales.repeat(block)[: codes.size]).reshape(n_rows, n_cols)
        return made

    folder, _ = write_coded(folder, Grid(), parts, CONFIG, num_hidden_layers=1, **more)
    return folder, wanted


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"nested": False},
        {"kind": "fp4"},
        {"block": 128},
        {"block": 4096, "nested": False},
        {"storage": BF16},
        {"storage": np.float32},
        {"across": True},
        {"model_type": "phi3"},
    ],
    ids=str,
)
def test_codes_of_a_table_are_read_block_by_block(tmp_path, how):
    folder, wanted = write_bnb(tmp_path / "m", **how)
    source = open_model(folder)
    tensor = source.tensor("layers.0.down")
    values = wanted["model.layers.0.mlp.down_proj"]
    np.testing.assert_array_equal(tensor.read(), values)
    for start, stop in ((0, 1), (3, 41), (63, 64)):
        np.testing.assert_array_equal(tensor.read_rows(start, stop), values[start:stop])
    assert tensor.decoded.label == f"bitsandbytes {how.get('kind', 'nf4')}"
    if how.get("model_type") == "phi3":
        qkv = wanted["model.layers.0.self_attn.qkv_proj"]
        np.testing.assert_array_equal(source.tensor("layers.0.v").read(), qkv[192:])


def test_the_plan_says_what_became_of_them(tmp_path):
    folder, _ = write_bnb(tmp_path / "m")
    source = open_model(folder)
    (note,) = source.checkpoint.notes
    assert note == (
        "7 matrices are stored as bitsandbytes nf4 and read as floats, such as "
        "model.layers.0.mlp.down_proj.weight: a codebook of 16 values"
    )
    model = quantize_model(source, Scheme.parse("int8-g32"), tmp_path / "q")
    entry = next(entry for entry in model.entries if entry.name == "layers.0.q")
    assert entry.reason == (
        "requantized: a codebook of 16 values (bitsandbytes nf4); its input scales are in attn_norm"
    )


def test_eight_bits_are_rows_over_127(tmp_path):
    wanted = {}

    def parts(name, coded, grid):
        codes = (coded.codes.astype(np.int16) - 128).astype(np.int8)
        largest = coded.scales[:, 0].astype(np.float32) * 100
        wanted[name] = codes * (largest / np.float32(127))[:, None]
        return {
            f"{name}.weight": codes,
            f"{name}.SCB": largest,
            f"{name}.weight_format": np.array(0, np.uint8),
        }

    config = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
    folder, _ = write_coded(tmp_path / "m", Grid(8, 128), parts, config)
    tensor = open_model(folder).tensor("layers.0.up")
    np.testing.assert_array_equal(tensor.read(), wanted[UP])
    np.testing.assert_array_equal(tensor.read_rows(9, 30), wanted[UP][9:30])
    assert tensor.decoded.label == "bitsandbytes int8"


STATE = f"{UP}.weight.quant_state.bitsandbytes__nf4"


def put(name, values):
    return lambda tensors: tensors.update({name: values})


def put_state(**keys):
    good = {"blocksize": 64, "shape": [256, 128], "nested_blocksize": 256, "nested_offset": 0.1}
    return put(STATE, np.frombuffer(json.dumps(good | keys).encode(), np.uint8))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(f"{UP}.weight.absmax"), "absmax"),
        (lambda t: t.pop(f"{UP}.weight.quant_map"), "quant_map"),
        (lambda t: t.pop(f"{UP}.weight.nested_absmax"), "nested_absmax"),
        (put(f"{UP}.weight", np.zeros((7, 1), np.uint8)), "packed codes"),
        (put(STATE, np.frombuffer(b"{]", np.uint8)), "quant_state"),
        (put_state(shape=[256]), "shape"),
        (put_state(shape=[256, -128]), "shape"),
        (put_state(blocksize=63), "blocksize"),
        (put_state(blocksize=0), "blocksize"),
        (put_state(nested_blocksize=True), "nested_blocksize"),
        (put_state(nested_offset="a"), "nested_offset"),
    ],
)
def test_parts_that_do_not_fit_are_named(tmp_path, change, words):
    folder, _ = write_bnb(tmp_path / "m", change=change)
    with pytest.raises(CheckpointError, match=words):
        open_model(folder)
