"""Model family ``ministral``: from its config to a ``DecoderSpec``.

Ministral 8B of 2024: layers with a sliding window and with full attention, by ``layer_types``.
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


def read_spec(config: RawConfig) -> DecoderSpec:
    """Account for every key of a ministral config.

    Raises:
        CheckpointError: Keys are missing or wrong; all are named.
        UnknownKeyError: Keys that could change the result and are not known.
        UnsupportedArchError: A rope type that edgekit does not compute.
    """
    fill_defaults(config, "ministral")
    return read_llama_form(
        config,
        model_type="ministral",
        sliding_window=take_window(config),
        sliding_layers=take_sliding_layers(config, take_n_layers(config)),
    )


FAMILY: Final = Family("ministral", read_spec, (NAMES,))
