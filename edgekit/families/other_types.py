"""Answer one question: which architectures without a family file have another route?"""

from __future__ import annotations

from typing import Final

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
