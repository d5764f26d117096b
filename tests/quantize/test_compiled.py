"""The machine code gives the codes of the numpy methods, bit for bit."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from edgekit.encoding import Encoding
from edgekit.quantize.methods import compiled, kernels, rtn, search

ENCODINGS = [
    f"{kind}-g{block}" for kind in ("int4", "uint4", "int8", "uint8") for block in (32, 64, 128)
]
# Ordinary weights, ones whose scales are subnormal in fp16, ones whose scales are at the limit.
SIZES = (1.0, 1e-4, 1e-6, 3e4)


def _rows(block: int, size: float) -> np.ndarray:
    rng = np.random.default_rng(block)
    rows = (rng.standard_t(4, size=(70, block * 3)) * size).astype(np.float32)
    rows = rows.clip(-65280, 65280)
    rows[3] = 0
    rows[4] = np.abs(rows[4])
    rows[5] = -np.abs(rows[5])
    rows[6, 1:] = 0
    rows[7] = rows[7, 0]
    rows[8, ::2] = -rows[8, 1::2]
    return rows


def _importance(block: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    importance = rng.gamma(0.5, size=block * 3).astype(np.float32)
    importance[5 : block + 9] = 0
    return importance


def _assert_equal(made, wanted):
    np.testing.assert_array_equal(made.codes, wanted.codes)
    np.testing.assert_array_equal(made.scales, wanted.scales)
    assert (made.zero_points is None) == (wanted.zero_points is None)
    if wanted.zero_points is not None:
        np.testing.assert_array_equal(made.zero_points, wanted.zero_points)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ENCODINGS)
def test_rows_get_the_codes_of_numpy(name, size):
    encoding = Encoding.parse(name)
    block = encoding.block
    rows = _rows(block, size)
    _assert_equal(
        compiled.encode_rows(rows, encoding, is_searched=False), rtn.nearest_rows(rows, encoding)
    )
    for importance in (None, _importance(block)):
        _assert_equal(
            compiled.encode_rows(rows, encoding, is_searched=True, importance=importance),
            search.search_rows(rows, encoding, importance),
        )


@pytest.mark.parametrize("name", ENCODINGS)
def test_blocks_get_the_scales_of_numpy(name):
    encoding = Encoding.parse(name)
    block = encoding.block
    weights = np.ascontiguousarray(_rows(block, 1.0)[:, :block].T)
    for importance in (None, _importance(block)[:block, None]):
        made = compiled.search_scales(weights, encoding, importance)
        wanted = search.search_scales(weights, encoding, importance)
        np.testing.assert_array_equal(made.scales, wanted.scales)
        np.testing.assert_array_equal(made.zeros, wanted.zeros)


def test_machine_code_follows_after_the_weights_of_a_small_model(monkeypatch):
    seen = []
    monkeypatch.setattr(kernels, "_load", lambda: seen.append("machine code") or compiled)
    monkeypatch.setattr(kernels._Done, "n_weights", kernels.N_BY_NUMPY - 2 * 70 * 192)
    encoding = Encoding.parse("uint4-g64")
    rows = _rows(64, 1.0)
    wanted = kernels.search_rows(rows, encoding)
    assert kernels.scale_search(rows.size) is search.search_scales
    assert seen == []
    _assert_equal(kernels.search_rows(rows, encoding), wanted)
    _assert_equal(kernels.nearest_rows(rows, encoding), rtn.nearest_rows(rows, encoding))
    assert kernels.scale_search(1) is compiled.search_scales
    assert seen == ["machine code"] * 3


def test_without_numba_numpy_does_it(tmp_path):
    code = """
import sys
sys.modules["numba"] = None
import numpy as np
from edgekit.encoding import Encoding
from edgekit.quantize.methods import kernels, search
kernels._Done.n_weights = 1 << 30
rows = np.random.default_rng(0).standard_normal((9, 64)).astype(np.float32)
made = kernels.search_rows(rows, Encoding.parse("int4"))
assert np.array_equal(made.codes, search.search_rows(rows, Encoding.parse("int4")).codes)
assert kernels.scale_search(1 << 30) is search.search_scales
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_where_nothing_can_be_kept_the_machine_code_is_made_anew(tmp_path):
    place = tmp_path / "cache"
    place.write_text("a file where the folder would be")
    code = """
import numpy as np
from edgekit.encoding import Encoding
from edgekit.quantize.methods import compiled
rows = np.ones((1, 32), np.float32)
print(compiled.encode_rows(rows, Encoding.parse("int4"), is_searched=False).codes[0, 0])
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={"EDGEKIT_HOME": str(place), "PATH": ""},
    )
    assert done.stdout == "0\n"
