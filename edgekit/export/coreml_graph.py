"""Answer one question: which MIL program computes a ``DecoderSpec``?

The program is built without weights: every matrix is a zero-stride placeholder that takes no
memory, and ``slots`` says which tensor belongs there. The names and shapes of inputs, states
and output are those of Apple's Llama sample and of swift-transformers.

``past = causalMask.shape[-1] - inputIds.shape[-1]``. The program makes its own causal (and
sliding-window) bias from positions and adds the caller's mask, because swift-transformers
passes an all-zero mask [1, 1, 1, T + 1] at prefill: without a bias there is no causality, and
slot 0 of the cache, never written, would take part in every softmax.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from edgekit.dtypes import F32Array
from edgekit.families.rope import rope_tables
from edgekit.families.spec import DecoderSpec
from edgekit.formats.mlpackage import (
    CAUSAL_MASK,
    INPUT_IDS,
    KEY_CACHE,
    LOGITS,
    VALUE_CACHE,
    require_coremltools,
)
from edgekit.scheme import Scheme

# Large enough that exp() of it is 0 beside any score, small enough that twice it is an fp16.
MASKED: Final = -30000.0


@dataclass(frozen=True, slots=True)
class Slot:
    """A constant whose bytes come from the model: tensor ``name``, and which part of it."""

    name: str
    part: str  # "codes", "scales" or "values"


@dataclass(frozen=True, slots=True)
class Graph:
    """A program without weights, and what belongs into its placeholders, by constant name."""

    program: Any
    slots: Mapping[str, Slot]


def identifier(name: str) -> str:
    """Give the MIL name of a canonical tensor name; MIL allows no dots."""
    return name.replace(".", "_")


def build_graph(spec: DecoderSpec, schemes: Mapping[str, Scheme], context_length: int) -> Graph:
    """Build the program of a decoder.

    Args:
        spec: The decoder.
        schemes: How each canonical tensor is stored.
        context_length: CTX, the positions that the cache holds.
    """
    ct = require_coremltools()
    mil = require_coremltools("coremltools.converters.mil.mil")
    mb, types = mil.Builder, mil.types
    cache = (spec.n_layers, 1, spec.n_kv_heads, context_length, spec.head_width)
    inputs = {
        INPUT_IDS: mb.TensorSpec((1, mil.get_new_symbol()), dtype=types.int32),
        CAUSAL_MASK: mb.TensorSpec(
            (1, 1, mil.get_new_symbol(), mil.get_new_symbol()), dtype=types.fp16
        ),
        KEY_CACHE: mb.StateTensorSpec(cache, dtype=types.fp16),
        VALUE_CACHE: mb.StateTensorSpec(cache, dtype=types.fp16),
    }
    program = mil.Program()
    # Names of helper constants come from a counter of the whole process.
    counts = dict(mb.name_count)
    mb.name_count.clear()
    try:
        with mil.Function(inputs, opset_version=ct.target.iOS18) as function:
            builder = _Builder(spec, schemes, context_length, mb, types)
            function.set_outputs([builder.decoder(function.inputs)])
    finally:
        mb.name_count.clear()
        mb.name_count.update(counts)
    program.add_function("main", function)
    span = ct.RangeDim(1, context_length, default=1)
    function.set_input_types(
        (
            ct.TensorType(name=INPUT_IDS, shape=(1, span), dtype=np.int32),
            ct.TensorType(name=CAUSAL_MASK, shape=(1, 1, span, span), dtype=np.float16),
        )
    )
    return Graph(program, builder.slots)


class _Builder:
    """Write the ops of one decoder; ``mb`` and ``types`` are coremltools' own."""

    def __init__(
        self,
        spec: DecoderSpec,
        schemes: Mapping[str, Scheme],
        n_positions: int,
        mb: Any,
        types: Any,
    ) -> None:
        self.spec = spec
        self.schemes = schemes
        self.n_positions = n_positions
        self.mb = mb
        self.types = types
        self.slots: dict[str, Slot] = {}
        self.matrices: dict[str, Any] = {}
        self.no_bias: dict[int, Any] = {}

    def decoder(self, inputs: Mapping[str, Any]) -> Any:
        """Write the whole decoder; give the logits, fp16 (1, T, V)."""
        mb, spec = self.mb, self.spec
        ids, mask = inputs[INPUT_IDS], inputs[CAUSAL_MASK]
        n_new = mb.slice_by_index(x=mb.shape(x=ids), begin=[1], end=[2], name="n_new")
        self.end = mb.slice_by_index(x=mb.shape(x=mask), begin=[3], end=[4], name="end")
        self.past = mb.sub(x=self.end, y=n_new, name="past")
        self.cos, self.sin = self.rotary()
        bias = self.causal_bias(mask)

        states = {name: inputs[name] for name in (KEY_CACHE, VALUE_CACHE)}
        # Read once; later layers chain on the updated value. A second read_state before a write
        # may be merged with the first by coremltools' passes and then undoes earlier layers.
        caches = {name: mb.read_state(input=state) for name, state in states.items()}
        embedded = mb.gather(
            x=self.matrix("embed"), indices=ids, axis=0, validate_indices=False, name="embedded"
        )
        # The residual stream is fp32: norms need it so, and its largest values can leave fp16.
        x = mb.cast(x=embedded, dtype="fp32")
        for layer in range(spec.n_layers):
            at = f"layers.{layer}."
            h = self.norm(x, at + "attn_norm")
            query = self.rotate(self.heads(self.linear(h, at + "q", is_wide=True), spec.n_heads))
            key = self.heads(self.linear(h, at + "k", is_wide=True), spec.n_kv_heads)
            value = self.heads(self.linear(h, at + "v"), spec.n_kv_heads)
            fresh = {KEY_CACHE: self.rotate(key), VALUE_CACHE: value}
            begin, end = self.place(layer, self.past), self.place(layer + 1, self.end)
            for name, state in states.items():
                update = mb.slice_update(
                    x=caches[name],
                    update=mb.expand_dims(x=fresh[name], axes=[0]),
                    begin=begin,
                    end=end,
                    begin_mask=[False, True, True, False, True],
                    end_mask=[False, True, True, False, True],
                )
                caches[name] = mb.coreml_update_state(state=state, value=update)
            if layer == 0:
                bias = self.hide_unwritten(bias, caches[KEY_CACHE])
            attended = mb.scaled_dot_product_attention(
                query=query,
                key=self.cached(caches[KEY_CACHE], layer, end),
                value=self.cached(caches[VALUE_CACHE], layer, end),
                attn_mask=bias,
            )
            rows = mb.reshape(
                x=mb.transpose(x=attended, perm=[0, 2, 1, 3]), shape=[1, -1, spec.q_width]
            )
            x = mb.add(x=x, y=self.linear(rows, at + "o", is_wide=True))
            h = self.norm(x, at + "ffn_norm")
            gate = mb.silu(x=self.linear(h, at + "gate"))
            inner = mb.mul(x=gate, y=self.linear(h, at + "up"))
            x = mb.add(x=x, y=self.linear(inner, at + "down", is_wide=True))
        h = self.norm(x, "final_norm")
        return self.linear(h, "embed" if spec.is_tied else "lm_head", name=LOGITS)

    def causal_bias(self, mask: Any) -> Any:
        """Add the caller's mask to 0 where a query may look and MASKED where not, (1, 1, T, S).

        The bias comes from positions, exact in fp32, not from a (CTX, CTX) table: that would
        weigh 32 MB at 4096 and 512 MB at 16384 positions.
        """
        mb = self.mb
        positions = mb.const(val=np.arange(self.n_positions, dtype=np.float32), name="positions")
        keys = mb.slice_by_index(x=positions, begin=[0], end=self.end, begin_mask=[True])
        queries = mb.slice_by_index(x=positions, begin=self.past, end=self.end)
        distance = mb.sub(x=mb.expand_dims(x=queries, axes=[1]), y=keys, name="distance")
        outside = mb.relu(x=mb.mul(x=distance, y=np.float32(-1.0)))
        window = self.spec.sliding_window
        if window is not None and window < self.n_positions:
            beyond = mb.relu(x=mb.sub(x=distance, y=np.float32(window - 1)))
            outside = mb.add(x=outside, y=beyond)
        reach = mb.maximum(x=mb.mul(x=outside, y=np.float32(MASKED)), y=np.float32(MASKED))
        return mb.add(x=mb.cast(x=reach, dtype="fp16"), y=mask)

    def hide_unwritten(self, bias: Any, keys: Any) -> Any:
        """Hide position 0 while its key was never written; clamp the sum, also against -inf."""
        mb, n_kv, width = self.mb, self.spec.n_kv_heads, self.spec.head_width
        first = mb.slice_by_index(
            x=keys, begin=[0, 0, 0, 0, 0], end=[1, 1, n_kv, 1, width], name="first_key"
        )
        flat = mb.abs(x=mb.reshape(x=first, shape=[n_kv * width]))
        largest = mb.reduce_max(x=flat, axes=[0], keep_dims=True)
        is_written = mb.cast(x=mb.greater(x=largest, y=np.float16(0)), dtype="fp16")
        penalty = mb.mul(
            x=mb.sub(x=np.float16(1), y=is_written), y=np.float16(MASKED), name="unwritten"
        )
        at_zero = np.zeros(self.n_positions, np.float16)
        at_zero[0] = 1
        column = mb.slice_by_index(
            x=mb.const(val=at_zero, name="column_zero"), begin=[0], end=self.end, begin_mask=[True]
        )
        hidden = mb.add(x=bias, y=mb.mul(x=column, y=penalty))
        return mb.maximum(x=hidden, y=np.float16(MASKED), name="attention_bias")

    def rotary(self) -> tuple[Any, Any]:
        """Slice the tables of cos and signed sin to the new positions, fp32 (T, D)."""
        cos, sin = rope_tables(self.spec, self.n_positions)

        def sliced(table: F32Array, name: str) -> Any:
            return self.mb.slice_by_index(
                x=self.mb.const(val=table, name=name),
                begin=self.mb.concat(values=[self.past, np.array([0], np.int32)], axis=0),
                end=self.mb.concat(values=[self.end, np.array([0], np.int32)], axis=0),
                begin_mask=[False, True],
                end_mask=[False, True],
            )

        # The minus of rotate-half stands in the table: one op less, the same result.
        return (
            sliced(np.concatenate([cos, cos], axis=1), "rope_cos"),
            sliced(np.concatenate([-sin, sin], axis=1), "rope_sin"),
        )

    def rotate(self, x: Any) -> Any:
        """Apply RoPE, rotate-half form: fp32 (1, H, T, D) to fp16.

        In fp16 the tables alone would shift logits by about 1 % of their spread.
        """
        mb = self.mb
        low, high = mb.split(x=x, num_splits=2, axis=-1)
        swapped = mb.concat(values=[high, low], axis=-1)
        turned = mb.add(x=mb.mul(x=x, y=self.cos), y=mb.mul(x=swapped, y=self.sin))
        return mb.cast(x=turned, dtype="fp16")

    def heads(self, x: Any, n_heads: int) -> Any:
        """Split rows into heads: (1, T, H * D) to (1, H, T, D)."""
        split = self.mb.reshape(x=x, shape=[1, -1, n_heads, self.spec.head_width])
        return self.mb.transpose(x=split, perm=[0, 2, 1, 3])

    def place(self, layer: int, position: Any) -> Any:
        """Index vector of a layer and position in a cache; the other axes are masked."""
        zeros = np.zeros(2, np.int32)
        return self.mb.concat(
            values=[np.array([layer], np.int32), zeros, position, zeros[:1]], axis=0
        )

    def cached(self, cache: Any, layer: int, end: Any) -> Any:
        """Read keys or values of a layer up to ``end``, repeated per query head: (1, H, S, D)."""
        mb, spec = self.mb, self.spec
        x = mb.slice_by_index(
            x=cache,
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

    def norm(self, x: Any, name: str) -> Any:
        """RMSNorm of fp32 to fp16; the square of an fp16 would overflow from 256 on."""
        mb, types = self.mb, self.types
        mean = mb.reduce_mean(x=mb.square(x=x), axes=[-1], keep_dims=True)
        scaled = mb.mul(x=x, y=mb.rsqrt(x=mean, epsilon=np.float32(self.spec.norm_eps)))
        gain = self.placeholder(name, "values", types.fp32, (self.spec.hidden_width,))
        return mb.cast(x=mb.mul(x=scaled, y=gain), dtype="fp16")

    def linear(self, x: Any, name: str, /, *, is_wide: bool = False, **named: str) -> Any:
        """Multiply fp16 rows with a matrix and add its bias: (1, T, M) to (1, T, N).

        The result is fp32 if ``is_wide``, else fp16. A bias kept in fp32 is added in fp32.
        """
        mb, types = self.mb, self.types
        weight = self.matrix(name)
        n_out = int(weight.shape[0])
        bias_name = f"{name}.bias"
        kind = self.schemes[bias_name].kind if bias_name in self.schemes else ""
        if kind == "fp16":
            inner = self.placeholder(bias_name, "values", types.fp16, (n_out,))
        else:
            # The op has no form without bias in coremltools; one zero vector serves all.
            if n_out not in self.no_bias:
                zeros = np.zeros(n_out, np.float16)
                self.no_bias[n_out] = mb.const(val=zeros, name=f"zeros_{n_out}")
            inner = self.no_bias[n_out]
        y = mb.linear(x=x, weight=weight, bias=inner, **named)
        if is_wide or kind == "fp32":
            y = mb.cast(x=y, dtype="fp32")
        if kind == "fp32":
            y = mb.add(x=y, y=self.placeholder(bias_name, "values", types.fp32, (n_out,)))
            return y if is_wide else mb.cast(x=y, dtype="fp16")
        return y

    def matrix(self, name: str) -> Any:
        """Give the matrix as an fp16 value; the second use (tied head) shares the first."""
        if name not in self.matrices:
            mb, types, scheme = self.mb, self.types, self.schemes[name]
            n_out, n_in = self.spec.weight_shapes()[name]
            if scheme.group is None:
                self.matrices[name] = self.placeholder(name, "values", types.fp16, (n_out, n_in))
            else:
                code_type = types.int4 if scheme.bits == 4 else types.int8
                self.matrices[name] = mb.constexpr_blockwise_shift_scale(
                    data=self.placeholder(name, "codes", code_type, (n_out, n_in)),
                    scale=self.placeholder(
                        name, "scales", types.fp16, (n_out, n_in // scheme.group)
                    ),
                    name=identifier(name),
                )
        return self.matrices[name]

    def placeholder(self, name: str, part: str, dtype: Any, shape: tuple[int, ...]) -> Any:
        """Make a constant without memory whose bytes the writer fills in."""
        label = identifier(name) + ("" if part == "values" else f"_{part}")
        self.slots[label] = Slot(name, part)
        zero = np.zeros((), self.types.nptype_from_builtin(dtype))
        return self.mb.const(val=np.broadcast_to(zero, shape), name=label)
