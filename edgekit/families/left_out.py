"""Tensors of a checkpoint that are not part of its decoder, and what they are.

A stored tensor from which no weight of the decoder is read is left out, with a note, if it cannot
matter to the decoder: it is a table that follows from the config, belongs to another part of the
model, or was kept by a training program. Any other tensor inside a layer would change the result,
and is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

VISION: Final = "the vision tower; edgekit takes the text decoder"
PREDICTION: Final = "layers that predict more than one token (MTP)"
UNUSED: Final = "unknown; nothing in the decoder is read from them"
ZERO_BIASES: Final = "biases that are all zero"
UNREAD_BIASES: Final = "biases that the config does not know; an export refuses any but zeros"

# Pattern of a name -> what the tensor is; inside the layers too. The first match counts.
_ANYWHERE: Final[Mapping[str, str]] = {
    r"rotary_emb[a-z_]*\.|(^|\.)rotary_pos_emb\.|(^|\.)inv_freq$|(cos|sin)_cached$": (
        "rotary tables, computed from the config"
    ),
    r"(attn|attention)\.(bias|masked_bias|mask|causal_mask)$|(^|\.)causal_mask$": (
        "attention masks of old saves"
    ),
    r"(^|\.)(k|v|q|kv|prob)(_output)?_scale$|(^|\.)(k|v|q|qkv|kv)_proj\.(output|k|v)_scale$": (
        "scales of a quantized KV cache"
    ),
    r"(^|\.)(k|v|q)_zero_point$": "zero points of a quantized KV cache",
    r"\.(exp_avg|exp_avg_sq|momentum_buffer|master_weight)$": "an optimizer",
    r"(^|\.)(input|output|activation)(_global)?_scale(_inv)?$": "scales of quantized activations",
}
# The same for names outside the decoder's layers.
_OUTSIDE: Final[Mapping[str, str]] = {
    r"(^|\.)(vision|visual|image|img|vit|siglip|multi_modal|mm_|patch_|perceiver|connector)": (
        VISION
    ),
    r"(^|\.)(audio|speech|sound|talker|code2wav|token2wav)": (
        "the audio part; edgekit takes the text decoder"
    ),
    r"(^|\.)(mtp|nextn|mtp_[a-z]+)(\.|$)": PREDICTION,
    r"(^|\.)(medusa|eagle|draft)[a-z_]*(\.|$)": "a head that drafts tokens",
    r"(^|\.)(v_head|value_head|score|classifier|reward_head|regression_head)(\.|$)": (
        "a head for another task"
    ),
    r"(^|\.)(optimizer|optim|exp_avg|exp_avg_sq|master_weights?|momentum|ema)(\.|_|$)": (
        "an optimizer"
    ),
}
_PREDICTS: Final = re.compile(r"\.(eh_proj|enorm|hnorm|shared_head)\.")
# Next to the layers, these change what a decoder computes; so do llama.cpp's names of layers.
_MATTERS: Final = re.compile(
    r"(^|\.)(embed_positions|position_embeddings|wpe|norm|embed_norm|[a-z_]*layernorm|ln_f"
    r"|embed_tokens[a-z_]*|tok_embeddings)\."
)
_MATTERS_ANYWHERE: Final = re.compile(r"(^|\.)lm_head\.|^blk\.\d+\.")


def kind_in_layer(name: str) -> str | None:
    """Say what an extra tensor of a layer is; None if the layer would need it."""
    return next((kind for pattern, kind in _ANYWHERE.items() if re.search(pattern, name)), None)


def kind_outside(name: str, *, is_inside_root: bool) -> str | None:
    """Say what an extra tensor outside the layers is; None: it may matter.

    Args:
        name: Its name in the checkpoint.
        is_inside_root: Whether it is where embedding and final norm are.
    """
    known = kind_in_layer(name)
    if known is not None:
        return known
    for pattern, kind in _OUTSIDE.items():
        if re.search(pattern, name):
            return kind
    matters = _MATTERS_ANYWHERE.search(name) or (is_inside_root and _MATTERS.search(name))
    return None if matters else UNUSED


def predicts_tokens(name: str) -> bool:
    """Tell whether a tensor shows that its layer is an extra one that predicts further tokens."""
    return _PREDICTS.search(name) is not None
