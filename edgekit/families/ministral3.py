"""Model family ``ministral3``: from its config to a ``DecoderSpec``.

Ministral 3, 3B to 14B: YaRN, and an attention temperature as in Llama 4.
"""

from __future__ import annotations

from typing import Final

from edgekit.checkpoint.config import RawConfig
from edgekit.families.base import Family
from edgekit.families.defaults import fill_defaults
from edgekit.families.llama_form import NAMES, read_llama_form, take_window
from edgekit.families.spec import DecoderSpec


def read_spec(config: RawConfig) -> DecoderSpec:
    """Account for every key of a ministral3 config.

    Raises:
        CheckpointError: Keys are missing or wrong; all are named.
        UnknownKeyError: Keys that could change the result and are not known.
        UnsupportedArchError: A rope type that edgekit does not compute.
    """
    fill_defaults(config, "ministral3")
    return read_llama_form(config, model_type="ministral3", sliding_window=take_window(config))


FAMILY: Final = Family("ministral3", read_spec, (NAMES,))
