"""Model family ``olmo3``: from its config to a ``DecoderSpec``.

OLMo 3 and 3.1: OLMo 2 with three sliding-window layers to one with full attention; only the latter
have the rope scaling.
"""

from __future__ import annotations

from typing import Final

from edgekit.checkpoint.config import RawConfig
from edgekit.families.base import Family
from edgekit.families.defaults import fill_defaults
from edgekit.families.llama_form import (
    read_llama_form,
    take_n_layers,
    take_sliding_layers,
    take_widths,
    take_window,
)
from edgekit.families.olmo2 import NAMES
from edgekit.families.rope_config import RopeContext, read_ropes_by_layer_kind
from edgekit.families.spec import DecoderSpec, NormPlacement, QkNorm

_DEFAULT_THETA: Final = 5e5  # transformers' default when the key is absent
_FULL_EVERY: Final = 4


def read_spec(config: RawConfig) -> DecoderSpec:
    """Account for every key of an olmo3 config.

    Raises:
        CheckpointError: Keys are missing or wrong; all are named.
        UnknownKeyError: Keys that could change the result and are not known.
        UnsupportedArchError: A rope type that edgekit does not compute.
    """
    fill_defaults(config, "olmo3")
    _, _, head_width = take_widths(config)
    n_layers = take_n_layers(config)
    layers = take_sliding_layers(config, n_layers)
    if layers is None:
        layers = tuple(i for i in range(n_layers) if (i + 1) % _FULL_EVERY)
    context = RopeContext(
        head_width, config.take_count("max_position_embeddings"), default_theta=_DEFAULT_THETA
    )
    theta = config.take("rope_theta", float, None)
    rope, local_rope = read_ropes_by_layer_kind(config, (context, theta), (context, theta))
    has_attention_bias = config.take("attention_bias", bool, default=False)
    return read_llama_form(
        config,
        model_type="olmo3",
        rope=rope,
        local_rope=None if local_rope == rope else local_rope,
        sliding_window=take_window(config),
        sliding_layers=layers,
        has_qkv_bias=has_attention_bias,
        has_o_bias=has_attention_bias,
        norm_placement=NormPlacement.AFTER,
        qk_norm=QkNorm.FULL,
    )


FAMILY: Final = Family("olmo3", read_spec, (NAMES,))
