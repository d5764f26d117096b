"""The ``genai_config.json`` with which onnxruntime-genai runs an ONNX artifact.

Source:
    onnxruntime-genai 0.18, src/config.h and src/models/model_type.h.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from edgekit.families.spec import DecoderSpec
from edgekit.formats.onnx_io import ATTENTION_MASK, INPUT_IDS, LOGITS, past_name, present_name

GENAI_NAME: Final = "genai_config.json"
# Types that genai 0.18 runs with its plain decoder loop. They behave alike, so a family that genai
# does not know is written as its nearest relative, or as Llama.
_GENAI_TYPES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "llama": "llama",
        "mistral": "mistral",
        "ministral": "mistral",
        "ministral3": "mistral",
        "qwen2": "qwen2",
        "qwen3": "qwen3",
        "gemma": "gemma",
        "gemma2": "gemma2",
        "gemma3_text": "gemma3_text",
        "phi3": "phi3",
        "smollm3": "smollm3",
        "granite": "granite",
        "granitemoehybrid": "granite",
        "olmo2": "olmo",
        "olmo3": "olmo",
    }
)


def genai_config(spec: DecoderSpec, graph_name: str, n_positions: int) -> dict[str, Any]:
    """Describe the artifact for onnxruntime-genai, as the content of ``genai_config.json``.

    Args:
        spec: The decoder.
        graph_name: File name of the graph.
        n_positions: Positions the artifact holds.
    """
    layer = "%d"
    model: dict[str, Any] = {
        "type": _GENAI_TYPES.get(spec.model_type, "llama"),
        "context_length": n_positions,
        "vocab_size": spec.vocab_size,
        "pad_token_id": _pad_token_id(spec),
        "decoder": {
            "filename": graph_name,
            "head_size": spec.head_width,
            "hidden_size": spec.hidden_width,
            "num_attention_heads": spec.n_heads,
            "num_hidden_layers": spec.n_layers,
            "num_key_value_heads": spec.n_kv_heads,
            "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
            "inputs": {
                "input_ids": INPUT_IDS,
                "attention_mask": ATTENTION_MASK,
                "past_key_names": past_name(layer, "key"),
                "past_value_names": past_name(layer, "value"),
            },
            "outputs": {
                "logits": LOGITS,
                "present_key_names": present_name(layer, "key"),
                "present_value_names": present_name(layer, "value"),
            },
        },
    }
    if spec.bos_token_id is not None:
        model["bos_token_id"] = spec.bos_token_id
    if spec.eos_token_ids:
        model["eos_token_id"] = list(spec.eos_token_ids)
    search = {"max_length": n_positions, "past_present_share_buffer": True, "do_sample": False}
    return {"model": model, "search": search}


def _pad_token_id(spec: DecoderSpec) -> int:
    """Give the padding id that genai requires; with one sequence at a time it is never used."""
    if spec.pad_token_id is not None:
        return spec.pad_token_id
    return spec.eos_token_ids[0] if spec.eos_token_ids else 0
