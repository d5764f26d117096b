"""Builder of the ONNX graph of a decoder.

It uses only fused operators that onnxruntime's CPU kernels have: rotary embedding inside
GroupQueryAttention, RMSNorm with its skip connection, block-quantized matmuls. The graph file is
a few dozen kilobytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from edgekit.encoding import FP16, Encoding
from edgekit.exporters.arrays import Content, StoredArray
from edgekit.exporters.onnx.attention import AttentionBuilder
from edgekit.exporters.onnx.ops import MICROSOFT, GraphWriter, Matmuls, Norms
from edgekit.exporters.onnx.weights import plan_linears
from edgekit.families.spec import Activation, DecoderSpec, NormPlacement
from edgekit.formats.onnx_io import INPUT_IDS, LOGITS, LOGITS_START, GraphPorts
from edgekit.lazy import require

OPSET: Final = 21
IR_VERSION: Final = 10
_SLICE_END: Final = 1 << 62


class GraphBuilder:
    """Builds the graph of one decoder.

    Args:
        spec: The decoder.
        encodings: Encoding of every canonical name.
        arrays: What the weight file holds.
        offsets: First byte of each array in it.
        n_positions: Positions the artifact holds; a window at least as long is no window.
        n_terms: Terms of 8 bits that matmuls take their activations in (activations.py).
    """

    def __init__(
        self,
        spec: DecoderSpec,
        encodings: Mapping[str, Encoding],
        arrays: Sequence[StoredArray],
        offsets: Mapping[str, int],
        n_positions: int,
        n_terms: Mapping[str, int],
    ) -> None:
        self._spec = spec
        self._embed_encoding = encodings["embed"]
        self._parts = GraphWriter(arrays, offsets)
        self._matmuls = Matmuls(self._parts, plan_linears(spec, encodings, n_terms))
        self._norms = Norms(self._parts, spec)
        self._n_positions = n_positions

    def build(self) -> Any:
        """Give the ``onnx.ModelProto``."""
        spec, parts = self._spec, self._parts
        for name, stored in parts.arrays.items():
            if stored.content is not Content.CODES or name == "embed.codes":
                parts.array(name, stored.info, stored.info.shape)
        if spec.residual_scale != 1.0:
            parts.number("residual_scale", spec.residual_scale)
        norms = self._norms
        attention = AttentionBuilder(parts, self._matmuls, norms, spec, self._n_positions)
        has_before = spec.norm_placement is not NormPlacement.AFTER
        residual = self._scaled(self._add_embedding(), "embed_scale", spec.embed_scale)
        inner = norms.add(residual, "layers.0.attn_norm") if has_before else residual
        for i in range(spec.n_layers):
            at, is_last = f"layers.{i}.", i + 1 == spec.n_layers
            output = self._matmuls.add(at + "o", attention.add(i, inner))
            name = at + "ffn_norm"
            inner, residual = self._add_output(residual, output, at + "attn", name, has_before)
            output = self._add_ffn(at, inner)
            name = "final_norm" if is_last else f"layers.{i + 1}.attn_norm"
            inner, residual = self._add_output(
                residual, output, at + "ffn", name, has_before or is_last
            )
        parts.integers(LOGITS_START, [-1])
        end = parts.integers("logits_end", [_SLICE_END])
        rows = parts.node("Slice", [inner, LOGITS_START, end, "one"], "logits_rows")
        # Scaling the rows equals scaling the logits, on C numbers instead of V.
        rows = self._scaled(rows, "logits_scale", spec.logits_scale)
        if spec.logits_softcap is None:
            self._matmuls.add("lm_head", rows, output=LOGITS)
        else:
            self._add_softcap(self._matmuls.add("lm_head", rows), spec.logits_softcap)
        return self._model(attention.has_call_length)

    def _add_softcap(self, logits: str, cap: float) -> None:
        """Give the logits as cap * tanh(logits / cap)."""
        parts, name = self._parts, "logits_softcap"
        parts.number(name, cap)
        shrunk = parts.node("Div", [logits, name], f"{name}.in")
        parts.node("Mul", [parts.node("Tanh", [shrunk], f"{name}.out"), name], LOGITS)

    def _add_embedding(self) -> str:
        encoding, parts = self._embed_encoding, self._parts
        if encoding.block is not None:
            zeros = ["embed.zero_points"] if encoding.has_zero_points else []
            return parts.node(
                "GatherBlockQuantized",
                ["embed.codes", INPUT_IDS, "embed.scales", *zeros],
                "embed.out",
                domain=MICROSOFT,
                bits=encoding.bits,
                block_size=encoding.block,
                gather_axis=0,
                quantize_axis=1,
            )
        rows = parts.node("Gather", ["embed", INPUT_IDS], "embed.out", axis=0)
        return parts.cast(rows, "FLOAT", "embed.out.float32") if encoding == FP16 else rows

    def _add_ffn(self, at: str, inner: str) -> str:
        parts = self._parts
        gate = self._matmuls.add(at + "gate", inner)
        up = self._matmuls.add(at + "up", inner)
        match self._spec.activation:
            case Activation.SILU:
                # QuickGelu with alpha 1 is x * sigmoid(x), SiLU, in one kernel.
                gate = parts.node("QuickGelu", [gate], at + "silu.out", domain=MICROSOFT, alpha=1.0)
            case Activation.GELU_TANH:
                gate = parts.node("Gelu", [gate], at + "gelu.out", approximate="tanh")
        return self._matmuls.add(at + "down", parts.node("Mul", [gate, up], at + "gated.out"))

    def _add_output(
        self, residual: str, output: str, block: str, norm: str, has_norm: bool
    ) -> tuple[str, str]:
        """Add what a block computed to the residual and norm the sum for the next block.

        Args:
            residual: (B, T, C).
            output: What the block gives, (B, T, C).
            block: Canonical name of the block, such as ``layers.0.attn``.
            norm: Canonical name of the norm that the next block has before it.
            has_norm: Whether there is this norm.

        Returns:
            What the next block reads, and the residual after this one.
        """
        spec, parts = self._spec, self._parts
        if spec.norm_placement is not NormPlacement.BEFORE:
            output = self._norms.add(output, f"{block}_post_norm")
        if spec.residual_scale != 1.0:
            output = parts.node("Mul", [output, "residual_scale"], f"{block}.scaled")
        if not has_norm:
            total = parts.node("Add", [residual, output], f"{block}.residual")
            return total, total
        return self._norms.add_sum(residual, output, norm)

    def _scaled(self, x: str, name: str, factor: float) -> str:
        if factor == 1.0:
            return x
        return self._parts.node("Mul", [x, self._parts.number(name, factor)], f"{name}.out")

    def _model(self, has_call_length: bool) -> Any:
        spec, helper = self._spec, require("onnx.helper")
        ports = GraphPorts(
            spec.n_layers,
            spec.n_kv_heads,
            spec.head_width,
            spec.vocab_size,
            has_call_length=has_call_length,
        )
        # The last ones have initializers, so a caller may omit them.
        inputs = [self._parts.declare(port) for port in (*ports.inputs, *ports.defaults)]
        outputs = [self._parts.declare(port) for port in ports.outputs]
        graph = helper.make_graph(
            self._parts.nodes, "decoder", inputs, outputs, initializer=self._parts.initializers
        )
        return helper.make_model(
            graph,
            producer_name="edgekit",
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)],
        )
