"""Answer one question: how does a ``mistral`` config become a ``DecoderSpec``?

Mistral 7B v0.1 (sliding window) to v0.3, Nemo, and the bundled pocket model.
"""

from __future__ import annotations

from typing import Final

from edgekit.checkpoint.config import RawConfig
from edgekit.families.base import Family
from edgekit.families.llama_form import NAMES, read_llama_form, take_window
from edgekit.families.spec import DecoderSpec

_ABSENT_WINDOW: Final = 4096  # transformers MistralConfig: absent is 4096, null is none


def read_spec(config: RawConfig) -> DecoderSpec:
    """Account for every key of a mistral config.

    Raises:
        CheckpointError: Keys are missing or wrong; all are named.
        UnknownKeyError: Keys that could change the result and are not known.
        UnsupportedArchError: A rope type that edgekit does not compute.
    """
    window = take_window(config) if "sliding_window" in config else _ABSENT_WINDOW
    config.require("num_key_value_heads")
    return read_llama_form(config, model_type="mistral", sliding_window=window)


FAMILY: Final = Family("mistral", read_spec, (NAMES,))
