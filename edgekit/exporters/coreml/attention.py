"""Positions and attention of a MIL program with a stateful key/value cache.

One call of the program computes the positions ``past`` .. ``end``. Tables of all positions are
constants; each is sliced to these positions once per call. All of it is fp32: in fp16 the tables
alone would shift logits by about 1 % of their spread.

The program makes its own causal (and sliding-window) biases from positions and adds the caller's
mask. The reason: swift-transformers passes an all-zero mask [1, 1, 1, T + 1] at prefill; without a
bias there would be no causality, and slot 0 of the cache, never written, would take part in every
softmax. There is one bias for each window in use, shared by all layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from edgekit.dtypes import F32Array
from edgekit.exporters.coreml.weights import Weights
from edgekit.families.rope import attention_temperatures, rope_tables
from edgekit.families.rope_spec import LongRopeScaling, RopeSpec
from edgekit.families.spec import DecoderSpec, QkNorm
from edgekit.formats.mlpackage import CAUSAL_MASK, KEY_CACHE, VALUE_CACHE

# Large enough that exp() of it is 0 next to any score, small enough that twice it is an fp16.
MASKED: Final = -30000.0
# A factor of the scores that differs less than this from the op's own is the same number in fp32.
_SAME_SCALE: Final = 1e-7


@dataclass(frozen=True, slots=True)
class Call:
    """What one call of the program computes with.

    Attributes:
        mb: coremltools' builder.
        spec: The decoder.
        n_positions: CTX, the positions that the cache holds.
        past: Positions before the new tokens, int32 (1,).
        end: Positions with them, S, int32 (1,).
    """

    mb: Any
    spec: DecoderSpec
    n_positions: int
    past: Any
    end: Any

    def rows(self, table: F32Array, name: str, shift: Any | None = None) -> Any:
        """Slice a table (CTX, W) to the new positions, (T, W); ``shift`` moves the slice."""
        mb, begin, end = self.mb, self.past, self.end
        if shift is not None:
            begin, end = mb.add(x=begin, y=shift), mb.add(x=end, y=shift)
        return mb.slice_by_index(
            x=mb.const(val=table, name=name),
            begin=mb.concat(values=[begin, np.array([0], np.int32)], axis=0),
            end=mb.concat(values=[end, np.array([0], np.int32)], axis=0),
            begin_mask=[False, True],
            end_mask=[False, True],
        )


class Rotary:
    """Cosine and signed sine of the new positions, made once for each rope in use.

    Args:
        call: The call.
        shift: Added to every position, int32 (1,); None adds nothing.
    """

    def __init__(self, call: Call, shift: Any | None = None) -> None:
        self._mb = call.mb
        self._head_width = call.spec.head_width
        self._angles: dict[RopeSpec, tuple[Any, Any]] = {}
        for rope in call.spec.ropes:
            label = f"rope_{len(self._angles)}" if self._angles else "rope"
            moved = _sum(self._mb, shift, _shift_to_long_rows(call, rope))
            cos, sin = _tables(call, rope)
            self._angles[rope] = (
                call.rows(cos, f"{label}_cos", moved),
                call.rows(sin, f"{label}_sin", moved),
            )

    def rotate(self, x: Any, rope: RopeSpec | None) -> Any:
        """Apply RoPE in the rotate-half form, fp32 (1, H, T, D)."""
        if rope is None:
            return x
        mb, (cos, sin) = self._mb, self._angles[rope]
        width = rope.rotary_width or self._head_width
        if width == self._head_width:
            low, high = mb.split(x=x, num_splits=2, axis=-1)
            swapped = mb.concat(values=[high, low], axis=-1)
        else:
            sizes = np.array([width // 2, width // 2, self._head_width - width], np.int32)
            low, high, rest = mb.split(x=x, split_sizes=sizes, axis=-1)
            swapped = mb.concat(values=[high, low, rest], axis=-1)
        return mb.add(x=mb.mul(x=x, y=cos), y=mb.mul(x=swapped, y=sin))


def position_bytes(spec: DecoderSpec, n_positions: int) -> int:
    """Give the size of all tables in a package for this many positions."""
    n_values = 0
    for rope in spec.ropes:
        n_short = _n_short(n_positions, rope)
        n_values += (n_positions + (n_short or 0)) * spec.head_width * 2
    if spec.query_scaling is not None:
        n_values += n_positions
    return n_values * 4


def attention_temperature(call: Call) -> Any | None:
    """Give the queries' factors at the new positions, fp32 (T, 1); None if all are 1."""
    scaling = call.spec.query_scaling
    if scaling is None or call.n_positions <= scaling.original_context_length:
        return None
    return call.rows(
        attention_temperatures(scaling, call.n_positions)[:, None], "attention_temperatures"
    )


