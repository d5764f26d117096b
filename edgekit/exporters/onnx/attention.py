"""Builder of the ONNX nodes that compute the attention of a layer.

One GroupQueryAttention node does rope, cache, window and softmax. Nodes before it do what its CPU
kernel lacks: norms, attention temperature, and rope of widths that it refuses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from edgekit.exporters.onnx.ops import MICROSOFT, GraphWriter, Matmuls, Norms
from edgekit.exporters.onnx.weights import (
    ATTENTION_TEMPERATURE,
    RopeTable,
    has_attention_temperature,
    plan_ropes,
)
from edgekit.families.spec import DecoderSpec, QkNorm
from edgekit.formats.onnx_io import (
    ATTENTION_MASK,
    CACHE_PARTS,
    CALL_LENGTH,
    INPUT_IDS,
    past_name,
    present_name,
)

# What GroupQueryAttention of onnxruntime 1.32 accepts on the CPU: heads of any multiple of 8
# channels, and for its own rope multiples of 16 of which it rotates multiples of 16.
HEAD_STEP: Final = 8
ROPE_STEP: Final = 16


@dataclass(frozen=True, slots=True)
class _Lengths:
    """Names of lengths from the mask: positions seen (B,), the last of them (B,), width (1,)."""

    n_seen: str
    last: str
    total: str


class AttentionBuilder:
    """Adds the attention of each layer to a graph.

    Args:
        parts: The graph.
        matmuls: The matmuls of the graph.
        norms: Its norms.
        spec: The decoder.
        n_positions: Positions the artifact holds; a window at least as long has no effect.
    """

    def __init__(
        self,
        parts: GraphWriter,
        matmuls: Matmuls,
        norms: Norms,
        spec: DecoderSpec,
        n_positions: int,
    ) -> None:
        self._parts = parts
        self._matmuls = matmuls
        self._norms = norms
        self._spec = spec
        self._n_positions = n_positions
        self._tables = plan_ropes(spec, n_positions)
        self._has_temperature = has_attention_temperature(spec, n_positions)
        self._made: set[str] = set()
        self._lengths = self._add_lengths()

    @property
    def has_call_length(self) -> bool:
        """Whether callers may tell the graph the sequence length after the whole call."""
        return any(table.changes_after is not None for table in self._tables.values())

    def add(self, layer: int, inner: str) -> str:
        """Attend from the (B, T, C) input of a layer; gives (B, T, H * D), before ``o``."""
        spec, parts, at = self._spec, self._parts, f"layers.{layer}."
        rope, window = spec.attention(layer).rope, spec.attention(layer).window
        table = None if rope is None else self._tables[rope]
        is_late = spec.qk_norm is QkNorm.HEAD_AFTER_ROPE
        is_inside = table is not None and not is_late and self._kernel_rotates(table)
        is_before = table is not None and not is_inside
        if is_before or self._has_temperature or spec.qk_norm is not QkNorm.NONE:
            queries, keys, values = self._project_apart(at, inner)
            if not is_late:
                queries, keys = self._both_normed(at, queries, keys)
            if table is not None and is_before:
                queries = self._rotated(queries, at + "q", table, spec.n_heads)
                keys = self._rotated(keys, at + "k", table, spec.n_kv_heads)
            if is_late:
                queries, keys = self._both_normed(at, queries, keys)
            if self._has_temperature:
                factors = self._attention_temperature()
                queries = parts.node("Mul", [queries, factors], at + "q.grown")
        else:
            queries, keys, values = self._project(at, inner)
        inputs = [queries, keys, values]
        inputs += [past_name(layer, part) for part in CACHE_PARTS]
        inputs += [self._lengths.last, self._lengths.total]
        if table is not None and is_inside:
            inputs += [table.cos, table.sin]
            # Without these rows the kernel counts positions from the mask, which needs no nodes.
            inputs += [self._rows(table)] if table.changes_after is not None else []
        output = at + "attention.out"
        is_windowed = window is not None and window < self._n_positions
        parts.node(
            "GroupQueryAttention",
            inputs,
            [output, *(present_name(layer, part) for part in CACHE_PARTS)],
            name=at + "attention",
            domain=MICROSOFT,
            num_heads=spec.n_heads,
            kv_num_heads=spec.n_kv_heads,
            scale=float(spec.score_scale),
            local_window_size=window if is_windowed else -1,
            do_rotary=int(is_inside),
            rotary_interleaved=0,
            **({} if spec.scores_softcap is None else {"softcap": float(spec.scores_softcap)}),
        )
        return output

    def _kernel_rotates(self, table: RopeTable) -> bool:
        return self._spec.head_width % ROPE_STEP == 0 and 2 * table.n_pairs % ROPE_STEP == 0

    def _project(self, at: str, inner: str) -> tuple[str, str, str]:
        """Give queries, keys and values in the form that the kernel takes: joined if possible."""
        if at + "qkv" in self._matmuls:
            return self._matmuls.add(at + "qkv", inner), "", ""
        queries, keys, values = (self._matmuls.add(at + part, inner) for part in "qkv")
        return queries, keys, values

    def _project_apart(self, at: str, inner: str) -> tuple[str, str, str]:
        """Give queries, keys and values, each separately."""
        queries, keys, values = self._project(at, inner)
        if keys:
            return queries, keys, values
        widths = self._once("qkv_widths", [self._spec.q_width, *[self._spec.kv_width] * 2])
        outputs = [f"{at}{part}.out" for part in "qkv"]
        self._parts.node("Split", [queries, widths], outputs, axis=-1)
        return outputs[0], outputs[1], outputs[2]

    def _both_normed(self, at: str, queries: str, keys: str) -> tuple[str, str]:
        normed = self._normed(queries, at + "q", self._spec.q_width)
        return normed, self._normed(keys, at + "k", self._spec.kv_width)

    def _normed(self, x: str, name: str, width: int) -> str:
        """Norm queries or keys (B, T, width) as the decoder requires."""
        match self._spec.qk_norm:
            case QkNorm.NONE:
                return x
            case QkNorm.FULL:
                return self._norms.add(x, f"{name}_norm")
            case QkNorm.HEAD | QkNorm.HEAD_AFTER_ROPE:
                apart = self._once("heads_apart", [0, 0, -1, self._spec.head_width])
                heads = self._parts.node("Reshape", [x, apart], f"{name}.heads")
                heads = self._norms.add(heads, f"{name}_norm")
                joined = self._parts.integers(f"{name}.shape", [0, 0, width])
                return self._parts.node("Reshape", [heads, joined], f"{name}.normed")

    def _rotated(self, x: str, name: str, table: RopeTable, n_heads: int) -> str:
        """Rotate (B, T, heads * D) by a separate node."""
        return self._parts.node(
            "RotaryEmbedding",
            [x, self._rows(table), table.cos, table.sin],
            f"{name}.rotated",
            domain=MICROSOFT,
            interleaved=0,
            num_heads=n_heads,
            rotary_embedding_dim=2 * table.n_pairs,
        )

    def _attention_temperature(self) -> str:
        name = "query.factor"
        if self._is_new(name):
            self._parts.node("Gather", [ATTENTION_TEMPERATURE, self._positions()], name, axis=0)
        return name

    def _rows(self, table: RopeTable) -> str:
        """Give the row of a rope table for every new position, (B, T)."""
        if table.changes_after is None:
            return self._positions()
        rows = f"{table.name}.rows"
        if self._is_new(rows):
            parts, positions = self._parts, self._positions()
            limit = parts.integers(f"{table.name}.limit", table.changes_after)
            n_rows = parts.integers(f"{table.name}.n_rows", self._n_positions)
            is_long = parts.node("Greater", [self._call_length(), limit], f"{table.name}.is_long")
            step = parts.cast(is_long, "INT64", f"{table.name}.step")
            first = parts.node("Mul", [step, n_rows], f"{table.name}.first")
            parts.node("Add", [positions, first], rows)
        return rows

    def _call_length(self) -> str:
        """Give the positions after the whole call, of which this run may be a part; (B, 1)."""
        name = "call.length"
        if self._is_new(name):
            told = self._once(CALL_LENGTH, [0])
            length = self._parts.node("Max", [self._lengths.n_seen, told], "call.lengths")
            self._parts.node("Unsqueeze", [length, "one"], name)
        return name

    def _positions(self) -> str:
        """Give the position of every new token, (B, T)."""
        name = "positions"
        if self._is_new(name):
            parts = self._parts
            zero, step = parts.integers("zero", 0), parts.integers("step", 1)
            width = parts.node("Shape", [INPUT_IDS], "input.width", start=1)
            before = parts.node("Sub", [self._lengths.n_seen, width], "positions.before")
            # A shorter row of a padded batch starts at 0 like the others.
            before = parts.node("Max", [before, zero], "positions.first")
            before = parts.node("Unsqueeze", [before, "one"], "positions.start")
            count = parts.node("Squeeze", [width], "input.count")
            steps = parts.node("Range", [zero, count, step], "positions.steps")
            parts.node("Add", [before, steps], name)
        return name

    def _add_lengths(self) -> _Lengths:
        parts = self._parts
        one = parts.integers("one", [1])
        n_seen = parts.node("ReduceSum", [ATTENTION_MASK, one], "mask.sum", keepdims=0)
        last = parts.node("Sub", [n_seen, one], "mask.last")
        width = parts.node("Shape", [ATTENTION_MASK], "mask.width", start=1)
        return _Lengths(
            n_seen=n_seen,
            last=parts.cast(last, "INT32", "seqlens_k"),
            total=parts.cast(width, "INT32", "total_sequence_length"),
        )

    def _once(self, name: str, value: list[int]) -> str:
        return self._parts.integers(name, value) if self._is_new(name) else name

    def _is_new(self, name: str) -> bool:
        """Tell whether a name is asked for the first time; all layers share its node."""
        is_new = name not in self._made
        self._made.add(name)
        return is_new
