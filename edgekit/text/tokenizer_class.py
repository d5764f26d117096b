"""The tokenizer class that transformers would use, and the tokens that this class adds.

A class may name begin and end tokens that no file names. The class depends on three facts: the
class that the files name, the model_type, and whether tokenizer.json splits text into bytes.

Source: transformers 5.23, models/auto/tokenization_auto.py (``AutoTokenizer.from_pretrained``),
and the signatures of the classes. tests/text/test_tokenizer_class.py compares both tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

GENERIC: Final = "TokenizersBackend"
"""The class that uses tokenizer.json as it is and names no token."""
LLAMA: Final = "LlamaTokenizer"
CODE_LLAMA: Final = "CodeLlamaTokenizer"
QWEN2: Final = "Qwen2Tokenizer"
GPT2: Final = "GPT2Tokenizer"
GEMMA: Final = "GemmaTokenizer"

DEFAULT_ROLES: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        LLAMA: {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
        CODE_LLAMA: {
            "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>",
            "prefix_token": "▁<PRE>", "middle_token": "▁<MID>", "suffix_token": "▁<SUF>",
            "eot_token": "▁<EOT>", "fill_token": "<FILL_ME>",
        },
        QWEN2: {
            "unk_token": "<|endoftext|>", "eos_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
        },
        GPT2: {
            "unk_token": "<|endoftext|>", "bos_token": "<|endoftext|>",
            "eos_token": "<|endoftext|>",
        },
        GEMMA: {
            "unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>",
            "pad_token": "<pad>", "mask_token": "<mask>",
        },
    }
)  # fmt: skip
"""Class -> role -> token, where the files name none."""

REGISTERED: Final[Mapping[str, str]] = MappingProxyType(
    {
        **dict.fromkeys(
            (
                "ernie4_5", "glm", "glm4", "granite", "granitemoehybrid", "internlm2", "ministral",
                "ministral3", "mistral", "mistral3", "mixtral", "nemotron", "olmo2", "olmo3",
                "phi3", "pixtral", "stablelm",
            ),
            GENERIC,
        ),
        **dict.fromkeys(
            ("qwen2", "qwen3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_moe"), QWEN2
        ),
        **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text"), GEMMA),
        **dict.fromkeys(("gpt2", "phi", "starcoder2"), GPT2),
        "code_llama": CODE_LLAMA,
    }
)  # fmt: skip
"""model_type -> the class registered for it; mistral's as without the package mistral-common."""
MISLABELLED: Final = frozenset(("ernie4_5", "internlm2", "nemotron", "phi3", "qwen2"))
"""model_types whose published files name a wrong class, so that the registered one is taken."""


def tokenizer_class(named: str | None, model_type: str | None, *, is_byte_level: bool) -> str:
    """Give the class that transformers would use.

    Args:
        named: ``tokenizer_class`` of tokenizer_config.json, else of config.json.
        model_type: Of config.json.
        is_byte_level: Whether tokenizer.json splits text into bytes, which LlamaTokenizer cannot.

    Returns:
        A key of ``DEFAULT_ROLES``, or ``GENERIC``.
    """
    wanted = (named or "").removesuffix("Fast")
    registered = REGISTERED.get(model_type or "")
    if wanted == LLAMA and is_byte_level and model_type not in MISLABELLED:
        return GENERIC
    if wanted and registered and wanted != registered:
        if registered == GENERIC:
            return GENERIC
        wanted = registered if model_type in MISLABELLED else wanted
    chosen = wanted or registered or GENERIC
    return chosen if chosen in DEFAULT_ROLES else GENERIC
