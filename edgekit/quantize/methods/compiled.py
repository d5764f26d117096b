"""Rounding to nearest and search as machine code: the same results as rtn.py and search.py.

numba compiles this module in a process that quantizes more than a small model (kernels.py); the
machine code is kept in edgekit's cache. Why it is here: numpy takes 30 to 60 ns a weight for a
search on one core, because each of its passes over a tile does one operation; here all operations
on a weight are done while it is in a register (docs/calibrated.md and docs/export_speed.md have the
times).

Every operation is the one of the numpy methods, in float32, in the same order, so the codes are the
same, bit for bit (tests/quantize/test_compiled.py); a change there needs the same change here. A
tile holds one block of ``_LANES`` rows side by side; they become lanes of vector instructions.
"""

from __future__ import annotations

import os
from typing import Any, Final

import numpy as np

from edgekit.dtypes import F32Array
from edgekit.encoding import Encoding
from edgekit.lazy import require
from edgekit.paths import cache_dir
from edgekit.quantize import grid
from edgekit.quantize.methods import search
from edgekit.quantize.methods.blocks import BlockScales, RowCodes


def _keep_machine_code() -> bool:
    """Name the folder of the machine code; False where the user has none that can be written."""
    try:
        folder = cache_dir() / "machine-code"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except (OSError, RuntimeError):  # RuntimeError: the system knows no home for this user
        return False
    os.environ.setdefault("NUMBA_CACHE_DIR", str(folder))
    return os.access(folder, os.W_OK)


_IS_KEPT: Final = _keep_machine_code()
numba: Final = require("numba")  # it reads the variable when it is imported

_LANES: Final = 64
_N_UNROLLED: Final = 8  # divides every block
_ZERO: Final = np.float32(0)
_ONE: Final = np.float32(1)
_ROUNDER: Final = grid.ROUNDER
_STEP: Final = np.float32(grid.SCALE_STEP)
_PER_STEP: Final = np.float32(1 / grid.SCALE_STEP)
_SUBNORMAL_BELOW: Final = np.float32(grid.SUBNORMAL_BELOW)
_PLACES: Final = grid.N_PLACES
_MOST_ZEROS: Final = np.float32(grid.N_ZEROS - 1)
_UNIT: Final = np.float32(grid.zero_point_step(8))
_MAGNITUDE: Final = np.uint32(0x007FFFFF)
_HALF: Final = np.uint32(126 << 23)  # the exponent of 0.5

_LEVELS: Final = np.array(search.CLIP_LEVELS, dtype=np.float32)
_WEIGHTED_LEVELS: Final = np.array(search.WEIGHTED_CLIP_LEVELS, dtype=np.float32)
_SPANS: Final = np.array(search.SPANS, dtype=np.float32)

# No fastmath: nothing may be reordered or fused.
_jit: Final[Any] = numba.njit(nogil=True, cache=_IS_KEPT, error_model="numpy")


def encode_rows(
    rows: F32Array, encoding: Encoding, *, is_searched: bool, importance: F32Array | None = None
) -> RowCodes:
    """Quantize rows; each is independent of all others.

    Args:
        rows: float32 (N, M), checked.
        encoding: Codes with a block that divides M.
        is_searched: As search.py does it, else to the nearest.
        importance: Factor of the squared error of each column, (M,); None for ones.
    """
    n_rows, n_cols = rows.shape
    n_blocks = encoding.n_blocks(n_cols)
    codes = np.empty((n_rows, n_cols), dtype=np.uint8)
    scales = np.empty((n_rows, n_blocks), dtype=np.float32)
    zeros = np.empty((n_rows, n_blocks), dtype=np.uint8)
    is_weighted = importance is not None
    _encode(
        np.ascontiguousarray(rows),
        n_cols // n_blocks,
        np.ones(n_cols, np.float32) if importance is None else importance,
        is_weighted,
        *_settings(encoding, is_searched, is_weighted),
        codes,
        scales,
        zeros,
    )
    return RowCodes(codes, scales, zeros if encoding.has_zero_points else None)


def search_scales(
    weights: F32Array, encoding: Encoding, importance: F32Array | None = None
) -> BlockScales:
    """Choose, for each block, the scale with the smallest squared error; as in search.py.

    Args:
        weights: float32 (G, n).
        encoding: Codes of block G.
        importance: Factor of each squared error, at least 0, (G, 1); None for ones.
    """
    n_blocks = weights.shape[1]
    scales, zeros = np.empty(n_blocks, np.float32), np.empty(n_blocks, np.float32)
    is_weighted = importance is not None
    _search(
        np.ascontiguousarray(weights),
        np.ones(len(weights), np.float32) if importance is None else importance.reshape(-1),
        is_weighted,
        *_settings(encoding, True, is_weighted),
        scales,
        zeros,
    )
    return BlockScales(scales, zeros)


