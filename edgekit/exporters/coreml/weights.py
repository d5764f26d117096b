"""The tensors of a model as placeholder constants of a MIL program.

A placeholder is a zero-stride array that takes no memory; ``slots`` says which tensor belongs
there. Each tensor is used in the form in which it is stored, so that it can be read back exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.encoding import Encoding
from edgekit.families.spec import DecoderSpec
from edgekit.formats.mil_blob import BlobType


@dataclass(frozen=True, slots=True)
class Slot:
    """A constant whose bytes come from the model: tensor ``name``, and which part of it."""

    name: str
    part: str  # "codes", "scales", "zero_points" or "values"


def code_type(encoding: Encoding) -> BlobType:
    """Give the type of the blob that holds codes; those of a palette are unsigned."""
    return BlobType.UINT4 if encoding.has_palette else BlobType[encoding.kind.upper()]


def identifier(name: str) -> str:
    """Give the MIL name of a canonical tensor name; MIL allows no dots."""
    return name.replace(".", "_")


class Weights:
    """The tensors of a decoder, and the ops that use them.

    Args:
        mb: coremltools' builder.
        types: coremltools' types.
        spec: The decoder.
        encodings: How each canonical tensor is stored.
    """

    def __init__(
        self, mb: Any, types: Any, spec: DecoderSpec, encodings: Mapping[str, Encoding]
    ) -> None:
        self.slots: dict[str, Slot] = {}
        self._mb = mb
        self._types = types
        self._spec = spec
        self._encodings = encodings
        self._shapes = spec.weight_shapes()
        self._matrices: dict[str, Any] = {}
        self._no_bias: dict[int, Any] = {}

    def __contains__(self, name: object) -> bool:
        """Tell whether the decoder has a tensor of this name."""
        return name in self._shapes

    def norm(self, x: Any, name: str) -> Any:
        """RMSNorm over the last axis, fp32 to fp32; the square of an fp16 overflows from 256 on."""
        mb = self._mb
        mean = mb.reduce_mean(x=mb.square(x=x), axes=[-1], keep_dims=True)
        scaled = mb.mul(x=x, y=mb.rsqrt(x=mean, epsilon=np.float32(self._spec.norm_eps)))
        gain = self._placeholder(name, "values", self._types.fp32, self._shapes[name])
        if self._spec.norm_offset:
            # Added in the program, because 1 + w rounds in fp32 and could not be read back.
            gain = mb.add(x=gain, y=np.float32(self._spec.norm_offset))
        return mb.mul(x=scaled, y=gain)

    def narrow(self, x: Any) -> Any:
        """Round fp32 to fp16, the type that matrices are multiplied in."""
        return self._mb.cast(x=x, dtype="fp16")

    def linear(
        self, x: Any, name: str, /, *, is_wide: bool = False, factor: float = 1.0, **named: str
    ) -> Any:
        """Multiply fp16 rows with a matrix and add its bias: (1, T, M) to (1, T, N).

        The result is fp32 if ``is_wide``, else fp16. A bias kept in fp32 is added in fp32.
        ``factor`` multiplies a wide product before the bias: the caller divided ``x`` by it.
        """
        mb, types = self._mb, self._types
        weight = self.matrix(name)
        n_out = int(weight.shape[0])
        bias_name = f"{name}.bias"
        kind = self._encodings[bias_name].kind if bias_name in self._encodings else ""
        if kind and factor != 1.0:
            kind = "fp32"
        if kind == "fp16":
            inner = self._placeholder(bias_name, "values", types.fp16, (n_out,))
        else:
            # In coremltools the op has no form without bias; one zero vector serves all.
            if n_out not in self._no_bias:
                zeros = np.zeros(n_out, np.float16)
                self._no_bias[n_out] = mb.const(val=zeros, name=f"zeros_{n_out}")
            inner = self._no_bias[n_out]
        y = mb.linear(x=x, weight=weight, bias=inner, **named)
        if is_wide or kind == "fp32":
            y = mb.cast(x=y, dtype="fp32")
        if factor != 1.0:
            y = mb.mul(x=y, y=np.float32(factor))
        if kind == "fp32":
            y = mb.add(x=y, y=self._placeholder(bias_name, "values", types.fp32, (n_out,)))
            return y if is_wide else self.narrow(y)
        return y

    def matrix(self, name: str) -> Any:
        """Give the matrix as an fp16 value; the second use (tied head) shares the first."""
        if name not in self._matrices:
            mb, types, encoding = self._mb, self._types, self._encodings[name]
            n_out, n_in = self._shapes[name]
            if encoding.block is None:
                self._matrices[name] = self._placeholder(name, "values", types.fp16, (n_out, n_in))
            elif encoding.has_palette:
                n_palettes, n_values = encoding.scales_shape(n_out, n_in)
                palettes = (n_palettes, 1, n_values, 1)
                self._matrices[name] = mb.constexpr_lut_to_dense(
                    indices=self._placeholder(name, "codes", types.uint4, (n_out, n_in)),
                    lut=self._placeholder(name, "scales", types.fp16, palettes),
                    name=identifier(name),
                )
            else:
                code_type = getattr(types, encoding.kind)  # int4, int8, uint4 or uint8
                per_block = (n_out, encoding.n_blocks(n_in))
                zeros = {}
                if encoding.has_zero_points:
                    zeros["offset"] = self._placeholder(name, "zero_points", code_type, per_block)
                self._matrices[name] = mb.constexpr_blockwise_shift_scale(
                    data=self._placeholder(name, "codes", code_type, (n_out, n_in)),
                    scale=self._placeholder(name, "scales", types.fp16, per_block),
                    name=identifier(name),
                    **zeros,
                )
        return self._matrices[name]

    def _placeholder(self, name: str, part: str, dtype: Any, shape: tuple[int, ...]) -> Any:
        """Make a constant without memory whose bytes the writer fills in."""
        label = identifier(name) + ("" if part == "values" else f"_{part}")
        self.slots[label] = Slot(name, part)
        zero = np.zeros((), self._types.nptype_from_builtin(dtype))
        return self._mb.const(val=np.broadcast_to(zero, shape), name=label)
