"""Model family ``granitemoehybrid``: from its config to a ``DecoderSpec``.

The dense models of Granite 4 (350M, 1B): attention in every layer and no experts. The "shared
expert" is then the whole feed-forward block.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from edgekit.checkpoint.config import RawConfig
from edgekit.errors import UnsupportedArchError
from edgekit.families import llama_form
from edgekit.families.base import Family
from edgekit.families.defaults import fill_defaults
from edgekit.families.granite import take_multipliers
from edgekit.families.llama_form import read_llama_form, take_n_layers
from edgekit.families.spec import DecoderSpec

_LAYER: Final = llama_form.NAMES.layer
NAMES: Final = replace(
    llama_form.NAMES,
    layer={
        **{name: theirs for name, theirs in _LAYER.items() if "mlp." not in theirs},
        "gate_up": "shared_mlp.input_linear.weight",
        "down": "shared_mlp.output_linear.weight",
    },
    fused={"gate_up": ("gate", "up")},
)
_ATTENTION: Final = ("attention", "full_attention")
# Keys in every config of the family; without state space layers or experts, nothing reads them.
_UNUSED: Final = (
    "intermediate_size", "num_experts_per_tok", "output_router_logits", "router_aux_loss_coef",
    "mamba_n_heads", "mamba_n_groups", "mamba_d_state", "mamba_d_head", "mamba_d_conv",
    "mamba_expand", "mamba_chunk_size", "mamba_conv_bias", "mamba_proj_bias", "time_step_limit",
    "time_step_min", "time_step_max", "time_step_floor", "init_method",
)  # fmt: skip


def read_spec(config: RawConfig) -> DecoderSpec:
    """Account for every key of a granitemoehybrid config.

    Raises:
        CheckpointError: Keys are missing or wrong; all are named.
        UnknownKeyError: Keys that could change the result and are not known.
        UnsupportedArchError: State space layers, experts, or a rope type that edgekit does not
            compute.
    """
    fill_defaults(config, "granitemoehybrid")
    n_layers = take_n_layers(config)
    _refuse_other_blocks(config, n_layers)
    config.ignore(_UNUSED)
    config.expect("normalization_function", "rmsnorm", "rmsnorm")
    position = config.take("position_embedding_type", str, "nope")
    if position not in ("rope", "nope"):
        config.report(f"position_embedding_type is {position[:80]!r} (edgekit supports rope, nope)")
    has_attention_bias = config.take("attention_bias", bool, default=False)
    return read_llama_form(
        config,
        model_type="granitemoehybrid",
        ffn_key="shared_intermediate_size",
        no_rope_layers=() if position == "rope" else tuple(range(n_layers)),
        has_qkv_bias=has_attention_bias,
        has_o_bias=has_attention_bias,
        **take_multipliers(config),
    )


def _refuse_other_blocks(config: RawConfig, n_layers: int) -> None:
    """Refuse layers other than attention with a plain feed-forward block.

    Raises:
        UnsupportedArchError: State space layers or experts.
    """
    # An absent key is not harmless: transformers then assumes state space layers and 8 experts.
    key = "layers_block_type" if config.get("layer_types") is None else "layer_types"
    config.ignore(["layer_types", "layers_block_type"])
    kinds = config.take(key if key in config else "layer_types", list)
    if len(kinds) != n_layers:
        config.report(f"layer_types has {len(kinds)} entries (wanted {n_layers})")
    n_others = sum(kind not in _ATTENTION for kind in kinds)
    n_experts = config.take("num_local_experts", int)
    found = [f"{n_others} of {n_layers} layers without attention"] if n_others else []
    found += [f"{n_experts} experts"] if n_experts else []
    if found:
        raise UnsupportedArchError(
            f"{config.where}: granitemoehybrid",
            got=" and ".join(found),
            wanted="attention in every layer and no experts",
            do="State space layers and experts need another graph, and neither edgekit nor "
            "optimum-onnx 0.1.0 (--via optimum) has one for them.",
        )


FAMILY: Final = Family("granitemoehybrid", read_spec, (NAMES,))
