"""Model family ``gemma3``: from its config to a ``DecoderSpec``.

The text decoder of the multimodal Gemma 3, 4B and up; the vision tower is left out.
"""

from __future__ import annotations

from typing import Final

from edgekit.checkpoint.config import RawConfig
from edgekit.families import gemma3_text
from edgekit.families.base import Family
from edgekit.families.multimodal import VISION_KEYS, read_text_spec
from edgekit.families.spec import DecoderSpec


def read_spec(config: RawConfig) -> DecoderSpec:
    """Account for every key of a gemma3 config and of its ``text_config``.

    Raises:
        CheckpointError: Keys are missing or wrong; all are named.
        UnknownKeyError: Keys that could change the result and are not known.
        UnsupportedArchError: A rope type that edgekit does not compute.
    """
    config.ignore([*VISION_KEYS, "boi_token_index", "eoi_token_index", "mm_tokens_per_image"])
    return read_text_spec(config, {"gemma3_text": gemma3_text.read_spec}, "gemma3_text")


FAMILY: Final = Family("gemma3", read_spec, (gemma3_text.NAMES,))
