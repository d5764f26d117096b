"""Model family ``qwen2``: from its config to a ``DecoderSpec``.

Qwen2, Qwen2.5 and Qwen2.5-Coder: biases on q, k and v only.
"""

from __future__ import annotations

from typing import Final

from edgekit.checkpoint.config import RawConfig
from edgekit.families.base import Family
from edgekit.families.defaults import fill_defaults
from edgekit.families.llama_form import NAMES, read_llama_form, take_n_layers, take_window
from edgekit.families.llama_form import take_sliding_layers as take_layer_types
from edgekit.families.rope_config import DEFAULT_THETA
from edgekit.families.spec import DecoderSpec


def take_sliding(config: RawConfig) -> tuple[int | None, tuple[int, ...] | None]:
    """Take the window and the sliding-window layers, from the three keys that Qwen uses."""
    n_layers = take_n_layers(config)
    window = take_window(config)
    first = config.take("max_window_layers", int, n_layers)
    layers = take_layer_types(config, n_layers)
    if not config.take("use_sliding_window", bool, default=False):
        return None, None
    return window, tuple(range(max(0, first), n_layers)) if layers is None else layers


def read_spec(
    config: RawConfig, *, defaults: str = "qwen2", default_theta: float = DEFAULT_THETA
) -> DecoderSpec:
    """Account for every key of a qwen2 config.

    Args:
        config: The config, or the text part of a vision model's.
        defaults: The model_type whose class says what absent keys mean.
        default_theta: Meaning of an absent ``rope_theta``.

    Raises:
        CheckpointError: Keys are missing or wrong; all are named.
        UnknownKeyError: Keys that could change the result and are not known.
        UnsupportedArchError: A rope type that edgekit does not compute.
    """
    fill_defaults(config, defaults)
    window, layers = take_sliding(config)
    # An image's position is three numbers; a text's is one number, three times. A bias exists
    # where its tensor does.
    config.ignore(["use_mrope", "attention_bias"])
    return read_llama_form(
        config,
        model_type="qwen2",
        default_theta=default_theta,
        sliding_window=window,
        sliding_layers=layers,
        has_qkv_bias=True,
    )


FAMILY: Final = Family("qwen2", read_spec, (NAMES,))