def _settings(encoding: Encoding, is_searched: bool, is_weighted: bool) -> tuple[Any, ...]:
    bits = encoding.code_bits
    n_fits = search.N_WEIGHTED_SCALE_FITS if is_weighted else search.N_SCALE_FITS
    return (
        bits,
        encoding.has_zero_points,
        is_searched and bits == 4,
        _WEIGHTED_LEVELS if is_weighted else _LEVELS,
        _SPANS,
        n_fits,
        np.float32(grid.largest_scale(bits)),
        grid.SIGNIFICANDS[bits],
        grid.LARGEST_BESIDE[bits],
    )


@_jit
def _encode(
    rows, block, share, is_weighted, bits, is_beside, is_searched, levels, spans, n_fits,
    largest, significands, largest_beside, codes, scales, zeros,
):  # fmt: skip
    n_rows, n_cols = rows.shape
    tile = np.zeros((block, _LANES), np.float32)
    steps = np.empty((block, _LANES), np.float32)
    best = np.empty((2, _LANES), np.float32)
    for first in range(0, n_rows, _LANES):
        n_here = min(_LANES, n_rows - first)
        if n_here < _LANES:
            tile[:] = _ZERO
        for i in range(n_cols // block):
            start = i * block
            for lane in range(n_here):
                for k in range(block):
                    tile[k, lane] = rows[first + lane, start + k]
            _choose(
                tile, share[start : start + block], is_weighted, bits, is_beside, is_searched,
                levels, spans, n_fits, largest, significands, largest_beside, best,
            )  # fmt: skip
            _to_steps(tile, best, np.float32(2**bits - 1), steps)
            for lane in range(n_here):
                zero = best[1, lane]
                scales[first + lane, i] = best[0, lane]
                zeros[first + lane, i] = np.uint8(zero)
                for k in range(block):
                    codes[first + lane, start + k] = np.uint8(steps[k, lane] + zero)


@_jit
def _search(
    weights, share, is_weighted, bits, is_beside, is_searched, levels, spans, n_fits,
    largest, significands, largest_beside, scales, zeros,
):  # fmt: skip
    block, n_blocks = weights.shape
    tile = np.zeros((block, _LANES), np.float32)
    best = np.empty((2, _LANES), np.float32)
    for first in range(0, n_blocks, _LANES):
        n_here = min(_LANES, n_blocks - first)
        if n_here < _LANES:
            tile[:] = _ZERO
        for k in range(block):
            for lane in range(n_here):
                tile[k, lane] = weights[k, first + lane]
        _choose(
            tile, share, is_weighted, bits, is_beside, is_searched, levels, spans, n_fits,
            largest, significands, largest_beside, best,
        )  # fmt: skip
        for lane in range(n_here):
            scales[first + lane] = best[0, lane]
            zeros[first + lane] = best[1, lane]


@_jit
def _choose(
    weights, share, is_weighted, bits, is_beside, is_searched, levels, spans, n_fits,
    largest, significands, largest_beside, best,
):  # fmt: skip
    """Choose scales and zero points, (2, lanes), of the blocks in a tile (G, lanes)."""
    top = np.float32(2**bits - 1)
    low, high = np.empty(_LANES, np.float32), np.empty(_LANES, np.float32)
    errors, best_errors = np.empty(_LANES, np.float32), np.empty(_LANES, np.float32)
    tried = np.empty((2, _LANES), np.float32)
    wanted = np.empty(_LANES, np.float32)
    for lane in range(_LANES):
        low[lane] = high[lane] = weights[0, lane]
    for k in range(1, weights.shape[0]):
        for lane in range(_LANES):
            low[lane] = min(low[lane], weights[k, lane])
            high[lane] = max(high[lane], weights[k, lane])
    if is_beside:
        for lane in range(_LANES):
            low[lane] = min(low[lane], _ZERO)
            high[lane] = max(high[lane], _ZERO)
            wanted[lane] = high[lane] - low[lane]
        _beside_zero_points(low, wanted, bits, significands, largest_beside, best)
        if not is_searched:
            return
        _errors_of(weights, share, is_weighted, best, top, best_errors)
        new_low = np.empty(_LANES, np.float32)
        for span in range(spans.shape[0]):
            for lane in range(_LANES):
                new_low[lane] = low[lane] * spans[span, 0]
                wanted[lane] = high[lane] * spans[span, 1] - new_low[lane]
            _beside_zero_points(new_low, wanted, bits, significands, largest_beside, tried)
            _errors_of(weights, share, is_weighted, tried, top, errors)
            _take_better(tried, errors, best, best_errors)
        _fit_line(weights, share, is_weighted, best, top, new_low, wanted)
        _beside_zero_points(new_low, wanted, bits, significands, largest_beside, tried)
        _errors_of(weights, share, is_weighted, tried, top, errors)
        _take_better(tried, errors, best, best_errors)
        return
    anchors = low  # no longer needed
    middle = np.float32(2 ** (bits - 1))
    level = np.float32(8) if bits == 4 else np.float32(127)
    for lane in range(_LANES):
        extreme = high[lane] if high[lane] > -low[lane] else low[lane]
        anchors[lane] = -extreme if bits == 4 else abs(extreme)
        wanted[lane] = anchors[lane] / level
        best[1, lane] = tried[1, lane] = middle
    _round_scales(wanted, largest, best)
    for lane in range(_LANES):
        if anchors[lane] == _ZERO:
            best[0, lane] = _ONE
    if not is_searched:
        return
    _errors_of(weights, share, is_weighted, best, top, best_errors)
    for i in range(levels.shape[0]):
        for lane in range(_LANES):
            wanted[lane] = anchors[lane] / levels[i]
        _round_scales(wanted, largest, tried)
        _errors_of(weights, share, is_weighted, tried, top, errors)
        _take_better(tried, errors, best, best_errors)
    for _ in range(n_fits):
        _fit_scale(weights, share, is_weighted, best, top, wanted)
        _round_scales(wanted, largest, tried)
        _errors_of(weights, share, is_weighted, tried, top, errors)
        _take_better(tried, errors, best, best_errors)


@_jit
def _take_better(tried, errors, best, best_errors):
    for lane in range(_LANES):
        is_better = errors[lane] < best_errors[lane]
        best[0, lane] = tried[0, lane] if is_better else best[0, lane]
        best[1, lane] = tried[1, lane] if is_better else best[1, lane]
        best_errors[lane] = errors[lane] if is_better else best_errors[lane]


@_jit
def _limits_of(chosen, top, limits):
    """Give one over the scale, and the lowest and highest step, of each block."""
    for lane in range(_LANES):
        limits[0, lane] = _ONE / chosen[0, lane]
        limits[1, lane] = -chosen[1, lane]
        limits[2, lane] = top - chosen[1, lane]


@_jit
def _to_steps(weights, chosen, top, steps):
    limits = np.empty((3, _LANES), np.float32)
    _limits_of(chosen, top, limits)
    for k in range(weights.shape[0]):
        for lane in range(_LANES):
            step = min(max(weights[k, lane] * limits[0, lane], limits[1, lane]), limits[2, lane])
            steps[k, lane] = (step + _ROUNDER) - _ROUNDER


@_jit
def _errors_of(weights, share, is_weighted, chosen, top, errors):
    """Sum the squared errors of each block, from the first weight to the last."""
    limits = np.empty((3, _LANES), np.float32)
    _limits_of(chosen, top, limits)
    errors[:] = _ZERO
    for first in range(0, weights.shape[0], _N_UNROLLED):
        for lane in range(_LANES):
            total = errors[lane]
            for j in range(_N_UNROLLED):
                weight = weights[first + j, lane]
                step = min(max(weight * limits[0, lane], limits[1, lane]), limits[2, lane])
                error = ((step + _ROUNDER) - _ROUNDER) * chosen[0, lane] - weight
                if is_weighted:
                    total += (error * error) * share[first + j]
                else:
                    total += error * error
            errors[lane] = total


@_jit
def _fit_scale(weights, share, is_weighted, chosen, top, fitted):
    steps = np.empty_like(weights)
    _to_steps(weights, chosen, top, steps)
    overlap, power = np.zeros(_LANES, np.float32), np.zeros(_LANES, np.float32)
    for k in range(weights.shape[0]):
        for lane in range(_LANES):
            step = steps[k, lane]
            counted = step * share[k] if is_weighted else step
            overlap[lane] += counted * weights[k, lane]
            power[lane] += counted * step
    for lane in range(_LANES):
        fitted[lane] = overlap[lane] / power[lane] if power[lane] > _ZERO else chosen[0, lane]


@_jit
def _fit_line(weights, share, is_weighted, chosen, top, low, width):
    steps = np.empty_like(weights)
    _to_steps(weights, chosen, top, steps)
    total = np.zeros(_LANES, np.float32)
    mean_step, mean_weight = np.zeros(_LANES, np.float32), np.zeros(_LANES, np.float32)
    for k in range(weights.shape[0]):
        for lane in range(_LANES):
            total[lane] += share[k]
            mean_step[lane] += share[k] * steps[k, lane]
            mean_weight[lane] += share[k] * weights[k, lane]
    for lane in range(_LANES):
        if total[lane] > _ZERO:
            mean_step[lane] /= total[lane]
            mean_weight[lane] /= total[lane]
    power, overlap = np.zeros(_LANES, np.float32), np.zeros(_LANES, np.float32)
    for k in range(weights.shape[0]):
        for lane in range(_LANES):
            step = steps[k, lane] - mean_step[lane]
            power[lane] += share[k] * (step * step)
            beside = weights[k, lane] - mean_weight[lane]
            overlap[lane] += (share[k] * step) * beside
    for lane in range(_LANES):
        is_fit = power[lane] > _ZERO and overlap[lane] > _ZERO
        scale = overlap[lane] / power[lane] if is_fit else chosen[0, lane]
        shift = mean_weight[lane] - scale * mean_step[lane]
        low[lane] = min(shift - chosen[1, lane] * scale, _ZERO)
        width[lane] = scale * top


@_jit
def _round_scales(wanted, largest, chosen):
    """Round to the grid of scales in the middle of whose codes lies 0; see grid.py."""
    exact = np.empty(_LANES, np.float32)
    for lane in range(_LANES):
        exact[lane] = min(max(abs(wanted[lane]), _STEP), largest)
    rounded = exact.copy()
    words = rounded.view(np.uint32)
    for lane in range(_LANES):
        word = words[lane]
        tie = (word >> np.uint32(16)) & np.uint32(1)
        words[lane] = (word + np.uint32(0x7FFF) + tie) & np.uint32(0xFFFF0000)
    for lane in range(_LANES):
        subnormal = ((exact[lane] * _PER_STEP + _ROUNDER) - _ROUNDER) * _STEP
        scale = subnormal if exact[lane] < _SUBNORMAL_BELOW else rounded[lane]
        chosen[0, lane] = -scale if wanted[lane] < _ZERO else scale


@_jit
def _beside_zero_points(low, width, bits, significands, largest_beside, chosen):
    """Let codes span ``low .. low + width``; see rtn.beside_zero_points and grid.py."""
    top = np.float32(2**bits - 1)
    exact = np.empty(_LANES, np.float32)
    for lane in range(_LANES):
        wide = width[lane] if width[lane] > _ZERO else top
        if bits == 4:
            zero = (-low[lane] / wide * top + _ROUNDER) - _ROUNDER
            zero = min(max(zero, _ZERO), top)
            wanted = wide / top
        else:
            zero = min(np.ceil(-low[lane] / wide * (top / _UNIT)), _MOST_ZEROS) * _UNIT
            below = -low[lane] / zero if zero > _ZERO else _ZERO
            wanted = max(below, (low[lane] + wide) / (top - zero))
        chosen[1, lane] = zero
        wanted = max(wanted, _STEP)
        whole = ((wanted * _PER_STEP + _ROUNDER) - _ROUNDER) * _STEP
        exact[lane] = whole if wanted < _SUBNORMAL_BELOW else wanted
    significand = exact.copy()
    words = significand.view(np.uint32)
    for lane in range(_LANES):
        words[lane] = (words[lane] & _MAGNITUDE) | _HALF
    power = exact  # the exponent alone: a power of two, twice the significand's factor
    words = power.view(np.uint32)
    for lane in range(_LANES):
        words[lane] = words[lane] & np.uint32(0x7F800000)
    for lane in range(_LANES):
        place = int(significand[lane] * np.float32(2 * _PLACES) + _ROUNDER - _ROUNDER)
        zero_index = int(chosen[1, lane]) >> (bits - 4)
        scale = significands[zero_index, place - _PLACES] * (power[lane] / np.float32(128))
        scale = min(scale, largest_beside[zero_index])
        chosen[0, lane] = scale if width[lane] > _ZERO else _ONE
