"""Model family ``hunyuan_v1_dense``: from its config to a ``DecoderSpec``.

Hunyuan 0.5B to 7B and Hunyuan-MT: a norm on each head of queries and keys after rope, and a rope
base that ``alpha`` stretches once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from edgekit.checkpoint.config import RawConfig
from edgekit.families import llama_form
from edgekit.families.base import Family
from edgekit.families.defaults import fill_defaults
from edgekit.families.llama_form import read_llama_form, take_widths
from edgekit.families.rope_config import RopeContext, read_rope
from edgekit.families.spec import DecoderSpec, QkNorm

NAMES: Final = replace(
    llama_form.NAMES,
    layer={
        **llama_form.NAMES.layer,
        "q_norm": "self_attn.query_layernorm.weight",
        "k_norm": "self_attn.key_layernorm.weight",
    },
)
# Keys for Hunyuan's other models, which these configs repeat; transformers reads none of them.
_UNUSED: Final = (
    "anyres_pooling_size", "anyres_vit_max_image_size", "cla_share_factor", "class_num",
    "dense_list", "max_image_size", "moe_intermediate_size", "moe_topk", "num_media_embeds",
    "num_shared_expert", "org_vocab_size", "pool_type", "vit_input_resolution",
    "vit_mapping_type", "vit_norm_type", "vit_patch", "vit_token", "vit_type",
)  # fmt: skip


def read_spec(config: RawConfig) -> DecoderSpec:
    """Account for every key of a hunyuan_v1_dense config.

    Raises:
        CheckpointError: Keys are missing or wrong; all are named.
        UnknownKeyError: Keys that could change the result and are not known.
        UnsupportedArchError: A rope type that edgekit does not compute.
    """
    fill_defaults(config, "hunyuan_v1_dense")
    config.ignore(_UNUSED)
    config.expect("use_qk_norm", wanted=True, default=True)
    if config.get("num_experts") == 1:
        config.ignore(["num_experts"])
    _, _, head_width = take_widths(config)
    config.expect("attention_head_dim", head_width, head_width)
    length = config.take_count("max_position_embeddings")
    rope, _ = read_rope(config, RopeContext(head_width, length, has_ntk_alpha=True))
    has_attention_bias = config.take("attention_bias", bool, default=False)
    return read_llama_form(
        config,
        model_type="hunyuan_v1_dense",
        rope=rope,
        has_qkv_bias=has_attention_bias,
        has_o_bias=has_attention_bias,
        qk_norm=QkNorm.HEAD_AFTER_ROPE,
    )


FAMILY: Final = Family("hunyuan_v1_dense", read_spec, (NAMES,))
