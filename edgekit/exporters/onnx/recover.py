"""Reading the codes and scales of an ONNX artifact back from its files.

The schemes are read from the nodes of the graph on disk. The graph must then equal, node by
node and initializer by initializer, the one this exporter writes for those schemes; only then
are bytes taken from the weight file, one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from edgekit.artifact import Artifact
from edgekit.dtypes import Bits
from edgekit.errors import FormatError, UsageError
from edgekit.exporters.onnx.activations import plan_precision, terms_of
from edgekit.exporters.onnx.graph import GraphBuilder
from edgekit.exporters.onnx.weights import (
    WEIGHTS_NAME,
    Content,
    Stored,
    plan_arrays,
    read_offsets,
)
from edgekit.families.spec import DecoderSpec
from edgekit.formats.onnx_io import GRAPH_NAME
from edgekit.formats.packing import unpack_codes
from edgekit.formats.safetensors import SafetensorsFile
from edgekit.lazy import require
from edgekit.quantize.model import FloatTensor, ModelTensor, QuantizedTensor
from edgekit.scheme import FP16, Scheme

_MAX_GRAPH_BYTES: Final = 64 << 20
_AGAIN: Final = "Export the model again."


def recover_tensors(artifact: Artifact) -> Iterator[ModelTensor]:
    """Re-read every tensor of an ONNX artifact in file order.

    Exact: integer tensors come back with the codes and scales that were written.

    Raises:
        FormatError: The files are not what this exporter writes.
    """
    path = artifact.path / GRAPH_NAME
    graph = read_graph(path).graph
    n_positions = artifact.manifest.context_length
    with SafetensorsFile(artifact.path / WEIGHTS_NAME) as weights:
        try:
            spec = _read_spec(artifact)
            schemes = _read_schemes(graph, spec, artifact, path)
            arrays = plan_arrays(spec, schemes, n_positions)
            offsets = read_offsets(weights, arrays)
            terms = terms_of(plan_precision(spec, artifact.manifest.tensors))
            wanted = GraphBuilder(spec, schemes, arrays, offsets, n_positions, terms).build()
        except (KeyError, TypeError, ValueError) as error:
            # What is no number in the manifest shows where it is first used as one.
            raise FormatError(
                f"{artifact.path}: decoder in the manifest",
                got=f"{type(error).__name__}: {error}",
                do=_AGAIN,
            ) from error
        _check_equal(graph, wanted.graph, path)
        for name in spec.weight_shapes():
            yield _read_tensor(weights, arrays, name, schemes[name], spec)


def read_graph(path: Path) -> Any:
    """Read a graph file as ``onnx.ModelProto``, leaving the weights on disk.

    Raises:
        FormatError: No such file, or not an ONNX model.
    """
    decode_error = require("google.protobuf.message", package="protobuf").DecodeError
    try:
        if path.stat().st_size > _MAX_GRAPH_BYTES:
            raise FormatError(
                f"{path}: graph size",
                got=f"{path.stat().st_size} bytes",
                wanted=f"at most {_MAX_GRAPH_BYTES}",
                do=_AGAIN,
            )
        return require("onnx").load_model(path, load_external_data=False)
    except (OSError, decode_error) as error:
        raise FormatError(f"{path} is not an ONNX model", got=error, do=_AGAIN) from error


def _read_spec(artifact: Artifact) -> DecoderSpec:
    spec = DecoderSpec.from_dict(artifact.manifest.decoder)
    n_listed = len(artifact.manifest.tensors)
    if not isinstance(spec.n_layers, int) or not 0 < spec.n_layers <= n_listed:
        raise FormatError(
            f"{artifact.path}: layers in the manifest",
            got=spec.n_layers,
            wanted="at least 1, and no more than it lists tensors",
            do=_AGAIN,
        )
    return spec


def _read_schemes(
    graph: Any, spec: DecoderSpec, artifact: Artifact, path: Path
) -> dict[str, Scheme]:
    """Give the scheme of every canonical name: matrices from the graph, the rest as listed."""
    nodes = {node.name: node for node in graph.node}
    dtypes = {tensor.name: tensor.data_type for tensor in graph.initializer}
    listed = {entry.name: entry.scheme for entry in artifact.manifest.tensors}
    schemes = {}
    for name, shape in spec.weight_shapes().items():
        if len(shape) == 1:
            schemes[name] = _scheme(listed.get(name, ""), name, path)
            continue
        layer, _, part = name.rpartition(".")
        joined = f"{layer}.qkv" if part in ("q", "k", "v") else name
        node_name = "embed.out" if name == "embed" else joined if joined in nodes else name
        node = nodes.get(node_name)
        stored = node_name.removesuffix(".out")
        if node is None:
            raise FormatError(f"{path}: no node {node_name}", wanted=f"one for {name}", do=_AGAIN)
        attributes = {a.name: a.i for a in node.attribute}
        if "block_size" in attributes:
            text = f"int{attributes.get('bits')}-g{attributes['block_size']}"
        else:
            types = require("onnx").TensorProto
            text = {types.FLOAT: "fp32", types.FLOAT16: "fp16"}.get(dtypes.get(stored), "absent")
        schemes[name] = _scheme(text, name, path)
    return schemes


def _scheme(text: str, name: str, path: Path) -> Scheme:
    try:
        return Scheme.parse(text)
    except UsageError as error:
        raise FormatError(
            f"{path}: scheme of {name}", got=repr(text), wanted=error.wanted, do=_AGAIN
        ) from error


def _check_equal(found: Any, wanted: Any, path: Path) -> None:
    """Refuse a graph that differs from the one this exporter writes, naming what differs."""
    for kind in ("initializer", "node", "input", "output"):
        have = {item.name: item for item in getattr(found, kind)}
        want = {item.name: item for item in getattr(wanted, kind)}
        differing = [name for name in want if have.get(name) != want[name]]
        differing += [name for name in have if name not in want]
        if differing or len(have) != len(getattr(found, kind)):
            raise FormatError(
                f"{path}: {kind} differs from what the exporter writes",
                got=", ".join(differing[:5]) or "a name twice",
                do=_AGAIN,
            )


def _read_tensor(
    weights: SafetensorsFile,
    arrays: tuple[Stored, ...],
    name: str,
    scheme: Scheme,
    spec: DecoderSpec,
) -> ModelTensor:
    """Take the rows of one canonical tensor out of the arrays that hold it."""
    shapes = spec.weight_shapes()
    found: dict[Content, NDArray[Any]] = {}
    for stored in arrays:
        if name in stored.sources:
            before = stored.sources[: stored.sources.index(name)]
            start = sum(shapes[source][0] for source in before)
            tensor = weights.tensors[stored.info.name]
            found[stored.content] = tensor.raw_rows(start, start + shapes[name][0])
    if scheme.group is None:
        return FloatTensor(name, scheme, _checked_floats(found[Content.VALUES], name, scheme))
    bits = cast(Bits, scheme.bits)
    codes = unpack_codes(found[Content.CODES], bits)
    return QuantizedTensor(name, bits, scheme.group, codes, found[Content.SCALES])


def _checked_floats(values: NDArray[Any], name: str, scheme: Scheme) -> NDArray[np.float32]:
    """Give float32; a small tensor listed as fp16 is stored as fp32 and must fit fp16."""
    wide = values.astype(np.float32)
    if scheme == FP16 and not np.array_equal(wide.astype(np.float16).astype(np.float32), wide):
        raise FormatError(f"{name}: values", got="more digits than fp16 has", wanted=scheme)
    return wide