def _n_short(n_positions: int, rope: RopeSpec) -> int | None:
    """Give the number of rows of LongRoPE's short set; None if there is no long set."""
    scaling = rope.scaling
    if not isinstance(scaling, LongRopeScaling):
        return None
    n_short = scaling.original_context_length
    return n_short if n_short < n_positions else None


def _sum(mb: Any, first: Any | None, second: Any | None) -> Any | None:
    """Add two shifts, either of which may be absent."""
    if first is None or second is None:
        return second if first is None else first
    return mb.add(x=first, y=second)


def _shift_to_long_rows(call: Call, rope: RopeSpec) -> Any | None:
    """Give the shift to the long rows, for all tokens of a call that goes beyond the short ones.

    Keys that are already cached stay as they were, as in Hugging Face.
    """
    mb, n_short = call.mb, _n_short(call.n_positions, rope)
    if n_short is None:
        return None
    is_long = mb.cast(x=mb.greater(x=call.end, y=np.int32(n_short)), dtype="int32")
    return mb.mul(x=is_long, y=np.int32(n_short))


def _tables(call: Call, rope: RopeSpec) -> tuple[F32Array, F32Array]:
    """Give the tables in the form that ``rotate`` needs, each (rows, D)."""
    width, n_short = call.spec.head_width, _n_short(call.n_positions, rope)
    cos, sin = rope_tables(rope, width, call.n_positions if n_short is None else n_short)
    if n_short is not None:
        long_cos, long_sin = rope_tables(rope, width, call.n_positions, is_long=True)
        cos, sin = np.concatenate([cos, long_cos]), np.concatenate([sin, long_sin])
    # Channels that do not rotate: times 1, plus 0 times anything.
    still = np.zeros((len(cos), width - 2 * cos.shape[1]), np.float32)
    # The minus of rotate-half is in the table: one op less, the same result.
    return (
        np.concatenate([cos, cos, still + 1], axis=1),
        np.concatenate([-sin, sin, still], axis=1),
    )


def softcap(mb: Any, x: Any, cap: float) -> Any:
    """Limit fp32 values smoothly to -cap .. cap: cap * tanh(x / cap)."""
    return mb.mul(x=mb.tanh(x=mb.mul(x=x, y=np.float32(1 / cap))), y=np.float32(cap))


