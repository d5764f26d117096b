"""Reader of the rope keys of a config: the position encoding and the length it reaches.

A config spells rope in one of three ways: ``rope_theta`` with ``rope_scaling`` (transformers 4),
``rope_parameters`` (5), and ``rope_parameters`` by kind of layer.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from edgekit.checkpoint.config import RawConfig
from edgekit.errors import UnsupportedArchError
from edgekit.families.rope_spec import (
    Llama3Scaling,
    LongRopeScaling,
    RopeSpec,
    Scaling,
    YarnScaling,
)
from edgekit.families.spec import QueryScaling

DEFAULT_THETA: Final = 10000.0  # transformers' default when the key is absent
_KINDS: Final = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
# Kinds of scaling that users add to a config to lengthen a model: max_position_embeddings may then
# still be the earlier length.
LENGTHENING: Final = ("linear", "yarn", "longrope", "su")
_MAX_POSITIONS: Final = 1 << 31
_SMALLEST: Final = 1e-9  # so that divisions by it stay finite
_MAX_FACTORS: Final = 1 << 15


@dataclass(frozen=True, slots=True)
class RopeContext:
    """Other facts of the config that the meaning of rope keys depends on.

    Attributes:
        head_width: D, channels of a head.
        context_length: ``max_position_embeddings``.
        original_context_length: ``original_max_position_embeddings`` outside the section, if any.
        default_theta: Meaning of an absent ``rope_theta``.
        has_ntk_alpha: Whether ``alpha`` in a section of type "dynamic" stretches theta once, as
            Hunyuan's code has it. Elsewhere "dynamic" means angles that change with the length.
    """

    head_width: int
    context_length: int
    original_context_length: int | None = None
    default_theta: float = DEFAULT_THETA
    has_ntk_alpha: bool = False


def read_rope(config: RawConfig, context: RopeContext) -> tuple[RopeSpec, QueryScaling | None]:
    """Take rope in any of its spellings, and the attention temperature if the config has one.

    Raises:
        UnsupportedArchError: A rope type that edgekit does not compute.
    """
    theta = config.take("rope_theta", float, None)
    partial = config.take("partial_rotary_factor", float, None)
    sections = [s for s in map(config.take_section, ("rope_parameters", "rope_scaling")) if s]
    if len(sections) > 1 and dict(sections[0]) != dict(sections[1]):
        config.report("rope_parameters and rope_scaling contradict each other")
    rope, temperature = read_rope_section(config, None, context, theta, partial)
    for section in sections:
        rope, temperature = read_rope_section(config, section, context, theta, partial)
    return rope, temperature


def read_ropes_by_layer_kind(
    config: RawConfig,
    whole: tuple[RopeContext, float | None],
    sliding: tuple[RopeContext, float | None],
) -> tuple[RopeSpec, RopeSpec]:
    """Take the rope of the full-attention layers, and that of the sliding-window layers.

    ``rope_parameters`` has a section for each kind; ``rope_scaling``, the older spelling, belongs
    to the full-attention layers.

    Args:
        config: The config; keys outside the sections were taken before.
        whole: For the full-attention layers: context, and theta outside the section.
        sliding: The same for the sliding-window layers.

    Raises:
        UnsupportedArchError: A rope type that edgekit does not compute.
    """
    sections = config.take_section("rope_parameters")
    scaling = config.take_section("rope_scaling")
    inner = None if sections is None else sections.take_section("full_attention")
    if scaling is not None and inner is not None and dict(scaling).keys() & dict(inner).keys():
        config.report("rope_parameters and rope_scaling both describe the global layers")
    rope, _ = read_rope_section(config, scaling if inner is None else inner, *whole)
    inner = None if sections is None else sections.take_section("sliding_attention")
    local_rope, _ = read_rope_section(config, inner, *sliding)
    return rope, local_rope


def read_rope_section(
    config: RawConfig,
    section: RawConfig | None,
    context: RopeContext,
    theta: float | None = None,
    partial: float | None = None,
) -> tuple[RopeSpec, QueryScaling | None]:
    """Read one rope section; ``theta`` and ``partial`` are the keys outside it, if any.

    Raises:
        UnsupportedArchError: A rope type that edgekit does not compute.
    """
    scaling: Scaling | None = None
    linear_factor = stretch = 1.0
    temperature: QueryScaling | None = None
    if section is not None:
        inner_theta = section.take("rope_theta", float, None)
        if inner_theta is not None and theta is not None and inner_theta != theta:
            section.report(f"rope_theta is {inner_theta} (rope_theta outside it is {theta})")
        theta = inner_theta if theta is None else theta
        inner_partial = section.take("partial_rotary_factor", float, None)
        partial = inner_partial if partial is None else partial
        if context.has_ntk_alpha and _kind_of(section) == "dynamic" and section.get("alpha"):
            stretch = _take_ntk_stretch(section, context.head_width)
        else:
            scaling, linear_factor = _read_scaling(section, context)
        temperature = _read_query_scaling(section)
    theta = stretch * (context.default_theta if theta is None else theta)
    if not 1 < theta < 1e15:
        config.report(f"rope_theta is {theta} (wanted more than 1)")
        theta = DEFAULT_THETA
    width = _rotary_width(config, context.head_width, partial)
    rope = RopeSpec(theta, scaling, linear_factor, width)
    _check_factors(config, rope, context.head_width)
    return rope, temperature


def effective_length(
    config: Mapping[str, Any], n_positions: int, kinds: Collection[str] = LENGTHENING
) -> int:
    """Give the positions that a model reaches with its rope scaling.

    Users often add the scaling that a model's card gives and leave ``max_position_embeddings``
    unchanged: then the model reaches ``factor`` times its original length. If that key was raised
    too, it counts. Llama 3's scaling always comes with the raised key; NTK scaling (``dynamic``)
    changes nothing up to it.

    Args:
        config: The keys of a config.json, or of the decoder in one.
        n_positions: Its ``max_position_embeddings``.
        kinds: The kinds of scaling that lengthen this family.

    Source:
        transformers 5.23, ``RopeParameters``: "a factor of x will enable the model to handle
        sequences of length x * original maximum pre-trained length".
    """
    longest = n_positions
    for section in _sections(config):
        factor = section.get("factor")
        beside = config.get("original_max_position_embeddings")
        original = beside or section.get("original_max_position_embeddings") or n_positions
        if section.get("rope_type", section.get("type")) not in kinds:
            continue
        if not isinstance(original, int) or not isinstance(factor, int | float):
            continue  # absent: it is the ratio of the two lengths; wrong: reported elsewhere
        is_usable = 0 < original <= _MAX_POSITIONS and 0 < factor <= _MAX_POSITIONS
        if is_usable and 1 <= factor * original <= _MAX_POSITIONS:
            longest = max(longest, int(factor * original))
    return longest


def _sections(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Give the rope sections of a config, and the sections by kind of layer inside them."""
    for key in ("rope_parameters", "rope_scaling"):
        section = config.get(key)
        if isinstance(section, Mapping):
            yield section
            yield from (inner for inner in section.values() if isinstance(inner, Mapping))


