"""Answer one question: which codes does a GPTQ or AutoRound checkpoint hold?

``X.qweight`` holds the codes of ``X.weight`` turned over, (M, N), in int32 words with low bits
first along the input; ``X.scales`` is (groups, N), ``X.qzeros`` the zero points in words along
the output, and ``X.g_idx``, if there, the group of each input.

Zero points are stored less one, as the first GPTQ programs did; ``checkpoint_format`` gptq_v2
and AutoRound's own packing store them as they are.

Source: https://github.com/ModelCloud/GPTQModel (quantization config, qlinear packing),
https://github.com/intel/auto-round (export_to_autoround), as stored on the Hub.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from edgekit.checkpoint.config import RawConfig
from edgekit.checkpoint.prequantized.tensor import (
    DOWNLOAD_AGAIN,
    PrequantizedTensor,
    make_prequantized,
    take_part,
    unpack_words,
)
from edgekit.dtypes import Bits, F32Array, U8Array
from edgekit.errors import CheckpointError
from edgekit.formats.safetensors import SafetensorsTensor
from edgekit.tensors import LazyTensor

METHODS: Final = ("gptq", "auto-round", "intel/auto-round")
_CODES: Final = ".qweight"
_PARTS: Final = (_CODES, ".scales", ".qzeros", ".g_idx")
# They say how the codes were found, who wrote them, or what an engine may do with them.
_IGNORED: Final = (
    "act_bits", "act_data_type", "act_dynamic", "act_group_size", "act_sym", "amp",
    "autoround_version", "batch_size", "block_name_to_quantize", "cache_block_outputs",
    "damp_auto_increment", "damp_percent", "dataset", "disable_exllama", "enable_minmax_tuning",
    "enable_norm_bias_tuning", "enable_quanted_input", "exllama_config",
    "gradient_accumulate_steps", "is_marlin_format", "iters", "low_gpu_mem_usage", "lr",
    "max_input_length", "meta", "minmax_lr", "model_file_base_name", "model_name_or_path",
    "model_seqlen", "module_name_preceding_first_block", "modules_in_block_to_quantize", "mse",
    "nsamples", "pad_token_id", "scale_dtype", "seqlen", "static_groups", "super_bits",
    "super_group_size", "to_quant_block_names", "tokenizer", "true_sequential", "use_cuda_fp16",
    "use_exllama",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Settings:
    """What ``quantization_config`` says: bits, group (-1: a row), and how zeros are stored.

    ``zero_offsets``: what may have to be added to a stored zero point.
    """

    origin: str
    bits: int
    group: int
    zero_offsets: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Columns:
    """Turned-over codes and scales: rows of the weight are columns here."""

    words: SafetensorsTensor
    stored_scales: SafetensorsTensor
    bits: Bits

    def codes(self, start: int, stop: int) -> U8Array:
        return unpack_words(self.words.raw()[:, start:stop].T, self.bits)

    def scales(self, start: int, stop: int) -> F32Array:
        return np.ascontiguousarray(self.stored_scales.read()[:, start:stop].T)

    def biases(self, start: int, stop: int) -> F32Array | None:
        return None


def read_settings(section: RawConfig, method: str) -> Settings:
    """Account for the keys of ``quantization_config``; faults are reported to the section."""
    section.ignore(_IGNORED)
    section.expect("sym", True, True)
    section.take("lm_head", bool, False)  # its tensors show whether it is codes
    if method == "gptq":
        section.take("desc_act", bool, False)  # g_idx decides whether anything was moved
        layout = section.take("checkpoint_format", str, "gptq")
        offsets: tuple[int, ...] = {"gptq": (1,), "gptq_v2": (0,)}.get(layout, ())
        key = "checkpoint_format"
    else:
        section.expect("data_type", "int", "int")
        section.ignore(["desc_act"])
        older = section.take("backend", str, "auto_round:auto_gptq")
        layout = section.take("packing_format", str, older)
        # Programs of both kinds wrote these names; with sym the stored zeros tell them apart.
        offsets = (0, 1) if layout.startswith("auto_round") and "awq" not in layout else ()
        key = "packing_format"
    if not offsets:
        section.report(f"{key} is {layout[:40]!r} (edgekit reads the GPTQ layouts)")
    _read_overrides(section)
    bits = section.take_count("bits", at_most=64)
    if bits not in (4, 8):
        section.report(f"bits is {bits} (edgekit supports 4 and 8)")
    group = section.take("group_size", int)
    if group != -1 and group < 1:
        section.report(f"group_size is {group} (wanted -1 or a positive number)")
    return Settings(METHODS[0] if method == "gptq" else "auto-round", bits, group, offsets)


def _read_overrides(section: RawConfig) -> None:
    """Check settings of single modules: sizes show in their tensors, but ``sym`` does not."""
    for key in ("extra_config", "dynamic"):
        overrides = section.take(key, dict, None) or {}
        for module, values in overrides.items():
            if isinstance(values, dict) and values.get("sym", True) is not True:
                section.report(f"{key}.{module[:60]}.sym is false (edgekit supports True only)")


def join_transposed(
    tensors: Mapping[str, SafetensorsTensor], settings: Settings
) -> dict[str, LazyTensor]:
    """Put codes and scales together under the weight's name; other tensors pass through.

    Args:
        tensors: Checkpoint tensors by their own names.
        settings: What ``read_settings`` gave.

    Raises:
        CheckpointError: Parts are missing or do not fit together, zero points that are not in
            the middle, or inputs that are not in the order of their groups.
    """
    modules = [name.removesuffix(_CODES) for name in tensors if name.endswith(_CODES)]
    used = {f"{module}{part}" for module in modules for part in _PARTS}
    rest: dict[str, LazyTensor] = {n: t for n, t in tensors.items() if n not in used}
    joined: dict[str, LazyTensor] = {f"{m}.weight": _join(m, tensors, settings) for m in modules}
    twice = sorted(rest.keys() & joined.keys())
    if twice:
        raise CheckpointError(
            f"{twice[0]}: weight stored twice",
            got=f"as floats and as codes ({len(twice)} such weights)",
            wanted="one of them",
        )
    return rest | joined


def _join(
    module: str, tensors: Mapping[str, SafetensorsTensor], settings: Settings
) -> PrequantizedTensor:
    words = take_part(tensors, f"{module}{_CODES}", "I32", (None, None))
    n_words, n_rows = words.info.shape
    scales = take_part(tensors, f"{module}.scales", "floats", (None, n_rows))
    n_groups = scales.info.shape[0]
    n_cols = _count_inputs(module, tensors, n_words, n_groups, settings)
    bits: Bits = 4 if 8 * n_words == n_cols else 8
    weight = make_prequantized(
        f"{module}.weight",
        (n_rows, n_cols),
        n_words=n_words,
        n_groups=n_groups,
        dtype=scales.info.dtype,
        origin=settings.origin,
        rows=_Columns(words, scales, bits),
    )
    if f"{module}.g_idx" in tensors:
        _check_order(f"{module}.g_idx", tensors, weight)
    _check_zeros(f"{module}.qzeros", tensors, weight, n_groups, settings.zero_offsets)
    return weight


def _count_inputs(
    module: str,
    tensors: Mapping[str, SafetensorsTensor],
    n_words: int,
    n_groups: int,
    settings: Settings,
) -> int:
    """Work out M: single modules may have other bits than the config, so sizes decide."""
    if f"{module}.g_idx" in tensors:
        return take_part(tensors, f"{module}.g_idx", "I32", (None,)).info.shape[0]
    if n_groups > 1 and settings.group > 0:
        return n_groups * settings.group
    return n_words * 32 // settings.bits


def _check_order(
    name: str, tensors: Mapping[str, SafetensorsTensor], weight: PrequantizedTensor
) -> None:
    n_cols = weight.info.shape[1]
    n_groups = n_cols // weight.source_group
    groups = take_part(tensors, name, "I32", (n_cols,)).raw()
    outside = (groups < 0) | (groups >= n_groups)
    if outside.any():
        raise CheckpointError(
            f"{name}: groups of inputs",
            got=int(groups[outside][0]),
            wanted=f"0 .. {n_groups - 1}",
            do=DOWNLOAD_AGAIN,
        )
    moved = groups != np.arange(n_cols) // weight.source_group
    if moved.any():
        raise CheckpointError(
            f"{name}: inputs are not in the order of their groups (desc_act)",
            got=f"{int(moved.sum())} of {n_cols} inputs lie elsewhere",
            wanted="groups one after the other",
            do="No format here can reorder inputs. Take a checkpoint with desc_act false.",
        )


def _check_zeros(
    name: str,
    tensors: Mapping[str, SafetensorsTensor],
    weight: PrequantizedTensor,
    n_groups: int,
    offsets: tuple[int, ...],
) -> None:
    n_rows = weight.info.shape[0]
    if n_rows * weight.bits % 32:
        raise CheckpointError(
            name, got=f"{n_rows} outputs", wanted=f"a multiple of {32 // weight.bits}"
        )
    words = take_part(tensors, name, "I32", (n_groups, n_rows * weight.bits // 32)).raw()
    zeros = unpack_words(words, weight.bits)
    if not any((zeros == weight.zero_point - offset).all() for offset in offsets):
        lowest, highest = int(zeros.min()), int(zeros.max())
        raise CheckpointError(
            f"{name}: stored zero points",
            got=f"{lowest}" if lowest == highest else f"{lowest} .. {highest}",
            wanted=" or ".join(str(weight.zero_point - offset) for offset in offsets),
            do="Only symmetric codes are imported: quantize with sym, or check the layout "
            "(checkpoint_format) that config.json names.",
        )
