"""Model family ``xverse``: from its config to a ``DecoderSpec``; XVERSE 7B to 65B, all Llamas.

Source: modeling_xverse.py of the published XVERSE-7B checkpoint.
"""

from __future__ import annotations

from typing import Final

from edgekit.checkpoint.config import RawConfig
from edgekit.families.base import Family
from edgekit.families.llama_form import NAMES, read_llama_form
from edgekit.families.spec import DecoderSpec


def read_spec(config: RawConfig) -> DecoderSpec:
    """Account for every key of an xverse config; the keys of its size are required.

    Raises:
        CheckpointError: Keys are missing or wrong; all are named.
        UnknownKeyError: Keys that could change the result and are not known.
        UnsupportedArchError: A rope type that edgekit does not compute.
    """
    return read_llama_form(config, model_type="llama")


FAMILY: Final = Family("xverse", read_spec, (NAMES,))
