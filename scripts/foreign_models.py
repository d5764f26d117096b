"""Make tiny random checkpoints of architectures that edgekit has no family for.

Runs inside optimum's environment, called by scripts/oracle.py:

    PYTHON-OF-THE-ENVIRONMENT scripts/foreign_models.py OUT
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

COMMON = {"vocab_size": 384, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
LLAMA_LIKE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
GPT_LIKE = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}
# Windows are smaller than the text that is compared.
CONFIGS: dict[str, dict[str, Any]] = {
    "arcee": LLAMA_LIKE,
    "bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 4},
    "codegen": {**GPT_LIKE, "rotary_dim": 8},
    "cohere": LLAMA_LIKE,
    "deepseek_v3": {
        **LLAMA_LIKE,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
    },
    "falcon": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    "gemma": {**LLAMA_LIKE, "head_dim": 16},
    "gemma2": {**LLAMA_LIKE, "head_dim": 16, "sliding_window": 24},
    "glm": {**LLAMA_LIKE, "head_dim": 16},
    "gpt2": GPT_LIKE,
    "gpt_bigcode": {**GPT_LIKE, "multi_query": True},
    "gpt_neo": {
        "hidden_size": 64,
        "num_layers": 2,
        "num_heads": 4,
        "max_position_embeddings": 256,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 24,
    },
    "gpt_neox": LLAMA_LIKE,
    "gpt_oss": {
        **LLAMA_LIKE,
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 24,
        "rope_scaling": None,
    },
    "gptj": {**GPT_LIKE, "rotary_dim": 8},
    "helium": {**LLAMA_LIKE, "head_dim": 16},
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 256, "expansion_ratio": 2},
    "nemotron": LLAMA_LIKE,
    "olmo": LLAMA_LIKE,
    "opt": {
        "hidden_size": 64,
        "ffn_dim": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "word_embed_proj_dim": 64,
    },
    "phi": LLAMA_LIKE,
    "qwen3_moe": {
        **LLAMA_LIKE,
        "head_dim": 16,
        "moe_intermediate_size": 32,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
    "stablelm": LLAMA_LIKE,
    # Outside the list of optimum-onnx 0.1.0.
    "granitemoe": {**LLAMA_LIKE, "num_local_experts": 4, "num_experts_per_tok": 2},
    "mamba": {"hidden_size": 64, "num_hidden_layers": 2},
    "mixtral": {**LLAMA_LIKE, "num_local_experts": 4},
    "olmoe": {**LLAMA_LIKE, "num_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {
        **LLAMA_LIKE,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
    },
    "starcoder2": LLAMA_LIKE,
}


def main(out: Path) -> None:
    """Write every model with logits whose standard deviation is about 2."""
    for model_type, own in CONFIGS.items():
        torch.manual_seed(0)
        config = AutoConfig.for_model(model_type, **{**own, **COMMON})
        model = AutoModelForCausalLM.from_config(config).float()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 2.0 / parameter.shape[-1] ** 0.5)
                else:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(out / model_type)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
