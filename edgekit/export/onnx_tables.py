"""Answer one question: which tables indexed by position does an ONNX graph read?

Cosines and sines of every rotary encoding in use, and the growth of queries. LongRoPE has two
sets of angles: both stand in one table, so that changing over moves an index, not a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from edgekit.dtypes import F32Array
from edgekit.families.rope import query_factors, rope_tables
from edgekit.families.rope_spec import LongRopeScaling, RopeSpec
from edgekit.families.spec import DecoderSpec

ROPE_COS: Final = "rope.cos"
ROPE_SIN: Final = "rope.sin"
QUERY_FACTORS: Final = "query.factors"


@dataclass(frozen=True, slots=True)
class RopeTable:
    """The pair of tables of one rotary encoding.

    Attributes:
        name: Starts the names of what belongs to it in the graph.
        cos: Name of the cosines.
        sin: Name of the sines.
        n_pairs: R // 2, columns of each table.
        changes_after: Positions after which the long angles hold, which then stand below the
            short ones; None if one set is all that the artifact's context needs.
    """

    name: str
    cos: str
    sin: str
    n_pairs: int
    changes_after: int | None


def plan_ropes(spec: DecoderSpec, n_positions: int) -> dict[RopeSpec, RopeTable]:
    """Name the tables of every rotary encoding in use, in file order."""
    planned = {}
    for index, rope in enumerate(spec.ropes):
        name = f"rope.{index}" if index else "rope"
        changes_after = None
        if isinstance(rope.scaling, LongRopeScaling):
            original = rope.scaling.original_context_length
            changes_after = original if n_positions > original else None
        planned[rope] = RopeTable(
            name=name,
            cos=f"{name}.cos",
            sin=f"{name}.sin",
            n_pairs=(rope.rotary_width or spec.head_width) // 2,
            changes_after=changes_after,
        )
    return planned


def has_query_factors(spec: DecoderSpec, n_positions: int) -> bool:
    """Say whether any query of the artifact's context is scaled at all."""
    growth = spec.query_scaling
    return growth is not None and n_positions > growth.original_context_length


def table_shapes(spec: DecoderSpec, n_positions: int) -> dict[str, tuple[int, int]]:
    """Give name and shape of every table, in file order."""
    shapes = {}
    for table in plan_ropes(spec, n_positions).values():
        n_rows = n_positions if table.changes_after is None else 2 * n_positions
        shapes[table.cos] = shapes[table.sin] = (n_rows, table.n_pairs)
    if has_query_factors(spec, n_positions):
        shapes[QUERY_FACTORS] = (n_positions, 1)
    return shapes


def make_tables(spec: DecoderSpec, n_positions: int) -> dict[str, F32Array]:
    """Compute every table of ``table_shapes``."""
    tables: dict[str, F32Array] = {}
    for rope, table in plan_ropes(spec, n_positions).items():
        pair = rope_tables(rope, spec.head_width, n_positions)
        if table.changes_after is not None:
            long = rope_tables(rope, spec.head_width, n_positions, is_long=True)
            pair = np.concatenate([pair[0], long[0]]), np.concatenate([pair[1], long[1]])
        tables[table.cos], tables[table.sin] = pair
    if spec.query_scaling is not None and has_query_factors(spec, n_positions):
        tables[QUERY_FACTORS] = query_factors(spec.query_scaling, n_positions)[:, None]
    return tables
