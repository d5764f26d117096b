"""Model family ``qwen2_vl``: the text decoder of Qwen2-VL, which is Qwen2; also for Qwen2.5-VL.

A text has one position where an image has three (time, row, column), so its rope is the plain one.
The vision tower is left out.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from edgekit.checkpoint.config import RawConfig
from edgekit.families import qwen2
from edgekit.families.base import Family
from edgekit.families.llama_form import NAMES
from edgekit.families.multimodal import VISION_KEYS, read_text_spec
from edgekit.families.spec import DecoderSpec

_THETA: Final = 1e6  # transformers' default when the key is absent


def read_wrapper(config: RawConfig, text_type: str) -> DecoderSpec:
    """Account for every key of a config and of its ``text_config``, if it has one.

    Args:
        config: The outer config.
        text_type: ``model_type`` of the text decoder, for the defaults.

    Raises:
        CheckpointError: Keys are missing or wrong; all are named.
        UnknownKeyError: Keys that could change the result and are not known.
        UnsupportedArchError: A rope type that edgekit does not compute.
    """
    config.ignore(VISION_KEYS)
    read = partial(qwen2.read_spec, defaults=text_type, default_theta=_THETA)
    if config.get("text_config") is None:
        return read(config)
    return read_text_spec(config, {text_type: read}, text_type)


FAMILY: Final = Family("qwen2_vl", partial(read_wrapper, text_type="qwen2_vl_text"), (NAMES,))
