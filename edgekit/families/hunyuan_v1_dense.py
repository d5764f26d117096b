"""How a ``hunyuan_v1_dense`` config becomes a ``DecoderSpec``.

Hunyuan 0.5B to 7B and Hunyuan-MT: each head of queries and keys is normed after rope, whose base is
stretched once by ``alpha``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

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
# Keys of the code that the checkpoints came with, and the one value with which they are models of
# this family; transformers reads none of them.
_EXPECTED: Final[Mapping[str, Any]] = {
    "add_classification_head": False, "mlp_bias": False, "norm_type": "rms", "num_experts": 1,
    "position_embedding_xdrope": False, "use_cla": False, "use_mla": False, "use_qk_norm": True,
    "use_rotary_pos_emb": True,
}  # fmt: skip
# Said by published configs and read by nobody once those above have their values.
_UNUSED: Final = (
    "anyres_pooling_size", "anyres_vit_max_image_size", "anyres_vit_two_views", "class_num",
    "cla_share_factor", "dense_list", "enable_lm_head_fp32", "eod_token_id",
    "group_limited_greedy", "im_end_id", "im_newline_id", "im_start_id", "kv_lora_rank",
    "mask_init_id", "max_image_size", "moe_drop_tokens", "moe_intermediate_size",
    "moe_random_routing_dropped_token", "moe_topk", "n_group", "norm_topk_prob",
    "num_media_embeds", "num_shared_expert", "org_vocab_size", "pad_id", "pool_type",
    "pretraining_tp", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim",
    "routed_scaling_factor", "sep_token_id", "skip_cls_token", "text_end_id", "text_start_id",
    "topk_group", "use_mixed_mlp_moe", "v_head_dim", "video_end_id", "video_start_id",
    "vit_add_patchemb_bias", "vit_input_resolution", "vit_mapping_type", "vit_norm_type",
    "vit_patch", "vit_path", "vit_remove_prenorm", "vit_token", "vit_type", "vit_used_rms_norm",
    "xdrope_section",
)  # fmt: skip


def read_spec(config: RawConfig) -> DecoderSpec:
    """Account for every key of a hunyuan_v1_dense config.

    Raises:
        CheckpointError: Keys are missing or wrong; all are named.
        UnknownKeyError: Keys that could change the result and are not known.
        UnsupportedArchError: A rope type that edgekit does not compute.
    """
    fill_defaults(config, "hunyuan_v1_dense")
    config.fill(_EXPECTED)
    config.ignore(_UNUSED)
    for key, value in _EXPECTED.items():
        config.expect(key, value, value)
    _, _, head_width = take_widths(config)
    if config.get("attention_head_dim") is not None:
        config.expect("attention_head_dim", head_width, head_width)
    config.ignore(["attention_head_dim"])
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
