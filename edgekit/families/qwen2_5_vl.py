"""Model family ``qwen2_5_vl``: the text decoder of Qwen2.5-VL, read like Qwen2-VL's."""

from __future__ import annotations

from functools import partial
from typing import Final

from edgekit.families.base import Family
from edgekit.families.llama_form import NAMES
from edgekit.families.qwen2_vl import read_wrapper

FAMILY: Final = Family("qwen2_5_vl", partial(read_wrapper, text_type="qwen2_5_vl_text"), (NAMES,))
