"""Architectures that no family reads: which have another route, and which heads are refused."""

from __future__ import annotations

import re
from typing import Final

from edgekit.checkpoint.config import IGNORE_OPTION, RawConfig
from edgekit.errors import UnsupportedArchError

OPTIMUM_TYPES: Final = (
    "arcee", "bloom", "codegen", "cohere", "deepseek_v3", "falcon", "gemma", "gemma2", "gemma3",
    "gemma3_text", "glm", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_oss", "gptj",
    "granite", "helium", "llama", "mistral", "mpt", "nemotron", "olmo", "olmo2", "opt", "phi",
    "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3", "stablelm",
)  # fmt: skip
"""Decoders that optimum-onnx 0.1.0 exports with a cache and without remote code."""


def other_route(model_type: object) -> str:
    """Say what to do with a model_type that no family has."""
    if isinstance(model_type, str) and model_type in OPTIMUM_TYPES:
        return "Try optimum, which writes floats for ONNX: edgekit export MODEL --via optimum"
    is_sparse = model_type == "mixtral" or str(model_type).endswith("moe")
    why = "A mixture of experts needs another graph, and n" if is_sparse else "N"
    return f"{why}either edgekit nor optimum-onnx 0.1.0 (--via optimum) has one for it."


_OTHER_HEADS: Final = re.compile(
    r"\w+For(?:SequenceClassification|TokenClassification|QuestionAnswering|MultipleChoice)"
    r"|\w*Reward(?:Model)?\w*|\w+ForSequenceRegression|\w+ValueHead\w*"
)


def refuse_other_heads(config: RawConfig) -> None:
    """Refuse a model whose head gives classes or scores, by the class that config.json names.

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
            do="Take a checkpoint that writes text. If this one has a language model's head after "
            f"all: {IGNORE_OPTION} architectures",
        )
