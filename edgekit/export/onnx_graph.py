"""Answer one question: which ONNX graph computes a decoder?

Fused operators only, as onnxruntime's CPU kernels want them: rotary embedding inside
GroupQueryAttention, RMSNorm with its skip connection, block-quantized matrix products with
accuracy_level 4 (activations are rounded to int8 per block; every other level falls off a
speed cliff). Weights are references into the weight file; the proto is a few dozen kilobytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from edgekit.dtypes import DType
from edgekit.export.onnx_layout import (
    ROPE_COS,
    ROPE_SIN,
    WEIGHTS_NAME,
    Content,
    Linear,
    Stored,
    plan_linears,
)
from edgekit.families.spec import DecoderSpec
from edgekit.lazy import require
from edgekit.scheme import FP16, Scheme
from edgekit.tensors import TensorInfo

OPSET: Final = 21
IR_VERSION: Final = 10
MICROSOFT: Final = "com.microsoft"
ACCURACY_LEVEL: Final = 4
INPUT_IDS: Final = "input_ids"
ATTENTION_MASK: Final = "attention_mask"
LOGITS: Final = "logits"
LOGITS_START: Final = "logits_start"
PAST: Final = "past_key_values.{layer}.{part}"
PRESENT: Final = "present.{layer}.{part}"
_SLICE_END: Final = 1 << 62


class GraphBuilder:
    """Collects the nodes and initializers of one decoder.

    Args:
        spec: The decoder.
        schemes: Scheme of every canonical name.
        arrays: What the weight file holds.
        offsets: First byte of each array in it.
        n_positions: Rows of the rope tables; a window at least as long is no window.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        schemes: Mapping[str, Scheme],
        arrays: Sequence[Stored],
        offsets: Mapping[str, int],
        n_positions: int,
    ) -> None:
        self._onnx = require("onnx")
        self._helper = require("onnx.helper")
        self._spec = spec
        self._schemes = schemes
        self._arrays = {stored.info.name: stored for stored in arrays}
        self._offsets = offsets
        window = spec.sliding_window
        self._window = window if window is not None and window < n_positions else -1
        self._nodes: list[Any] = []
        self._initializers: list[Any] = []

    def build(self) -> Any:
        """Give the ``onnx.ModelProto``."""
        spec, linears = self._spec, {x.name: x for x in plan_linears(self._spec, self._schemes)}
        for name, stored in self._arrays.items():
            if stored.content is not Content.CODES or name == "embed.codes":
                self._add_array(name, stored.info, stored.info.shape)
        seqlens, total = self._add_lengths()
        residual = self._add_embedding()
        normed = self._node(
            "SimplifiedLayerNormalization",
            [residual, "layers.0.attn_norm"],
            "layers.0.attn_norm.out",
            axis=-1,
            epsilon=spec.norm_eps,
            stash_type=1,
        )
        for i in range(spec.n_layers):
            at = f"layers.{i}."
            attended = self._add_attention(i, normed, linears, seqlens, total)
            change = self._add_linear(linears[at + "o"], attended)
            normed, residual = self._add_norm(at + "ffn_norm", residual, change)
            change = self._add_ffn(at, normed, linears)
            is_last = i + 1 == spec.n_layers
            name = "final_norm" if is_last else f"layers.{i + 1}.attn_norm"
            normed, residual = self._add_norm(name, residual, change)
        self._add_small(LOGITS_START, [-1])
        end = self._add_small("logits_end", [_SLICE_END])
        last = self._node("Slice", [normed, LOGITS_START, end, "one"], "logits_rows")
        self._add_linear(linears["lm_head"], last, output=LOGITS)
        return self._model()

    def _add_lengths(self) -> tuple[str, str]:
        """Turn the mask into what attention wants: last position (B,) and total length (1,)."""
        int32 = self._onnx.TensorProto.INT32
        one = self._add_small("one", [1])
        n_seen = self._node("ReduceSum", [ATTENTION_MASK, one], "mask.sum", keepdims=0)
        last = self._node("Sub", [n_seen, one], "mask.last")
        width = self._node("Shape", [ATTENTION_MASK], "mask.width", start=1)
        return (
            self._node("Cast", [last], "seqlens_k", to=int32),
            self._node("Cast", [width], "total_sequence_length", to=int32),
        )

    def _add_embedding(self) -> str:
        scheme = self._schemes["embed"]
        if scheme.group is not None:
            return self._node(
                "GatherBlockQuantized",
                ["embed.codes", INPUT_IDS, "embed.scales"],
                "embed.out",
                domain=MICROSOFT,
                bits=scheme.bits,
                block_size=scheme.group,
                gather_axis=0,
                quantize_axis=1,
            )
        rows = self._node("Gather", ["embed", INPUT_IDS], "embed.out", axis=0)
        return self._as_float32(rows) if scheme == FP16 else rows

    def _add_attention(
        self, layer: int, normed: str, linears: Mapping[str, Linear], seqlens: str, total: str
    ) -> str:
        spec, at = self._spec, f"layers.{layer}."
        if at + "qkv" in linears:
            qkv = [self._add_linear(linears[at + "qkv"], normed), "", ""]
        else:
            qkv = [self._add_linear(linears[at + part], normed) for part in ("q", "k", "v")]
        past = [PAST.format(layer=layer, part=part) for part in ("key", "value")]
        present = [PRESENT.format(layer=layer, part=part) for part in ("key", "value")]
        output = at + "attention.out"
        self._node(
            "GroupQueryAttention",
            [*qkv, *past, seqlens, total, ROPE_COS, ROPE_SIN],
            [output, *present],
            name=at + "attention",
            domain=MICROSOFT,
            num_heads=spec.n_heads,
            kv_num_heads=spec.n_kv_heads,
            scale=float(spec.head_width**-0.5),
            local_window_size=self._window,
            do_rotary=1,
            rotary_interleaved=0,
        )
        return output

    def _add_ffn(self, at: str, normed: str, linears: Mapping[str, Linear]) -> str:
        gate = self._add_linear(linears[at + "gate"], normed)
        up = self._add_linear(linears[at + "up"], normed)
        # QuickGelu with alpha 1 is x * sigmoid(x), SiLU, in one kernel.
        silu = self._node("QuickGelu", [gate], at + "silu.out", domain=MICROSOFT, alpha=1.0)
        return self._add_linear(
            linears[at + "down"], self._node("Mul", [silu, up], at + "gated.out")
        )

    def _add_norm(self, name: str, residual: str, change: str) -> tuple[str, str]:
        """Add the change to the residual and norm the sum; gives (normed, sum)."""
        normed, total = f"{name}.out", f"{name}.residual"
        outputs = [normed] if name == "final_norm" else [normed, "", "", total]
        self._node(
            "SkipSimplifiedLayerNormalization",
            [residual, change, name],
            outputs,
            name=name,
            domain=MICROSOFT,
            epsilon=self._spec.norm_eps,
        )
        return normed, total

    def _add_linear(self, linear: Linear, x: str, output: str | None = None) -> str:
        output = output or f"{linear.name}.out"
        bias = f"{linear.name}.bias" if linear.has_bias else ""
        if linear.scheme.group is not None:
            return self._add_block_product(linear, linear.scheme.group, x, bias, output)
        weight = linear.stored
        if linear.scheme == FP16:
            weight = self._as_float32(weight, f"{linear.name}.float32")
        product = f"{linear.name}.product" if bias else output
        # transB keeps (N, M) as in the checkpoint, so a tied embedding is one array.
        self._node(
            "FusedMatMul", [x, weight], product, name=linear.name, domain=MICROSOFT, transB=1
        )
        return self._node("Add", [product, bias], output) if bias else output

    def _add_block_product(self, linear: Linear, group: int, x: str, bias: str, output: str) -> str:
        bits = linear.scheme.bits
        # The product wants (N, M // G, bytes of a block). A tied embedding is thus known by two
        # names and two shapes, with one offset in the weight file.
        codes = self._add_array(
            f"{linear.name}.codes",
            self._arrays[f"{linear.stored}.codes"].info,
            (linear.n_out, linear.n_in // group, group * bits // 8),
        )
        inputs = [x, codes, f"{linear.stored}.scales"]
        return self._node(
            "MatMulNBits",
            [*inputs, "", "", bias] if bias else inputs,
            output,
            name=linear.name,
            domain=MICROSOFT,
            K=linear.n_in,
            N=linear.n_out,
            bits=bits,
            block_size=group,
            accuracy_level=ACCURACY_LEVEL,
        )

    def _as_float32(self, name: str, output: str | None = None) -> str:
        to = self._onnx.TensorProto.FLOAT
        return self._node("Cast", [name], output or f"{name}.float32", to=to)

    def _node(
        self,
        op: str,
        inputs: Sequence[str],
        outputs: str | Sequence[str],
        *,
        name: str | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Add one node, named after its first output unless told otherwise; give that output."""
        names = [outputs] if isinstance(outputs, str) else list(outputs)
        self._nodes.append(
            self._helper.make_node(
                op, list(inputs), names, name=name or names[0], domain=domain, **attributes
            )
        )
        return names[0]

    def _add_array(self, name: str, info: TensorInfo, shape: Sequence[int]) -> str:
        """Add an initializer whose bytes lie in the weight file."""
        tensor = self._onnx.TensorProto(
            name=name,
            dims=shape,
            data_type=_onnx_types(self._onnx)[info.dtype],
            data_location=self._onnx.TensorProto.EXTERNAL,
        )
        place = (WEIGHTS_NAME, self._offsets[info.name], info.n_bytes)
        for key, value in zip(("location", "offset", "length"), place, strict=True):
            tensor.external_data.add(key=key, value=str(value))
        self._initializers.append(tensor)
        return name

    def _add_small(self, name: str, value: int | list[int]) -> str:
        """Add an int64 initializer inside the proto, where shape inference can read it."""
        array = np.asarray(value, dtype=np.int64)
        self._initializers.append(self._onnx.numpy_helper.from_array(array, name))
        return name

    def _model(self) -> Any:
        spec, helper, types = self._spec, self._helper, self._onnx.TensorProto
        batch, total = "batch_size", "total_sequence_length"
        inputs = [
            helper.make_tensor_value_info(INPUT_IDS, types.INT64, [batch, "sequence_length"]),
            helper.make_tensor_value_info(ATTENTION_MASK, types.INT64, [batch, total]),
        ]
        # One row declared, so that onnxruntime-genai sees a pruned head; a caller that gives
        # logits_start may ask for more.
        outputs = [helper.make_tensor_value_info(LOGITS, types.FLOAT, [batch, 1, spec.vocab_size])]
        for layer in range(spec.n_layers):
            for part in ("key", "value"):
                for names, into, length in (
                    (PAST, inputs, "past_sequence_length"),
                    (PRESENT, outputs, total),
                ):
                    shape = [batch, spec.n_kv_heads, length, spec.head_width]
                    name = names.format(layer=layer, part=part)
                    into.append(helper.make_tensor_value_info(name, types.FLOAT, shape))
        inputs.append(helper.make_tensor_value_info(LOGITS_START, types.INT64, [1]))
        graph = helper.make_graph(
            self._nodes, "decoder", inputs, outputs, initializer=self._initializers
        )
        return helper.make_model(
            graph,
            producer_name="edgekit",
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)],
        )


def _onnx_types(onnx: Any) -> dict[DType, int]:
    """Give ONNX's number for each type that the weight file holds."""
    types = onnx.TensorProto
    return {DType.FP32: types.FLOAT, DType.FP16: types.FLOAT16, DType.UINT8: types.UINT8}
