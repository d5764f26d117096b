"""Model family ``qwen3``: from its config to a ``DecoderSpec``.

Qwen3: a norm on each head of queries and keys; the head width is a key of its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from edgekit.checkpoint.config import RawConfig
from edgekit.families import llama_form
from edgekit.families.base import Family
from edgekit.families.defaults import fill_defaults
from edgekit.families.llama_form import QK_NORM_NAMES, read_llama_form
from edgekit.families.qwen2 import take_sliding
from edgekit.families.rope_config import DEFAULT_THETA
from edgekit.families.spec import DecoderSpec, QkNorm

NAMES: Final = replace(llama_form.NAMES, layer={**llama_form.NAMES.layer, **QK_NORM_NAMES})


def read_spec(
    config: RawConfig, *, defaults: str = "qwen3", default_theta: float = DEFAULT_THETA
) -> DecoderSpec:
    """Account for every key of a qwen3 config.

    Args:
        config: The config, or the text part of a vision model's.
        defaults: The model_type whose class says what absent keys mean.
        default_theta: Meaning of an absent ``rope_theta``.

    Raises:
        CheckpointError: Keys are missing or wrong; all are named.
        UnknownKeyError: Keys that could change the result and are not known.
        UnsupportedArchError: A rope type that edgekit does not compute.
    """
    fill_defaults(config, defaults)
    window, layers = take_sliding(config)
    has_attention_bias = config.take("attention_bias", bool, default=False)
    return read_llama_form(
        config,
        model_type="qwen3",
        default_theta=default_theta,
        sliding_window=window,
        sliding_layers=layers,
        has_qkv_bias=has_attention_bias,
        has_o_bias=has_attention_bias,
        qk_norm=QkNorm.HEAD,
    )


FAMILY: Final = Family("qwen3", read_spec, (NAMES,))
