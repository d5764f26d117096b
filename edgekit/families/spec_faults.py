"""Answer one question: what in a decoder that was read from a file can no decoder have?

A manifest and a store hold a ``DecoderSpec`` as JSON that nobody vouches for; counts without
bound would fill the memory before anything notices.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from edgekit.families.rope_spec import RopeSpec
    from edgekit.families.spec import DecoderSpec

MAX_LAYERS: Final = 1024
MAX_WIDTH: Final = 1 << 24
MAX_HEAD_WIDTH: Final = 1 << 16
_MAX_POSITIONS: Final = 1 << 31
_MAX_SCALE: Final = 3e38  # float32
_SMALLEST: Final = 1e-9
_MAX_THETA: Final = 1e15
# How large each count may be, so that what follows from them fits into memory and 64 bits.
_COUNTS: Final[Mapping[str, int]] = {
    "n_layers": MAX_LAYERS,
    "hidden_width": MAX_WIDTH,
    "n_heads": MAX_WIDTH,
    "n_kv_heads": MAX_WIDTH,
    "head_width": MAX_HEAD_WIDTH,
    "ffn_width": MAX_WIDTH,
    "vocab_size": MAX_WIDTH,
    "context_length": _MAX_POSITIONS,
}
_SCALES: Final = ("norm_eps", "embed_scale", "residual_scale", "logits_scale", "score_scale")
_FLAGS: Final = ("is_tied", "has_qkv_bias", "has_o_bias", "has_mlp_bias")


def find_fault(spec: DecoderSpec) -> str | None:
    """Name the first field without sense, or None."""
    for name, at_most in _COUNTS.items():
        if not _is_count(getattr(spec, name), at_most):
            return _quote(name, getattr(spec, name))
    for name in _SCALES:
        if not _is_number(getattr(spec, name)) or not 0 < getattr(spec, name) < _MAX_SCALE:
            return _quote(name, getattr(spec, name))
    for name in _FLAGS:
        if type(getattr(spec, name)) is not bool:
            return _quote(name, getattr(spec, name))
    if spec.n_heads % spec.n_kv_heads:
        return f"{spec.n_heads} heads over {spec.n_kv_heads}"
    if spec.sliding_window is not None and not _is_count(spec.sliding_window, 1 << 53):
        return _quote("sliding_window", spec.sliding_window)
    if not isinstance(spec.model_type, str) or not _is_number(spec.norm_offset):
        return "model_type or norm_offset"
    layers = (*(spec.sliding_layers or ()), *spec.no_rope_layers)
    if not all(type(layer) is int and 0 <= layer < spec.n_layers for layer in layers):
        return "layers that are not there"
    ids = (spec.bos_token_id, spec.pad_token_id, *spec.eos_token_ids)
    if not all(i is None or (type(i) is int and 0 <= i < _MAX_POSITIONS) for i in ids):
        return "token ids"
    growth = spec.query_scaling
    if growth is not None and not (
        _is_number(growth.beta) and _is_count(growth.original_context_length, _MAX_POSITIONS)
    ):
        return "query_scaling"
    ropes = (spec.rope, spec.local_rope)
    faults = (find_rope_fault(rope, spec.head_width) for rope in ropes if rope is not None)
    return next(filter(None, faults), None)


def find_rope_fault(rope: RopeSpec, head_width: int) -> str | None:
    """Name what is wrong with a position encoding for heads of that width, or None."""
    if not _is_number(rope.theta) or not 1 < rope.theta < _MAX_THETA:
        return _quote("rope.theta", rope.theta)
    if not _is_divisor(rope.linear_factor):
        return _quote("rope.linear_factor", rope.linear_factor)
    width = head_width if rope.rotary_width is None else rope.rotary_width
    if not _is_count(width, head_width) or width % 2:
        return _quote("rope.rotary_width", width)
    if rope.scaling is None:
        return None
    for field in dataclasses.fields(rope.scaling):
        value = getattr(rope.scaling, field.name)
        if isinstance(value, tuple):
            is_sound = len(value) == width // 2 and all(map(_is_divisor, value))
        elif field.name == "original_context_length":
            is_sound = _is_count(value, _MAX_POSITIONS)
        elif field.name in ("kind", "is_truncated"):
            is_sound = isinstance(value, str | bool)
        elif field.name == "attention_factor":
            is_sound = _is_number(value)
        else:
            is_sound = _is_divisor(value)
        if not is_sound:
            return _quote(f"rope.scaling.{field.name}", value)
    return None


def _is_count(value: Any, at_most: int) -> bool:
    return type(value) is int and 1 <= value <= at_most


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < _MAX_SCALE and math.isfinite(value)


def _is_divisor(value: Any) -> bool:
    """Tell whether a positive number is far enough from 0 to divide by it."""
    return _is_number(value) and value > _SMALLEST


def _quote(name: str, value: Any) -> str:
    return f"{name} {str(value)[:40]}"
