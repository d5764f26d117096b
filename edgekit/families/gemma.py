"""Model family ``gemma``: from its config to a ``DecoderSpec``.

Gemma 1 and 1.1 (2B, 7B) and CodeGemma: the Llama form with Gemma's norms, activation and embedding.
"""

from __future__ import annotations

from typing import Final

from edgekit.checkpoint.config import RawConfig
from edgekit.families.base import Family
from edgekit.families.defaults import fill_defaults
from edgekit.families.gemma_form import ignore_gemma_keys, take_embed_scale
from edgekit.families.llama_form import NAMES, read_llama_form
from edgekit.families.spec import Activation, DecoderSpec

_TANH: Final = "gelu_pytorch_tanh"
# Which values of each key mean the tanh form of GELU. The first configs say "gelu" in hidden_act
# and mean it too: transformers 4 read hidden_activation instead, null as the tanh form, and
# transformers 5 reads hidden_act, "gelu" as the tanh form.
_TANH_NAMES: Final = {"hidden_act": ("gelu", _TANH), "hidden_activation": (_TANH,)}


def read_spec(config: RawConfig) -> DecoderSpec:
    """Account for every key of a gemma config.

    Raises:
        CheckpointError: Keys are missing or wrong; all are named.
        UnknownKeyError: Keys that could change the result and are not known.
        UnsupportedArchError: A rope type that edgekit does not compute.
    """
    fill_defaults(config, "gemma")
    ignore_gemma_keys(config)
    for key, names in _TANH_NAMES.items():
        name = config.take(key, str, _TANH)
        if name not in names:
            config.report(f"{key} is {name[:80]!r} (edgekit supports {', '.join(names)})")
    has_attention_bias = config.take("attention_bias", bool, default=False)
    return read_llama_form(
        config,
        model_type="gemma",
        activation=Activation.GELU_TANH,
        has_qkv_bias=has_attention_bias,
        has_o_bias=has_attention_bias,
        norm_offset=1.0,
        embed_scale=take_embed_scale(config),
    )


FAMILY: Final = Family("gemma", read_spec, (NAMES,))
