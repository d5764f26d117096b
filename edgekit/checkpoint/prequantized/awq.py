"""Reader of AWQ checkpoints: 4-bit codes with a zero point in each group, in three layouts.

``w = (code - zero point) * scale``; ``group_size`` weights share a scale.

- ``gemm``: ``X.qweight`` is (M, N / 8) int32 words along the output. The codes of a word are
  those of outputs 0, 2, 4, 6, 1, 3, 5, 7, low bits first; ``X.qzeros`` (groups, N / 8) is packed
  alike, and ``X.scales`` is (groups, N).
- ``gemv``: ``X.qweight`` is (N, M / 8) words along the input, in order; ``X.qzeros`` and
  ``X.scales`` have the groups of an output in a row, which is padded.
- ``gemv_fast`` (and ``llm-awq``): ``X.qweight`` is (N / 4, M) int16. Four outputs are interleaved,
  64 inputs at a time, and every 32 inputs in an order of their own. ``X.qzeros`` (or
  ``X.scaled_zeros``) and ``X.scales`` are floats, (padded groups, N); the former is
  ``-zero point * scale``.

Source: https://github.com/casper-hansen/AutoAWQ (awq/modules/linear: gemm, gemv, gemv_fast;
awq/utils/packing_utils), https://github.com/mit-han-lab/llm-awq (awq/quantize/qmodule).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgekit.checkpoint.config import RawConfig
from edgekit.checkpoint.prequantized.tensor import (
    DOWNLOAD_AGAIN,
    AffineRows,
    DecodedTensor,
    PrequantizedTensor,
    make_prequantized,
    put_together,
    take_part,
    unpack_words,
    whole_groups,
)
from edgekit.dtypes import F32Array, U8Array
from edgekit.errors import CheckpointError
from edgekit.formats.floats import to_float32
from edgekit.formats.safetensors import SafetensorsTensor
from edgekit.tensors import LazyTensor, TensorInfo

AWQ: Final = "awq"
_BITS: Final = 4
_CODES: Final = ".qweight"
_PARTS: Final = (_CODES, ".scales", ".qzeros", ".scaled_zeros", ".g_idx")
# The place in a word of each of its eight outputs.
_GEMM_PLACES: Final = np.array([0, 4, 1, 5, 2, 6, 3, 7])
_FAST: Final = ("gemv_fast", "llm-awq")
_LAYOUTS: Final = ("gemm", "gemv", *_FAST)
# gemv_fast: outputs that are interleaved, and inputs of each at a time.
_N_INTERLEAVED: Final = 4
_STRIDE: Final = 64
# Keys that say how the codes were found, which modules have none, or what an engine may do.
_IGNORED: Final = (
    "backend", "batch_size", "block_name_to_quantize", "cache_block_outputs", "damp_percent",
    "dataset", "desc_act", "act_group_aware", "do_fuse", "dynamic", "exllama_config",
    "fuse_max_seq_len", "lm_head", "max_input_length", "meta", "model_seqlen",
    "module_name_preceding_first_block", "modules_in_block_to_quantize",
    "modules_to_fuse", "modules_to_not_convert", "pad_token_id", "sym", "tokenizer",
    "true_sequential", "zero_point",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class AwqSettings:
    """The settings in ``quantization_config``: origin, layout and group (-1: a row)."""

    origin: str
    layout: str
    group: int


def _fast_order() -> NDArray[np.intp]:
    """Give the place of each of 32 inputs among the 32 that are stored together."""
    order = np.arange(32).reshape(4, 4, 2).transpose(1, 0, 2).reshape(4, 4, 2).transpose(0, 2, 1)
    return np.argsort(order.reshape(-1))


_FAST_PLACES: Final = _fast_order()


@dataclass(frozen=True, slots=True, eq=False)
class _Gemm:
    """Words along the output, so that rows of the weight are columns here."""

    words: SafetensorsTensor
    stored_scales: SafetensorsTensor
    stored_zeros: SafetensorsTensor | None

    def codes(self, start: int, stop: int) -> U8Array:
        return np.ascontiguousarray(self._unpack(self.words, start, stop).T)

    def scales(self, start: int, stop: int) -> F32Array:
        stored = self.stored_scales.raw_columns(start, stop).T
        return to_float32(np.ascontiguousarray(stored), self.stored_scales.info.dtype)

    def biases(self, start: int, stop: int) -> F32Array | None:
        return None

    def zeros(self, start: int, stop: int) -> F32Array | None:
        if self.stored_zeros is None:
            return None
        return self._unpack(self.stored_zeros, start, stop).T.astype(np.float32)

    @staticmethod
    def _unpack(tensor: SafetensorsTensor, start: int, stop: int) -> U8Array:
        first, last = start // 8, -(-stop // 8)
        codes = unpack_words(tensor.raw_columns(first, last), _BITS)
        eights = codes.reshape(len(codes), last - first, 8)[:, :, _GEMM_PLACES]
        return eights.reshape(len(codes), -1)[:, start - 8 * first : stop - 8 * first]


@dataclass(frozen=True, slots=True, eq=False)
class _Gemv:
    """Words along the input; scales and zero points in padded rows."""

    words: SafetensorsTensor
    stored_scales: SafetensorsTensor
    stored_zeros: SafetensorsTensor | None
    n_groups: int

    def codes(self, start: int, stop: int) -> U8Array:
        return unpack_words(self.words.raw_rows(start, stop), _BITS)

    def scales(self, start: int, stop: int) -> F32Array:
        return np.ascontiguousarray(self.stored_scales.read_rows(start, stop)[:, : self.n_groups])

    def biases(self, start: int, stop: int) -> F32Array | None:
        return None

    def zeros(self, start: int, stop: int) -> F32Array | None:
        if self.stored_zeros is None:
            return None
        zeros = unpack_words(self.stored_zeros.raw_rows(start, stop), _BITS)
        return zeros[:, : self.n_groups].astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class _GemvFast:
    """Interleaved rows; biases in place of zero points."""

    words: SafetensorsTensor
    stored_scales: SafetensorsTensor
    stored_biases: SafetensorsTensor
    n_groups: int

    def codes(self, start: int, stop: int) -> U8Array:
        first, last = start // _N_INTERLEAVED, -(-stop // _N_INTERLEAVED)
        words = self.words.raw_rows(first, last).view(np.uint16)
        # (fours, strides, 4 x 16 words) of four codes each: word w of row r holds the codes of
        # inputs 4w .. 4w + 3 of that row and stride.
        n_fours, n_cols = words.shape
        codes = unpack_words(words, _BITS).reshape(n_fours, n_cols // _STRIDE, 4, _STRIDE)
        rows = codes.transpose(0, 2, 1, 3).reshape(4 * n_fours, n_cols // 32, 32)
        ordered = rows[:, :, _FAST_PLACES].reshape(4 * n_fours, n_cols)
        return ordered[start - 4 * first : stop - 4 * first]

    def scales(self, start: int, stop: int) -> F32Array:
        return self._columns(self.stored_scales, start, stop)

    def biases(self, start: int, stop: int) -> F32Array | None:
        return self._columns(self.stored_biases, start, stop)

    def zeros(self, start: int, stop: int) -> F32Array | None:
        return None

    def _columns(self, tensor: SafetensorsTensor, start: int, stop: int) -> F32Array:
        stored = tensor.raw_columns(start, stop)[: self.n_groups].T
        return to_float32(np.ascontiguousarray(stored), tensor.info.dtype)


def read_awq(section: RawConfig) -> AwqSettings:
    """Account for the keys of ``quantization_config`` of AWQ; faults go to the section."""
    section.ignore([*_IGNORED, "version", "format", "checkpoint_format"])
    layout = section.take("version", str, None) or section.take("format", str, "gemm")
    layout = layout.lower()
    if section.get("backend") == "llm-awq":
        layout = "llm-awq"
    if layout not in _LAYOUTS:
        section.report(
            f"version is {layout[:40]!r} (edgekit reads {', '.join(_LAYOUTS)}; codes repacked for "
            "one engine are not read: use the model's gemm form)"
        )
    bits = section.take_count("w_bit" if "w_bit" in section else "bits", 4, at_most=64)
    if bits != _BITS:
        section.report(f"bits is {bits} (AWQ has 4)")
    group = section.take("q_group_size" if "q_group_size" in section else "group_size", int, 128)
    if group != -1 and group < 1:
        section.report(f"group_size is {group} (wanted -1 or a positive number)")
    return AwqSettings(AWQ, layout, group)


def join_awq(
    tensors: Mapping[str, SafetensorsTensor], settings: AwqSettings, *, reads: bool
) -> dict[str, LazyTensor]:
    """Join codes, scales and zero points under the weight's name; other tensors pass through.

    Args:
        tensors: Checkpoint tensors by their own names.
        settings: What ``read_awq`` gave.
        reads: Whether the tensors can be read; if not, zero points count as in the middle.

    Raises:
        CheckpointError: Parts are missing or do not fit together or the config.
    """
    modules = [name.removesuffix(_CODES) for name in tensors if name.endswith(_CODES)]
    used = {f"{module}{part}" for module in modules for part in _PARTS}
    joined = {f"{m}.weight": _join(m, tensors, settings, reads=reads) for m in modules}
    return put_together(tensors, joined, used)


def _join(
    module: str, tensors: Mapping[str, SafetensorsTensor], settings: AwqSettings, *, reads: bool
) -> PrequantizedTensor | DecodedTensor:
    rows: AffineRows
    zeros: SafetensorsTensor | None = None
    if settings.layout == "gemm":
        words = take_part(tensors, f"{module}{_CODES}", "I32", (None, None))
        n_cols, n_rows = words.info.shape[0], 8 * words.info.shape[1]
        scales = take_part(tensors, f"{module}.scales", "floats", (None, n_rows))
        n_groups = scales.info.shape[0]
        if f"{module}.qzeros" in tensors:
            zeros = take_part(tensors, f"{module}.qzeros", "I32", (n_groups, n_rows // 8))
        group = _group(module, n_cols, n_groups, settings)
        n_elsewhere = 0 if zeros is None or not reads else _count_elsewhere(zeros, None)
        rows = _Gemm(words, scales, zeros if n_elsewhere else None)
    elif settings.layout == "gemv":
        words = take_part(tensors, f"{module}{_CODES}", "I32", (None, None))
        n_rows, n_cols = words.info.shape[0], 8 * words.info.shape[1]
        group = n_cols if settings.group == -1 else settings.group
        n_groups = n_cols // group
        scales = take_part(tensors, f"{module}.scales", "floats", (n_rows, None))
        if f"{module}.qzeros" in tensors:
            zeros = take_part(tensors, f"{module}.qzeros", "I32", (n_rows, None))
            _check_padded(zeros, 8 * zeros.info.shape[1], n_groups)
        _check_padded(scales, scales.info.shape[1], n_groups)
        group = _group(module, n_cols, n_groups, settings)
        n_elsewhere = 0 if zeros is None or not reads else _count_elsewhere(zeros, n_groups)
        rows = _Gemv(words, scales, zeros if n_elsewhere else None, n_groups)
    else:
        words = take_part(tensors, f"{module}{_CODES}", "I16", (None, None))
        n_rows, n_cols = _N_INTERLEAVED * words.info.shape[0], words.info.shape[1]
        group = n_cols if settings.group == -1 else settings.group
        n_groups = n_cols // group
        scales = take_part(tensors, f"{module}.scales", "floats", (None, n_rows))
        name = f"{module}.scaled_zeros"
        name = name if name in tensors else f"{module}.qzeros"
        biases = take_part(tensors, name, "floats", scales.info.shape)
        _check_padded(scales, scales.info.shape[0], n_groups)
        group = _group(module, n_cols, n_groups, settings)
        if n_cols % _STRIDE:
            raise CheckpointError(
                f"{module}{_CODES}", got=f"{n_cols} inputs", wanted=f"a multiple of {_STRIDE}"
            )
        n_elsewhere = 0
        rows = _GemvFast(words, scales, biases, n_groups)
    reason = f"zero points elsewhere in {n_elsewhere} of {n_rows * n_groups} groups"
    return make_prequantized(
        TensorInfo(f"{module}.weight", (n_rows, n_cols), scales.info.dtype),
        bits=_BITS,
        group=group,
        origin=settings.origin,
        rows=rows,
        reason=reason if n_elsewhere else None,
    )


def _group(module: str, n_cols: int, n_groups: int, settings: AwqSettings) -> int:
    group = whole_groups(n_cols, n_groups)
    if group < 1 or settings.group not in (-1, group) or (settings.group == -1 and n_groups > 1):
        raise CheckpointError(
            f"{module}.weight: group size",
            got=f"{n_groups} scales for a row of {n_cols} weights",
            wanted=f"a scale for each {settings.group if settings.group > 0 else 'row of'} weights",
            do=DOWNLOAD_AGAIN,
        )
    return group


def _check_padded(tensor: SafetensorsTensor, n_there: int, n_groups: int) -> None:
    if n_there < n_groups or n_groups < 1:
        raise CheckpointError(
            f"{tensor.info.name}: groups",
            got=f"{n_there}",
            wanted=f"at least {max(1, n_groups)}",
            do=DOWNLOAD_AGAIN,
        )


def _count_elsewhere(tensor: SafetensorsTensor, n_groups: int | None) -> int:
    """Count zero points that are not 8; with ``n_groups``, rows are padded to more."""
    zeros = unpack_words(tensor.raw(), _BITS)[:, :n_groups]
    return int(np.count_nonzero(zeros != 1 << (_BITS - 1)))
