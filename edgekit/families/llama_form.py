"""Answer one question: what do the families share that follow the Llama form?

Weight names, the config keys that mean the same in each, and rope in its three spellings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from edgekit.checkpoint.config import RawConfig
from edgekit.errors import UnsupportedArchError
from edgekit.families.names import NameTable
from edgekit.families.spec import DecoderSpec, Llama3Scaling, RopeSpec

_DEFAULT_THETA: Final = 10000.0  # transformers' default when the key is absent
_MAX_LAYERS: Final = 1024
_MAX_WIDTH: Final = 1 << 24
NOT_USED_KEYS: Final[Mapping[str, str]] = {
    "_name_or_path": "where the authors kept it",
    "architectures": "the class in transformers; model_type decides",
    "attention_dropout": "training only",
    "auto_map": "remote code; never run",
    "dtype": "each tensor says its own type",
    "initializer_range": "training only",
    "torch_dtype": "each tensor says its own type",
    "transformers_version": "who wrote the file",
    "use_cache": "edgekit always keeps a cache",
    "model_type": "chose this family",
}
_PROJECTIONS: Final = {
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
        **{part: f"{theirs}.weight" for part, theirs in _PROJECTIONS.items()},
        **{f"{part}.bias": f"{theirs}.bias" for part, theirs in _PROJECTIONS.items()},
    },
    ignored={
        r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq": "computed from the config",
        r"model\.rotary_emb\.inv_freq": "computed from the config",
    },
)


def read_llama_form(
    config: RawConfig,
    *,
    model_type: str,
    n_kv_heads_default: int | None = None,
    sliding_window: int | None = None,
    has_attention_bias: bool = False,
    has_mlp_bias: bool = False,
) -> DecoderSpec:
    """Account for every key that the Llama form shares, then check that none is left.

    Args:
        config: The config; keys of one family only were taken before.
        model_type: As the spec should say.
        n_kv_heads_default: Meaning of an absent ``num_key_value_heads``; None makes it required,
            0 means as many as query heads.
        sliding_window: Keys that a query sees, or None.
        has_attention_bias: Biases on q, k, v and o.
        has_mlp_bias: Biases on gate, up and down.

    Raises:
        CheckpointError: Keys are missing or wrong; all are named.
        UnknownKeyError: Keys that could change the result and are not known.
        UnsupportedArchError: A rope type that edgekit does not compute.
    """
    config.ignore(NOT_USED_KEYS)
    config.expect("hidden_act", "silu", "silu")
    config.expect("quantization_config", None, None)
    hidden_width = config.take_count("hidden_size", at_most=_MAX_WIDTH)
    n_heads = config.take_count("num_attention_heads", at_most=_MAX_WIDTH)
    default = n_heads if n_kv_heads_default == 0 else n_kv_heads_default
    n_kv_heads = config.take_count("num_key_value_heads", default, at_most=_MAX_WIDTH)
    if n_kv_heads and n_heads % n_kv_heads:
        config.report(
            f"num_attention_heads {n_heads} is no multiple of num_key_value_heads {n_kv_heads}"
        )
    context_length = config.take_count("max_position_embeddings")
    spec = DecoderSpec(
        model_type=model_type,
        n_layers=config.take_count("num_hidden_layers", at_most=_MAX_LAYERS),
        hidden_width=hidden_width,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_width=_read_head_width(config, hidden_width, n_heads),
        ffn_width=config.take_count("intermediate_size", at_most=_MAX_WIDTH),
        vocab_size=config.take_count("vocab_size", at_most=_MAX_WIDTH),
        context_length=context_length,
        norm_eps=config.take("rms_norm_eps", float),
        rope=_read_rope(config),
        is_tied=config.take("tie_word_embeddings", bool, default=False),
        # A window as long as the context hides nothing.
        sliding_window=None if (sliding_window or 0) >= context_length else sliding_window,
        has_qkv_bias=has_attention_bias,
        has_o_bias=has_attention_bias,
        has_mlp_bias=has_mlp_bias,
        bos_token_id=next(iter(config.take_ids("bos_token_id")), None),
        eos_token_ids=config.take_ids("eos_token_id"),
        pad_token_id=_read_pad(config),
    )
    if not 0 < spec.norm_eps < 1:
        config.report(f"rms_norm_eps is {spec.norm_eps} (wanted between 0 and 1)")
    _check_ids(config, spec)
    config.finish()
    return spec


def _read_pad(config: RawConfig) -> int | None:
    # Llama 1 and 2 write -1 for "none".
    pad = config.take("pad_token_id", int, None)
    return None if pad is None or pad < 0 else pad


def _check_ids(config: RawConfig, spec: DecoderSpec) -> None:
    for token_id in (spec.bos_token_id, *spec.eos_token_ids, spec.pad_token_id):
        if token_id is not None and token_id >= spec.vocab_size:
            config.report(f"token id {token_id} is outside vocab_size {spec.vocab_size}")


def _read_head_width(config: RawConfig, hidden_width: int, n_heads: int) -> int:
    """Take ``head_dim``, or derive it from width and heads."""
    if config.get("head_dim") is not None:
        head_width = config.take_count("head_dim", at_most=1 << 16)
    else:
        config.ignore(["head_dim"])
        if n_heads < 1 or hidden_width % n_heads:
            config.report(
                f"hidden_size {hidden_width} is no multiple of num_attention_heads {n_heads}"
            )
            return 2
        head_width = hidden_width // n_heads
    if head_width % 2:
        config.report(f"head_dim is {head_width} (rope wants an even number)")
    return head_width


def _read_rope(config: RawConfig) -> RopeSpec:
    """Take rope in any of its spellings.

    ``rope_theta`` with ``rope_scaling`` (transformers 4), or ``rope_parameters`` (5).

    Raises:
        UnsupportedArchError: A rope type that edgekit does not compute.
    """
    theta = config.take("rope_theta", float, None)
    sections = [s for s in map(config.take_section, ("rope_parameters", "rope_scaling")) if s]
    if len(sections) > 1 and dict(sections[0]) != dict(sections[1]):
        config.report("rope_parameters and rope_scaling contradict each other")
    scaling: Llama3Scaling | None = None
    linear_factor = 1.0
    for section in sections:
        inner_theta = section.take("rope_theta", float, None)
        if inner_theta is not None and theta is not None and inner_theta != theta:
            section.report(f"rope_theta is {inner_theta} (rope_theta beside it is {theta})")
        theta = inner_theta if theta is None else theta
        section.expect("partial_rotary_factor", 1.0, 1.0)
        scaling, linear_factor = _read_scaling(section)
    theta = _DEFAULT_THETA if theta is None else theta
    if not 0 < theta < 1e15:
        config.report(f"rope_theta is {theta} (wanted a positive number)")
    return RopeSpec(theta, scaling, linear_factor)


def _read_scaling(section: RawConfig) -> tuple[Llama3Scaling | None, float]:
    old_spelling = section.take("type", str, None)
    kind = section.take("rope_type", str, None) or old_spelling or "default"
    if kind == "default":
        return None, 1.0
    if kind == "linear":
        factor = section.take("factor", float)
        _check_positive(section, factor=factor)
        return None, factor
    if kind == "llama3":
        low = section.take("low_freq_factor", float)
        high = section.take("high_freq_factor", float)
        factor = section.take("factor", float)
        _check_positive(section, factor=factor, low_freq_factor=low)
        if high <= low:
            section.report(f"high_freq_factor is {high} (wanted more than low_freq_factor {low})")
        original = section.take_count("original_max_position_embeddings")
        return Llama3Scaling(factor, low, high, original), 1.0
    raise UnsupportedArchError(
        f"{section.where}: rope type",
        got=repr(kind[:80]),
        wanted="default, linear or llama3",
        do="This model needs a position encoding that edgekit does not compute yet.",
    )


def _check_positive(section: RawConfig, **values: float) -> None:
    for key, value in values.items():
        if not 0 < value < 1e9:
            section.report(f"{key} is {value} (wanted a positive number)")
