"""Model family ``granite``: from its config to a ``DecoderSpec``.

Granite 3 and 4 dense: the Llama form with four multipliers.
"""

from __future__ import annotations

from typing import Any, Final

from edgekit.checkpoint.config import RawConfig
from edgekit.families.base import Family
from edgekit.families.defaults import fill_defaults
from edgekit.families.llama_form import NAMES, read_llama_form
from edgekit.families.spec import DecoderSpec


def read_spec(config: RawConfig) -> DecoderSpec:
    """Account for every key of a granite config.

    Raises:
        CheckpointError: Keys are missing or wrong; all are named.
        UnknownKeyError: Keys that could change the result and are not known.
        UnsupportedArchError: A rope type that edgekit does not compute.
    """
    fill_defaults(config, "granite")
    has_attention_bias = config.take("attention_bias", bool, default=False)
    return read_llama_form(
        config,
        model_type="granite",
        has_qkv_bias=has_attention_bias,
        has_o_bias=has_attention_bias,
        has_mlp_bias=config.take("mlp_bias", bool, default=False),
        **take_multipliers(config),
    )


def take_multipliers(config: RawConfig) -> dict[str, Any]:
    """Take the four multipliers, by their name in ``DecoderSpec``; absent means 1."""
    return {
        "attention_scale": config.take_factor("attention_multiplier", 1.0),
        "embed_scale": config.take_factor("embedding_multiplier", 1.0),
        "residual_scale": config.take_factor("residual_multiplier", 1.0),
        "logits_scale": 1 / config.take_factor("logits_scaling", 1.0),
    }


FAMILY: Final = Family("granite", read_spec, (NAMES,))
