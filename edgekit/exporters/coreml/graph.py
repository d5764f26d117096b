"""Builder of the MIL program that computes a ``DecoderSpec``.

The program is built without weights (weights.py). The names and shapes of inputs, states and
output are those of Apple's Llama sample and of swift-transformers.
``past = causalMask.shape[-1] - inputIds.shape[-1]``.

Number types: matrices multiply in fp16. The residual, every norm, rope and all factors are fp32: a
residual can leave the range of fp16 (Gemma 3's does), and factors should not be rounded twice. The
inside of a feed-forward block is fp32 too, except in the common block: SiLU, a norm before it and
no norm after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from edgekit.encoding import Encoding
from edgekit.exporters.coreml.attention import Attention, Call, softcap
from edgekit.exporters.coreml.weights import Slot, Weights
from edgekit.families.spec import Activation, DecoderSpec, NormPlacement
from edgekit.formats.mlpackage import (
    CAUSAL_MASK,
    INPUT_IDS,
    KEY_CACHE,
    LOGITS,
    VALUE_CACHE,
    require_coremltools,
)

# If a norm follows the block, training does not limit the size of its inside, and gate times up can
# exceed fp16. The factor is a power of two, so it changes only the exponent and rounds nothing.
_INNER_FACTOR: Final = 64.0


@dataclass(frozen=True, slots=True)
class Graph:
    """A program without weights, and what its placeholders stand for, by constant name."""

    program: Any
    slots: Mapping[str, Slot]


def build_graph(spec: DecoderSpec, encodings: Mapping[str, Encoding], context_length: int) -> Graph:
    """Build the program of a decoder.

    Args:
        spec: The decoder.
        encodings: How each canonical tensor is stored.
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
    weights = Weights(mb, types, spec, encodings)
    # coremltools names helper constants by a counter of the whole process.
    counts = dict(mb.name_count)
    mb.name_count.clear()
    try:
        with mil.Function(inputs, opset_version=ct.target.iOS18) as function:
            logits = _Decoder(mb, spec, weights).logits(function.inputs, context_length)
            function.set_outputs([logits])
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
    return Graph(program, weights.slots)


class _Decoder:
    """Writes the ops of one decoder; ``mb`` is coremltools' own builder."""

    def __init__(self, mb: Any, spec: DecoderSpec, weights: Weights) -> None:
        self.mb = mb
        self.spec = spec
        self.weights = weights

    def logits(self, inputs: Mapping[str, Any], n_positions: int) -> Any:
        """Write the whole decoder; give the logits, fp16 (1, T, V)."""
        mb, spec, weights = self.mb, self.spec, self.weights
        ids, mask = inputs[INPUT_IDS], inputs[CAUSAL_MASK]
        n_new = mb.slice_by_index(x=mb.shape(x=ids), begin=[1], end=[2], name="n_new")
        end = mb.slice_by_index(x=mb.shape(x=mask), begin=[3], end=[4], name="end")
        past = mb.sub(x=end, y=n_new, name="past")
        attention = Attention(Call(mb, spec, n_positions, past, end), weights, inputs)
        embedded = mb.gather(
            x=weights.matrix("embed"), indices=ids, axis=0, validate_indices=False, name="embedded"
        )
        x = self.scaled(mb.cast(x=embedded, dtype="fp32"), spec.embed_scale)
        for layer in range(spec.n_layers):
            at = f"layers.{layer}."
            rows = attention.attend(layer, self.block_input(x, at + "attn_norm"))
            output = weights.linear(rows, at + "o", is_wide=True)
            x = self.added(x, output, at + "attn_post_norm")
            output = self.feed_forward(self.block_input(x, at + "ffn_norm"), at)
            x = self.added(x, output, at + "ffn_post_norm")
        # Scaled before the head, so that the logits themselves are rounded once.
        h = weights.narrow(self.scaled(weights.norm(x, "final_norm"), spec.logits_scale))
        head = "embed" if spec.is_tied else "lm_head"
        if spec.logits_softcap is None:
            return weights.linear(h, head, name=LOGITS)
        logits = softcap(mb, weights.linear(h, head, is_wide=True), spec.logits_softcap)
        return mb.cast(x=logits, dtype="fp16", name=LOGITS)

    def block_input(self, x: Any, name: str) -> Any:
        """Norm the residual, fp32 to fp16, where the decoder norms before a block.

        Where it does not, the residual is a sum of normed rows, each at most its gain times the
        root of the width: far below the largest fp16.
        """
        return self.weights.narrow(self.weights.norm(x, name) if name in self.weights else x)

    def added(self, x: Any, output: Any, name: str) -> Any:
        """Add a block's output to the residual, normed if the decoder norms after it; fp32."""
        if name in self.weights:
            output = self.weights.norm(output, name)
        return self.mb.add(x=x, y=self.scaled(output, self.spec.residual_scale))

    def feed_forward(self, h: Any, at: str) -> Any:
        """Gated feed-forward, fp16 (1, T, C) to fp32."""
        mb, weights, spec = self.mb, self.weights, self.spec
        is_silu = spec.activation is Activation.SILU
        if is_silu and spec.norm_placement is NormPlacement.BEFORE:
            gate = mb.silu(x=weights.linear(h, at + "gate"))
            inner = mb.mul(x=gate, y=weights.linear(h, at + "up"))
            return weights.linear(inner, at + "down", is_wide=True)
        gate = weights.linear(h, at + "gate", is_wide=True)
        gate = mb.silu(x=gate) if is_silu else mb.gelu(x=gate, mode="TANH_APPROXIMATION")
        inner = mb.mul(x=gate, y=weights.linear(h, at + "up", is_wide=True))
        small = weights.narrow(self.scaled(inner, 1 / _INNER_FACTOR))
        return weights.linear(small, at + "down", is_wide=True, factor=_INNER_FACTOR)

    def scaled(self, x: Any, factor: float) -> Any:
        """Multiply fp32 values by a factor."""
        return x if factor == 1.0 else self.mb.mul(x=x, y=np.float32(factor))
