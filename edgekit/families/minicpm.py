"""Model family ``minicpm``: from its config to a ``DecoderSpec``; MiniCPM 1B, 2B and 4 (0.5B, 8B).

A Llama whose embedding, block outputs and logits are multiplied by numbers from the config. That is
the same form as Granite's, and it is written for runtimes as Granite.

Source: modeling_minicpm.py of the published MiniCPM-2B checkpoint; mlx-lm 0.32 models/minicpm.py.
"""

from __future__ import annotations

from typing import Final

from edgekit.checkpoint.config import RawConfig
from edgekit.families.base import Family
from edgekit.families.defaults import fill_defaults
from edgekit.families.llama_form import NAMES, read_llama_form, take_n_layers, take_widths
from edgekit.families.spec import DecoderSpec


def read_spec(config: RawConfig) -> DecoderSpec:
    """Account for every key of a minicpm config.

    Raises:
        CheckpointError: Keys are missing or wrong; all are named.
        UnknownKeyError: Keys that could change the result and are not known.
        UnsupportedArchError: A rope type that edgekit does not compute.
    """
    fill_defaults(config, "minicpm")
    hidden_width, _, _ = take_widths(config)
    depth = config.take_factor("scale_depth", 1.0)
    has_attention_bias = config.take("attention_bias", bool, default=False)
    return read_llama_form(
        config,
        model_type="granite",
        has_qkv_bias=has_attention_bias,
        has_o_bias=has_attention_bias,
        embed_scale=config.take_factor("scale_emb", 1.0),
        residual_scale=depth / max(1, take_n_layers(config)) ** 0.5,
        logits_scale=config.take_factor("dim_model_base", 1.0) / max(1, hidden_width),
    )


FAMILY: Final = Family("minicpm", read_spec, (NAMES,))
