"""The Llama form: config keys and weight names that many families share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from edgekit.checkpoint.config import RawConfig
from edgekit.checkpoint.prequantized.method import account_for_quantization
from edgekit.families.names import NameTable
from edgekit.families.rope_config import (
    DEFAULT_THETA,
    RopeContext,
    effective_length,
    read_rope,
)
from edgekit.families.spec import MAX_HEAD_WIDTH, MAX_LAYERS, MAX_WIDTH, Activation, DecoderSpec

_ACTIVATIONS: Final[Mapping[str, Activation]] = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
}
PROJECTIONS: Final[Mapping[str, str]] = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
NAMES: Final = NameTable(
    top={
        "embed": "model.embed_tokens.weight",
        "final_norm": "model.norm.weight",
        "lm_head": "lm_head.weight",
    },
    layer_prefix="model.layers.{i}.",
    layer={
        "attn_norm": "input_layernorm.weight",
        "ffn_norm": "post_attention_layernorm.weight",
        **{part: f"{theirs}.weight" for part, theirs in PROJECTIONS.items()},
        **{f"{part}.bias": f"{theirs}.bias" for part, theirs in PROJECTIONS.items()},
    },
)
QK_NORM_NAMES: Final[Mapping[str, str]] = {
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
}


def read_llama_form(
    config: RawConfig,
    *,
    model_type: str,
    activation_key: str = "hidden_act",
    ffn_key: str = "intermediate_size",
    default_theta: float = DEFAULT_THETA,
    **features: Any,
) -> DecoderSpec:
    """Account for every key that the Llama form shares, then check that none is left.

    Args:
        config: The config, filled with defaults; keys of one family only were taken before. An
            absent ``num_key_value_heads`` means as many as query heads.
        model_type: The ``model_type`` of the spec.
        activation_key: Name of the key for the activation.
        ffn_key: Name of the key for the width of the feed-forward block.
        default_theta: Meaning of an absent ``rope_theta``.
        features: Other fields of ``DecoderSpec``; ``rope`` or ``activation`` among them means
            that the family has read it.

    Raises:
        CheckpointError: Keys are missing or wrong; all are named.
        UnknownKeyError: Keys that could change the result and are not known.
        UnsupportedArchError: A rope type that edgekit does not compute.
    """
    account_for_quantization(config)
    hidden_width, n_heads, head_width = take_widths(config)
    n_kv_heads = config.take_count("num_key_value_heads", n_heads, at_most=MAX_WIDTH)
    if n_kv_heads and n_heads % n_kv_heads:
        config.report(
            f"num_attention_heads {n_heads} is not a multiple of num_key_value_heads {n_kv_heads}"
        )
    context_length = config.take_count("max_position_embeddings")
    original = config.take("original_max_position_embeddings", int, None)
    if "rope" not in features:
        context = RopeContext(head_width, context_length, original, default_theta)
        features["rope"], features["query_scaling"] = read_rope(config, context)
        context_length = effective_length(config, context_length)
    else:
        # Families with a rope for each kind of layer publish the raised length (Gemma 3: linear).
        context_length = effective_length(config, context_length, kinds=("yarn",))
    if "activation" not in features:
        features["activation"] = _read_activation(config, activation_key)
    # A window as long as the context has no effect, unless its layers have a rope of their own.
    is_whole = (features.get("sliding_window") or 0) >= context_length
    if is_whole and features.get("local_rope") is None:
        features["sliding_window"] = features["sliding_layers"] = None
    spec = DecoderSpec(
        model_type=model_type,
        n_layers=take_n_layers(config),
        hidden_width=hidden_width,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_width=head_width,
        ffn_width=config.take_count(ffn_key, at_most=MAX_WIDTH),
        vocab_size=config.take_count("vocab_size", at_most=MAX_WIDTH),
        context_length=context_length,
        norm_eps=config.take("rms_norm_eps", float),
        is_tied=config.take("tie_word_embeddings", bool, default=False),
        bos_token_id=next(iter(config.take_ids("bos_token_id")), None),
        eos_token_ids=config.take_ids("eos_token_id"),
        pad_token_id=_read_pad(config),
        **features,
    )
    if not 0 < spec.norm_eps < 1:
        config.report(f"rms_norm_eps is {spec.norm_eps} (wanted between 0 and 1)")
    config.finish()
    return spec


def take_n_layers(config: RawConfig) -> int:
    """Take ``num_hidden_layers``."""
    return config.take_count("num_hidden_layers", at_most=MAX_LAYERS)


def take_widths(config: RawConfig) -> tuple[int, int, int]:
    """Take ``hidden_size``, ``num_attention_heads`` and ``head_dim``, or derive the last."""
    hidden_width = config.take_count("hidden_size", at_most=MAX_WIDTH)
    n_heads = config.take_count("num_attention_heads", at_most=MAX_WIDTH)
    return hidden_width, n_heads, _read_head_width(config, hidden_width, n_heads)


def take_window(config: RawConfig) -> int | None:
    """Take ``sliding_window``; null means none."""
    window = config.take("sliding_window", int, None)
    if window is not None and window < 1:
        config.report(f"sliding_window is {window} (wanted null or at least 1)")
        return None
    return window


def take_sliding_layers(config: RawConfig, n_layers: int) -> tuple[int, ...] | None:
    """Take ``layer_types``: the sliding-window layers, or None when the key is absent."""
    kinds = config.take("layer_types", list, None)
    if kinds is None:
        return None
    known = ("full_attention", "sliding_attention")
    if len(kinds) != n_layers or any(kind not in known for kind in kinds):
        config.report(f"layer_types must have {n_layers} entries, each {' or '.join(known)}")
        return None
    return tuple(i for i, kind in enumerate(kinds) if kind == "sliding_attention")


def _read_activation(config: RawConfig, key: str) -> Activation:
    name = config.take(key, str, "silu")
    if name not in _ACTIVATIONS:
        config.report(f"{key} is {name[:80]!r} (edgekit supports {', '.join(_ACTIVATIONS)})")
    return _ACTIVATIONS.get(name, Activation.SILU)


def _read_pad(config: RawConfig) -> int | None:
    # Llama 1 and 2 write -1 for "none".
    if config.get("pad_token_id") == -1:
        config.ignore(["pad_token_id"])
        return None
    return next(iter(config.take_ids("pad_token_id")), None)


def _read_head_width(config: RawConfig, hidden_width: int, n_heads: int) -> int:
    """Take ``head_dim``, or derive it from width and heads."""
    if config.get("head_dim") is not None:
        head_width = config.take_count("head_dim", at_most=MAX_HEAD_WIDTH)
    else:
        config.ignore(["head_dim"])
        if n_heads < 1 or hidden_width % n_heads:
            config.report(
                f"hidden_size {hidden_width} is not a multiple of num_attention_heads {n_heads}"
            )
            return 2
        head_width = hidden_width // n_heads
        if head_width > MAX_HEAD_WIDTH:
            config.report(f"heads have {head_width} channels (wanted at most {MAX_HEAD_WIDTH})")
            return 2
    if head_width % 2:
        config.report(f"head_dim is {head_width} (rope needs an even number)")
    return head_width
