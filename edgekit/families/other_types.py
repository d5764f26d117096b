"""Model types that edgekit has no family for: what is different in them, and what else to try."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from edgekit.checkpoint.config import IGNORE_OPTION, RawConfig
from edgekit.errors import UnsupportedArchError

OPTIMUM_TYPES: Final = (
    "arcee", "bloom", "codegen", "cohere", "deepseek_v3", "falcon", "gemma", "gemma2", "gemma3",
    "gemma3_text", "glm", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_oss", "gptj",
    "granite", "helium", "llama", "mistral", "mpt", "nemotron", "olmo", "olmo2", "opt", "phi",
    "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3", "stablelm",
)  # fmt: skip
"""Decoders that optimum-onnx 0.1.0 exports with a cache and without remote code."""

_EXPERTS: Final = "a mixture of experts"
_STATE_SPACE: Final = "state-space layers besides those with attention"
_LOW_RANK: Final = "attention through a low-rank state"
# model_type -> what its decoder has that edgekit's graph has not.
DIFFERENCES: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        ("dbrx", "ernie4_5_moe", "glm4_moe", "granitemoe", "granitemoeshared", "hunyuan_v1_moe",
         "llama4", "llama4_text", "mixtral", "olmoe", "phimoe", "qwen2_moe", "qwen3_moe",
         "qwen3_vl_moe"),
        _EXPERTS,
    ),
    "gpt_oss": f"{_EXPERTS}, attention sinks",
    **dict.fromkeys(("deepseek_v2", "deepseek_v3"), f"{_EXPERTS}, {_LOW_RANK}"),
    "minicpm3": _LOW_RANK,
    **dict.fromkeys(
        ("bamba", "falcon_h1", "jamba", "nemotron_h", "zamba", "zamba2", "qwen3_next", "lfm2"),
        _STATE_SPACE,
    ),
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba", "rwkv"), "a state space, no attention"),
    **dict.fromkeys(
        ("gemma3n", "gemma3n_text"), "an embedding for each layer, keys shared between layers"
    ),
    **dict.fromkeys(
        ("gemma4", "gemma4_text", "gemma4_unified"),
        "an embedding for each layer, keys shared between layers, heads of two widths",
    ),
    **dict.fromkeys(("mllama", "mllama_text_model"), "layers that attend to an image"),
    "internvl_chat": "a wrapper with code of its own around the decoder in llm_config",
    "internlm2": "query, key and value rows that are interleaved in one matrix",
    **dict.fromkeys(
        ("chatglm", "glm", "glm4"), "rope that rotates neighbours, on half of each head"
    ),
    **dict.fromkeys(
        ("codegen", "falcon", "gpt_neox", "gptj", "phi", "persimmon"),
        "LayerNorm, attention and feed-forward side by side",
    ),
    **dict.fromkeys(("cohere", "cohere2"), "LayerNorm, attention and feed-forward side by side"),
    **dict.fromkeys(("stablelm", "starcoder2", "olmo", "nemotron"), "LayerNorm"),
    **dict.fromkeys(
        ("gpt2", "gpt_bigcode", "gpt_neo", "opt", "biogpt", "xglm"), "learned positions, LayerNorm"
    ),
    **dict.fromkeys(("bloom", "mpt"), "ALiBi positions, LayerNorm"),
    **dict.fromkeys(
        ("bart", "mbart", "marian", "mt5", "pegasus", "t5", "t5gemma", "umt5", "whisper"),
        "an encoder before the decoder",
    ),
    **dict.fromkeys(
        ("albert", "bert", "deberta", "deberta-v2", "distilbert", "electra", "modernbert",
         "roberta", "xlm-roberta"),
        "an encoder, which writes no text",
    ),
}  # fmt: skip


def describe_other_type(config: Mapping[str, Any]) -> str:
    """Describe a model_type that no family has, with the reason if it is known."""
    model_type = config.get("model_type")
    named = repr(model_type)[:80]
    if isinstance(model_type, str) and model_type in DIFFERENCES:
        return f"{named}: {DIFFERENCES[model_type]}"
    if str(model_type).endswith("moe"):
        return f"{named}: {_EXPERTS}"
    if config.get("auto_map"):
        return f"{named}: its code comes with the checkpoint, which edgekit never runs"
    return named


def other_route(model_type: object) -> str:
    """Say what to do with a model_type that no family has."""
    if isinstance(model_type, str) and model_type in OPTIMUM_TYPES:
        return "Try optimum, which writes floats for ONNX: edgekit export MODEL --via optimum"
    return "Neither edgekit nor optimum-onnx 0.1.0 (--via optimum) has a graph for it."


_OTHER_HEADS: Final = re.compile(
    r"\w+For(?:SequenceClassification|TokenClassification|QuestionAnswering|MultipleChoice)"
    r"|\w*Reward(?:Model)?\w*|\w+ForSequenceRegression|\w+ValueHead\w*"
)


def refuse_other_heads(config: RawConfig) -> None:
    """Refuse a model whose head gives classes or scores, by the class named in config.json.

    Raises:
        UnsupportedArchError: See above; ``--ignore-config-key architectures`` lets it pass.
    """
    names = config.get("architectures")
    names = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    heads = [name for name in names if _OTHER_HEADS.fullmatch(name)]
    if heads and len(heads) == len(names) and not config.is_ignored("architectures"):
        raise UnsupportedArchError(
            f"{config.where}: architectures",
            got=f"{', '.join(heads)[:200]}: a classification head, which gives classes or a score "
            "of a text, not its next token",
            wanted="a language model, such as LlamaForCausalLM",
            do="Use a checkpoint that writes text. If this one does have a language model's head: "
            f"{IGNORE_OPTION} architectures",
        )
