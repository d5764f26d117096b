"""Model family ``mistral3``: from its config to a ``DecoderSpec``.

The text decoder of the multimodal Mistral Small 3 and Ministral 3; the vision tower is left out.
"""

from __future__ import annotations

from typing import Final

from edgekit.checkpoint.config import RawConfig
from edgekit.families import ministral3, mistral
from edgekit.families.base import Family
from edgekit.families.llama_form import NAMES
from edgekit.families.multimodal import VISION_KEYS, read_text_spec
from edgekit.families.spec import DecoderSpec

_TEXT: Final = {"mistral": mistral.read_spec, "ministral3": ministral3.read_spec}


def read_spec(config: RawConfig) -> DecoderSpec:
    """Account for every key of a mistral3 config and of its ``text_config``.

    Raises:
        CheckpointError: Keys are missing or wrong; all are named.
        UnknownKeyError: Keys that could change the result and are not known.
        UnsupportedArchError: A rope type that edgekit does not compute.
    """
    config.ignore([*VISION_KEYS, "projector_hidden_act", "spatial_merge_size"])
    config.ignore(["multimodal_projector_bias", "vision_feature_layer"])
    return read_text_spec(config, _TEXT, "mistral")


FAMILY: Final = Family("mistral3", read_spec, (NAMES,))