def _rotary_width(config: RawConfig, head_width: int, partial: float | None) -> int | None:
    if partial is None or partial == 1.0:
        return None
    width = int(head_width * partial) if 0 < partial < 1 else 0
    if width < 2 or width % 2:
        config.report(
            f"partial_rotary_factor is {partial} "
            f"(wanted an even number of the {head_width} channels)"
        )
        return None
    return width


def _check_factors(config: RawConfig, rope: RopeSpec, head_width: int) -> None:
    if not isinstance(rope.scaling, LongRopeScaling):
        return
    wanted = (rope.rotary_width or head_width) // 2
    for name in ("short_factors", "long_factors"):
        n_factors = len(getattr(rope.scaling, name))
        if n_factors != wanted:
            config.report(f"{name.removesuffix('s')} has {n_factors} numbers (wanted {wanted})")


def _read_query_scaling(section: RawConfig) -> QueryScaling | None:
    beta = section.take("llama_4_scaling_beta", float, None)
    if beta is None:
        return None
    if not 0 <= beta < 1e3:
        section.report(f"llama_4_scaling_beta is {beta} (wanted a small positive number)")
    return QueryScaling(beta, section.take_count("original_max_position_embeddings"))


def _kind_of(section: RawConfig) -> str:
    """Take the type of a section in its old or its new spelling."""
    old_spelling = section.take("type", str, None)
    return section.take("rope_type", str, None) or old_spelling or "default"


def _take_ntk_stretch(section: RawConfig, head_width: int) -> float:
    """Take ``alpha`` and give the factor of theta: alpha ** (D / (D - 2))."""
    # Keys that configs repeat from other types of scaling; with alpha, nothing reads them.
    section.ignore(["factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"])
    alpha = section.take("alpha", float)
    if not 1 <= alpha < 1e9 or head_width <= 2:
        section.report(f"alpha is {alpha} (wanted at least 1, and heads of more than 2 channels)")
        return 1.0
    return float(alpha ** (head_width / (head_width - 2)))


