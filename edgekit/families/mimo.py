"""Model family ``mimo``: from its config to a ``DecoderSpec``; MiMo 7B, whose decoder is Qwen2.

The layers that predict a second token (``num_nextn_predict_layers``) only speed up runtimes that
draft tokens with them. The decoder's own logits do not depend on them, and they are left out.

Source: modeling_mimo.py of the published MiMo-7B checkpoints.
"""

from __future__ import annotations

from typing import Final

from edgekit.checkpoint.config import RawConfig
from edgekit.families import qwen2
from edgekit.families.base import Family
from edgekit.families.llama_form import NAMES
from edgekit.families.spec import DecoderSpec


def read_spec(config: RawConfig) -> DecoderSpec:
    """Account for every key of a mimo config.

    Raises:
        CheckpointError: Keys are missing or wrong; all are named.
        UnknownKeyError: Keys that could change the result and are not known.
        UnsupportedArchError: A rope type that edgekit does not compute.
    """
    config.ignore(["num_nextn_predict_layers"])
    return qwen2.read_spec(config)


FAMILY: Final = Family("mimo", read_spec, (NAMES,))
