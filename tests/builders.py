"""Small checkpoints that tests use in place of a real one.

A random two-layer model in a standard Hugging Face folder, written with the libraries that
define those formats (safetensors, tokenizers, ml_dtypes) and without edgekit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tests.tiny_families import TINY_CONFIGS, family_weights

SPECIAL_TOKENS: Final = (
    "<unk>", "<s>", "</s>", "<pad>",
    "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]",
    "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
)  # fmt: skip
CHAT_TEMPLATE: Final = """\
{{- bos_token }}
{%- if tools %}
    {{- '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}
{%- endif %}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {{- '[SYSTEM_PROMPT]' + message['content'] + '[/SYSTEM_PROMPT]' }}
    {%- elif message['role'] == 'user' %}
        {{- '[INST]' + message['content'] + '[/INST]' }}
    {%- elif message['role'] == 'assistant' and message['tool_calls'] %}
        {{- '[TOOL_CALLS]' + (message['tool_calls'] | tojson) + eos_token }}
    {%- elif message['role'] == 'assistant' %}
        {{- message['content'] + eos_token }}
    {%- elif message['role'] == 'tool' %}
        {{- '[TOOL_RESULTS]' + message['content'] + '[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception('unknown role ' + message['role']) }}
    {%- endif %}
{%- endfor %}
"""
_DTYPES: Final[dict[str, Any]] = {
    "bf16": ml_dtypes.bfloat16,
    "fp16": np.float16,
    "fp32": np.float32,
}
_CONFIG_NAMES: Final = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
_VISION_CONFIGS: Final[dict[str, Any]] = {
    "mistral3": {"model_type": "pixtral", "hidden_size": 8},
    "qwen2_5_vl": {"depth": 1, "hidden_size": 32, "num_heads": 2, "out_hidden_size": 128},
    "qwen3_vl": {
        "depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64,
        "out_hidden_size": 128, "deepstack_visual_indexes": [0],
    },
}  # fmt: skip
_PAIRS: Final = (
    "th he in er an re nd at on nt ha es st en ed to it ou ea hi is or ti as te et ng of al de "
    "se le sa si ar ve ra ld ur io ic ro co me be ce li ch ll ma no ri so us wa we wh"
)
_TRIPLES: Final = "th+e in+g an+d io+n en+t ha+t er+e hi+s wh+i ou+r"


def write_tiny_checkpoint(
    folder: str | Path,
    model_type: str = "mistral",
    seed: int = 0,
    *,
    shards: int = 1,
    dtype: str = "bf16",
    **config_overrides: Any,
) -> Path:
    """Write a random checkpoint whose logits are spread (standard deviation about 2).

    Args:
        folder: Where to write; made if absent.
        model_type: A key of ``TINY_CONFIGS``: a model_type, or one of its variants.
        seed: Other weights for another seed.
        shards: Number of weight files; more than one come with an index.
        dtype: Stored type: bf16, fp16 or fp32.
        config_overrides: Keys of config.json to set; shapes follow them.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = tiny_config(model_type, dtype, **config_overrides)
    _write_json(folder / "config.json", config)
    decoder = config.get("text_config", config)
    _write_json(
        folder / "generation_config.json",
        {"bos_token_id": 1, "eos_token_id": decoder["eos_token_id"], "pad_token_id": 3},
    )
    write_tiny_tokenizer(folder, vocab_size=decoder["vocab_size"])
    tensors = {
        name: values.astype(_DTYPES[dtype]) for name, values in family_weights(config, seed).items()
    }
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weight_map: dict[str, str] = {}
    for number, names in enumerate(np.array_split(np.array(list(tensors)), shards), start=1):
        file_name = f"model-{number:05}-of-{shards:05}.safetensors"
        save_file(
            {str(n): tensors[n] for n in names}, folder / file_name, metadata={"format": "pt"}
        )
        weight_map.update({str(name): file_name for name in names})
    total = sum(values.nbytes for values in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index)
    return folder


def write_tiny_tokenizer(folder: Path, vocab_size: int = 384) -> None:
    """Write a byte-level BPE tokenizer of at most ``vocab_size`` tokens, and its chat template."""
    merges = [(pair[0], pair[1]) for pair in _PAIRS.split()]
    merges += [tuple(triple.split("+")) for triple in _TRIPLES.split()]
    merges += [("Ġ", letter) for letter in "abcdefghijklmnopqrstuvwxyz"]
    merges += [("Ġ" + "t", "he"), ("Ġ" + "a", "nd"), ("Ġ" + "i", "s")]
    symbols = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = merges[: vocab_size - len(symbols)]
    symbols += ["".join(merge) for merge in merges]
    tokenizer = Tokenizer(models.BPE({s: i for i, s in enumerate(symbols)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in SPECIAL_TOKENS]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "clean_up_tokenization_spaces": False,
            "model_max_length": 256,
            "chat_template": CHAT_TEMPLATE,
        },
    )


def tiny_config(name: str, dtype: str = "bf16", **overrides: Any) -> dict[str, Any]:
    """Give the config of a member of ``TINY_CONFIGS``; a wrapper's overrides go inside."""
    own = TINY_CONFIGS[name]
    inner = own.get("text_config", own)
    model_type = own["model_type"]
    written = {
        "architectures": [f"{model_type.capitalize()}ForCausalLM"],
        "torch_dtype": _CONFIG_NAMES[dtype],
        "transformers_version": "4.57.0",
    }
    decoder = {
        **written,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": 384,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
        **inner,
    }
    # The families differ in which keys they know at all.
    absent = [key for key in ("head_dim", "hidden_act", "rope_theta") if decoder[key] is None]
    absent += ["rope_theta"] if "rope_parameters" in inner else []
    if model_type == "exaone":
        absent += ["num_hidden_layers", "rms_norm_eps"]
    decoder = {key: value for key, value in decoder.items() if key not in absent} | overrides
    if inner is own:
        return decoder
    vision = _VISION_CONFIGS[model_type]
    wrapper = {**written, "model_type": model_type, "text_config": decoder, "vision_config": vision}
    if model_type.endswith("_vl"):
        wrapper["tie_word_embeddings"] = decoder["tie_word_embeddings"]
    return wrapper


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
