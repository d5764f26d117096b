"""Quantization methods of checkpoints: which reader handles which, and what is refused.

Each method has a file of its own; the tables here say which file reads which name. The config is
read first (``account_for_quantization``), then the tensors (``join_parts``). Methods whose tensors
alone are enough (FP8, int8, NVFP4, bitsandbytes, HQQ) need no entry in config.json.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgekit.checkpoint.config import RawConfig
from edgekit.checkpoint.prequantized import (
    awq,
    bitsandbytes,
    compressed_tensors,
    fp8,
    gptq,
    hqq,
    int8,
    mlx,
    nvfp4,
)
from edgekit.checkpoint.prequantized.mlx import MLX_KEY
from edgekit.checkpoint.prequantized.tensor import describe_decoded
from edgekit.dtypes import DTYPES, DType
from edgekit.errors import CheckpointError
from edgekit.formats.safetensors import SafetensorsTensor
from edgekit.tensors import LazyTensor

KEY: Final = "quantization_config"
# What compressed-tensors called the same section before.
_OLD_KEY: Final = "compression_config"
_METHOD_KEY: Final = "quant_method"
_Tensors = Mapping[str, SafetensorsTensor]


@dataclass(frozen=True, slots=True)
class Method:
    """How one method is read.

    Attributes:
        account: Takes every key of ``quantization_config``; faults go to the section.
        join: Puts parts together by the section; None where the tensors tell everything.
    """

    account: Callable[[RawConfig], object]
    join: Callable[[_Tensors, RawConfig, bool], dict[str, LazyTensor]] | None = None


METHODS: Final[Mapping[str, Method]] = {
    gptq.GPTQ: Method(
        gptq.read_gptq,
        lambda tensors, section, reads: gptq.join_transposed(
            tensors, gptq.read_gptq(section), reads=reads
        ),
    ),
    **dict.fromkeys(
        gptq.AUTO_ROUND,
        Method(
            gptq.read_auto_round,
            lambda tensors, section, reads: gptq.join_transposed(
                tensors, gptq.read_auto_round(section), reads=reads
            ),
        ),
    ),
    awq.AWQ: Method(
        awq.read_awq,
        lambda tensors, section, reads: awq.join_awq(tensors, awq.read_awq(section), reads=reads),
    ),
    compressed_tensors.METHOD: Method(
        compressed_tensors.read_schemes,
        lambda tensors, section, reads: compressed_tensors.join_packed(
            tensors, compressed_tensors.read_schemes(section), reads=reads
        ),
    ),
    mlx.ORIGIN: Method(
        mlx.read_settings,
        lambda tensors, section, _: mlx.join_mlx(tensors, mlx.read_settings(section)),
    ),
    bitsandbytes.METHOD: Method(bitsandbytes.account_for_bitsandbytes),
    nvfp4.METHOD: Method(nvfp4.account_for_modelopt),
    hqq.METHOD: Method(hqq.account_for_hqq),
    # Which modules are quantized, and as which type, is known from the tensors.
    "torchao": Method(lambda section: section.ignore(section)),
    "quanto": Method(lambda section: section.ignore(section)),
    **dict.fromkeys(fp8.METHODS, Method(fp8.account_for_fp8)),
}
_CODEBOOKS: Final = "its weights are entries of learned codebooks"
_ENGINE: Final = "its weights are stored in the order that one engine's kernels want"
# Methods that are not read, each with the reason.
REFUSED: Final[Mapping[str, str]] = {
    "aqlm": _CODEBOOKS,
    "vptq": _CODEBOOKS,
    "quip": _CODEBOOKS,
    "higgs": "its weights are stored after a Hadamard transform",
    "fp_quant": "its weights are stored after a Hadamard transform",
    "spqr": "single weights are stored apart from the groups",
    "eetq": _ENGINE,
    "marlin": _ENGINE,
    "exl2": _ENGINE,
    "exl3": _ENGINE,
    "bitnet": "its layers compute with activations of 8 bits, as the model was trained",
    "mxfp4": "it stores the experts of a mixture of experts, which edgekit does not compute",
}
# AutoGPTQ's, and AutoAWQ's of before; ModelOpt's, whose tensors tell all that counts.
_FILES_BESIDE: Final = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
# What torchao and quanto call the parts of a weight -> the usual names.
_ENDINGS: Final[Mapping[str, str]] = {
    "._weight_qdata": ".weight",
    "._weight_scale": ".weight_scale",
    "._weight_zero_point": ".weight_zero_point",
    ".weight._data": ".weight",
    ".weight._data._data": ".weight",
    ".weight._scale": ".weight_scale",
}
_CODES: Final = ("._weight_qdata", ".weight._data", ".weight._data._data")
_UNPACKED: Final = (DType.INT8, DType.FP8_E4M3, DType.FP8_E5M2)
# Scales that engines use which compute with quantized activations or caches; edgekit's do not.
_OF_ENGINES: Final = (
    ".activation_scale", ".input_scale", ".input_global_scale", ".input_zero_point",
    ".output_scale", ".output_zero_point", ".k_scale", ".v_scale", ".q_scale", ".kv_scale",
    ".input_scale_ub", ".kv_cache_scaling_factor",
)  # fmt: skip


def account_for_quantization(config: RawConfig) -> None:
    """Take ``quantization_config``, or MLX's ``quantization``, every key of it.

    Faults, and methods that are not known, are reported to the config.
    """
    packing = config.take_section(MLX_KEY)
    if packing is not None:
        mlx.read_settings(packing)
        # mlx-lm writes it a second time under the name that the Hub looks for.
        config.expect(KEY, config[MLX_KEY], config[MLX_KEY])
        return
    old, section = config.take_section(_OLD_KEY), config.take_section(KEY)
    section = section or old
    if section is None:
        return
    name = _method_name(section)
    section.ignore([_METHOD_KEY])
    method = METHODS.get(name)
    if method is not None:
        method.account(section)
        return
    section.ignore(section)
    why = REFUSED.get(name, "edgekit does not know how it stores weights")
    config.report(
        f"{KEY}.{_METHOD_KEY} is {name[:40]!r}, which is not read: {why}. Use the model before "
        f"quantization{_base_model(config)}, or one quantized by {', '.join(METHODS)}"
    )


def _base_model(config: Mapping[str, Any]) -> str:
    base = config.get("base_model") or config.get("_name_or_path")
    return f" ({base[:80]})" if isinstance(base, str) and base else ""


def _method_name(section: Mapping[str, Any]) -> str:
    """Give the name of the method, from the section or from keys that only one program writes."""
    name = section.get(_METHOD_KEY)
    if isinstance(name, str) and name:
        return name.lower()
    producer = section.get("producer")
    if "quant_algo" in section or (
        isinstance(producer, Mapping) and producer.get("name") == nvfp4.METHOD
    ):
        return nvfp4.METHOD
    if "w_bit" in section:
        return awq.AWQ
    if "config_groups" in section:
        return compressed_tensors.METHOD
    if section.get("load_in_4bit") or section.get("load_in_8bit"):
        return bitsandbytes.METHOD
    if {"bits", "group_size"} <= set(section):
        is_gptq = {"desc_act", "sym", "damp_percent"} & set(section)
        return gptq.GPTQ if is_gptq else mlx.ORIGIN
    return "not named"


def read_beside(folder: Path) -> RawConfig | None:
    """Read the separate file in which older programs describe the quantization.

    Raises:
        CheckpointError: It cannot be read, or is not a JSON object.
    """
    path = next((folder / name for name in _FILES_BESIDE if (folder / name).is_file()), None)
    return None if path is None else RawConfig.open(path)


def join_parts(
    tensors: _Tensors,
    config: Mapping[str, Any],
    *,
    reads: bool = True,
    notes: list[str] | None = None,
    section_beside: RawConfig | None = None,
) -> dict[str, LazyTensor]:
    """Join codes, values and scales under the weights' names; other tensors pass through.

    Args:
        tensors: Checkpoint tensors by their own names.
        config: config.json, accounted for; a wrapper's section may be in its ``text_config``.
        reads: Whether the tensors can be read; if not, no value is checked.
        notes: What is read as floats, and what is left out, is added here, a sentence each.
        section_beside: What ``read_beside`` gave; it counts where config.json has no section.

    Raises:
        CheckpointError: Parts are missing or do not fit together or the config.
        UnknownKeyError: Keys of ``section_beside`` that are not known.
    """
    packing = _find_section(config, MLX_KEY)
    section = packing or _find_section(config, KEY) or _find_section(config, _OLD_KEY)
    if section is None and section_beside is not None:
        section = section_beside
        name = _method_name(section)
        if name in METHODS:
            METHODS[name].account(section)
            section.ignore([_METHOD_KEY])
            section.finish()
    tensors = _usual_names(tensors)
    weights: dict[str, LazyTensor] = dict(tensors)
    name = "int8"
    if section is not None:
        name = mlx.ORIGIN if packing is not None else _method_name(section)
        method = METHODS.get(name)
        if method is not None and method.join is not None:
            weights = method.join(tensors, section, reads)
    for joined, used in (
        bitsandbytes.join_bitsandbytes(weights, reads=reads),
        hqq.join_hqq(weights, reads=reads),
        nvfp4.join_nvfp4(weights),
        int8.join_int8(weights, name, reads=reads),
        fp8.join_fp8(weights, section, reads=reads),
    ):
        weights = {n: t for n, t in weights.items() if n not in used} | joined
    left_out = [name for name in weights if name.endswith(_OF_ENGINES)]
    for name in left_out:
        del weights[name]
    if notes is not None:
        found = [*describe_decoded(weights), *_describe_engines(section or {}, left_out)]
        notes += [note for note in found if note not in notes]
    return weights


def _usual_names(tensors: _Tensors) -> dict[str, SafetensorsTensor]:
    """Replace the names that torchao and quanto have for codes and scales by the usual ones.

    Raises:
        CheckpointError: Codes that are packed for one engine's kernels.
    """
    found: dict[str, SafetensorsTensor] = {}
    for name, tensor in tensors.items():
        end = next((end for end in _ENDINGS if name.endswith(end)), "")
        if end in _CODES and (tensor.info.dtype not in _UNPACKED or len(tensor.info.shape) != 2):
            raise CheckpointError(
                f"{name}: packed codes",
                got=f"{DTYPES[tensor.info.dtype].safetensors} of shape {list(tensor.info.shape)}",
                wanted="a matrix of int8 or FP8",
                do="How these are packed depends on the engine. Use the model before "
                "quantization, or one with 8-bit weights.",
            )
        found[name.removesuffix(end) + _ENDINGS[end] if end else name] = tensor
    return found


def _describe_engines(section: Mapping[str, Any], left_out: list[str]) -> list[str]:
    """Describe what the source's own engines quantize at run time; edgekit does not keep that."""
    groups = section.get("config_groups")
    schemes = (
        [g for g in groups.values() if isinstance(g, dict)] if isinstance(groups, dict) else []
    )
    what = []
    if section.get("activation_scheme") or any(g.get("input_activations") for g in schemes):
        what.append("activations")
    if section.get("kv_cache_scheme") or section.get("kv_cache_quant_algo"):
        what.append("keys and values")
    if not what and not left_out:
        return []
    n, first = len(left_out), left_out[0] if left_out else ""
    scales = f" ({n} scales of activations left out, such as {first})" if n else ""
    return [
        f"the source quantizes {' and '.join(what or ['activations'])} while it runs; that is not "
        f"kept{scales}"
    ]


def _find_section(config: Mapping[str, Any], key: str) -> RawConfig | None:
    inner = config.get("text_config")
    found = config.get(key) or (inner.get(key) if isinstance(inner, Mapping) else None)
    return RawConfig(found, key) if isinstance(found, Mapping) else None
