"""Reader of GPTQ and AutoRound checkpoints, which store codes and scales transposed.

``X.qweight`` holds the codes of ``X.weight`` as (M, N) in int32 words along the input, low bits
first; ``X.scales`` is (groups, N), ``X.qzeros`` the zero points in words along the output, and
``X.g_idx``, if there, the group of each input. ``w = (code - zero point) * scale``.

Zero points are stored minus one, as the first GPTQ programs did; ``checkpoint_format`` gptq_v2
and AutoRound's own packing store them unchanged. Codes of 3 bits may be split over two words; those
of 5, 6 and 7 bits (and all of the format gptq_p) are split into planes of 4, 2 and 1 bits.

Source: https://github.com/ModelCloud/GPTQModel (quantization/config, utils/model and
utils/planar_packing), https://github.com/AutoGPTQ/AutoGPTQ (nn_modules/qlinear),
https://github.com/intel/auto-round (export_to_autoround, inference/backend).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgekit.checkpoint.config import RawConfig
from edgekit.checkpoint.prequantized import awq
from edgekit.checkpoint.prequantized.tensor import (
    DOWNLOAD_AGAIN,
    DecodedTensor,
    PrequantizedTensor,
    make_prequantized,
    put_together,
    read_order,
    take_part,
    unpack_words,
    whole_groups,
)
from edgekit.dtypes import F32Array, U8Array
from edgekit.errors import CheckpointError
from edgekit.formats.floats import to_float32
from edgekit.formats.safetensors import SafetensorsTensor
from edgekit.tensors import LazyTensor, TensorInfo

GPTQ: Final = "gptq"
AUTO_ROUND: Final = ("auto-round", "intel/auto-round")
_CODES: Final = ".qweight"
_PARTS: Final = (_CODES, ".scales", ".qzeros", ".g_idx")
# What has to be added to stored zero points; the names are those of ``checkpoint_format``.
_OFFSETS: Final = {"gptq": 1, "gptq_v2": 0, "gptq_p": 0}
# The same for AutoRound's ``packing_format``.
_ROUND_OFFSETS: Final = {
    "auto_round:auto_gptq": 1,
    "auto_round:gptq": 1,
    "auto_round": 0,
    "auto_round:gptqmodel": 0,
}
_ROUND_AWQ: Final = ("auto_round:auto_awq", "auto_round:awq")
# The planes of a code that does not run on across words: (bits, position in the code).
_PLANES: Final[Mapping[int, tuple[tuple[int, int], ...]]] = {
    3: ((2, 0), (1, 2)),
    5: ((4, 0), (1, 4)),
    6: ((4, 0), (2, 4)),
    7: ((4, 0), (2, 4), (1, 6)),
}
_ALWAYS_PLANES: Final = (5, 6, 7)
# What is added to stored zero points: a number to each, or words to the words that hold them.
_Added: TypeAlias = NDArray[np.uint32] | int
# What GPTQModel takes off the three words of 32 zero points of 3 bits where one should come off
# each zero point (utils/model.py, convert_gptq_v2_to_v1_format_module).
_GPTQMODEL_3_BITS: Final = np.array([0x24924924, 0x92492492, 0x49249249], np.uint32)
# Keys that say how the codes were found, who wrote them, or what an engine may do with them.
_IGNORED: Final = (
    "act_bits", "act_data_type", "act_dynamic", "act_group_aware", "act_group_size", "act_sym",
    "amp", "autoround_version", "backend", "batch_size", "block_name_to_quantize",
    "cache_block_outputs", "damp_auto_increment", "damp_percent", "dataset", "device",
    "disable_exllama", "enable_minmax_tuning", "enable_norm_bias_tuning", "enable_quanted_input",
    "exllama_config", "fail_safe", "failsafe", "gptaq", "gradient_accumulate_steps", "hyb_act",
    "hyperparameters", "iters", "low_gpu_mem_usage", "lr", "max_input_length", "meta", "method",
    "minmax_lr", "model_file_base_name", "model_name_or_path", "model_seqlen",
    "module_name_preceding_first_block", "modules_in_block_to_quantize",
    "modules_to_not_convert", "mse", "nsamples", "offload_to_disk", "pad_token_id",
    "parallel_packing", "sampler", "scale_dtype", "seqlen", "static_groups", "super_bits",
    "super_group_size", "to_quant_block_names", "tokenizer", "true_sequential", "uri",
    "use_cuda_fp16", "use_exllama", "v2", "v2_alpha",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class GptqSettings:
    """The settings in ``quantization_config``.

    Attributes:
        origin: gptq or auto-round.
        bits: Bits of a code, where single modules do not differ.
        group: Weights that share a scale; -1 for a row.
        offset: What is added to stored zero points.
        is_symmetric: Whether the config says that all zero points are in the middle.
        moves_inputs: Whether inputs may be in another order.
        has_planes: Whether codes of 3 bits are split into planes.
        is_awq: AutoRound packs like AWQ.
    """

    origin: str
    bits: int
    group: int
    offset: int
    is_symmetric: bool
    moves_inputs: bool
    has_planes: bool
    is_awq: bool


@dataclass(frozen=True, slots=True)
class _Packing:
    """Bits of a code and whether it is split into planes."""

    bits: int
    is_planar: bool

    def unpack(self, words: NDArray[Any]) -> U8Array:
        """Unpack int32 words, (n, W), whose codes run along the second axis."""
        if not self.is_planar:
            return unpack_words(words, self.bits)
        planes = np.ascontiguousarray(words).reshape(len(words), -1, self.bits)
        codes = np.zeros((len(words), planes.shape[1], 32), np.uint8)
        first = 0
        for n_bits, position in _PLANES[self.bits]:
            plane = planes[:, :, first : first + n_bits].reshape(-1, n_bits)
            part = unpack_words(plane, n_bits).reshape(codes.shape)
            codes |= part << np.uint8(position)
            first += n_bits
        return codes.reshape(len(words), -1)

    def unpack_zeros(self, words: NDArray[Any], added: _Added) -> U8Array:
        """Unpack zero points from int32 words, (groups, W), and add what was taken off them."""
        if isinstance(added, int) and (32 % self.bits or added == 0):
            return (self.unpack(words) + np.uint8(added)) & np.uint8((1 << self.bits) - 1)
        # A whole word is added to, as the programs do it: a zero point of 0 that was stored less
        # one has borrowed from its neighbour.
        ones = sum(1 << position for position in range(0, 32, self.bits))
        summand = np.array([ones], np.uint32) if isinstance(added, int) else added
        stored = np.ascontiguousarray(words).view(np.uint32)
        return self.unpack(stored + np.resize(summand, stored.shape[1]))


@dataclass(frozen=True, slots=True, eq=False)
class _Columns:
    """Transposed codes and scales: rows of the weight are columns here."""

    words: SafetensorsTensor
    stored_scales: SafetensorsTensor
    stored_zeros: SafetensorsTensor
    packing: _Packing
    added: _Added
    is_middle: bool

    def codes(self, start: int, stop: int) -> U8Array:
        return self.packing.unpack(self.words.raw_columns(start, stop).T)

    def scales(self, start: int, stop: int) -> F32Array:
        stored = self.stored_scales.raw_columns(start, stop).T
        return to_float32(np.ascontiguousarray(stored), self.stored_scales.info.dtype)

    def biases(self, start: int, stop: int) -> F32Array | None:
        return None

    def zeros(self, start: int, stop: int) -> F32Array | None:
        if self.is_middle:
            return None
        # 32 zero points fill a whole number of words.
        first, last = start // 32, -(-stop // 32)
        n_words, bits = self.stored_zeros.info.shape[1], self.packing.bits
        words = self.stored_zeros.raw_columns(first * bits, min(last * bits, n_words))
        zeros = self.packing.unpack_zeros(words, self.added)
        return zeros[:, start - 32 * first : stop - 32 * first].T.astype(np.float32)


def read_gptq(section: RawConfig) -> GptqSettings:
    """Account for the keys of ``quantization_config`` of GPTQ; faults go to the section."""
    layout = section.take("checkpoint_format", str, None) or section.take("format", str, "gptq")
    section.ignore(["format", "checkpoint_format"])
    if section.take("is_marlin_format", bool, False):
        layout = "marlin"
    offset = _OFFSETS.get(layout)
    if offset is None:
        section.report(
            f"checkpoint_format is {layout[:40]!r} (edgekit reads {', '.join(_OFFSETS)}; codes "
            "repacked for one engine are not read: use the model's GPTQ form)"
        )
    section.take("desc_act", bool, False)
    return _read_settings(section, GPTQ, offset or 0, has_planes=layout == "gptq_p", is_awq=False)


def read_auto_round(section: RawConfig) -> GptqSettings:
    """Account for the keys of ``quantization_config`` of AutoRound; faults go to the section."""
    section.expect("data_type", "int", "int")
    section.ignore(["desc_act"])
    older = section.take("backend", str, "auto_round:auto_gptq")
    layout = section.take("packing_format", str, older)
    if layout not in _ROUND_OFFSETS and layout not in _ROUND_AWQ:
        known = ", ".join((*_ROUND_OFFSETS, *_ROUND_AWQ))
        section.report(f"packing_format is {layout[:40]!r} (edgekit reads {known})")
    offset, is_awq = _ROUND_OFFSETS.get(layout, 0), layout in _ROUND_AWQ
    return _read_settings(section, AUTO_ROUND[0], offset, has_planes=False, is_awq=is_awq)


def _read_settings(
    section: RawConfig, origin: str, offset: int, *, has_planes: bool, is_awq: bool
) -> GptqSettings:
    section.ignore(_IGNORED)
    section.expect("pack_dtype", "int32", "int32")
    section.take("lm_head", bool, False)  # its tensors show whether it is codes
    # Settings of single modules show in the sizes and the zero points of their tensors.
    section.take("dynamic", dict, None)
    section.take("extra_config", dict, None)
    is_symmetric = section.take("sym", bool, True)
    bits = section.take_count("bits", at_most=64)
    if not 2 <= bits <= 8:
        section.report(f"bits is {bits} (edgekit reads 2 to 8)")
    group = section.take("group_size", int, -1)
    if group != -1 and group < 1:
        section.report(f"group_size is {group} (wanted -1 or a positive number)")
    moves = section.get("desc_act") is True
    return GptqSettings(origin, bits, group, offset, is_symmetric, moves, has_planes, is_awq)


def join_transposed(
    tensors: Mapping[str, SafetensorsTensor], settings: GptqSettings, *, reads: bool
) -> dict[str, LazyTensor]:
    """Join codes, scales and zero points under the weight's name; other tensors pass through.

    Args:
        tensors: Checkpoint tensors by their own names.
        settings: What ``read_gptq`` or ``read_auto_round`` gave.
        reads: Whether the tensors can be read; if not, zero points count as in the middle and
            inputs as in order.

    Raises:
        CheckpointError: Parts are missing or do not fit together or the config.
    """
    if settings.is_awq:
        gemm = awq.AwqSettings(settings.origin, "gemm", settings.group)
        return awq.join_awq(tensors, gemm, reads=reads)
    modules = [name.removesuffix(_CODES) for name in tensors if name.endswith(_CODES)]
    used = {f"{module}{part}" for module in modules for part in _PARTS}
    joined = {f"{m}.weight": _join(m, tensors, settings, reads=reads) for m in modules}
    return put_together(tensors, joined, used)


def _join(
    module: str, tensors: Mapping[str, SafetensorsTensor], settings: GptqSettings, *, reads: bool
) -> PrequantizedTensor | DecodedTensor:
    words = take_part(tensors, f"{module}{_CODES}", "I32", (None, None))
    n_words, n_rows = words.info.shape
    scales = take_part(tensors, f"{module}.scales", "floats", (None, n_rows))
    n_groups = scales.info.shape[0]
    n_cols, bits = _count_inputs(module, tensors, n_words, n_groups, settings)
    group = whole_groups(n_cols, n_groups)
    if 0 < settings.group < n_cols and -(-n_cols // settings.group) == n_groups:
        group = settings.group  # the last group may be shorter
    if group < 1:
        raise CheckpointError(
            f"{module}.weight: group size",
            got=f"{n_groups} scales for a row of {n_cols} weights",
            wanted=f"a scale for each {settings.group if settings.group > 0 else 'row of'} weights",
            do=DOWNLOAD_AGAIN,
        )
    columns = None
    if reads and f"{module}.g_idx" in tensors:
        columns = read_order(tensors[f"{module}.g_idx"], n_groups, group)
        # Some programs leave zeros where inputs are in order, and engines read zeros that way.
        if columns is not None and not settings.moves_inputs and not columns.any():
            columns = None
    packing = _Packing(bits, bits in _PLANES if settings.has_planes else bits in _ALWAYS_PLANES)
    zeros = _take_zeros(module, tensors, n_groups, n_rows, bits)
    added: _Added = settings.offset
    n_elsewhere = 0
    if reads:
        added, n_elsewhere = _find_zeros(zeros, packing, settings)
    rows = _Columns(words, scales, zeros, packing, added, n_elsewhere == 0)
    reasons = ["inputs in another order (desc_act)"] if columns is not None else []
    if n_elsewhere:
        reasons.append(f"zero points elsewhere in {n_elsewhere} of {n_groups * n_rows} groups")
    return make_prequantized(
        TensorInfo(f"{module}.weight", (n_rows, n_cols), scales.info.dtype),
        bits=bits,
        group=group,
        origin=settings.origin,
        rows=rows,
        columns=columns,
        reason=", ".join(reasons),
    )


def _count_inputs(
    module: str,
    tensors: Mapping[str, SafetensorsTensor],
    n_words: int,
    n_groups: int,
    settings: GptqSettings,
) -> tuple[int, int]:
    """Work out M and the bits: single modules may differ from the config, so sizes decide."""
    n_bits = 32 * n_words
    if f"{module}.g_idx" in tensors:
        n_cols = take_part(tensors, f"{module}.g_idx", "I32", (None,)).info.shape[0]
    elif n_groups > 1 and settings.group > 0 and n_bits % (n_groups * settings.group) == 0:
        n_cols = n_groups * settings.group
    else:
        n_cols = n_bits // settings.bits
    bits = n_bits // n_cols if n_cols and n_bits % n_cols == 0 else 0
    # Codes of 3 bits are written 32 at a time, the others a word at a time.
    if not 2 <= bits <= 8 or (n_words % bits and bits in (3, 5, 6, 7)):
        raise CheckpointError(
            f"{module}.weight: packed codes",
            got=f"{n_words} words of 32 bits for a row of {n_cols} weights",
            wanted="2 to 8 bits for each weight",
            do=DOWNLOAD_AGAIN,
        )
    return n_cols, bits


def _take_zeros(
    module: str, tensors: Mapping[str, SafetensorsTensor], n_groups: int, n_rows: int, bits: int
) -> SafetensorsTensor:
    name, n_bits = f"{module}.qzeros", n_rows * bits
    if n_bits % 32:
        wanted = "a multiple of 32" if 32 % bits else f"a multiple of {32 // bits}"
        raise CheckpointError(name, got=f"{n_rows} outputs", wanted=wanted)
    return take_part(tensors, name, "I32", (n_groups, n_bits // 32))


def _find_zeros(
    tensor: SafetensorsTensor, packing: _Packing, settings: GptqSettings
) -> tuple[_Added, int]:
    """Find what is added to stored zero points, and how many are then not in the middle.

    Programs wrote them in both ways under the same name. Where the config says that all are in
    the middle, the way that puts them there counts.
    """
    words, middle = tensor.raw(), 1 << (packing.bits - 1)

    def count_elsewhere(added: _Added) -> int:
        return int(np.count_nonzero(packing.unpack_zeros(words, added) != middle))

    n_elsewhere = count_elsewhere(settings.offset)
    if n_elsewhere == 0 or not settings.is_symmetric:
        return settings.offset, n_elsewhere
    if settings.origin != GPTQ and count_elsewhere(1 - settings.offset) == 0:
        return 1 - settings.offset, 0
    if packing.bits == 3 and not packing.is_planar and count_elsewhere(_GPTQMODEL_3_BITS) == 0:
        return _GPTQMODEL_3_BITS, 0
    if count_elsewhere(1 - settings.offset) == 0:
        raise CheckpointError(
            f"{tensor.info.name}: stored zero points",
            got=f"{middle - 1 + settings.offset} everywhere, which stands for "
            f"{middle - 1 + 2 * settings.offset}",
            wanted=f"{middle - settings.offset} where config.json says sym",
            do="The layout that config.json names (checkpoint_format) is not the one of the file: "
            "gptq stores zero points less one, gptq_v2 as they are. Name the other one.",
        )
    return settings.offset, n_elsewhere
