"""Model family ``exaone``: from its config to a ``DecoderSpec``; EXAONE 3 and 3.5.

These are Llamas with other names. Source: modeling_exaone.py of the published EXAONE-3.0-7.8B.
"""

from __future__ import annotations

from typing import Final

from edgekit.checkpoint.config import RawConfig
from edgekit.families.base import Family
from edgekit.families.llama_form import read_llama_form
from edgekit.families.names import NameTable
from edgekit.families.spec import DecoderSpec

_KEYS: Final = {
    "num_layers": "num_hidden_layers",
    "layer_norm_epsilon": "rms_norm_eps",
    "activation_function": "hidden_act",
}
NAMES: Final = NameTable(
    top={
        "embed": "transformer.wte.weight",
        "final_norm": "transformer.ln_f.weight",
        "lm_head": "lm_head.weight",
    },
    layer_prefix="transformer.h.{i}.",
    layer={
        "attn_norm": "ln_1.weight",
        "ffn_norm": "ln_2.weight",
        "q": "attn.attention.q_proj.weight",
        "k": "attn.attention.k_proj.weight",
        "v": "attn.attention.v_proj.weight",
        "o": "attn.attention.out_proj.weight",
        "gate": "mlp.c_fc_0.weight",
        "up": "mlp.c_fc_1.weight",
        "down": "mlp.c_proj.weight",
    },
)


def read_spec(config: RawConfig) -> DecoderSpec:
    """Account for every key of an exaone config; the keys of its size are required.

    Raises:
        CheckpointError: Keys are missing or wrong; all are named.
        UnknownKeyError: Keys that could change the result and are not known.
        UnsupportedArchError: A rope type that edgekit does not compute.
    """
    config.rename(_KEYS)
    return read_llama_form(config, model_type="llama")


FAMILY: Final = Family("exaone", read_spec, (NAMES,))
