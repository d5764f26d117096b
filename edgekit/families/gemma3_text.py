"""Model family ``gemma3_text``: from its config to a ``DecoderSpec``.

Gemma 3, 270M and 1B, and the decoder of the larger ones.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from edgekit.checkpoint.config import RawConfig
from edgekit.families.base import Family
from edgekit.families.defaults import DEFAULTS, fill_defaults
from edgekit.families.gemma_form import (
    NORMS_ON_BOTH_SIDES,
    ignore_gemma_keys,
    take_attention_scale,
    take_embed_scale,
)
from edgekit.families.llama_form import (
    QK_NORM_NAMES,
    read_llama_form,
    take_n_layers,
    take_sliding_layers,
    take_widths,
    take_window,
)
from edgekit.families.rope_config import RopeContext, read_ropes_by_layer_kind
from edgekit.families.rope_spec import RopeSpec
from edgekit.families.spec import DecoderSpec, NormPlacement, QkNorm

_GLOBAL_THETA: Final = 1e6
_LOCAL_THETA: Final = 1e4
NAMES: Final = replace(NORMS_ON_BOTH_SIDES, layer={**NORMS_ON_BOTH_SIDES.layer, **QK_NORM_NAMES})


def read_spec(config: RawConfig) -> DecoderSpec:
    """Account for every key of a gemma3_text config.

    Raises:
        CheckpointError: Keys are missing or wrong; all are named.
        UnknownKeyError: Keys that could change the result and are not known.
        UnsupportedArchError: A rope type that edgekit does not compute.
    """
    # Older configs use the key of the previous class.
    config.fill({"sliding_window_pattern": config.get("_sliding_window_pattern")})
    config.fill({"sliding_window": DEFAULTS["gemma3_text"]["sliding_window"]})
    fill_defaults(config, "gemma3_text")
    for key in ("final_logit_softcapping", "attn_logit_softcapping"):
        config.expect(key, None, None)
    ignore_gemma_keys(config)
    _, _, head_width = take_widths(config)
    n_layers = take_n_layers(config)
    pattern = config.take_count("sliding_window_pattern")
    layers = take_sliding_layers(config, n_layers)
    if layers is None:
        layers = tuple(i for i in range(n_layers) if (i + 1) % max(1, pattern))
    rope, local_rope = _read_ropes(config, head_width)
    has_attention_bias = config.take("attention_bias", bool, default=False)
    return read_llama_form(
        config,
        model_type="gemma3_text",
        activation_key="hidden_activation",
        rope=rope,
        local_rope=local_rope,
        sliding_window=take_window(config),
        sliding_layers=layers,
        has_qkv_bias=has_attention_bias,
        has_o_bias=has_attention_bias,
        norm_placement=NormPlacement.BOTH,
        norm_offset=1.0,
        qk_norm=QkNorm.HEAD,
        attention_scale=take_attention_scale(config),
        embed_scale=take_embed_scale(config),
    )


def _read_ropes(config: RawConfig, head_width: int) -> tuple[RopeSpec, RopeSpec]:
    """Take the encodings of global and of local layers, in the old spelling or the new one."""
    length = config.take_count("max_position_embeddings")
    whole = RopeContext(head_width, length, default_theta=_GLOBAL_THETA)
    local = RopeContext(head_width, length, default_theta=_LOCAL_THETA)
    return read_ropes_by_layer_kind(
        config,
        (whole, config.take("rope_theta", float, None)),
        (local, config.take("rope_local_base_freq", float, None)),
    )


FAMILY: Final = Family("gemma3_text", read_spec, (NAMES,))
