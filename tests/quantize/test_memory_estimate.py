from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from edgekit.encoding import Encoding
from edgekit.families import open_model
from edgekit.quantize.memory_estimate import handled_bytes, largest_handled_bytes
from edgekit.quantize.methods import Method
from edgekit.quantize.plan import TensorPlan, plan_tensors
from edgekit.quantize.prequantized import expected_plan
from edgekit.quantize.row_blocks import quantize_tensor
from edgekit.quantize.store import _sha256, quantize_model
from edgekit.scheme import Scheme
from edgekit.tensors import TensorInfo
from tests.builders import write_tiny_checkpoint
from tests.checkpoint.prequantized.folders import Grid, write_compressed

SHAPE = (4096, 4096)


@pytest.mark.parametrize(
    ("scheme", "shape", "wanted"),
    [
        # 64 values in two blocks: packed codes; a scale is 4 and 2 bytes, a zero point 1.
        ("int4", (1, 64), 32 + 2 * 6),
        ("uint4", (1, 64), 32 + 2 * 7),
        ("int8-g64", (1, 64), 64 + 6),
        ("fp16", (1, 64), 64 * 6),
        ("fp32", (64,), 64 * 4),
    ],
)
def test_one_weight_worked_by_hand(scheme, shape, wanted):
    assert handled_bytes(shape, Encoding.parse(scheme)) == wanted


class Zeros:
    """Rows made when asked for, so that only what is made of them takes memory."""

    info = TensorInfo("x", SHAPE, None)

    def read_rows(self, start, stop):
        return np.zeros((stop - start, SHAPE[1]), np.float32)


@pytest.mark.parametrize("kind", ["int4", "int8", "fp32"])
def test_what_is_counted_is_what_numpy_allocates(kind):
    """Quantize, hash and write as the store does; row blocks are small and counted apart."""
    encoding = Encoding.parse(kind)
    item = TensorPlan("x", SHAPE, encoding, "as asked")
    tracemalloc.start()
    try:
        tensor = quantize_tensor(Zeros(), item, Method.RTN, n_block_elements=1 << 16)
        item.entry(_sha256(tensor))
        if encoding.is_quantized:
            packed, scales = tensor.packed, tensor.scales.astype("<f2")
            assert packed.nbytes + scales.nbytes == encoding.bytes_of(*SHAPE)
            del tensor
            assert scales.astype(np.float32).shape == scales.shape
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert handled_bytes(SHAPE, encoding) == pytest.approx(peak, rel=0.12)


@pytest.mark.parametrize("scheme", ["fp16", "int8", "int4", "int4-g64"])
def test_a_plan_has_the_entries_of_the_quantized_model(tmp_path, scheme):
    source = open_model(write_tiny_checkpoint(tmp_path / "m"))
    parsed = Scheme.parse(scheme)
    planned = [item.entry("") for item in plan_tensors(source.spec, parsed)]
    store = quantize_model(source, parsed, tmp_path / "store")
    described = [(e.name, e.shape, e.encoding) for e in planned]
    assert described == [(e.name, e.shape, e.encoding) for e in store.entries]
    assert largest_handled_bytes(planned) == max(
        handled_bytes(e.shape, Encoding.parse(e.encoding)) for e in store.entries
    )
    store.close()
    source.close()


def test_codes_of_the_source_are_expected_to_stay_and_no_scale_is_read(tmp_path):
    folder = tmp_path / "m"
    write_compressed(folder, Grid(group=128))
    source = open_model(folder, headers_only=True)
    expected = {
        item.name: str(item.encoding) for item in expected_plan(source, Scheme.parse("int4"))
    }
    assert expected["layers.0.gate"] == "int4-g128"
    assert expected["embed"] == "int8-g32"
    as_int8 = {
        item.name: str(item.encoding) for item in expected_plan(source, Scheme.parse("int8"))
    }
    assert as_int8["layers.0.gate"] == "int8-g32"
    source.close()
