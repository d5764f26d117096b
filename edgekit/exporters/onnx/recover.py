"""Reading the codes and scales of an ONNX artifact back from its files.

``onnx.checker`` looks at the file first. The encodings are read from the nodes of the graph, which
must then be the graph that this exporter writes for them, node by node; only where the weights lie
is the file's own word. They are read there, by onnx's own helper, as onnxruntime would: an entry
that points elsewhere gives the weights of elsewhere. One array is in memory at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgekit.artifact import Artifact
from edgekit.dtypes import U8Array
from edgekit.encoding import FP16, Encoding
from edgekit.errors import FormatError, UsageError
from edgekit.exporters.arrays import Content, StoredArray
from edgekit.exporters.onnx.activations import is_exact, plan_precision, terms_of
from edgekit.exporters.onnx.graph import GraphBuilder
from edgekit.exporters.onnx.weights import (
    Linear,
    make_tables,
    plan_arrays,
    plan_linears,
)
from edgekit.families.spec import DecoderSpec
from edgekit.files import open_inside
from edgekit.formats.onnx_io import GRAPH_NAME
from edgekit.formats.packing import unpack_codes
from edgekit.lazy import require
from edgekit.quantize.model import EncodedTensor, FloatTensor, ModelTensor

_MAX_GRAPH_BYTES: Final = 64 << 20
_AGAIN: Final = "Export the model again."
_NORM: Final = "SimplifiedLayerNormalization"
_PLACE_KEYS: Final = ("location", "offset", "length")
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,17}")  # as every reader of the format understands it
# Angles and factors are computed anew; another libm may round the last digit otherwise.
_TABLE_ERROR: Final = 1e-6


def recover_tensors(artifact: Artifact) -> Iterator[ModelTensor]:
    """Re-read every tensor of an ONNX artifact in file order.

    Exact: integer tensors come back with the codes and scales that onnxruntime will load.

    Raises:
        FormatError: The files are not what this exporter writes.
    """
    path = artifact.path / GRAPH_NAME
    model = read_graph(path)
    n_positions = artifact.manifest.context_length
    try:
        spec = _read_spec(artifact)
        encodings = _read_encodings(model.graph, spec, artifact, path)
        arrays = plan_arrays(spec, encodings, n_positions)
        exact = is_exact(artifact.manifest)
        terms = terms_of(plan_precision(spec, artifact.manifest.tensors, is_exact=exact))
        linears = plan_linears(spec, encodings, terms)
        nowhere = dict.fromkeys((stored.info.name for stored in arrays), 0)
        wanted = GraphBuilder(spec, encodings, arrays, nowhere, n_positions, terms).build()
    except (KeyError, TypeError, ValueError) as error:
        # What is no number in the manifest shows where it is first used as one.
        raise FormatError(
            f"{artifact.path}: decoder in the manifest",
            got=f"{type(error).__name__}: {error}",
            do=_AGAIN,
        ) from error
    _check_equal(model, wanted, path)
    weights = _ExternalArrays(model.graph, path)
    weights.check_places()
    _run_checker(path)
    _check_tables(weights, spec, n_positions)
    _check_aliases(weights, linears)
    for name in spec.weight_shapes():
        yield _read_tensor(weights, arrays, name, encodings[name], spec)


def read_graph(path: Path) -> Any:
    """Read a graph file as ``onnx.ModelProto``, leaving the weights on disk.

    Raises:
        FormatError: No such file, no plain file, or not an ONNX model.
    """
    decode_error = require("google.protobuf.message", package="protobuf").DecodeError
    try:
        with open_inside(path) as stream:
            n_bytes = stream.seek(0, 2)
            if n_bytes > _MAX_GRAPH_BYTES:
                raise FormatError(
                    f"{path}: graph size",
                    got=f"{n_bytes} bytes",
                    wanted=f"at most {_MAX_GRAPH_BYTES}",
                    do=_AGAIN,
                )
            stream.seek(0)
            return require("onnx").load_model_from_string(stream.read())
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


def _read_encodings(
    graph: Any, spec: DecoderSpec, artifact: Artifact, path: Path
) -> dict[str, Encoding]:
    """Give the encoding of every canonical name: matrices from the graph, the rest as listed."""
    nodes = {node.name: node for node in graph.node}
    dtypes = {tensor.name: tensor.data_type for tensor in graph.initializer}
    listed = {entry.name: entry.encoding for entry in artifact.manifest.tensors}
    encodings = {}
    for name, shape in spec.weight_shapes().items():
        if len(shape) == 1:
            encodings[name] = _encoding(listed.get(name, ""), name, path)
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
            kind = "uint" if len(node.input) > 3 and node.input[3] else "int"
            text = f"{kind}{attributes.get('bits')}-g{attributes['block_size']}"
        else:
            types = require("onnx").TensorProto
            text = {types.FLOAT: "fp32", types.FLOAT16: "fp16"}.get(dtypes.get(stored), "absent")
        encodings[name] = _encoding(text, name, path)
    return encodings


def _encoding(text: str, name: str, path: Path) -> Encoding:
    try:
        return Encoding.parse(text)
    except UsageError as error:
        raise FormatError(
            f"{path}: encoding of {name}", got=repr(text), wanted=error.wanted, do=_AGAIN
        ) from error


def _check_equal(found: Any, wanted: Any, path: Path) -> None:
    """Refuse a graph that differs from the one this exporter writes, naming what differs.

    Where an initializer lies is left out: it is read where the file says.
    """
    found, wanted = _without_places(found), _without_places(wanted)
    for kind in ("initializer", "node", "input", "output"):
        have = {item.name: item for item in getattr(found.graph, kind)}
        want = {item.name: item for item in getattr(wanted.graph, kind)}
        differing = [name for name in want if have.get(name) != want[name]]
        differing += [name for name in have if name not in want]
        if differing or len(have) != len(getattr(found.graph, kind)):
            raise FormatError(
                f"{path}: {kind} differs from what the exporter writes",
                got=", ".join(map(str, differing[:5])) or "a name twice",
                do=_AGAIN,
            )
    if found != wanted:
        # Functions, operator sets, sparse weights, the order of the nodes and the like.
        fields = [
            field.name
            for part, other in ((found, wanted), (found.graph, wanted.graph))
            for field in part.DESCRIPTOR.fields
            if field.name != "graph" and getattr(part, field.name) != getattr(other, field.name)
        ]
        raise FormatError(
            f"{path}: differs from what the exporter writes", got=", ".join(fields), do=_AGAIN
        )


def _without_places(model: Any) -> Any:
    copy = type(model)()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        del tensor.external_data[:]
    return copy


def _run_checker(path: Path) -> None:
    """Let the format's own checker look at the file, with the places of its weights.

    Raises:
        FormatError: It refuses the file.
    """
    _declare_runtime_operators()
    checker = require("onnx.checker")
    try:
        checker.check_model(str(path))
    except (checker.ValidationError, ValueError, RuntimeError, OSError) as error:
        raise FormatError(f"{path}: onnx.checker", got=error, do=_do(error)) from error


def _declare_runtime_operators() -> None:
    """Tell onnx of the operator that onnxruntime keeps in onnx's own domain.

    Source:
        onnxruntime 1.32, docs of the contrib operators: SimplifiedLayerNormalization.
    """
    defs = require("onnx.defs")
    if defs.has(_NORM):
        return
    schema = defs.OpSchema
    value, types = schema.FormalParameter, schema.AttrType
    integer, number = types.INT, types.FLOAT
    attributes = {"axis": integer, "epsilon": number, "stash_type": integer}
    defs.register_schema(
        schema(
            _NORM,
            "",
            1,
            inputs=[value("X", "T"), value("scale", "T")],
            outputs=[value("Y", "T")],
            type_constraints=[("T", ["tensor(float)"], "")],
            attributes=[
                schema.Attribute(name, kind, "", required=False)
                for name, kind in attributes.items()
            ],
        )
    )


def _do(error: Exception) -> str:
    """Say what to do about a file that onnx will not read."""
    if "link" in str(error):
        return "Copy the artifact (cp -rL): onnx reads no weights through links."
    return _AGAIN


class _ExternalArrays:
    """The weights of a graph, read by onnx's helper where the graph says that they lie.

    Args:
        graph: Whose initializers have the names, types and shapes that the exporter writes.
        path: Its file; the weights lie in the same folder.
    """

    def __init__(self, graph: Any, path: Path) -> None:
        self._path = path
        external = require("onnx").TensorProto.EXTERNAL
        self._tensors = {t.name: t for t in graph.initializer if t.data_location == external}

    def check_places(self) -> None:
        """Refuse places that are not inside a file of the folder, before anything is read.

        Raises:
            FormatError: See above; the message names the initializer.
        """
        sizes: dict[str, int] = {}
        dtype_of = require("onnx.helper").tensor_dtype_to_np_dtype
        for name, tensor in self._tensors.items():
            place = self._place(tensor)
            location = place["location"]
            if location not in sizes:
                sizes[location] = self._file_size(name, location)
            offset, length = int(place["offset"]), int(place["length"])
            n_bytes = int(dtype_of(tensor.data_type).itemsize)
            for size in tensor.dims:
                n_bytes *= size
            if length != n_bytes or offset + length > sizes[location]:
                raise FormatError(
                    f"{self._path}: {name} lies outside {location}",
                    got=f"bytes {offset} to {offset + length} of {sizes[location]}",
                    wanted=f"{n_bytes} bytes inside the file",
                    do=_AGAIN,
                )

    def place(self, name: str) -> dict[str, str]:
        """Give location, offset and length of an array, as the file says them."""
        return self._place(self._tensors[name])

    def read(self, name: str) -> NDArray[Any]:
        """Read one array, in the shape that the graph says.

        Raises:
            FormatError: onnx cannot read it.
        """
        copy = type(self._tensors[name])()
        copy.CopyFrom(self._tensors[name])
        helper = require("onnx.external_data_helper")
        refused = require("onnx.checker").ValidationError
        try:
            helper.load_external_data_for_tensor(copy, str(self._path.parent))
            array: NDArray[Any] = require("onnx.numpy_helper").to_array(copy)
        except (refused, OSError, RuntimeError, ValueError, TypeError) as error:
            raise FormatError(f"{self._path}: {name}: onnx", got=error, do=_do(error)) from error
        return array

    def _place(self, tensor: Any) -> dict[str, str]:
        # What is no UTF-8 comes as bytes.
        said = [(str(entry.key), str(entry.value)) for entry in tensor.external_data]
        place = dict(said)
        if (
            sorted(key for key, _ in said) != sorted(_PLACE_KEYS)
            or _NUMBER.fullmatch(place["offset"]) is None
            or _NUMBER.fullmatch(place["length"]) is None
        ):
            raise FormatError(
                f"{self._path}: where {tensor.name} lies",
                got=", ".join(f"{key} {value}" for key, value in said) or "nothing",
                wanted="location, offset and length, once each",
                do=_AGAIN,
            )
        return place

    def _file_size(self, name: str, location: str) -> int:
        # onnxruntime would follow any path; an artifact is one folder.
        try:
            if not location or "\0" in location or Path(location).name != location:
                raise OSError("not the name of a file in the folder of the artifact")
            with open_inside(self._path.parent / location) as stream:
                return stream.seek(0, 2)
        except OSError as error:
            raise FormatError(
                f"{self._path}: {name} lies in {location!r}", got=error, do=_AGAIN
            ) from error


def _check_tables(weights: _ExternalArrays, spec: DecoderSpec, n_positions: int) -> None:
    """Refuse rotary angles and factors of queries that are not those of the decoder."""
    for name, wanted in make_tables(spec, n_positions).items():
        if not np.allclose(weights.read(name), wanted, rtol=_TABLE_ERROR, atol=_TABLE_ERROR):
            raise FormatError(
                f"table {name} in the weights",
                got="other numbers",
                wanted="those that the decoder in the manifest gives",
                do=_AGAIN,
            )


def _check_aliases(weights: _ExternalArrays, linears: tuple[Linear, ...]) -> None:
    """Refuse a tied output matrix whose codes are not those of the embedding."""
    for linear in linears:
        ours, theirs = f"{linear.name}.codes", f"{linear.stored}.codes"
        if ours == theirs or linear.encoding.block is None:
            continue
        is_same = weights.place(ours) == weights.place(theirs) or np.array_equal(
            weights.read(ours).ravel(), weights.read(theirs).ravel()
        )
        if not is_same:
            raise FormatError(
                f"{ours} and {theirs}", got="different codes", wanted="one matrix", do=_AGAIN
            )


def _read_tensor(
    weights: _ExternalArrays,
    arrays: tuple[StoredArray, ...],
    name: str,
    encoding: Encoding,
    spec: DecoderSpec,
) -> ModelTensor:
    """Take the rows of one canonical tensor out of the arrays that hold it."""
    shapes = spec.weight_shapes()
    found: dict[Content, NDArray[Any]] = {}
    for stored in arrays:
        if name in stored.sources:
            before = stored.sources[: stored.sources.index(name)]
            start = sum(shapes[source][0] for source in before)
            whole = weights.read(stored.info.name).reshape(stored.info.shape)
            found[stored.content] = whole[start : start + shapes[name][0]]
    if encoding.block is None:
        return FloatTensor(name, encoding, _checked_floats(found[Content.VALUES], name, encoding))
    zeros: U8Array | None = None
    if encoding.has_zero_points:
        n_blocks = encoding.n_blocks(shapes[name][1])
        zeros = unpack_codes(found[Content.ZERO_POINTS], encoding.code_bits)[:, :n_blocks]
    return EncodedTensor(name, encoding, found[Content.CODES], found[Content.SCALES], zeros)


def _checked_floats(values: NDArray[Any], name: str, encoding: Encoding) -> NDArray[np.float32]:
    """Give float32; a small tensor listed as fp16 is stored as fp32 and must fit fp16."""
    wide = values.astype(np.float32)
    if encoding == FP16 and not np.array_equal(wide.astype(np.float16).astype(np.float32), wide):
        raise FormatError(f"{name}: values", got="more digits than fp16 has", wanted=encoding)
    return wide
