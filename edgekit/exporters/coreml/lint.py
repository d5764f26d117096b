"""Checks of a saved Core ML package against rules that the runtimes need.

Each rule prevents a failure that the compiler does not report, or that appears only on the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from edgekit.encoding import Encoding
from edgekit.errors import ExportError, FormatError
from edgekit.exporters.coreml.weights import code_type, identifier
from edgekit.formats.mil_blob import BlobReader
from edgekit.formats.mlpackage import (
    CAUSAL_MASK,
    INPUT_IDS,
    KEY_CACHE,
    LOGITS,
    VALUE_CACHE,
    main_block,
    read_spec,
    require_coremltools,
    stored_at,
    type_name,
    weights_path,
)

_BLOCKS: Final = "constexpr_blockwise_shift_scale"
_PALETTES: Final = "constexpr_lut_to_dense"
_CODES: Final = {_BLOCKS: "data", _PALETTES: "indices"}
# Ops that must compute in fp16: one of them in fp32 halves the speed and leaves the GPU path.
_NARROW_OPS: Final = frozenset(
    {
        "linear", "gather", "matmul", "scaled_dot_product_attention", "slice_update", "read_state",
        _BLOCKS, _PALETTES,
    }
)  # fmt: skip


def lint_package(package: Path, encodings: Mapping[str, Encoding], context_length: int) -> None:
    """Check a package that was just written.

    Raises:
        ExportError: One or more rules are broken; the message lists all of them.
    """
    try:
        spec = read_spec(package)
        blobs = BlobReader(weights_path(package))
    except FormatError as error:
        raise ExportError(f"{package} cannot be read back", got=str(error)) from error
    findings = [
        *_interface(spec, context_length),
        *_states(main_block(spec)),
        *_values(main_block(spec), blobs),
        *_weights(main_block(spec), encodings),
    ]
    if findings:
        raise ExportError(
            f"{package.name} breaks rules of Core ML",
            got="; ".join(findings),
            do="This is a bug of edgekit, or coremltools has changed; please report it.",
        )


def _interface(spec: Any, context_length: int) -> Iterator[str]:
    """Check names, types and ranges of inputs, states and output."""
    if spec.specificationVersion != 9:
        yield f"specification version {spec.specificationVersion}, wanted 9"
    arrays = require_coremltools("coremltools.proto.FeatureTypes_pb2").ArrayFeatureType
    description = spec.description
    inputs = {
        feature.name: (
            arrays.ArrayDataType.Name(feature.type.multiArrayType.dataType),
            [
                (size.lowerBound, size.upperBound)
                for size in feature.type.multiArrayType.shapeRange.sizeRanges
            ],
        )
        for feature in description.input
    }
    one, ranged = (1, 1), (1, context_length)
    # Every input has a range: a mix of fixed and ranged inputs with state crashes at load.
    wanted = {
        INPUT_IDS: ("INT32", [one, ranged]),
        CAUSAL_MASK: ("FLOAT16", [one, one, ranged, ranged]),
    }
    if inputs != wanted:
        yield f"inputs {inputs}, wanted {wanted}"
    states = {
        feature.name: (
            arrays.ArrayDataType.Name(feature.type.stateType.arrayType.dataType),
            len(feature.type.stateType.arrayType.shape),
            list(feature.type.stateType.arrayType.shape)[3:4],
        )
        for feature in description.state
    }
    if states != dict.fromkeys((KEY_CACHE, VALUE_CACHE), ("FLOAT16", 5, [context_length])):
        yield f"states {states}"
    outputs = [
        (f.name, arrays.ArrayDataType.Name(f.type.multiArrayType.dataType))
        for f in description.output
    ]
    if outputs != [(LOGITS, "FLOAT16")]:
        yield f"outputs {outputs}, wanted {LOGITS} of FLOAT16"


def _states(block: Any) -> Iterator[str]:
    """Check that every write uses the latest read, and that no read repeats without a write.

    Source: coremltools remove_redundant_ops merges equal reads across a write, after which a
    layer writes back the cache as it was before the step.
    """
    producer = {output.name: op for op in block.operations for output in op.outputs}
    latest: dict[str, str | None] = {}
    for op in block.operations:
        if op.type == "read_state":
            state = _binding(op, "input")
            if latest.get(state) is not None:
                yield f"{op.outputs[0].name}: second read_state of {state} without a write"
            latest[state] = op.outputs[0].name
        elif op.type == "write_state":
            state, value = _binding(op, "input"), _binding(op, "data")
            update = producer.get(value)
            base = _binding(update, "x") if update is not None else ""
            if update is None or update.type != "slice_update" or base != latest.get(state):
                yield f"write of {state} builds on {base or value}, not on {latest.get(state)}"
            latest[state] = None


def _values(block: Any, blobs: BlobReader) -> Iterator[str]:
    """Check types of heavy ops, and stored constants against what the program declares."""
    for op in block.operations:
        for output in op.outputs:
            kind = type_name(output.type)
            if kind == "INT64" or (op.type in _NARROW_OPS and kind != "FLOAT16"):
                yield f"{output.name}: {op.type} gives {kind}"
        for value in _stored(op):
            try:
                blobs.check(*stored_at(value))
            except FormatError as error:
                yield f"{op.outputs[0].name}: {error}"


def _weights(block: Any, encodings: Mapping[str, Encoding]) -> Iterator[str]:
    """Check that integer matrices are stored as such: nothing else reports int4 stored as int8."""
    ops = {output.name: op for op in block.operations for output in op.outputs}
    for name, encoding in encodings.items():
        op = ops.get(identifier(name))
        if op is None:
            yield f"{name} is not in the program"
        elif encoding.is_quantized:
            form = _PALETTES if encoding.has_palette else _BLOCKS
            kind, wanted = "none", code_type(encoding).name
            if op.type == form:
                kind = type_name(op.inputs[_CODES[form]].arguments[0].value.type)
            if kind != wanted:
                yield f"{name}: stored as {kind}, wanted {wanted}"


def _stored(op: Any) -> Iterator[Any]:
    if op.type == "const":
        values = [op.attributes["val"]]
    elif op.type in _CODES:
        values = [argument.arguments[0].value for argument in op.inputs.values()]
    else:
        return
    yield from (value for value in values if value.WhichOneof("value") == "blobFileValue")


def _binding(op: Any, parameter: str) -> str:
    return str(op.inputs[parameter].arguments[0].name)
