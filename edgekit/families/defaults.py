"""Defaults of absent config keys, for each model_type.

Some versions of transformers write configs without the keys that equal the default of their class;
so do configs of decoders inside a wrapper. Hand-written configs may leave out any key.
Source: the configuration classes of transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from edgekit.checkpoint.config import RawConfig

_LLAMA: Final[Mapping[str, Any]] = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_OLMO2: Final = {
    **_LLAMA, "vocab_size": 50304, "rms_norm_eps": 1e-5, "bos_token_id": None,
    "eos_token_id": 50279, "pad_token_id": 1,
}  # fmt: skip
_MISTRAL: Final = {
    **_LLAMA, "intermediate_size": 14336, "num_key_value_heads": 8,
    "max_position_embeddings": 131072, "sliding_window": 4096,
}  # fmt: skip
_QWEN2: Final[Mapping[str, Any]] = {
    "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
    "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    "sliding_window": 4096, "max_window_layers": 28,
}  # fmt: skip
_QWEN2_VL: Final[Mapping[str, Any]] = {
    "vocab_size": 152064, "hidden_size": 8192, "intermediate_size": 29568,
    "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
    "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "sliding_window": 4096,
    "max_window_layers": 80, "bos_token_id": 151643, "eos_token_id": 151645,
}  # fmt: skip
_GEMMA2: Final[Mapping[str, Any]] = {
    "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216,
    "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
    "tie_word_embeddings": True, "query_pre_attn_scalar": 256, "sliding_window": 4096,
    "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
}  # fmt: skip
DEFAULTS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType({
    "llama": _LLAMA,
    "granite": _LLAMA,
    "mistral": _MISTRAL,
    "ministral": _MISTRAL,
    "ministral3": {
        **_MISTRAL, "vocab_size": 131072, "num_hidden_layers": 34, "head_dim": 128,
        "max_position_embeddings": 262144, "rms_norm_eps": 1e-5, "pad_token_id": 11,
        "sliding_window": None,
    },
    "qwen2": _QWEN2,
    "qwen3": {**_QWEN2, "head_dim": 128},
    "gemma": {
        "vocab_size": 256000, "hidden_size": 3072, "intermediate_size": 24576,
        "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 16,
        "head_dim": 256, "max_position_embeddings": 8192, "rms_norm_eps": 1e-6,
        "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "tie_word_embeddings": True,
    },
    "gemma2": _GEMMA2,
    "gemma3_text": {
        **_GEMMA2, "vocab_size": 262208, "max_position_embeddings": 131072,
        "attn_logit_softcapping": None, "final_logit_softcapping": None,
        "sliding_window_pattern": 6,
    },
    # From MiniCPM's own code, which is not part of transformers.
    "minicpm": {**_LLAMA, "tie_word_embeddings": True},
    "qwen2_vl_text": _QWEN2_VL,
    "qwen2_5_vl_text": _QWEN2_VL,
    "qwen3_vl_text": {
        "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
        "head_dim": 128, "max_position_embeddings": 128000, "rms_norm_eps": 1e-6,
    },
    "phi3": {
        **_LLAMA, "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192,
        "max_position_embeddings": 4096, "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "eos_token_id": 32000, "pad_token_id": 32000,
    },
    "smollm3": {
        **_LLAMA, "vocab_size": 128256, "hidden_size": 2048, "num_hidden_layers": 36,
        "num_attention_heads": 16, "num_key_value_heads": 4, "max_position_embeddings": 32768,
        "tie_word_embeddings": True, "bos_token_id": 128000, "eos_token_id": 128001,
        "pad_token_id": 128004,
    },
    "granitemoehybrid": {**_LLAMA, "shared_intermediate_size": 1024},
    "exaone4": {
        **_LLAMA, "vocab_size": 102400, "intermediate_size": 16384, "num_key_value_heads": 32,
        "rms_norm_eps": 1e-5, "bos_token_id": 0, "sliding_window": 4096,
    },
    "hunyuan_v1_dense": {
        **_LLAMA, "vocab_size": 290943, "rms_norm_eps": 1e-5, "pad_token_id": 0,
    },
    "olmo2": _OLMO2,
    "olmo3": {**_OLMO2, "sliding_window": 4096},
})  # fmt: skip
# Keys for which null is a value of its own: none, or derived from other keys.
_NULLABLE: Final[tuple[str, ...]] = (
    "sliding_window", "head_dim", "num_key_value_heads",
    "attn_logit_softcapping", "final_logit_softcapping",
)  # fmt: skip
_TOKENS: Final = ("bos_token_id", "eos_token_id", "pad_token_id")
_LENGTH: Final = "max_position_embeddings"
_OLD_LENGTH: Final = "max_sequence_length"  # its name in configs of the first Llama


def fill_defaults(config: RawConfig, model_type: str) -> None:
    """Give every absent key the value that its absence means for a model_type.

    An assumed context length is noted; a default token id outside the vocabulary counts as none.
    """
    defaults = dict(DEFAULTS[model_type])
    if config.get(_LENGTH) is None:
        old = config.get(_OLD_LENGTH)
        is_told = isinstance(old, int) and not isinstance(old, bool) and old > 0
        length = defaults[_LENGTH] = old if is_told else defaults[_LENGTH]
        config.note(
            f"config.json has no {_LENGTH}: the context length is {length:,}, "
            + (f"its {_OLD_LENGTH}" if is_told else f"transformers' default for {model_type}")
        )
    tokens = {key: defaults.pop(key, None) for key in _TOKENS}
    nullable = {key: defaults.pop(key) for key in _NULLABLE if key in defaults}
    config.fill(defaults)
    config.fill(nullable, keeps_null=True)
    size = config.get("vocab_size")
    if isinstance(size, int):
        inside = {key: i for key, i in tokens.items() if i is not None and i < size}
        config.fill(inside, keeps_null=True)
