"""Reader of the program of a Core ML package: protobuf to constants and operations.

It computes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgekit.dtypes import F32Array
from edgekit.errors import FormatError
from edgekit.formats.mil_blob import BlobReader
from edgekit.formats.mlpackage import (
    main_block,
    read_spec,
    stored_at,
    type_name,
    weights_path,
)

Shape: TypeAlias = tuple[int | None, ...]
"""A declared shape; None where the size is known at run time only."""

_FIELDS: Final = {"FLOAT32": "floats", "INT32": "ints", "BOOL": "bools"}
_BYTES: Final = {"FLOAT16": "<f2", "INT8": "i1", "UINT8": "u1"}
_BLOCKS: Final = "constexpr_blockwise_shift_scale"
_PALETTES: Final = "constexpr_lut_to_dense"
# The numpy type that holds each declared element type during computation.
HELD_AS: Final = {
    "FLOAT16": np.dtype(np.float32),
    "FLOAT32": np.dtype(np.float32),
    "INT32": np.dtype(np.int32),
    "BOOL": np.dtype(np.bool_),
}


@dataclass(frozen=True, slots=True)
class Value:
    """A named value: its declared element type and shape."""

    name: str
    kind: str
    shape: Shape


@dataclass(frozen=True, slots=True)
class Node:
    """One operation; ``inputs`` names values, several for a variadic parameter."""

    name: str
    type: str
    inputs: Mapping[str, tuple[str, ...]]
    outputs: tuple[Value, ...]


class StoredWeight:
    """A matrix in the weight file, converted to floats when it is needed.

    Args:
        blobs: The open weight file.
        value: ``MIL_pb2.Value`` of the codes, or of the floats themselves.
        scale: ``MIL_pb2.Value`` of the scales of integer codes.
        offset: ``MIL_pb2.Value`` of their zero points, shaped like the scales; None where the codes
            count from zero.
        rounds: Round dequantized values to fp16, the declared type.
    """

    def __init__(
        self,
        blobs: BlobReader,
        value: Any,
        scale: Any | None,
        offset: Any | None = None,
        *,
        rounds: bool,
    ) -> None:
        self._blobs = blobs
        self._at = stored_at(value)
        self._scale_at = None if scale is None else stored_at(scale)
        self._offset_at = None if offset is None else stored_at(offset)
        self._rounds = rounds
        self._kept: F32Array | None = None
        blobs.check(*self._at)
        if self._scale_at is not None:
            blobs.check(*self._scale_at)
            (n_rows, n_cols), scales = self.shape, self._scale_at[2]
            if len(scales) != 2 or scales[0] != n_rows or not scales[1] or n_cols % scales[1]:
                raise FormatError(
                    "block scales",
                    got=f"{scales} for codes {self.shape}",
                    wanted="one row of scales per row of codes",
                )
            if self._offset_at is not None:
                blobs.check(*self._offset_at)
                if self._offset_at[2] != scales:
                    raise FormatError(
                        "block offsets", got=self._offset_at[2], wanted=f"{scales}, as the scales"
                    )

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, M)."""
        return self._at[2]

    @property
    def n_bytes(self) -> int:
        """Size once converted to float32."""
        return prod(self.shape) * 4

    def keep(self) -> None:
        """Convert to floats once and keep them."""
        self._kept = self.array()

    def array(self) -> F32Array:
        """Give the whole matrix."""
        return self._floats(slice(None)) if self._kept is None else self._kept

    def rows(self, indices: NDArray[Any]) -> F32Array:
        """Give some rows; the result has M as an added last axis."""
        rows: F32Array = (
            self._floats(indices.ravel()).reshape(*indices.shape, self.shape[1])
            if self._kept is None
            else self._kept[indices]
        )
        return rows

    def _floats(self, rows: Any) -> F32Array:
        values: F32Array = self._blobs.read(*self._at)[rows].astype(np.float32)
        if self._scale_at is None:
            return values
        scales = self._blobs.read(*self._scale_at)[rows].astype(np.float32)
        grouped = values.reshape(*scales.shape, -1)
        if self._offset_at is not None:
            grouped -= self._blobs.read(*self._offset_at)[rows].astype(np.float32)[..., None]
        grouped *= scales[..., None]
        floats: F32Array = grouped.reshape(values.shape)
        return floats.astype(np.float16).astype(np.float32) if self._rounds else floats


class PalettizedWeight(StoredWeight):
    """A matrix in the weight file whose codes choose among values that rows share.

    Args:
        blobs: The open weight file.
        indices: ``MIL_pb2.Value`` of the codes, (N, M).
        lut: ``MIL_pb2.Value`` of the palettes, (N // G, 1, 16, 1); fp16, so no result is rounded.
    """

    def __init__(self, blobs: BlobReader, indices: Any, lut: Any) -> None:
        super().__init__(blobs, indices, None, rounds=False)
        self._lut_at = stored_at(lut)
        blobs.check(*self._lut_at)
        n_rows, palettes = self.shape[0], self._lut_at[2]
        if len(palettes) != 4 or palettes[1:] != (1, 16, 1) or n_rows % max(1, palettes[0]):
            raise FormatError(
                "palettes",
                got=f"{palettes} for codes {self.shape}",
                wanted="16 values for a number of rows",
            )

    def _floats(self, rows: Any) -> F32Array:
        codes = self._blobs.read(*self._at)[rows]
        palettes = self._blobs.read(*self._lut_at).astype(np.float32).reshape(-1, 16)
        places = np.arange(self.shape[0])[rows] // (self.shape[0] // len(palettes))
        floats: F32Array = np.take_along_axis(palettes[places], codes.astype(np.intp), axis=1)
        return floats


