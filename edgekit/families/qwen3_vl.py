"""Model family ``qwen3_vl``: the text decoder of Qwen3-VL, which is Qwen3.

A text has one position where an image has three (time, row, column), so its rope is the plain one.
The vision tower adds to the first layers only where there is an image (deepstack); the tower is
left out.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from edgekit.checkpoint.config import RawConfig
from edgekit.families import qwen3
from edgekit.families.base import Family
from edgekit.families.multimodal import VISION_KEYS, read_text_spec
from edgekit.families.spec import DecoderSpec

_TEXT: Final = "qwen3_vl_text"
_THETA: Final = 5e5  # transformers' default when the key is absent


def read_spec(config: RawConfig) -> DecoderSpec:
    """Account for every key of a qwen3_vl config and of its ``text_config``, if it has one.

    Raises:
        CheckpointError: Keys are missing or wrong; all are named.
        UnknownKeyError: Keys that could change the result and are not known.
        UnsupportedArchError: A rope type that edgekit does not compute.
    """
    config.ignore(VISION_KEYS)
    read = partial(qwen3.read_spec, defaults=_TEXT, default_theta=_THETA)
    if config.get("text_config") is None:
        return read(config)
    return read_text_spec(config, {_TEXT: read}, _TEXT)


FAMILY: Final = Family("qwen3_vl", read_spec, (qwen3.NAMES,))
