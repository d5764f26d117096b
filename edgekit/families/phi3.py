"""Model family ``phi3``: from its config to a ``DecoderSpec``.

Phi-3, Phi-3.5 and Phi-4-mini: q, k and v in one matrix, gate and up in another; LongRoPE.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from edgekit.checkpoint.config import RawConfig
from edgekit.families import llama_form
from edgekit.families.base import Family
from edgekit.families.defaults import fill_defaults
from edgekit.families.llama_form import read_llama_form, take_window
from edgekit.families.spec import DecoderSpec

_LAYER: Final = llama_form.NAMES.layer
NAMES: Final = replace(
    llama_form.NAMES,
    layer={
        **{part: _LAYER[part] for part in ("attn_norm", "ffn_norm", "o", "down")},
        "qkv": "self_attn.qkv_proj.weight",
        "gate_up": "mlp.gate_up_proj.weight",
    },
    fused={"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")},
)


def read_spec(config: RawConfig) -> DecoderSpec:
    """Account for every key of a phi3 config.

    Raises:
        CheckpointError: Keys are missing or wrong; all are named.
        UnknownKeyError: Keys that could change the result and are not known.
        UnsupportedArchError: A rope type that edgekit does not compute.
    """
    fill_defaults(config, "phi3")
    for key in ("attention_bias", "mlp_bias", "lm_head_bias"):
        config.expect(key, wanted=False, default=False)
    # Of the code that published checkpoints came with; one means: in every layer.
    for key in ("full_attn_mod", "interpolate_factor"):
        config.expect(key, 1, 1)
    return read_llama_form(
        config,
        model_type="phi3",
        sliding_window=take_window(config),
    )


FAMILY: Final = Family("phi3", read_spec, (NAMES,))