@dataclass(frozen=True, slots=True)
class MilProgram:
    """A parsed program.

    Attributes:
        inputs: Values that the caller passes.
        states: Values that are kept from call to call.
        constants: By name: array, text, or stored weight.
        nodes: Operations in order.
        output: Name of the one output.
    """

    inputs: tuple[Value, ...]
    states: tuple[Value, ...]
    constants: Mapping[str, Any]
    nodes: tuple[Node, ...]
    output: str


def read_program(package: Path, *, rounds: bool) -> MilProgram:
    """Parse a package.

    Args:
        package: The ``.mlpackage`` folder.
        rounds: Weights are rounded to fp16 once dequantized.

    Raises:
        FormatError: Damaged, or a form of program that edgekit does not write.
    """
    spec = read_spec(package)
    blobs = BlobReader(weights_path(package))
    try:
        return _parse(spec, blobs, rounds=rounds)
    except (LookupError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise FormatError(
            f"{package}: a program that edgekit does not write",
            got=f"{type(error).__name__}: {error}",
            do="Export the model again.",
        ) from error


def _parse(spec: Any, blobs: BlobReader, *, rounds: bool) -> MilProgram:
    block = main_block(spec)
    function = spec.mlProgram.functions["main"]
    inputs, states = [], []
    for named in function.inputs:
        if named.type.WhichOneof("type") == "stateType":
            states.append(_value(named.name, named.type.stateType.wrappedType))
        else:
            inputs.append(_value(named.name, named.type))
    constants: dict[str, Any] = {}
    nodes: list[Node] = []
    for op in block.operations:
        if op.type == "const":
            constants[op.outputs[0].name] = _constant(blobs, op.attributes["val"], rounds=rounds)
        elif op.type == _PALETTES:
            if set(op.inputs) != {"indices", "lut"}:
                raise FormatError(f"{op.type}: parameters", got=", ".join(sorted(op.inputs)))
            given = {key: item.arguments[0].value for key, item in op.inputs.items()}
            constants[op.outputs[0].name] = PalettizedWeight(blobs, given["indices"], given["lut"])
        elif op.type == _BLOCKS:
            if set(op.inputs) - {"offset"} != {"data", "scale"}:
                raise FormatError(f"{op.type}: parameters", got=", ".join(sorted(op.inputs)))
            given = {key: item.arguments[0].value for key, item in op.inputs.items()}
            weight = StoredWeight(
                blobs, given["data"], given["scale"], given.get("offset"), rounds=rounds
            )
            constants[op.outputs[0].name] = weight
        else:
            nodes.append(_node(op, len(nodes), constants, blobs, rounds=rounds))
    if len(block.outputs) != 1:
        raise FormatError("outputs of the program", got=list(block.outputs), wanted="one")
    return MilProgram(tuple(inputs), tuple(states), constants, tuple(nodes), block.outputs[0])


def _node(
    op: Any, index: int, constants: dict[str, Any], blobs: BlobReader, *, rounds: bool
) -> Node:
    inputs: dict[str, tuple[str, ...]] = {}
    for parameter, argument in op.inputs.items():
        names = []
        for position, binding in enumerate(argument.arguments):
            name = binding.name
            if binding.WhichOneof("binding") == "value":
                name = f"{index}.{parameter}.{position}"  # dots: no name of a program has them
                constants[name] = _constant(blobs, binding.value, rounds=rounds)
            names.append(name)
        inputs[parameter] = tuple(names)
    outputs = tuple(_value(output.name, output.type) for output in op.outputs)
    label = outputs[0].name if outputs else f"{op.type} {index}"
    return Node(label, op.type, inputs, outputs)


def _value(name: str, value_type: Any) -> Value:
    kind = type_name(value_type)
    if kind not in HELD_AS:
        raise FormatError(f"{name}: type", got=kind, wanted=", ".join(HELD_AS))
    shape = tuple(
        int(dim.constant.size) if dim.WhichOneof("dimension") == "constant" else None
        for dim in value_type.tensorType.dimensions
    )
    return Value(name, kind, shape)


def _constant(blobs: BlobReader, value: Any, *, rounds: bool) -> Any:
    """Give a constant: text, an array, or a matrix left in the file."""
    if value.WhichOneof("value") == "blobFileValue":
        offset, blob_type, shape = stored_at(value)
        if len(shape) == 2:
            return StoredWeight(blobs, value, None, rounds=rounds)
        return _held(blobs.read(offset, blob_type, shape))
    kind, tensor = type_name(value.type), value.immediateValue.tensor
    if kind == "STRING" and len(tensor.strings.values) == 1:
        return str(tensor.strings.values[0])
    shape = tuple(int(dim.constant.size) for dim in value.type.tensorType.dimensions)
    try:
        if kind in _BYTES:
            return _held(np.frombuffer(tensor.bytes.values, _BYTES[kind]).reshape(shape))
        values = getattr(tensor, _FIELDS[kind]).values
        return np.array(values, HELD_AS[kind]).reshape(shape)
    except (KeyError, ValueError) as error:
        raise FormatError(f"constant of type {kind} and shape {shape}", got=error) from error


def _held(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(np.float32) if array.dtype.kind == "f" else array
