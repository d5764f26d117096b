"""Answer one question: how do nodes and initializers of an ONNX graph come together?

Weights are references into the weight file; only small numbers lie in the proto itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from edgekit.dtypes import DType
from edgekit.export.onnx_layout import WEIGHTS_NAME, Stored
from edgekit.lazy import require
from edgekit.tensors import TensorInfo

MICROSOFT: Final = "com.microsoft"


class GraphParts:
    """Collects nodes and initializers in the order in which they are added.

    Args:
        arrays: What the weight file holds.
        offsets: First byte of each array in it.
    """

    def __init__(self, arrays: Sequence[Stored], offsets: Mapping[str, int]) -> None:
        self._onnx = require("onnx")
        self._helper = require("onnx.helper")
        self.arrays = {stored.info.name: stored for stored in arrays}
        self._offsets = offsets
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def node(
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
        self.nodes.append(
            self._helper.make_node(
                op, list(inputs), names, name=name or names[0], domain=domain, **attributes
            )
        )
        return names[0]

    def cast(self, name: str, to: str, output: str) -> str:
        """Convert to a type by its ONNX name, such as ``INT32``."""
        return self.node("Cast", [name], output, to=getattr(self._onnx.TensorProto, to))

    def array(self, name: str, info: TensorInfo, shape: Sequence[int]) -> str:
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
        self.initializers.append(tensor)
        return name

    def integers(self, name: str, value: int | list[int]) -> str:
        """Add an int64 initializer inside the proto, where shape inference can read it."""
        return self._small(name, np.asarray(value, dtype=np.int64))

    def number(self, name: str, value: float) -> str:
        """Add a float32 scalar inside the proto."""
        return self._small(name, np.asarray(value, dtype=np.float32))

    def _small(self, name: str, array: Any) -> str:
        self.initializers.append(self._onnx.numpy_helper.from_array(array, name))
        return name


def _onnx_types(onnx: Any) -> dict[DType, int]:
    """Give ONNX's number for each type that the weight file holds."""
    types = onnx.TensorProto
    return {DType.FP32: types.FLOAT, DType.FP16: types.FLOAT16, DType.UINT8: types.UINT8}
