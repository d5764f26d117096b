"""Model family ``olmo2``: from its config to a ``DecoderSpec``.

OLMo 2: norms after each block, and norms over all heads of queries and of keys together.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from edgekit.checkpoint.config import RawConfig
from edgekit.families import llama_form
from edgekit.families.base import Family
from edgekit.families.defaults import fill_defaults
from edgekit.families.llama_form import QK_NORM_NAMES, read_llama_form
from edgekit.families.spec import DecoderSpec, NormPlacement, QkNorm

_POST: Final = {
    "attn_post_norm": "post_attention_layernorm.weight",
    "ffn_post_norm": "post_feedforward_layernorm.weight",
}
_BEFORE: Final = ("attn_norm", "ffn_norm")
NAMES: Final = replace(
    llama_form.NAMES,
    layer={
        **{k: v for k, v in llama_form.NAMES.layer.items() if k not in _BEFORE},
        **QK_NORM_NAMES,
        **_POST,
    },
)


def read_spec(config: RawConfig) -> DecoderSpec:
    """Account for every key of an olmo2 config.

    Raises:
        CheckpointError: Keys are missing or wrong; all are named.
        UnknownKeyError: Keys that could change the result and are not known.
        UnsupportedArchError: A rope type that edgekit does not compute.
    """
    fill_defaults(config, "olmo2")
    has_attention_bias = config.take("attention_bias", bool, default=False)
    return read_llama_form(
        config,
        model_type="olmo2",
        has_qkv_bias=has_attention_bias,
        has_o_bias=has_attention_bias,
        norm_placement=NormPlacement.AFTER,
        qk_norm=QkNorm.FULL,
    )


FAMILY: Final = Family("olmo2", read_spec, (NAMES,))
