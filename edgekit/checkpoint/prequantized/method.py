"""Answer one question: how is a checkpoint quantized, and which weights do its parts stand for?

Each way has a file of its own; this one tells which it is. Config first
(``account_for_quantization``), then the tensors (``join_parts``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from edgekit.checkpoint.config import RawConfig
from edgekit.checkpoint.prequantized import compressed_tensors, gptq, mlx
from edgekit.checkpoint.prequantized.fp8 import KEY, account_for_fp8, join_scales
from edgekit.checkpoint.prequantized.mlx import MLX_KEY
from edgekit.formats.safetensors import SafetensorsTensor
from edgekit.tensors import LazyTensor

_FP8: Final = "fp8"
_METHODS: Final = (_FP8, compressed_tensors.METHOD, *gptq.METHODS)


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
    section = config.take_section(KEY)
    if section is None:
        return
    method = section.take("quant_method", str)
    if method == _FP8:
        account_for_fp8(section)
    elif method == compressed_tensors.METHOD:
        compressed_tensors.read_grids(section)
    elif method in gptq.METHODS:
        gptq.read_settings(section, method)
    else:
        known = ", ".join(map(repr, _METHODS))
        config.report(f"{KEY}.quant_method is {method[:40]!r} (edgekit reads {known})")
        section.ignore(section)


def join_parts(
    tensors: Mapping[str, SafetensorsTensor], config: Mapping[str, Any], *, reads: bool = True
) -> dict[str, LazyTensor]:
    """Put codes, values and scales together under the weights' names; others pass through.

    Args:
        tensors: Checkpoint tensors by their own names.
        config: config.json, accounted for; a wrapper's section may lie in its ``text_config``.
        reads: Whether the tensors can be read; if not, the values of FP8 scales are not checked.

    Raises:
        CheckpointError: Parts are missing or do not fit together or the config.
    """
    packing, section = _find_section(config, MLX_KEY), _find_section(config, KEY)
    if packing is not None:
        return mlx.join_affine(tensors, mlx.read_settings(packing))
    method = None if section is None else section.get("quant_method")
    if section is not None and method == compressed_tensors.METHOD:
        return compressed_tensors.join_packed(tensors, compressed_tensors.read_grids(section))
    if section is not None and method in gptq.METHODS:
        return gptq.join_transposed(tensors, gptq.read_settings(section, method))
    return join_scales(tensors, config, reads=reads)


def _find_section(config: Mapping[str, Any], key: str) -> RawConfig | None:
    inner = config.get("text_config")
    found = config.get(key) or (inner.get(key) if isinstance(inner, Mapping) else None)
    return RawConfig(found, key) if isinstance(found, Mapping) else None
