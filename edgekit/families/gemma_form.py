"""The Gemma form: tensor names and config keys that the Gemma families share."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from edgekit.checkpoint.config import RawConfig
from edgekit.dtypes import DType
from edgekit.families import llama_form
from edgekit.families.llama_form import take_widths
from edgekit.formats.floats import to_bf16, to_float32

# Gemma 2 and 3 norm before and after each block.
NORMS_ON_BOTH_SIDES: Final = replace(
    llama_form.NAMES,
    layer={
        **llama_form.NAMES.layer,
        "attn_post_norm": "post_attention_layernorm.weight",
        "ffn_norm": "pre_feedforward_layernorm.weight",
        "ffn_post_norm": "post_feedforward_layernorm.weight",
    },
)


def ignore_gemma_keys(config: RawConfig) -> None:
    """Account for the keys of every Gemma that change nothing, or have one supported value."""
    if config.get("use_bidirectional_attention") is not None:
        config.expect("use_bidirectional_attention", wanted=False, default=False)
    config.ignore(["use_bidirectional_attention"])


def take_attention_scale(config: RawConfig) -> float:
    """Take ``query_pre_attn_scalar`` s; the factor of the attention scores is 1 / sqrt(s)."""
    scalar = config.take("query_pre_attn_scalar", float)
    if not scalar > 0:
        config.report(f"query_pre_attn_scalar is {scalar} (wanted a positive number)")
        return 1.0
    return float(scalar**-0.5)


def take_embed_scale(config: RawConfig) -> float:
    """Give sqrt(hidden_size), in the number type of the weights.

    transformers and mlx-lm round it to the type of the weights. The model was trained with that
    value, so a wider type at run time should not change it.
    """
    hidden_width, _, _ = take_widths(config)
    exact = np.float32(max(1, hidden_width) ** 0.5)
    said = config.get("torch_dtype") or config.get("dtype")
    if said == "float16":
        return float(np.float16(exact))
    if said != "bfloat16":
        return float(exact)
    return float(to_float32(to_bf16(np.array([exact])), DType.BF16)[0])