def _read_scaling(section: RawConfig, context: RopeContext) -> tuple[Scaling | None, float]:
    kind = _kind_of(section)
    if kind == "su" or (kind == "yarn" and "short_factor" in section):
        kind = "longrope"  # names that early Phi-3 configs used
    # Splits channels between row and column of an image; in a text, all use the one position.
    section.ignore(["mrope_section", "mrope_interleaved"])
    match kind:
        case "default" | "mrope":
            return None, 1.0
        case "dynamic":
            _take_dynamic(section, context)
            return None, 1.0
        case "linear":
            factor = section.take("factor", float)
            _check_positive(section, factor=factor)
            # This only says how long the context was before (effective_length).
            section.ignore(["original_max_position_embeddings"])
            return None, factor
        case "llama3":
            return _read_llama3(section, context), 1.0
        case "yarn":
            return _read_yarn(section, context), 1.0
        case "longrope":
            return _read_longrope(section, context), 1.0
    raise UnsupportedArchError(
        f"{section.where}: rope type",
        got=repr(kind[:80]),
        wanted=", ".join(_KINDS),
        do="edgekit does not compute this position encoding yet.",
    )


def _take_dynamic(section: RawConfig, context: RopeContext) -> None:
    """Take the keys of dynamic NTK scaling, which changes nothing inside the context length."""
    factor = section.take("factor", float, None)
    section.ignore(["original_max_position_embeddings"])
    if factor is not None:
        _check_positive(section, factor=factor)
    section.note(
        "dynamic rope scaling starts beyond max_position_embeddings; edgekit's context ends there, "
        f"at {context.context_length:,} tokens"
    )


def _read_llama3(section: RawConfig, context: RopeContext) -> Llama3Scaling:
    low = section.take("low_freq_factor", float)
    high = section.take("high_freq_factor", float)
    factor = section.take("factor", float)
    _check_positive(section, factor=factor, low_freq_factor=low)
    if high <= low:
        section.report(f"high_freq_factor is {high} (wanted more than low_freq_factor {low})")
    original = _original_length(section, context)
    return Llama3Scaling(factor, low, high, original)


def _read_yarn(section: RawConfig, context: RopeContext) -> YarnScaling:
    original = _original_length(section, context)
    factor = section.take("factor", float, None)
    factor = context.context_length / max(1, original) if factor is None else factor
    # transformers reads 0 here as if the key were absent.
    fast = section.take("beta_fast", float, None) or 32.0
    slow = section.take("beta_slow", float, None) or 1.0
    _check_positive(section, factor=factor, beta_fast=fast, beta_slow=slow)
    # Some configs repeat the context length; the key outside the section counts. ``finetuned`` only
    # says that the model was tuned with YaRN.
    section.ignore(["max_position_embeddings", "finetuned"])
    attention_factor = section.take("attention_factor", float, None)
    scale = section.take("mscale", float, None)
    scale_all = section.take("mscale_all_dim", float, None)
    if attention_factor is None:
        attention_factor = _mscale(factor, 1.0)
        if scale and scale_all:
            attention_factor = _mscale(factor, scale) / _mscale(factor, scale_all)
    _check_positive(section, attention_factor=attention_factor)
    is_truncated = section.take("truncate", bool, default=True)
    return YarnScaling(factor, fast, slow, original, attention_factor, is_truncated)


def _mscale(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _read_longrope(section: RawConfig, context: RopeContext) -> LongRopeScaling:
    original = _original_length(section, context)
    short, long = (_take_factors(section, f"{name}_factor") for name in ("short", "long"))
    factor = section.take("factor", float, None)
    factor = context.context_length / max(1, original) if factor is None else factor
    _check_positive(section, factor=factor)
    attention_factor = section.take("attention_factor", float, None)
    if attention_factor is None:
        attention_factor = 1.0
        if factor > 1 and original > 1:
            attention_factor = math.sqrt(1 + math.log(factor) / math.log(original))
    _check_positive(section, attention_factor=attention_factor)
    for name in ("short_mscale", "long_mscale"):
        section.expect(name, None, None)
    return LongRopeScaling(short, long, original, attention_factor)


def _original_length(section: RawConfig, context: RopeContext) -> int:
    """Take the length before scaling; as in transformers, a key outside the section wins."""
    inner = section.take_count("original_max_position_embeddings", context.context_length)
    return context.original_context_length or inner


def _take_factors(section: RawConfig, key: str) -> tuple[float, ...]:
    values = section.take(key, list)
    is_sound = len(values) <= _MAX_FACTORS and all(
        isinstance(v, int | float) and not isinstance(v, bool) and _SMALLEST < v < 1e9
        for v in values
    )
    if not is_sound:
        section.report(f"{key} must hold only positive numbers")
        return ()
    return tuple(float(v) for v in values)


def _check_positive(section: RawConfig, **values: float) -> None:
    for key, value in values.items():
        if not _SMALLEST < value < 1e9:
            section.report(f"{key} is {value} (wanted a positive number)")
