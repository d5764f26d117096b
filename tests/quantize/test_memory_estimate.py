from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from edgekit.artifact import TensorEntry
from edgekit.encoding import Encoding
from edgekit.families import open_model
from edgekit.quantize.encoded_model import encode_rows, quantize_model
from edgekit.quantize.memory_estimate import held_bytes, largest_held_bytes
from edgekit.quantize.methods import Method
from edgekit.quantize.model import EncodedTensor, TensorHash
from edgekit.quantize.plan import TensorPlan, plan_tensors
from edgekit.quantize.prequantized import expected_plan
from edgekit.scheme import Scheme
from edgekit.tensors import TensorInfo, row_blocks
from tests.builders import write_tiny_checkpoint
from tests.checkpoint.prequantized.folders import Grid, write_compressed


@pytest.mark.parametrize(
    ("encoding", "keeps_codes", "wanted"),
    [
        # 128 values in 4 blocks: a scale is 4 bytes, a zero point 1; codes only if kept.
        ("int4", False, 4 * 4),
        ("uint4", False, 4 * 5),
        ("int4", True, 64 + 4 * 4),
        ("int8-g64", True, 128 + 2 * 4),
        ("fp16", False, 0),
    ],
)
def test_one_weight_worked_by_hand(encoding, keeps_codes, wanted):
    entry = TensorEntry("w", (2, 64), encoding, "", None, None, keeps_codes)
    assert held_bytes(entry) == wanted


class Zeros:
    """Rows made when asked for, so that only what is made of them takes memory."""

    def __init__(self, shape):
        self.info = TensorInfo("x", shape, None)

    def read_rows(self, start, stop):
        return np.zeros((stop - start, self.info.shape[1]), np.float32)


@pytest.mark.parametrize("kind", ["int4", "uint4", "int8", "fp32"])
def test_memory_does_not_grow_with_the_rows_of_a_tensor_but_by_its_scales(kind):
    """Encode, hash and drop rows as an export does."""

    def peak(n_rows):
        plan = TensorPlan("x", (n_rows, 1024), Encoding.parse(kind), "as asked")
        source = Zeros(plan.shape)
        made = TensorHash("x", plan.shape, plan.encoding)
        tracemalloc.start()
        try:
            for part in row_blocks(plan.shape, 1 << 18):
                rows = encode_rows(source, plan, part, Method.RTN)
                if isinstance(rows, EncodedTensor):
                    made.add(rows)
            made.hexdigest()
            return tracemalloc.get_traced_memory()[1], held_bytes(plan.entry(None))
        finally:
            tracemalloc.stop()

    (small, few), (large, many) = peak(1024), peak(8192)
    assert large - small == pytest.approx(many - few, rel=0.1, abs=1 << 16)


@pytest.mark.parametrize("scheme", ["fp16", "int8", "int4", "int4-g64"])
def test_a_plan_has_the_entries_of_the_quantized_model(tmp_path, scheme):
    source = open_model(write_tiny_checkpoint(tmp_path / "m"))
    parsed = Scheme.parse(scheme)
    planned = [item.entry("") for item in plan_tensors(source.spec, parsed)]
    model = quantize_model(source, parsed, tmp_path / "files")
    described = [(e.name, e.shape, e.encoding) for e in planned]
    assert described == [(e.name, e.shape, e.encoding) for e in model.entries]
    assert largest_held_bytes(planned) == max(map(held_bytes, model.entries))
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
