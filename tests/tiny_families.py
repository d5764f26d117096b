"""A tiny checkpoint of each family.

Configs and tensor names as the families' published checkpoints have them, written down here by
hand so that edgekit's own tables are tested against something else. All are small enough that a
few hundred tokens go past every window and every change of the position encoding.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Weights = dict[str, NDArray[np.float32]]

_SLIDING: Final = ["sliding_attention", "full_attention"]
_YARN: Final = {
    "rope_type": "yarn",
    "type": "yarn",
    "rope_theta": 1e6,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
_MINISTRAL3: Final[dict[str, Any]] = {
    "model_type": "ministral3",
    "sliding_window": None,
    "rope_parameters": {
        **_YARN,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
        "max_position_embeddings": 256,
    },
}
_LLAMA3: Final = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_GRANITE_DENSE: Final[dict[str, Any]] = {
    "model_type": "granitemoehybrid",
    "head_dim": None,
    "intermediate_size": 999,
    "shared_intermediate_size": 192,
    "layer_types": ["attention", "attention"],
    "num_local_experts": 0,
    "num_experts_per_tok": 0,
    "attention_bias": False,
    "attention_multiplier": 0.25,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.5,
    "logits_scaling": 2.0,
    "init_method": "mup",
    "normalization_function": "rmsnorm",
    "mamba_n_heads": 128,
    "mamba_expand": 2,
    "mamba_d_head": "auto",
    "router_aux_loss_coef": 0.0,
}
_ROTARY_PAIRS: Final = 12

# Family member -> what its config says beside (or instead of) the common keys; None removes one.
TINY_CONFIGS: Final[dict[str, dict[str, Any]]] = {
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "mistral-v0.1": {"model_type": "mistral", "sliding_window": 24},
    "ministral": {
        "model_type": "ministral",
        "num_hidden_layers": 4,
        "sliding_window": 24,
        "layer_types": _SLIDING * 2,
    },
    "ministral3": _MINISTRAL3,
    "mistral3": {"model_type": "mistral3", "text_config": _MINISTRAL3},
    "llama": {"model_type": "llama", "attention_bias": False, "mlp_bias": False},
    "llama-3.2": {"model_type": "llama", "rope_scaling": _LLAMA3, "rope_theta": 500000.0},
    "llama-yarn": {"model_type": "llama", "rope_theta": None, "rope_parameters": _YARN},
    "code-llama": {
        "model_type": "llama",
        "rope_theta": 1e6,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
    "qwen2": {
        "model_type": "qwen2",
        "head_dim": None,
        "use_sliding_window": False,
        "sliding_window": 24,
        "max_window_layers": 1,
        "rope_theta": 1e6,
    },
    "qwen2-window": {
        "model_type": "qwen2",
        "head_dim": None,
        "use_sliding_window": True,
        "sliding_window": 24,
        "max_window_layers": 1,
        "tie_word_embeddings": False,
    },
    "qwen3": {
        "model_type": "qwen3",
        "head_dim": 64,
        "attention_bias": False,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": 2,
        "rope_theta": 1e6,
    },
    "gemma3_text": {
        "model_type": "gemma3_text",
        "hidden_act": None,
        "hidden_activation": "gelu_pytorch_tanh",
        "num_hidden_layers": 3,
        "head_dim": 64,
        "query_pre_attn_scalar": 48,
        "sliding_window": 24,
        "sliding_window_pattern": 3,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "attention_bias": False,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    },
    "qwen2_vl": {
        "model_type": "qwen2_vl",
        "head_dim": None,
        "use_sliding_window": False,
        "sliding_window": 24,
        "max_window_layers": 2,
        "rope_theta": 1e6,
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
        "image_token_id": 9,
        "video_token_id": 10,
        "vision_start_token_id": 7,
        "vision_config": {"depth": 1, "embed_dim": 32, "num_heads": 2, "hidden_size": 128},
    },
    "qwen2_5_vl": {
        "model_type": "qwen2_5_vl",
        "text_config": {
            "model_type": "qwen2_5_vl_text",
            "head_dim": None,
            "use_sliding_window": False,
            "sliding_window": None,
            "max_window_layers": 2,
            "rope_theta": 1e6,
            "rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": [4, 6, 6]},
            "image_token_id": None,
        },
    },
    "qwen3_vl": {
        "model_type": "qwen3_vl",
        "text_config": {
            "model_type": "qwen3_vl_text",
            "attention_bias": False,
            "rope_theta": 5e6,
            "rope_scaling": {
                "mrope_interleaved": True,
                "mrope_section": [8, 4, 4],
                "rope_type": "default",
            },
        },
    },
    "mimo": {
        "model_type": "mimo",
        "attention_bias": True,
        "use_mrope": False,
        "use_sliding_window": False,
        "sliding_window": 24,
        "max_window_layers": 2,
        "num_nextn_predict_layers": 1,
        "tie_word_embeddings": False,
        "rope_theta": 640000,
    },
    "minicpm": {
        "model_type": "minicpm",
        "head_dim": None,
        "num_key_value_heads": 4,
        "scale_emb": 12,
        "scale_depth": 1.4,
        "dim_model_base": 64,
    },
    "exaone": {
        "model_type": "exaone",
        "hidden_act": None,
        "activation_function": "silu",
        "layer_norm_epsilon": 1e-5,
        "num_layers": 2,
        "embed_dropout": 0.0,
        "rope_scaling": _LLAMA3,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
    },
    "xverse": {
        "model_type": "xverse",
        "head_dim": None,
        "max_tokenizer_truncation": 6144,
        "tie_word_embeddings": False,
    },
    "gemma": {
        "model_type": "gemma",
        "hidden_act": "gelu",
        "hidden_activation": None,
        "head_dim": 64,
        "attention_bias": False,
        "rope_scaling": None,
        "rms_norm_eps": 1e-6,
    },
    # The caps of published models (50 and 30) would hardly be felt by scores and logits this small.
    "gemma2": {
        "model_type": "gemma2",
        "hidden_size": 64,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_act": "gelu_pytorch_tanh",
        "num_hidden_layers": 3,
        "query_pre_attn_scalar": 48,
        "sliding_window": 24,
        "attn_logit_softcapping": 1.5,
        "final_logit_softcapping": 4.0,
        "attention_bias": False,
        "cache_implementation": "hybrid",
        "rms_norm_eps": 1e-6,
    },
    "phi3": {
        "model_type": "phi3",
        "head_dim": None,
        "original_max_position_embeddings": 64,
        "partial_rotary_factor": 0.75,
        "sliding_window": None,
        "attention_bias": False,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0 + 0.05 * i for i in range(_ROTARY_PAIRS)],
            "long_factor": [1.0 + 0.5 * i for i in range(_ROTARY_PAIRS)],
        },
    },
    "phi3-4k": {
        "model_type": "phi3",
        "head_dim": None,
        "original_max_position_embeddings": 256,
        "sliding_window": 24,
        "rope_scaling": None,
        "tie_word_embeddings": False,
    },
    "smollm3": {
        "model_type": "smollm3",
        "head_dim": None,
        "num_hidden_layers": 4,
        "no_rope_layers": [1, 1, 1, 0],
        "no_rope_layer_interval": 4,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": 4,
        "attention_bias": False,
        "mlp_bias": False,
        "rope_theta": 2000000.0,
        "layer_types": ["full_attention"] * 4,
    },
    "granite": {
        "model_type": "granite",
        "head_dim": None,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_multiplier": 0.25,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "logits_scaling": 2.0,
    },
    "granitemoehybrid": {**_GRANITE_DENSE, "position_embedding_type": "rope"},
    "granitemoehybrid-nope": {
        **_GRANITE_DENSE,
        "position_embedding_type": "nope",
        "tie_word_embeddings": False,
    },
    "olmo2": {
        "model_type": "olmo2",
        "head_dim": None,
        "attention_bias": False,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
    },
    "exaone4": {
        "model_type": "exaone4",
        "head_dim": 48,
        "sliding_window": None,
        "sliding_window_pattern": None,
        "layer_types": ["full_attention"] * 2,
        "rope_theta": 1000000,
        "rope_scaling": _LLAMA3,
    },
    "exaone4-window": {
        "model_type": "exaone4",
        "num_hidden_layers": 4,
        "sliding_window": 24,
        "sliding_window_pattern": "LLLG",
        "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
        "tie_word_embeddings": False,
    },
    "hunyuan_v1_dense": {
        "model_type": "hunyuan_v1_dense",
        "head_dim": 64,
        "attention_head_dim": 64,
        "attention_bias": False,
        "mlp_bias": False,
        "use_qk_norm": True,
        "use_cla": False,
        "cla_share_factor": 2,
        "eod_token_id": 3,
        "pretraining_tp": 1,
        "norm_type": "rms",
        "rope_scaling": {
            "type": "dynamic",
            "alpha": 50.0,
            "factor": 1.0,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 1.0,
            "mscale_all_dim": 0.0,
        },
    },
    "olmo3": {
        "model_type": "olmo3",
        "head_dim": None,
        "attention_bias": False,
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
        "sliding_window": 24,
        "rms_norm_eps": 1e-6,
        "rope_theta": 500000,
        "rope_scaling": {
            "rope_type": "yarn",
            "attention_factor": 1.1386294361119891,
            "beta_fast": 32,
            "beta_slow": 1,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        "tie_word_embeddings": False,
    },
}
# Tensors beside the decoder, of which a text needs none.
_VISION: Final[dict[str, dict[str, tuple[int, ...]]]] = {
    "mistral3": {
        "vision_tower.patch_conv.weight": (8, 12),
        "multi_modal_projector.linear_1.weight": (16, 8),
    },
    "qwen2_vl": {"visual.blocks.0.mlp.fc1.weight": (128, 32), "visual.blocks.0.norm1.bias": (32,)},
    "qwen2_5_vl": {"model.visual.blocks.0.norm1.weight": (32,)},
    "qwen3_vl": {"model.visual.blocks.0.norm1.bias": (32,)},
    "mimo": {
        "model.mtp_layers.0.input_proj.weight": (128, 256),
        "model.mtp_layers.0.self_attn.q_proj.weight": (128, 128),
        "model.mtp_layers.0.final_layernorm.weight": (128,),
    },
}
# EXAONE's names for what others call as the keys say.
_EXAONE_NAMES: Final = {
    "model.layers.": "transformer.h.",
    "model.embed_tokens": "transformer.wte",
    "model.norm": "transformer.ln_f",
    "input_layernorm": "ln_1",
    "post_attention_layernorm": "ln_2",
    "self_attn.o_proj": "attn.attention.out_proj",
    "self_attn": "attn.attention",
    "gate_proj": "c_fc_0",
    "up_proj": "c_fc_1",
    "down_proj": "c_proj",
}


def family_weights(config: dict[str, Any], seed: int) -> Weights:
    """Draw the weights of a config: Hugging Face name to float32 array."""
    kind = config["model_type"]
    weights = _Maker(config.get("text_config", config), seed).make()
    if kind == "exaone":
        weights = {_exaone_name(name): values for name, values in weights.items()}
    elif kind == "mistral3":
        weights = {f"language_model.{name}": values for name, values in weights.items()}
    elif "text_config" in config:
        weights = {
            name.replace("model.", "model.language_model.", 1): values
            for name, values in weights.items()
        }
    rng = np.random.default_rng(seed + 1)
    for name, shape in _VISION.get(kind, {}).items():
        weights[name] = rng.standard_normal(shape, dtype=np.float32)
    return weights


def _exaone_name(name: str) -> str:
    for usual, theirs in _EXAONE_NAMES.items():
        name = name.replace(usual, theirs)
    return name


class _Maker:
    """Draws one decoder; logits are spread (standard deviation about 2)."""

    def __init__(self, config: dict[str, Any], seed: int) -> None:
        self.config = config
        self.kind = config["model_type"]
        self.rng = np.random.default_rng(seed)
        self.width = config["hidden_size"]
        n_heads = config["num_attention_heads"]
        self.head_width = config.get("head_dim") or self.width // n_heads
        self.q_width = n_heads * self.head_width
        self.kv_width = config["num_key_value_heads"] * self.head_width

    def matrix(self, n_out: int, n_in: int, gain: float) -> NDArray[np.float32]:
        values = self.rng.standard_normal((n_out, n_in), dtype=np.float32)
        return values * np.float32(gain / n_in**0.5)

    def norm(self, width: int | None = None) -> NDArray[np.float32]:
        middle = 0 if self.kind.startswith("gemma") else 1
        noise = self.rng.standard_normal(width or self.width, dtype=np.float32)
        return np.float32(middle) + np.float32(0.1) * noise

    def make(self) -> Weights:
        config = self.config
        # Rows of the embedding are small beside what the layers add, so a tied model does not
        # simply repeat its last token.
        weights = {"model.embed_tokens.weight": self.matrix(config["vocab_size"], self.width, 2.0)}
        for i in range(config.get("num_layers") or config["num_hidden_layers"]):
            layer = self.layer()
            weights |= {f"model.layers.{i}.{name}": values for name, values in layer.items()}
        weights["model.norm.weight"] = self.norm()
        if not config["tie_word_embeddings"]:
            weights["lm_head.weight"] = self.matrix(config["vocab_size"], self.width, 2.0)
        return weights

    def layer(self) -> Weights:
        ffn, q, kv, width = (
            self.config.get("shared_intermediate_size", self.config["intermediate_size"]),
            self.q_width,
            self.kv_width,
            self.width,
        )
        made = {name: self.norm() for name in _norm_names(self.kind)}
        if self.kind in ("qwen3", "qwen3_vl_text", "gemma3_text", "exaone4"):
            made |= {f"self_attn.{x}_norm.weight": self.norm(self.head_width) for x in "qk"}
        if self.kind == "hunyuan_v1_dense":
            names = ("query_layernorm", "key_layernorm")
            made |= {f"self_attn.{name}.weight": self.norm(self.head_width) for name in names}
        if self.kind in ("olmo2", "olmo3"):
            made["self_attn.q_norm.weight"] = self.norm(q)
            made["self_attn.k_norm.weight"] = self.norm(kv)
        parts = {
            "self_attn.q_proj": (q, width, 1.2),
            "self_attn.k_proj": (kv, width, 1.2),
            "self_attn.v_proj": (kv, width, 1.5),
            "self_attn.o_proj": (width, q, 1.5),
            "mlp.gate_proj": (ffn, width, 1.5),
            "mlp.up_proj": (ffn, width, 1.5),
            "mlp.down_proj": (width, ffn, 1.5),
        }
        for name, (n_out, n_in, gain) in parts.items():
            made[f"{name}.weight"] = self.matrix(n_out, n_in, gain)
            if self._has_bias(name):
                made[f"{name}.bias"] = self.matrix(n_out, 1, 0.1)[:, 0]
        return _fused(made, _FUSED[self.kind]) if self.kind in _FUSED else made

    def _has_bias(self, name: str) -> bool:
        if self.kind in ("qwen2", "qwen2_vl", "qwen2_5_vl_text", "mimo"):
            return name[-6] in "qkv"
        key = "attention_bias" if name.startswith("self_attn") else "mlp_bias"
        return bool(self.config.get(key))


def _norm_names(kind: str) -> tuple[str, ...]:
    before = "input_layernorm.weight"
    after = "post_attention_layernorm.weight"
    if kind in ("gemma2", "gemma3_text"):
        more = ("pre_feedforward_layernorm.weight", "post_feedforward_layernorm.weight")
        return (before, after, *more)
    if kind in ("olmo2", "olmo3", "exaone4"):
        return (after, "post_feedforward_layernorm.weight")
    return (before, after)


# One matrix -> those whose rows it holds, and other names of single ones.
_FUSED: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "phi3": {
        "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    },
    "granitemoehybrid": {
        "shared_mlp.input_linear": ("mlp.gate_proj", "mlp.up_proj"),
        "shared_mlp.output_linear": ("mlp.down_proj",),
    },
}


def _fused(layer: Weights, groups: dict[str, tuple[str, ...]]) -> Weights:
    made = dict(layer)
    for whole, parts in groups.items():
        made[f"{whole}.weight"] = np.concatenate([made.pop(f"{part}.weight") for part in parts])
    return made
