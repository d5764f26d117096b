"""Tiny adapters that tests use in place of a real one.

Adapters of the tiny checkpoints, with random numbers and the names that PEFT gives the tensors.
scripts/golden_adapters.py asks PEFT whether these are the names, and for the logits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors.numpy

from tests.builders import write_tiny_checkpoint

ATTENTION: Final = tuple(f"self_attn.{part}_proj" for part in "qkvo")
MLP: Final = tuple(f"mlp.{part}_proj" for part in ("gate", "up", "down"))
FUSED: Final = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
EMBED, HEAD = "model.embed_tokens", "lm_head"
PREFIX: Final = "base_model.model."


@dataclass(frozen=True)
class TinyAdapter:
    """One adapter.

    Attributes:
        base: Member of TINY_CONFIGS.
        base_config: Keys of its config.json to set.
        config: Keys of adapter_config.json beside those that every adapter has.
        targets: Modules of a layer that get a LoRA product.
        layers: Layers that have them.
        tops: Modules beside the layers that get one.
        saved: Tensors that are stored whole.
        added_rows: Rows that the stored embedding and head have more than the base.
        ranks: Rank of single modules; the others have that of the config.
    """

    base: str = "llama"
    base_config: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    targets: tuple[str, ...] = ()
    layers: tuple[int, ...] = (0, 1)
    tops: tuple[str, ...] = ()
    saved: tuple[str, ...] = ()
    added_rows: int = 0
    ranks: Mapping[str, int] = field(default_factory=dict)


_UNTIED: Final = {"tie_word_embeddings": False}
ADAPTERS: Final[Mapping[str, TinyAdapter]] = {
    "lora": TinyAdapter(targets=ATTENTION + MLP),
    "lora_untied": TinyAdapter(base_config=_UNTIED, targets=ATTENTION),
    "rslora": TinyAdapter(config={"use_rslora": True}, targets=ATTENTION),
    "dora": TinyAdapter(config={"use_dora": True}, targets=ATTENTION + MLP),
    "patterns": TinyAdapter(
        config={
            "rank_pattern": {"k_proj": 2, "model.layers.1.mlp.up_proj": 3},
            "alpha_pattern": {r"^model\.layers\.0\..*q_proj": 24, "up_proj": 5},
        },
        targets=("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj"),
        ranks={"self_attn.k_proj": 2, "model.layers.1.mlp.up_proj": 3},
    ),
    "fused": TinyAdapter(base="phi3", targets=FUSED),
    "fused_dora": TinyAdapter(base="phi3", config={"use_dora": True}, targets=FUSED),
    "last_layer": TinyAdapter(
        config={"layers_to_transform": [1]}, targets=("self_attn.q_proj",), layers=(1,)
    ),
    "bias": TinyAdapter(
        base="qwen2", config={"bias": "lora_only"}, targets=("self_attn.q_proj", "self_attn.v_proj")
    ),
    "lora_bias": TinyAdapter(
        base="qwen2", config={"lora_bias": True}, targets=("self_attn.q_proj", "self_attn.v_proj")
    ),
    "head": TinyAdapter(base_config=_UNTIED, targets=("self_attn.q_proj",), tops=(HEAD,)),
    "head_tied": TinyAdapter(targets=("self_attn.q_proj",), tops=(HEAD,)),
    "embedding": TinyAdapter(base_config=_UNTIED, targets=("self_attn.q_proj",), tops=(EMBED,)),
    "embedding_tied": TinyAdapter(targets=("self_attn.q_proj",), tops=(EMBED,)),
    "embedding_dora": TinyAdapter(
        base_config=_UNTIED,
        config={"use_dora": True},
        targets=("self_attn.q_proj",),
        tops=(EMBED, HEAD),
    ),
    "embedding_kept_tied": TinyAdapter(
        config={"ensure_weight_tying": True}, targets=("self_attn.q_proj",), tops=(EMBED, HEAD)
    ),
    "saved": TinyAdapter(
        base_config=_UNTIED,
        config={"modules_to_save": ["embed_tokens", "lm_head", "model.norm"]},
        targets=ATTENTION,
        saved=(f"{EMBED}.weight", f"{HEAD}.weight", "model.norm.weight"),
    ),
    "saved_head_tied": TinyAdapter(
        config={"modules_to_save": ["lm_head"]}, targets=ATTENTION, saved=(f"{HEAD}.weight",)
    ),
    "saved_embedding_tied": TinyAdapter(
        config={"modules_to_save": ["embed_tokens"]}, targets=ATTENTION, saved=(f"{EMBED}.weight",)
    ),
    "saved_norms": TinyAdapter(
        config={"modules_to_save": ["input_layernorm"]},
        targets=ATTENTION,
        saved=tuple(f"model.layers.{i}.input_layernorm.weight" for i in (0, 1)),
    ),
    "resized": TinyAdapter(
        base_config=_UNTIED,
        targets=ATTENTION,
        saved=(f"{EMBED}.weight", f"{HEAD}.weight"),
        added_rows=6,
    ),
    "tokens": TinyAdapter(
        config={"trainable_token_indices": [7, 300, 9]}, targets=("self_attn.q_proj",)
    ),
    "tokens_untied": TinyAdapter(
        base_config=_UNTIED,
        config={"trainable_token_indices": {"embed_tokens": [7, 300], "lm_head": [5]}},
        targets=("self_attn.q_proj",),
    ),
}
_RANK: Final = 4


def write_tiny_adapter(folder: Path, name: str) -> tuple[Path, Path]:
    """Write a member of ADAPTERS and the model that it belongs to.

    Returns:
        The model's folder, and the adapter's.
    """
    case = ADAPTERS[name]
    base = write_tiny_checkpoint(folder / "base", case.base, dtype="fp32", **case.base_config)
    tensors = safetensors.numpy.load_file(base / "model.safetensors")
    adapter = folder / "adapter"
    adapter.mkdir()
    targets = {target.rpartition(".")[2] for target in (*case.targets, *case.tops)}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "owner/base",
        "r": _RANK,
        "lora_alpha": 10,
        "target_modules": sorted(targets),
        **case.config,
    }
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    parts = adapter_tensors(case, tensors)
    safetensors.numpy.save_file(
        {PREFIX + n: v for n, v in parts.items()}, adapter / "adapter_model.safetensors"
    )
    return base, adapter


def adapter_tensors(
    case: TinyAdapter, base: Mapping[str, np.ndarray[Any, Any]]
) -> dict[str, np.ndarray[Any, Any]]:
    """Make the tensors of an adapter by their names without PEFT's prefix."""
    rng = np.random.default_rng(11)

    def drawn(*shape: int, size: float = 0.1) -> np.ndarray[Any, Any]:
        return (size * rng.standard_normal(shape)).astype(np.float32)

    found: dict[str, np.ndarray[Any, Any]] = {}
    in_layers = [f"model.layers.{i}.{target}" for i in case.layers for target in case.targets]
    for module in (*in_layers, *case.tops):
        stored = base.get(f"{module}.weight", base[f"{EMBED}.weight"])
        n_out, n_in = stored.shape
        inner = module.partition("layers.")[2].partition(".")[2]
        rank = case.ranks.get(module, case.ranks.get(inner, _RANK))
        if module == EMBED:
            found[f"{module}.lora_embedding_A"] = drawn(rank, n_out)
            found[f"{module}.lora_embedding_B"] = drawn(n_in, rank)
        else:
            found[f"{module}.lora_A.weight"] = drawn(rank, n_in)
            found[f"{module}.lora_B.weight"] = drawn(n_out, rank)
        if case.config.get("use_dora"):
            n_lengths = n_in if module == EMBED else n_out
            found[f"{module}.lora_magnitude_vector"] = 1 + drawn(n_lengths)
        if case.config.get("lora_bias"):
            found[f"{module}.lora_B.bias"] = drawn(n_out)
        if case.config.get("bias") == "lora_only":
            found[f"{module}.base_layer.bias"] = drawn(n_out)
        if module in (EMBED, HEAD):
            found[f"{module}.base_layer.weight"] = stored
    if case.config.get("ensure_weight_tying"):
        found[f"{HEAD}.lora_A.weight"] = found[f"{EMBED}.lora_embedding_B"].T.copy()
        found[f"{HEAD}.lora_B.weight"] = found[f"{EMBED}.lora_embedding_A"].T.copy()
    for name in case.saved:
        stored = base.get(name, base[f"{EMBED}.weight"])
        rows = stored.shape[0] + case.added_rows
        found[name] = np.resize(stored, (rows, *stored.shape[1:])) + drawn(rows, *stored.shape[1:])
    ids = case.config.get("trainable_token_indices", {})
    for module, rows in (ids if isinstance(ids, dict) else {"embed_tokens": ids}).items():
        at = EMBED if module == "embed_tokens" else module
        delta = drawn(len(rows), base[f"{EMBED}.weight"].shape[1], size=1.0)
        found[f"{at}.token_adapter.trainable_tokens_delta"] = delta
    return found
