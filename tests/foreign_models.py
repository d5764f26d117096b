"""Checkpoints of architectures that edgekit has no family for.

Configs and tensor names as published checkpoints have them, written down by hand; random weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from tests.builders import write_tiny_tokenizer

VOCAB: Final = 384
WIDTH: Final = 64
N_LAYERS: Final = 2
_COMMON: Final[dict[str, Any]] = {
    "vocab_size": VOCAB,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
    "torch_dtype": "float32",
}
_LLAMA_LIKE: Final[dict[str, Any]] = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
CONFIGS: Final[dict[str, dict[str, Any]]] = {
    "gpt2": {"n_embd": WIDTH, "n_layer": N_LAYERS, "n_head": 4, "n_positions": 256},
    "qwen3_moe": {
        **_LLAMA_LIKE,
        "head_dim": 16,
        "moe_intermediate_size": 32,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "rope_theta": 10000.0,
    },
    # optimum 2.1 thinks that keys have as many heads as queries here, and fails while tracing.
    "phi": {**_LLAMA_LIKE, "partial_rotary_factor": 0.5},
    "mixtral": {**_LLAMA_LIKE, "num_local_experts": 4},
}


def write_foreign_checkpoint(folder: Path, model_type: str, **overrides: Any) -> Path:
    """Write a random checkpoint of one of ``CONFIGS``; logits have a deviation of about 2."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": model_type, **_COMMON, **CONFIGS[model_type], **overrides}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    makers: dict[str, Callable[[_Random], dict[str, NDArray[np.float32]]]] = {
        "gpt2": _gpt2,
        "qwen3_moe": _qwen3_moe,
        "phi": _phi,
        "mixtral": _gpt2,  # refused by its name; no weight is read
    }
    tensors = makers[model_type](_Random())
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_tiny_tokenizer(folder, VOCAB)
    return folder


class _Random:
    def __init__(self) -> None:
        self.rng = np.random.default_rng(5)

    def matrix(self, *shape: int) -> NDArray[np.float32]:
        values = self.rng.standard_normal(shape) * 2 / WIDTH**0.5
        return values.astype(np.float32)

    def vector(self, size: int, middle: float) -> NDArray[np.float32]:
        return (middle + 0.1 * self.rng.standard_normal(size)).astype(np.float32)


def _gpt2(draw: _Random) -> dict[str, NDArray[np.float32]]:
    made = {
        "transformer.wte.weight": draw.matrix(VOCAB, WIDTH),
        "transformer.wpe.weight": draw.matrix(256, WIDTH),
    }
    for i in range(N_LAYERS):
        at = f"transformer.h.{i}."
        for norm in ("ln_1", "ln_2"):
            made |= _norm(draw, at + norm)
        for name, n_in, n_out in (
            ("attn.c_attn", WIDTH, 3 * WIDTH),
            ("attn.c_proj", WIDTH, WIDTH),
            ("mlp.c_fc", WIDTH, 4 * WIDTH),
            ("mlp.c_proj", 4 * WIDTH, WIDTH),
        ):
            made[f"{at}{name}.weight"] = draw.matrix(n_in, n_out)
            made[f"{at}{name}.bias"] = draw.vector(n_out, 0)
    return made | _norm(draw, "transformer.ln_f")


def _norm(draw: _Random, name: str) -> dict[str, NDArray[np.float32]]:
    return {f"{name}.weight": draw.vector(WIDTH, 1), f"{name}.bias": draw.vector(WIDTH, 0)}


def _qwen3_moe(draw: _Random) -> dict[str, NDArray[np.float32]]:
    made = {
        "model.embed_tokens.weight": draw.matrix(VOCAB, WIDTH),
        "model.norm.weight": draw.vector(WIDTH, 1),
        "lm_head.weight": draw.matrix(VOCAB, WIDTH),
    }
    for i in range(N_LAYERS):
        at = f"model.layers.{i}."
        made[f"{at}input_layernorm.weight"] = draw.vector(WIDTH, 1)
        made[f"{at}post_attention_layernorm.weight"] = draw.vector(WIDTH, 1)
        for part, n_out in (("q", 64), ("k", 32), ("v", 32), ("o", 64)):
            made[f"{at}self_attn.{part}_proj.weight"] = draw.matrix(n_out, WIDTH)
        for part in "qk":
            made[f"{at}self_attn.{part}_norm.weight"] = draw.vector(16, 1)
        made[f"{at}mlp.gate.weight"] = draw.matrix(4, WIDTH)
        for expert in range(4):
            inside = f"{at}mlp.experts.{expert}."
            made[f"{inside}gate_proj.weight"] = draw.matrix(32, WIDTH)
            made[f"{inside}up_proj.weight"] = draw.matrix(32, WIDTH)
            made[f"{inside}down_proj.weight"] = draw.matrix(WIDTH, 32)
    return made


def _phi(draw: _Random) -> dict[str, NDArray[np.float32]]:
    made = {
        "model.embed_tokens.weight": draw.matrix(VOCAB, WIDTH),
        "lm_head.weight": draw.matrix(VOCAB, WIDTH),
        "lm_head.bias": draw.vector(VOCAB, 0),
        **_norm(draw, "model.final_layernorm"),
    }
    for i in range(N_LAYERS):
        at = f"model.layers.{i}."
        made |= _norm(draw, f"{at}input_layernorm")
        for name, n_out, n_in in (
            ("self_attn.q_proj", 64, WIDTH),
            ("self_attn.k_proj", 32, WIDTH),
            ("self_attn.v_proj", 32, WIDTH),
            ("self_attn.dense", WIDTH, 64),
            ("mlp.fc1", 128, WIDTH),
            ("mlp.fc2", WIDTH, 128),
        ):
            made[f"{at}{name}.weight"] = draw.matrix(n_out, n_in)
            made[f"{at}{name}.bias"] = draw.vector(n_out, 0)
    return made
