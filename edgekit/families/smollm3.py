"""Model family ``smollm3``: from its config to a ``DecoderSpec``.

SmolLM3: every fourth layer has no position encoding.
"""

from __future__ import annotations

from typing import Final

from edgekit.checkpoint.config import RawConfig
from edgekit.families.base import Family
from edgekit.families.defaults import fill_defaults
from edgekit.families.llama_form import (
    NAMES,
    read_llama_form,
    take_n_layers,
    take_sliding_layers,
    take_window,
)
from edgekit.families.spec import DecoderSpec

_DEFAULT_THETA: Final = 2e6


def read_spec(config: RawConfig) -> DecoderSpec:
    """Account for every key of a smollm3 config.

    Raises:
        CheckpointError: Keys are missing or wrong; all are named.
        UnknownKeyError: Keys that could change the result and are not known.
        UnsupportedArchError: A rope type that edgekit does not compute.
    """
    fill_defaults(config, "smollm3")
    n_layers = take_n_layers(config)
    without = _take_no_rope_layers(config, n_layers)
    window = take_window(config)
    layers = take_sliding_layers(config, n_layers)
    is_sliding = config.take("use_sliding_window", bool, default=False)
    if layers is None:
        layers = without if is_sliding else ()
    has_attention_bias = config.take("attention_bias", bool, default=False)
    return read_llama_form(
        config,
        model_type="smollm3",
        default_theta=_DEFAULT_THETA,
        no_rope_layers=without,
        sliding_window=window if layers else None,
        sliding_layers=layers if layers and window else None,
        has_qkv_bias=has_attention_bias,
        has_o_bias=has_attention_bias,
        has_mlp_bias=config.take("mlp_bias", bool, default=False),
    )


def _take_no_rope_layers(config: RawConfig, n_layers: int) -> tuple[int, ...]:
    """Take ``no_rope_layers``, which is 1 for a layer that has rope, or derive it."""
    interval = config.take_count("no_rope_layer_interval", 4)
    flags = config.take("no_rope_layers", list, None)
    if flags is None:
        return tuple(i for i in range(n_layers) if (i + 1) % max(1, interval) == 0)
    if len(flags) != n_layers or any(flag not in (0, 1) for flag in flags):
        config.report(f"no_rope_layers must have {n_layers} entries, each 0 or 1")
        return ()
    return tuple(i for i, flag in enumerate(flags) if not flag)


FAMILY: Final = Family("smollm3", read_spec, (NAMES,))
