"""Quantization of a tensor in blocks of rows, so that its floats are never all in memory.

Rows are read, quantized and freed a row block at a time, on as many threads as asked for (numpy
releases the interpreter lock). Rows are independent, so neither choice changes the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np

from edgekit.dtypes import F32Array
from edgekit.errors import QuantError
from edgekit.formats.packing import pack_codes
from edgekit.quantize.input_statistics import InputStatistics
from edgekit.quantize.methods import Method, round_floats, row_quantizer
from edgekit.quantize.methods.blocks import check_rows
from edgekit.quantize.model import EncodedTensor, FloatTensor, ModelTensor
from edgekit.quantize.plan import TensorPlan
from edgekit.tensors import LazyTensor

BLOCK_ELEMENTS: Final = 1 << 22  # 16 MiB of float32 a thread: large reads, small memory


def quantize_tensor(
    source: LazyTensor,
    plan: TensorPlan,
    method: Method = Method.SEARCH,
    statistics: InputStatistics | None = None,
    *,
    n_threads: int = 1,
    n_block_elements: int = BLOCK_ELEMENTS,
) -> ModelTensor:
    """Read a tensor and convert it to its planned encoding.

    Args:
        source: Float tensor of shape ``plan.shape``.
        plan: Name, shape and encoding.
        method: How scales are chosen.
        statistics: Of what the matrix reads, for the methods that need them.
        n_threads: Row blocks in work at the same time, at least 1.
        n_block_elements: Values of a row block; one row at least.

    Returns:
        Codes and scales for an integer encoding, else rounded floats.

    Raises:
        QuantError: The shape is not the planned one, a weight cannot be held, or statistics are
            missing or not those of the matrix.
    """
    if source.info.shape != plan.shape:
        raise QuantError(f"{plan.name}: shape", got=source.info.shape, wanted=plan.shape)
    if not plan.encoding.is_quantized:
        return _round_tensor(source, plan, n_threads, n_block_elements)
    n_rows, n_cols = plan.shape
    bits, n_blocks = plan.encoding.code_bits, plan.encoding.n_blocks(n_cols)
    packed = np.empty((n_rows, n_cols * bits // 8), dtype=np.uint8)
    scales = np.empty((n_rows, n_blocks), dtype=np.float32)
    zeros = np.empty((n_rows, n_blocks), dtype=np.uint8) if plan.encoding.has_zero_points else None
    if statistics is not None:
        statistics.check(plan.name, n_cols)
    quantize = row_quantizer(method, statistics)

    def fill(part: slice) -> None:
        rows = source.read_rows(part.start, part.stop)
        check_rows(rows, plan.encoding, plan.name, part.start)
        made = quantize(rows, plan.encoding)
        packed[part], scales[part] = pack_codes(made.codes, bits), made.scales
        if zeros is not None and made.zero_points is not None:
            zeros[part] = made.zero_points

    _run_all(fill, row_blocks(plan.shape, n_block_elements), n_threads)
    return EncodedTensor(plan.name, plan.encoding, packed, scales, zeros)


def row_blocks(shape: tuple[int, ...], n_block_elements: int = BLOCK_ELEMENTS) -> Iterator[slice]:
    """Cut the first axis into row blocks of about ``n_block_elements`` values, in order."""
    n_row_elements = max(1, int(np.prod(shape[1:], dtype=np.int64)))
    n_block_rows = max(1, n_block_elements // n_row_elements)
    for start in range(0, shape[0], n_block_rows):
        yield slice(start, min(start + n_block_rows, shape[0]))


def _round_tensor(
    source: LazyTensor, plan: TensorPlan, n_threads: int, n_block_elements: int
) -> FloatTensor:
    values: F32Array = np.empty(plan.shape, dtype=np.float32)

    def fill(part: slice) -> None:
        rows = source.read_rows(part.start, part.stop)
        values[part] = round_floats(rows, plan.encoding, name=plan.name, first_row=part.start)

    _run_all(fill, row_blocks(plan.shape, n_block_elements), n_threads)
    return FloatTensor(plan.name, plan.encoding, values)


def _run_all(work: Callable[[slice], None], parts: Iterator[slice], n_threads: int) -> None:
    """Do all parts; of several errors, the one of the first part is raised."""
    if n_threads == 1:
        for part in parts:
            work(part)
        return
    with ThreadPoolExecutor(n_threads) as pool:
        for _ in pool.map(work, parts):
            pass
