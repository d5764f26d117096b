"""Answer one question: how is an RMSNorm written in ONNX?"""

from __future__ import annotations

from edgekit.export.onnx_parts import MICROSOFT, GraphParts
from edgekit.families.spec import DecoderSpec


class Norms:
    """Adds the norms of a decoder to its graph, by canonical name."""

    def __init__(self, parts: GraphParts, spec: DecoderSpec) -> None:
        self._parts = parts
        self._eps = spec.norm_eps
        self._offset = spec.norm_offset
        if self._offset:
            parts.number("norm_offset", self._offset)

    def add(self, x: str, name: str) -> str:
        """Norm over the last axis."""
        return self._parts.node(
            "SimplifiedLayerNormalization",
            [x, self._gain(name)],
            f"{name}.out",
            axis=-1,
            epsilon=self._eps,
            stash_type=1,
        )

    def add_sum(self, stream: str, change: str, name: str) -> tuple[str, str]:
        """Add a change to the stream and norm the sum, in one node; gives (normed, sum)."""
        normed, total = f"{name}.out", f"{name}.residual"
        self._parts.node(
            "SkipSimplifiedLayerNormalization",
            [stream, change, self._gain(name)],
            [normed] if name == "final_norm" else [normed, "", "", total],
            name=name,
            domain=MICROSOFT,
            epsilon=self._eps,
        )
        return normed, total

    def _gain(self, name: str) -> str:
        """Give what a norm multiplies by.

        onnxruntime adds the offset once, while loading. Folded into the stored float32 it could
        not be taken out again exactly.
        """
        if not self._offset:
            return name
        return self._parts.node("Add", [name, "norm_offset"], f"{name}.gain")
