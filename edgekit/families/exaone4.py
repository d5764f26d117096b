"""Model family ``exaone4``: from its config to a ``DecoderSpec``.

EXAONE 4.0: norms after each block, and a norm on each head of queries and keys. In the 1.2B all
layers have full attention. In the 32B a layer has a sliding window and rope, or full attention and
no rope.
"""

from __future__ import annotations

from typing import Final

from edgekit.checkpoint.config import RawConfig
from edgekit.families.base import Family
from edgekit.families.defaults import fill_defaults
from edgekit.families.llama_form import (
    read_llama_form,
    take_n_layers,
    take_sliding_layers,
    take_window,
)
from edgekit.families.olmo2 import NAMES
from edgekit.families.spec import DecoderSpec, NormPlacement, QkNorm

_DEFAULT_PATTERN: Final = 4  # transformers' meaning of an absent key


def read_spec(config: RawConfig) -> DecoderSpec:
    """Account for every key of an exaone4 config.

    Raises:
        CheckpointError: Keys are missing or wrong; all are named.
        UnknownKeyError: Keys that could change the result and are not known.
        UnsupportedArchError: A rope type that edgekit does not compute.
    """
    fill_defaults(config, "exaone4")
    n_layers = take_n_layers(config)
    window = take_window(config)
    layers = take_sliding_layers(config, n_layers)
    by_pattern = _take_pattern(config, n_layers)
    layers = by_pattern if layers is None else layers
    without_rope: tuple[int, ...] = ()
    if window is None:
        layers = ()
    else:
        without_rope = tuple(i for i in range(n_layers) if i not in layers)
    return read_llama_form(
        config,
        model_type="exaone4",
        no_rope_layers=without_rope,
        sliding_window=window,
        sliding_layers=layers,
        norm_placement=NormPlacement.AFTER,
        qk_norm=QkNorm.HEAD,
    )


def _take_pattern(config: RawConfig, n_layers: int) -> tuple[int, ...]:
    """Take ``sliding_window_pattern``, used if there is no ``layer_types``; give the local layers.

    n means that every n-th layer has full attention; "LLLG", repeated, says which layers are local
    and which global, and the last layer of all is global; null means that no layer has a window.
    """
    key = "sliding_window_pattern"
    config.ignore([key])
    pattern = config.get(key, _DEFAULT_PATTERN)
    if pattern is None:
        return ()
    if isinstance(pattern, str) and pattern and set(pattern) <= {"L", "G"}:
        return tuple(i for i in range(n_layers - 1) if pattern[i % len(pattern)] == "L")
    if type(pattern) is int and pattern >= 0:
        return tuple(i for i in range(n_layers) if pattern and (i + 1) % pattern)
    config.report(f"{key} is {str(pattern)[:80]!r} (wanted null, a number, or letters L and G)")
    return ()


FAMILY: Final = Family("exaone4", read_spec, (NAMES,))
