"""Every tensor type of GGUF has the sizes and the values that the ``gguf`` package gives it."""

from __future__ import annotations

import subprocess
import sys

import gguf
import numpy as np
import pytest

from edgekit.errors import FormatError
from edgekit.formats.gguf_blocks import BLOCK_TYPES, NOT_FLOATS, dequantize

BY_NAME = {kind.name: kind for kind in BLOCK_TYPES.values()}
READABLE = sorted(set(BY_NAME) - set(NOT_FLOATS))


def random_rows(kind, n_rows=37, n_blocks=3, seed=0):
    """Give random blocks; bytes that are 16-bit floats are finite in nearly all."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (n_rows, n_blocks * kind.n_bytes)).astype(np.uint8)
    if kind.n_values == 1:
        values = rng.standard_normal((n_rows, 3 * 8)).astype(np.float64)
        stored = {"F64": values, "F32": values.astype("<f4"), "F16": values.astype("<f2")}
        raw = stored.get(kind.name, raw.view(np.uint8)).view(np.uint8)
    return np.ascontiguousarray(raw)


def test_sizes_are_those_of_the_package():
    ours = {number: (k.name, k.n_values, k.n_bytes) for number, k in BLOCK_TYPES.items()}
    theirs = {int(q): (q.name, *gguf.GGML_QUANT_SIZES[q]) for q in gguf.GGMLQuantizationType}
    assert ours == theirs


def test_all_types_are_read_that_the_package_turns_into_floats():
    known = {kind.name for kind in gguf.quants._type_traits} | {"F16", "F32"}
    assert known <= set(READABLE)
    assert set(READABLE) - known == {"F64"}  # numpy's own
    assert set(BY_NAME) == set(READABLE) | set(NOT_FLOATS)


@pytest.mark.parametrize("name", [name for name in READABLE if name != "F64"])
@pytest.mark.parametrize("seed", [0, 1])
def test_values_are_those_of_the_package(name, seed):
    raw = random_rows(BY_NAME[name], seed=seed)
    with np.errstate(all="ignore"):
        wanted = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name])
    found = dequantize(BY_NAME[name], raw)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, wanted)
    # Rows are independent of each other: any part of them reads the same.
    np.testing.assert_array_equal(dequantize(BY_NAME[name], raw[5:9]), wanted[5:9])


def test_f64_rounds_to_float32():
    values = np.array([[1 / 3, -1e300, 2.0**-200, 7.0]])
    found = dequantize(BY_NAME["F64"], values.view(np.uint8))
    assert found.tolist() == [[float(np.float32(1 / 3)), -np.inf, 0.0, 7.0]]


def test_q4_1_is_code_times_scale_plus_minimum():
    codes = np.arange(32) % 16
    block = np.float16([0.25, -2]).tobytes() + bytes(
        int(codes[i]) | int(codes[i + 16]) << 4 for i in range(16)
    )
    found = dequantize(BY_NAME["Q4_1"], np.frombuffer(block, np.uint8)[None])
    assert found.tolist() == [(codes * 0.25 - 2).tolist()]


def test_q6_k_is_as_the_formula_says():
    rng = np.random.default_rng(2)
    rows = rng.integers(0, 256, (256, 210)).astype(np.uint8)
    rows[:, 208:] = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
    values = dequantize(BY_NAME["Q6_K"], rows)
    scale = np.float32(np.float16(0.01))
    for row, i in [(0, 0), (3, 31), (3, 32), (7, 64), (7, 100), (9, 128), (255, 255), (12, 200)]:
        block, half, within = rows[row], i // 128, i % 128
        low = block[64 * half + within % 64]
        low = low & 15 if within < 64 else low >> 4
        high = block[128 + 32 * half + within % 32] >> (2 * (within // 32)) & 3
        inner = block[192 + i // 16].astype(np.int8)
        wanted = np.float32(scale * np.float32(inner)) * np.float32(int(low) + 16 * int(high) - 32)
        assert values[row, i] == wanted


@pytest.mark.parametrize("name", NOT_FLOATS)
def test_types_without_floats_are_refused_by_name(name):
    with pytest.raises(FormatError, match=name):
        dequantize(BY_NAME[name], np.zeros((1, BY_NAME[name].n_bytes), np.uint8))


def test_the_package_is_imported_only_when_blocks_are_read():
    code = (
        "import sys, edgekit, edgekit.cli, edgekit.checkpoint.gguf.file, edgekit.families;"
        "sys.exit(any(name.split('.')[0] in ('gguf', 'yaml') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