class Attention:
    """The attention of all layers, in order: each ``attend`` builds on the cache of the last."""

    def __init__(self, call: Call, weights: Weights, inputs: Mapping[str, Any]) -> None:
        self._call = call
        self._mb = call.mb
        self._spec = call.spec
        self._weights = weights
        self._temperature = attention_temperature(call)
        self._biases = self._causal_biases(inputs[CAUSAL_MASK])
        self._states = {name: inputs[name] for name in (KEY_CACHE, VALUE_CACHE)}
        # Read once; later layers use the updated value. coremltools' passes may merge a second
        # read_state before a write with the first, which would undo earlier layers.
        self._caches = {n: self._mb.read_state(input=s) for n, s in self._states.items()}
        # Heads normed after rotation depend on absolute positions, not only on their distance.
        is_absolute = call.spec.qk_norm is QkNorm.HEAD_AFTER_ROPE
        self._rotary = Rotary(call, self._shift_to_first() if is_absolute else None)

    def attend(self, layer: int, h: Any) -> Any:
        """Attend from the new tokens to all of a layer's cache, fp16 (1, T, C) to (1, T, H * D)."""
        mb, spec = self._mb, self._spec
        at, rope = f"layers.{layer}.", spec.attention(layer).rope
        query = self._projected(h, at + "q", spec.n_heads, rope)
        query = self._weights.narrow(self._scaled(query))
        key = self._projected(h, at + "k", spec.n_kv_heads, rope)
        value = self._heads(self._weights.linear(h, at + "v"), spec.n_kv_heads)
        key = self._weights.narrow(key)
        end = self._remember(layer, {KEY_CACHE: key, VALUE_CACHE: value})
        if layer == 0:
            self._hide_unwritten()
        keys, values = (self._cached(name, layer, end) for name in (KEY_CACHE, VALUE_CACHE))
        attended = self._mixed(query, keys, values, self._biases[self._window(layer)])
        return mb.reshape(
            x=mb.transpose(x=attended, perm=[0, 2, 1, 3]), shape=[1, -1, spec.q_width]
        )

    def _mixed(self, query: Any, keys: Any, values: Any, bias: Any) -> Any:
        """Weigh the values by the softmax of the scores: fp16 (1, H, T, D)."""
        mb, spec = self._mb, self._spec
        if spec.scores_softcap is None:
            return mb.scaled_dot_product_attention(
                query=query, key=keys, value=values, attn_mask=bias
            )
        scores = mb.cast(x=mb.matmul(x=query, y=keys, transpose_y=True), dtype="fp32")
        scores = softcap(mb, scores, spec.scores_softcap)
        scores = mb.add(x=scores, y=mb.cast(x=bias, dtype="fp32"))
        return mb.matmul(x=self._weights.narrow(mb.softmax(x=scores, axis=-1)), y=values)

    def _projected(self, h: Any, name: str, n_heads: int, rope: RopeSpec | None) -> Any:
        """Project to queries or keys, norm and rotate them: fp16 (1, T, C) to fp32 (1, H, T, D)."""
        weights, norm, kind = self._weights, f"{name}_norm", self._spec.qk_norm
        x = weights.linear(h, name, is_wide=True)
        if kind is QkNorm.FULL:
            x = weights.norm(x, norm)
        x = self._heads(x, n_heads)
        if kind is QkNorm.HEAD:
            x = weights.norm(x, norm)
        x = self._rotary.rotate(x, rope)
        return weights.norm(x, norm) if kind is QkNorm.HEAD_AFTER_ROPE else x

    def _scaled(self, query: Any) -> Any:
        """Multiply the queries, fp32 (1, H, T, D), by the factors that the attention op lacks.

        The op itself multiplies the scores by D ** -0.5 and has no other factor. Attention with
        capped scores is written out, without a factor of its own.
        """
        factor = self._spec.score_scale
        if self._spec.scores_softcap is None:
            factor *= self._spec.head_width**0.5
        if not math.isclose(factor, 1.0, rel_tol=_SAME_SCALE):
            query = self._mb.mul(x=query, y=np.float32(factor))
        return query if self._temperature is None else self._mb.mul(x=query, y=self._temperature)

    def _heads(self, x: Any, n_heads: int) -> Any:
        """Split rows into heads: (1, T, H * D) to (1, H, T, D)."""
        split = self._mb.reshape(x=x, shape=[1, -1, n_heads, self._spec.head_width])
        return self._mb.transpose(x=split, perm=[0, 2, 1, 3])

    def _window(self, layer: int) -> int | None:
        """Give the window of a layer, or None if it covers all positions."""
        window = self._spec.attention(layer).window
        return None if window is None or window >= self._call.n_positions else window

    def _causal_biases(self, mask: Any) -> dict[int | None, Any]:
        """Give the caller's mask plus 0 where a query may look, else MASKED, (1, 1, T, S).

        A bias is computed from positions, exact in fp32. A (CTX, CTX) table would take 32 MB at
        4096 and 512 MB at 16384 positions.
        """
        mb, call = self._mb, self._call
        positions = mb.const(val=np.arange(call.n_positions, dtype=np.float32), name="positions")
        keys = mb.slice_by_index(x=positions, begin=[0], end=call.end, begin_mask=[True])
        queries = mb.slice_by_index(x=positions, begin=call.past, end=call.end)
        distance = mb.sub(x=mb.expand_dims(x=queries, axes=[1]), y=keys, name="distance")
        ahead = mb.relu(x=mb.mul(x=distance, y=np.float32(-1.0)))
        biases = {}
        for window in dict.fromkeys(self._window(i) for i in range(self._spec.n_layers)):
            outside = ahead
            if window is not None:
                beyond = mb.relu(x=mb.sub(x=distance, y=np.float32(window - 1)))
                outside = mb.add(x=ahead, y=beyond)
            hidden = mb.maximum(x=mb.mul(x=outside, y=np.float32(MASKED)), y=np.float32(MASKED))
            biases[window] = mb.add(x=mb.cast(x=hidden, dtype="fp16"), y=mask)
        return biases

    def _has_first_key(self, name: str) -> Any:
        """Tell whether the cache now holds a key of position 0; bool (1,)."""
        mb, n_kv, width = self._mb, self._spec.n_kv_heads, self._spec.head_width
        first = mb.slice_by_index(
            x=self._caches[KEY_CACHE],
            begin=[0, 0, 0, 0, 0],
            end=[1, 1, n_kv, 1, width],
            name=name,
        )
        flat = mb.abs(x=mb.reshape(x=first, shape=[n_kv * width]))
        return mb.greater(x=mb.reduce_max(x=flat, axes=[0], keep_dims=True), y=np.float16(0))

    def _shift_to_first(self) -> Any:
        """Give -1 if a caller left slot 0 of the cache empty, else 0; int32 (1,)."""
        mb = self._mb
        is_empty = mb.logical_not(x=self._has_first_key("earlier_first_key"))
        is_later = mb.greater(x=self._call.past, y=np.int32(0))
        shifted = mb.cast(x=mb.logical_and(x=is_empty, y=is_later), dtype="int32")
        return mb.mul(x=shifted, y=np.int32(-1))

    def _hide_unwritten(self) -> None:
        """Hide position 0 if its key was never written; clamp the sums, also against -inf."""
        mb = self._mb
        is_written = mb.cast(x=self._has_first_key("first_key"), dtype="fp16")
        penalty = mb.mul(
            x=mb.sub(x=np.float16(1), y=is_written), y=np.float16(MASKED), name="unwritten"
        )
        at_zero = np.zeros(self._call.n_positions, np.float16)
        at_zero[0] = 1
        column = mb.slice_by_index(
            x=mb.const(val=at_zero, name="column_zero"),
            begin=[0],
            end=self._call.end,
            begin_mask=[True],
        )
        hidden = mb.mul(x=column, y=penalty)
        for number, (window, bias) in enumerate(self._biases.items()):
            name = f"attention_bias_{number}" if number else "attention_bias"
            both = mb.add(x=bias, y=hidden)
            self._biases[window] = mb.maximum(x=both, y=np.float16(MASKED), name=name)

    def _remember(self, layer: int, fresh: Mapping[str, Any]) -> Any:
        """Write new keys and values, fp16 (1, K, T, D); give their end in the cache."""
        mb, call = self._mb, self._call
        begin, end = self._place(layer, call.past), self._place(layer + 1, call.end)
        for name, state in self._states.items():
            update = mb.slice_update(
                x=self._caches[name],
                update=mb.expand_dims(x=fresh[name], axes=[0]),
                begin=begin,
                end=end,
                begin_mask=[False, True, True, False, True],
                end_mask=[False, True, True, False, True],
            )
            self._caches[name] = mb.coreml_update_state(state=state, value=update)
        return end

    def _place(self, layer: int, position: Any) -> Any:
        """Index vector of a layer and position in a cache; the other axes are masked."""
        zeros = np.zeros(2, np.int32)
        return self._mb.concat(
            values=[np.array([layer], np.int32), zeros, position, zeros[:1]], axis=0
        )

    def _cached(self, name: str, layer: int, end: Any) -> Any:
        """Read keys or values of a layer up to ``end``, repeated per query head: (1, H, S, D)."""
        mb, spec = self._mb, self._spec
        x = mb.slice_by_index(
            x=self._caches[name],
            begin=np.array([layer, 0, 0, 0, 0], np.int32),
            end=end,
            begin_mask=[False, True, True, True, True],
            end_mask=[False, True, True, False, True],
            squeeze_mask=[True, False, False, False, False],
        )  # (1, K, S, D)
        n_groups = spec.n_heads // spec.n_kv_heads
        if n_groups == 1:
            return x
        tiled = mb.tile(x=mb.expand_dims(x=x, axes=[2]), reps=[1, 1, n_groups, 1, 1])
        return mb.reshape(x=tiled, shape=[1, spec.n_heads, -1, spec.head_width])
