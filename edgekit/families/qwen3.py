"""Answer one question: how does a ``qwen3`` config become a ``DecoderSpec``?

Qwen3: each head of queries and keys is normed; the head width is its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from edgekit.checkpoint.config import RawConfig
from edgekit.families.base import Family
from edgekit.families.defaults import fill_defaults
from edgekit.families.llama_form import NAMES, QK_NORM_NAMES, read_llama_form
from edgekit.families.qwen2 import take_sliding
from edgekit.families.spec import DecoderSpec, QkNorm


def read_spec(config: RawConfig) -> DecoderSpec:
    """Account for every key of a qwen3 config.

    Raises:
        CheckpointError: Keys are missing or wrong; all are named.
        UnknownKeyError: Keys that could change the result and are not known.
        UnsupportedArchError: A rope type that edgekit does not compute.
    """
    fill_defaults(config, "qwen3")
    window, layers = take_sliding(config)
    has_attention_bias = config.take("attention_bias", bool, default=False)
    return read_llama_form(
        config,
        model_type="qwen3",
        sliding_window=window,
        sliding_layers=layers,
        has_qkv_bias=has_attention_bias,
        has_o_bias=has_attention_bias,
        qk_norm=QkNorm.HEAD,
    )


FAMILY: Final = Family(
    "qwen3", read_spec, (replace(NAMES, layer={**NAMES.layer, **QK_NORM_NAMES}),)
)
