"""Model family ``mistral``: from its config to a ``DecoderSpec``.

Mistral 7B v0.1 (sliding window) to v0.3, Nemo, and the bundled pocket model.
"""

from __future__ import annotations

from typing import Final

from edgekit.checkpoint.config import RawConfig
from edgekit.families.base import Family
from edgekit.families.defaults import fill_defaults
from edgekit.families.llama_form import NAMES, read_llama_form, take_window
from edgekit.families.spec import DecoderSpec


def read_spec(config: RawConfig) -> DecoderSpec:
    """Account for every key of a mistral config.

    Raises:
        CheckpointError: Keys are missing or wrong; all are named.
        UnknownKeyError: Keys that could change the result and are not known.
        UnsupportedArchError: A rope type that edgekit does not compute.
    """
    fill_defaults(config, "mistral")
    return read_llama_form(config, model_type="mistral", sliding_window=take_window(config))


FAMILY: Final = Family("mistral", read_spec, (NAMES,))
