"""The position encoding of a GGUF file, as the rope section of a config.json.

Instead of the four numbers of the ``llama3`` scaling, llama.cpp stores a table of the divisors of
each frequency. The published models differ only in ``factor``, the largest divisor in the table. A
table that does not follow from this factor and the usual other three numbers is kept unchanged, as
LongRoPE with the same divisors for short and long contexts.

Source: https://github.com/ggml-org/llama.cpp, conversion/base.py (``set_gguf_parameters``),
conversion/llama.py (``rope_freqs``), conversion/phi.py (LongRoPE), src/llama-context.cpp (what the
attention factors mean); the Llama 3 paper's reference code for the formula.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from edgekit.checkpoint.config import RawConfig
from edgekit.checkpoint.gguf.weights import open_weight
from edgekit.dtypes import F32Array, F64Array
from edgekit.errors import CheckpointError
from edgekit.formats.gguf import GgufTensor

DEFAULT_THETA: Final = 10000.0  # as llama.cpp reads an absent rope.freq_base
FACTOR_TABLE: Final = "rope_freqs.weight"
LONG_TABLE: Final = "rope_factors_long.weight"
SHORT_TABLE: Final = "rope_factors_short.weight"
TABLES: Final = (FACTOR_TABLE, LONG_TABLE, SHORT_TABLE)
_LOW: Final = 1.0
_HIGH: Final = 4.0
_ORIGINAL_LENGTH: Final = 8192
_TOLERANCE: Final = 1e-5  # float32 tables, computed in float32: about 50 roundings
_SMALLEST: Final = 1e-6
_YARN_KEYS: Final[Mapping[str, str]] = {
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}


def read_rope(
    found: RawConfig,
    prefix: str,
    tensors: Mapping[str, GgufTensor],
    *,
    head_width: int,
    context_length: int,
) -> dict[str, Any]:
    """Give the keys of config.json that say how positions are encoded.

    Args:
        found: The metadata; its ``rope.`` keys are taken here.
        prefix: What they begin with, such as ``llama.``.
        tensors: All tensors, of which the rope tables are read.
        head_width: Values of a head.
        context_length: Positions that the model was trained for.

    Returns:
        ``rope_theta``, and ``rope_scaling`` and ``partial_rotary_factor`` where they are needed.

    Raises:
        CheckpointError: A table has another length than the heads, or holds other than positive
            numbers.
    """
    theta = found.take(f"{prefix}rope.freq_base", float, DEFAULT_THETA)
    if not 1 < theta < math.inf:
        found.report(f"{prefix}rope.freq_base is {theta} (wanted a number above 1)")
        theta = DEFAULT_THETA
    width = found.take(f"{prefix}rope.dimension_count", int, head_width) or head_width
    config: dict[str, Any] = {"rope_theta": theta}
    if width != head_width:
        if not 0 < width < head_width:
            found.report(f"{prefix}rope.dimension_count is {width} (heads have {head_width})")
            width = head_width
        # Rounded up by the smallest step, so that the product rounds down to this width again.
        config["partial_rotary_factor"] = math.nextafter(width / head_width, 1)
    scaling = _read_scaling(found, f"{prefix}rope.scaling.", context_length)
    long, short = (_read_table(tensors, name, width) for name in (LONG_TABLE, SHORT_TABLE))
    table = _read_table(tensors, FACTOR_TABLE, width)
    if long is not None and short is not None:
        scaling = _longrope(short, long, scaling, context_length)
    elif table is not None:
        scaling = read_factors(table, width, theta, context_length)
    elif scaling.get("rope_type") == "longrope":
        found.report(f"{prefix}rope.scaling.type is longrope, and {LONG_TABLE} is missing")
    if scaling.get("rope_type"):
        config["rope_scaling"] = {k: v for k, v in scaling.items() if v is not None}
    return config


def read_factors(table: F32Array, width: int, theta: float, context_length: int) -> dict[str, Any]:
    """Give the section that a table of divisors stands for; empty where all are 1.

    Args:
        table: One number for each rotary pair, float32, (width // 2,).
        width: Values of a head that are rotated.
        theta: Base of the rope.
        context_length: Positions that the model was trained for.
    """
    if (table == 1).all():
        return {}
    factor = float(table.max())
    if factor >= 1 and np.allclose(
        table, _llama3_factors(width, theta, factor), rtol=_TOLERANCE, atol=0
    ):
        return {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": _LOW,
            "high_freq_factor": _HIGH,
            "original_max_position_embeddings": _ORIGINAL_LENGTH,
        }
    return _longrope(table, table, {"attention_factor": 1.0}, context_length)


def _read_scaling(found: RawConfig, prefix: str, context_length: int) -> dict[str, Any]:
    """Take ``rope.scaling.*``; llama.cpp's default type is linear, by a factor of 1."""
    kind = found.take(f"{prefix}type", str, "linear")
    older = prefix.removesuffix("scaling.") + "scale_linear"
    factor = found.take(f"{prefix}factor", float, found.take(older, float, 1.0)) or 1.0
    found.ignore([older, f"{prefix}finetuned"])  # the second says how it came about
    original = found.take(f"{prefix}original_context_length", int, context_length)
    attention_factor = found.take(f"{prefix}attn_factor", float, 1.0)
    section: dict[str, Any] = {"original_max_position_embeddings": original}
    if kind == "yarn":
        found.expect(f"{prefix}yarn_ext_factor", 1.0, 1.0)
        section |= {"rope_type": "yarn", "factor": factor}
        for key, ours in _YARN_KEYS.items():
            section[ours] = found.take(f"{prefix}{key}", float, None)
        section |= _yarn_attention(found, prefix, factor, attention_factor)
        return section
    if kind == "longrope":
        return section | {"rope_type": "longrope", "attention_factor": attention_factor}
    if kind not in ("linear", "none"):
        found.report(f"{prefix}type is {kind[:40]!r} (wanted none, linear, yarn or longrope)")
    section["attention_factor"] = attention_factor
    if kind == "linear" and factor != 1:
        return {"rope_type": "linear", "factor": factor}
    return section


def _yarn_attention(
    found: RawConfig, prefix: str, factor: float, attention_factor: float
) -> dict[str, Any]:
    """Give what multiplies cosine and sine, in the keys of config.json.

    Without a key it is 1 + 0.1 ln(factor), with ``yarn_log_multiplier`` that divided by the same
    with the multiplier before the logarithm; ``attn_factor`` multiplies both.
    """
    given = found.take(f"{prefix}yarn_attn_factor", float, None)
    multiplier = found.take(f"{prefix}yarn_log_multiplier", float, 0.0)
    if given is not None:
        return {"attention_factor": given}
    if attention_factor != 1:
        whole = 1 + 0.1 * math.log(factor) if factor > 1 else 1.0
        if multiplier and factor > 1:
            whole /= 1 + 0.1 * multiplier * math.log(factor)
        return {"attention_factor": whole * attention_factor}
    return {"mscale": 1.0, "mscale_all_dim": multiplier} if multiplier else {}


def _longrope(
    short: F32Array, long: F32Array, section: Mapping[str, Any], context_length: int
) -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "short_factor": short.astype(float).tolist(),
        "long_factor": long.astype(float).tolist(),
        "original_max_position_embeddings": section.get(
            "original_max_position_embeddings", context_length
        ),
        "attention_factor": section.get("attention_factor", 1.0),
    }


def _read_table(tensors: Mapping[str, GgufTensor], name: str, width: int) -> F32Array | None:
    stored = tensors.get(name)
    if stored is None:
        return None
    if stored.shape != (width // 2,):
        raise CheckpointError(
            f"{stored.file.path}: {name}: shape", got=list(stored.shape), wanted=[width // 2]
        )
    table = open_weight(stored, name).read()
    if not (np.isfinite(table).all() and (table > _SMALLEST).all()):
        raise CheckpointError(
            f"{stored.file.path}: {name}",
            got=f"numbers from {table.min():g} to {table.max():g}",
            wanted="positive numbers",
            do="Download the model again.",
        )
    return table


def _llama3_factors(width: int, theta: float, factor: float) -> F64Array:
    """Give what each frequency is divided by: 1 for short waves, ``factor`` for long ones."""
    wave_lengths = 2 * math.pi * theta ** (np.arange(0, width, 2) / width)
    smooth = np.clip((_ORIGINAL_LENGTH / wave_lengths - _LOW) / (_HIGH - _LOW), 0, 1)
    factors: F64Array = 1 / ((1 - smooth) / factor + smooth)
    return factors
