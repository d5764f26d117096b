"""Answer one question: how does a MIL program place tokens, by angles and by factors?

One call of the program computes the positions ``past`` .. ``end``; tables of all positions are
constants, and each is sliced to these once per call. All of it is fp32: in fp16 the tables alone
would shift logits by about 1 % of their spread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.dtypes import F32Array
from edgekit.families.rope import query_factors, rope_tables
from edgekit.families.rope_spec import LongRopeScaling, RopeSpec
from edgekit.families.spec import DecoderSpec


@dataclass(frozen=True, slots=True)
class Call:
    """What one call of the program works on.

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
        call: What the program works on.
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

    def turn(self, x: Any, rope: RopeSpec | None) -> Any:
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
    """Give the size of all tables that a package of so many positions holds."""
    n_values = 0
    for rope in spec.ropes:
        n_short = _n_short(n_positions, rope)
        n_values += (n_positions + (n_short or 0)) * spec.head_width * 2
    if spec.query_scaling is not None:
        n_values += n_positions
    return n_values * 4


def growing_factors(call: Call) -> Any | None:
    """Give the queries' factors at the new positions, fp32 (T, 1); None if all are 1."""
    scaling = call.spec.query_scaling
    if scaling is None or call.n_positions <= scaling.original_context_length:
        return None
    return call.rows(query_factors(scaling, call.n_positions)[:, None], "query_factors")


def _n_short(n_positions: int, rope: RopeSpec) -> int | None:
    """Rows that LongRoPE's short set needs before the long one; None without a long set."""
    scaling = rope.scaling
    if not isinstance(scaling, LongRopeScaling):
        return None
    n_short = scaling.original_context_length
    return n_short if n_short < n_positions else None


def _sum(mb: Any, first: Any | None, second: Any | None) -> Any | None:
    """Add two shifts, of which each may be absent."""
    if first is None or second is None:
        return second if first is None else first
    return mb.add(x=first, y=second)


def _shift_to_long_rows(call: Call, rope: RopeSpec) -> Any | None:
    """Move to the long rows, for all tokens of a call that goes beyond the short ones.

    Keys that are cached already stay as they were, as in Hugging Face.
    """
    mb, n_short = call.mb, _n_short(call.n_positions, rope)
    if n_short is None:
        return None
    is_long = mb.cast(x=mb.greater(x=call.end, y=np.int32(n_short)), dtype="int32")
    return mb.mul(x=is_long, y=np.int32(n_short))


def _tables(call: Call, rope: RopeSpec) -> tuple[F32Array, F32Array]:
    """Give the tables as ``turn`` wants them, each (rows, D)."""
    width, n_short = call.spec.head_width, _n_short(call.n_positions, rope)
    cos, sin = rope_tables(rope, width, call.n_positions if n_short is None else n_short)
    if n_short is not None:
        long_cos, long_sin = rope_tables(rope, width, call.n_positions, is_long=True)
        cos, sin = np.concatenate([cos, long_cos]), np.concatenate([sin, long_sin])
    # Lanes that do not turn: times 1, plus 0 times anything.
    still = np.zeros((len(cos), width - 2 * cos.shape[1]), np.float32)
    # The minus of rotate-half stands in the table: one op less, the same result.
    return (
        np.concatenate([cos, cos, still + 1], axis=1),
        np.concatenate([-sin, sin, still], axis=1),
    )
