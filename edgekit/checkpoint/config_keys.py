"""Keys of config.json that may be ignored because they cannot change the result.

A key is ignored for one of three reasons: its value asks for nothing (null, empty, a switch that is
off, a factor of 1); its name is read by no code that computes logits; or its name is listed here
with the usual value that it has (a switch that is on, or an integer). Every other key may change
what the model computes.

Source: transformers 5.23, what the classes of the supported model types, the masks, the caches
and the position encodings read of a config; keys of tools from configs that they published
(tests/corpus/configs).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

# Pattern of key names -> why no computation of logits depends on them, whatever their value is.
NEVER_READ: Final[Mapping[str, str]] = {
    r"_.*": "private to the tool that wrote it",
    r"architectures|model_type": "the class in transformers; a family is chosen by model_type",
    r"auto_map|custom_(pipelines|code|generate)|trust_remote_code": "remote code, never run",
    r"((transformers|torch|config|code|format|model|schema|tool)_)?version|created_(at|by|on)":
        "who wrote the file",
    r"name_or_path|model_name_or_path|(base_)?model_name|base_model|model_id|revision": "a name",
    r"authors?|license|language|languages|tags|library_name|pipeline_tag|datasets?|metrics|"
    r"description|homepage|url|citation": "what a model card says",
    # Every dump of transformers' base class.
    r"(torch_)?dtype|use_bfloat16|bf16|fp16|fp32|torchscript|params_dtype|compute_dtype":
        "each tensor says its own type",
    r"return_dict|use_return_dict|output_(attentions|hidden_states|past|router_logits)":
        "what a call returns",
    r"chunk_size_feed_forward|use_cache|cache_implementation|cache_config": "how memory is used",
    r"prefix|problem_type|finetuning_task|task_specific_params|num_labels|id2label|label2id|"
    r"classifier_(dropout|activation)|summary_\w+": "heads of other tasks",
    r"keys_to_ignore_at_inference|base_model_(tp|pp|ep)_plan|is_composition|xla_device":
        "of the class, not of the model",
    r"tf_legacy_loss|loss_type|loss_function|label_smoothing|\w+_loss(_\w+)?|\w+_loss_coef\w*":
        "training only",
    # Training.
    r"(\w+_)?drop(out|path)?(_\w+)?|\w*_pdrop|initializer_(range|factor|cutoff_factor)|init_\w+|"
    r"\w+_init|\w+_init_(std|method|range)|gradient_checkpointing(_\w+)?|use_reentrant|"
    r"document_attention|train\w*|learning_rate|weight_decay|warmup_\w+|(\w+_)?batch_size|"
    r"optimizer\w*|scheduler\w*|seed|num_(train_)?epochs|max_steps|gradient_\w+":
        "training only",
    r"lora_\w+|peft_\w+|axolotl\w*|llama_?factory\w*|unsloth_\w+|wandb\w*|deepspeed\w*|"
    r"megatron\w*|nanotron\w*|is_llama_config|optimum_\w+|onnx\w*|neuron\w*|"
    r"transformers[._]js\w*|transformers_js\w*|internal_version|mlx_\w+|gguf\w*|vllm\w*|"
    r"sglang\w*|ollama\w*|coreml\w*|executorch\w*|merge(kit)?_?\w*|transformers_weights":
        "of the tool that wrote the file",
    # How matmuls and attention are computed, with the same result.
    r"attn_implementation\w*|attention_implementation|experts_implementation|"
    r"(use_|enable_|is_)?(flash|mem(ory)?_efficient|xformers|sdpa|triton|fused|liger)(_?\w+)?|"
    r"\w*_kernels?|use_kernels|use_cache_\w+|(attn_|attention_)?softmax_in_fp32|"
    r"\w+_in_fp32|pretraining_tp|tensor_parallel\w*|tp_(size|degree)|sequence_parallel\w*|"
    r"sp_size|use_te|compile_\w+": "how it is computed, not what",
    # Lengths of training or of a tokenizer; positions come from max_position_embeddings.
    r"max_seq(uence)?_len(gth)?|seq(uence)?_len(gth)?|model_max_len(gth)?|train\w*_len(gth)?|"
    r"n_ctx|n_positions|(max_)?context_(length|size|window)|max_tokenizer_truncation|max_window_layers|pad_to_multiple_of|"
    r"pad_vocab_size_multiple|make_vocab_size_divisible_by": "no position depends on it",
    # The tokenizer and what stands in its prompts.
    r"tokenizer_\w+|vocab_file|merges_file|chat_template|(bos|eos|pad|unk|sep|cls|mask)_token|"
    r"\w+_ids?|\w+_token_(index|indices)|chat_format|add_(bos|eos)_token":
        "of the tokenizer",
    # Generation: no more than generation_config.json says.
    r"(max|min)(_new)?_(length|tokens)|do_sample|early_stopping|num_(beams|beam_groups)|"
    r"num_return_sequences|temperature|top_[akp]|min_p|typical_p|epsilon_cutoff|eta_cutoff|"
    r"(encoder_)?repetition_penalty|length_penalty|diversity_penalty|presence_penalty|"
    r"frequency_penalty|exponential_decay_length_penalty|(encoder_)?no_repeat_ngram_size|"
    r"bad_words_ids|force_words_ids|sequence_bias|(begin_)?suppress_tokens|"
    r"forced_decoder_ids|remove_invalid_values|renormalize_logits|output_(scores|logits)|"
    r"return_dict_in_generate|penalty_alpha|constraints|guidance_scale|max_time|max_matches|"
    r"generation_config|num_assistant_tokens\w*": "a default of generation",
}  # fmt: skip

# Pattern of key names -> the values of each that ask for nothing out of the ordinary.
USUAL_VALUES: Final[Mapping[str, tuple[Any, ...]]] = {
    r"is_causal|causal\w*|use_causal\w*": (True,),
    # transformers has a class for each; these keys only say which one was used.
    r"is_decoder|is_decoder_only|decoder_only": (True, False),
    r"use_(rope|rotary\w*|rms_?norm|swiglu|glu|gated_mlp)|rope|rotary|rms_?norm|swiglu|pre_?norm|"
    r"normalize_before|do_layer_norm_before|scale_attn_weights": (True,),
    r"position(al)?_(embedding|encoding)(_type)?|pos_emb(_type)?": ("rope", "rotary"),
    r"norm(alization)?(_type|_function)?|layer_norm_type": ("rms", "rmsnorm", "rms_norm"),
    r"(attn|attention)_(type|mask_type|mode)": ("causal", "full", "full_attention", "gqa", "mha"),
    r"(mlp|ffn)_type": ("swiglu", "gated", "glu"),
    r"layer_types": ("full_attention",),
    r"rope_(scaling_)?type": ("default", "none"),
}  # fmt: skip

# Key names -> what another value than the usual one does; quoted where such a key is refused.
CHANGES: Final[Mapping[str, str]] = {
    "is_causal": "queries would see later tokens",
    "attention_chunk_size": "queries would see only keys of their own chunk",
    "sliding_window": "queries would see only the keys of a window",
    "pruned_heads": "heads were taken out",
    "is_encoder_decoder": "an encoder stands before the decoder",
    "add_cross_attention": "layers attend to an encoder",
    "cross_attention_hidden_size": "layers attend to an encoder",
    "tie_encoder_decoder": "an encoder stands before the decoder",
    "rope_interleaved": "rope would rotate neighbours instead of halves",
}

_MAX_NAME_CHARS: Final = 100  # so that a pattern stays fast on a name that is not a key at all
_FACTOR: Final = re.compile(
    r"(.*[_.])?(factor|multiplier|mult|scale|scaling|gain|alpha|ratio|temp(erature)?|divisor|mod)"
    r"(_emb|_depth|_width)?"
)
_AMOUNT: Final = re.compile(
    r"(num|n)_.*|.*_(num|count|layers|heads|experts|blocks|tokens|prob|rate|coef\w*|"
    r"softcap(ping)?|cap|clip|noise|decay)|experts?"
)
_ON_BY_DEFAULT: Final = re.compile(
    r".*causal.*|(.*[_.])?(use_)?(rope|rotary(_emb\w*|_pos\w*)?|rms_?norm|swiglu|glu|"
    r"gated\w*|pre_?norm|normalize_before|do_layer_norm_before|scale_attn\w*)"
)
_NEVER: Final = re.compile("|".join(f"(?:{pattern})" for pattern in NEVER_READ))


def is_never_read(key: str) -> bool:
    """Tell whether no computation of logits depends on a key of a config, by its name."""
    is_name = len(key) <= _MAX_NAME_CHARS and key not in CHANGES
    return is_name and _NEVER.fullmatch(key) is not None


def asks_for_nothing(key: str, value: object) -> bool:
    """Tell whether a value leaves the result unchanged: off, empty, a factor of 1, a count of 0.

    Args:
        key: Name of the key, without the section that it stands in; which values are neutral
            depends on it.
        value: As JSON gives it.
    """
    if value is None or value in ("", [], {}):
        return True
    if len(key) > _MAX_NAME_CHARS:
        return False
    for pattern, usual in USUAL_VALUES.items():
        if re.fullmatch(pattern, key):
            values = value if isinstance(value, list) else [value]
            return all((v.lower() if isinstance(v, str) else v) in usual for v in values)
    if value is False:
        return _ON_BY_DEFAULT.fullmatch(key) is None
    if isinstance(value, int | float) and value is not True:
        is_factor, is_amount = _FACTOR.fullmatch(key), _AMOUNT.fullmatch(key)
        return bool((value == 1 and is_factor) or (value == 0 and is_amount))
    return False
