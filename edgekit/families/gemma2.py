"""Model family ``gemma2``: from its config to a ``DecoderSpec``.

Gemma 2 (2B, 9B, 27B): norms before and after each block, a sliding window in every other layer, and
soft caps on attention scores and logits.
"""

from __future__ import annotations

from typing import Final

from edgekit.checkpoint.config import RawConfig
from edgekit.families.base import Family
from edgekit.families.defaults import fill_defaults
from edgekit.families.gemma_form import (
    NORMS_ON_BOTH_SIDES,
    ignore_gemma_keys,
    take_attention_scale,
    take_embed_scale,
)
from edgekit.families.llama_form import (
    read_llama_form,
    take_n_layers,
    take_sliding_layers,
    take_window,
)
from edgekit.families.spec import DecoderSpec, NormPlacement


def read_spec(config: RawConfig) -> DecoderSpec:
    """Account for every key of a gemma2 config.

    Raises:
        CheckpointError: Keys are missing or wrong; all are named.
        UnknownKeyError: Keys that could change the result and are not known.
        UnsupportedArchError: A rope type that edgekit does not compute.
    """
    fill_defaults(config, "gemma2")
    ignore_gemma_keys(config)
    # Gemma2's code reads only hidden_activation.
    config.ignore(["hidden_act"])
    n_layers = take_n_layers(config)
    layers = take_sliding_layers(config, n_layers)
    has_attention_bias = config.take("attention_bias", bool, default=False)
    return read_llama_form(
        config,
        model_type="gemma2",
        activation_key="hidden_activation",
        sliding_window=take_window(config),
        sliding_layers=tuple(range(0, n_layers, 2)) if layers is None else layers,
        has_qkv_bias=has_attention_bias,
        has_o_bias=has_attention_bias,
        norm_placement=NormPlacement.BOTH,
        norm_offset=1.0,
        attention_scale=take_attention_scale(config),
        scores_softcap=_take_softcap(config, "attn_logit_softcapping"),
        logits_softcap=_take_softcap(config, "final_logit_softcapping"),
        embed_scale=take_embed_scale(config),
    )


def _take_softcap(config: RawConfig, key: str) -> float | None:
    """Take a cap; null means none."""
    cap = config.take(key, float, None)
    if cap is not None and not 0 < cap < 1e9:
        config.report(f"{key} is {cap} (wanted null or a positive number)")
        return None
    return cap


FAMILY: Final = Family("gemma2", read_spec, (NORMS_ON_BOTH_SIDES,))
