"""The weight file of an ONNX artifact: its arrays, and how they are written.

The weight file is a valid safetensors file that onnxruntime maps as external data, so other
runtimes can read the same bytes. Its content is planned from shapes and encodings before any weight
is read; ``write_weights`` then holds one array at a time. This module knows nothing about graphs.

Besides the weights it holds tables indexed by position: cosines and sines of every rotary encoding
in use, and the attention temperature. LongRoPE has two sets of angles; both are in one table, so
changing from one to the other changes an index, not a table.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgekit.dtypes import DTYPES, DType, F32Array
from edgekit.encoding import FP16, FP32, Encoding
from edgekit.errors import ExportError, FormatError
from edgekit.families.rope import attention_temperatures, rope_tables
from edgekit.families.rope_spec import LongRopeScaling, RopeSpec
from edgekit.families.spec import DecoderSpec
from edgekit.formats.packing import pack_rows
from edgekit.formats.safetensors import SafetensorsFile, SafetensorsWriter, file_bytes
from edgekit.progress import Progress
from edgekit.quantize.model import EncodedTensor, ModelTensor, QuantizedModel
from edgekit.tensors import TensorInfo

WEIGHTS_NAME: Final = "weights.safetensors"
ATTENTION_TEMPERATURE: Final = "attention_temperatures"
ALIGN_BYTES: Final = 64
_NO_TERMS: Final[Mapping[str, int]] = MappingProxyType({})
_METADATA: Final = {"format": "onnx", "producer": "edgekit"}


class Content(enum.Enum):
    """Which part of its sources a stored array holds."""

    CODES = "codes"
    SCALES = "scales"
    ZERO_POINTS = "zero_points"
    VALUES = "values"


@dataclass(frozen=True, slots=True)
class Stored:
    """One array of the weight file.

    Attributes:
        info: Name (in the file and of the ONNX initializer), shape and type as stored.
        content: Which part of the sources it holds.
        sources: Canonical names whose rows it stacks, in order; empty for the tables.
    """

    info: TensorInfo
    content: Content
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Linear:
    """One matmul of the graph, which may join several canonical matrices by rows.

    Attributes:
        name: Name in the graph, such as ``layers.0.qkv``.
        parts: Canonical matrices whose rows it stacks, in order.
        n_rows: Rows of each part; N is their sum.
        n_in: M.
        encoding: How all parts are stored.
        has_bias: Whether every part has a bias.
        stored: Name under which the weights lie in the file; differs from ``name`` for a
            tied ``lm_head``, which lies there as ``embed``.
        n_terms: Terms of 8 bits that quantized matmuls take their activations in, 1 or 2.
    """

    name: str
    parts: tuple[str, ...]
    n_rows: tuple[int, ...]
    n_in: int
    encoding: Encoding
    has_bias: bool
    stored: str
    n_terms: int = 1

    @property
    def n_out(self) -> int:
        """N."""
        return sum(self.n_rows)


def plan_linears(
    spec: DecoderSpec, encodings: Mapping[str, Encoding], n_terms: Mapping[str, int] = _NO_TERMS
) -> tuple[Linear, ...]:
    """Say which matrix matmuls the graph has, in file order.

    Query, key and value are one matmul when they are stored alike, else three.

    Args:
        spec: The decoder.
        encodings: Encoding of every canonical name.
        n_terms: Canonical name, or ``lm_head`` of a tied one, to the terms that its matmul takes
            its activations in; 1 where nothing is said.
    """
    shapes = spec.weight_shapes()

    def linear(name: str, parts: tuple[str, ...], stored: str | None = None) -> Linear:
        return Linear(
            name=name,
            parts=parts,
            n_rows=tuple(shapes[part][0] for part in parts),
            n_in=shapes[parts[0]][1],
            encoding=encodings[parts[0]],
            has_bias=f"{parts[0]}.bias" in shapes,
            stored=stored or name,
            n_terms=max(n_terms.get(part, 1) for part in (name, *parts)),
        )

    linears = []
    for i in range(spec.n_layers):
        at = f"layers.{i}."
        qkv = (at + "q", at + "k", at + "v")
        if len({encodings[part] for part in qkv}) == 1:
            linears.append(linear(at + "qkv", qkv))
        else:
            linears.extend(linear(part, (part,)) for part in qkv)
        linears.extend(linear(at + part, (at + part,)) for part in ("o", "gate", "up", "down"))
    if spec.is_tied:
        linears.append(linear("lm_head", ("embed",), stored="embed"))
    else:
        linears.append(linear("lm_head", ("lm_head",)))
    return tuple(linears)


def plan_arrays(
    spec: DecoderSpec, encodings: Mapping[str, Encoding], n_positions: int
) -> tuple[Stored, ...]:
    """Plan the arrays of the weight file, in file order.

    Args:
        spec: The decoder.
        encodings: Encoding of every canonical name.
        n_positions: Positions the artifact holds.
    """
    shapes = spec.weight_shapes()
    arrays = list(_matrix("embed", ("embed",), shapes["embed"], encodings["embed"]))
    arrays += [
        _values(name, shape, (name,)) for name, shape in shapes.items() if name.endswith("norm")
    ]
    for linear in plan_linears(spec, encodings):
        if linear.stored != "embed":
            shape = (linear.n_out, linear.n_in)
            arrays += _matrix(linear.stored, linear.parts, shape, linear.encoding)
        if linear.has_bias:
            biases = tuple(f"{part}.bias" for part in linear.parts)
            arrays.append(_values(f"{linear.name}.bias", (linear.n_out,), biases))
    tables = table_shapes(spec, n_positions)
    return (*arrays, *(_values(name, shape, ()) for name, shape in tables.items()))


def weight_file_bytes(arrays: tuple[Stored, ...]) -> int:
    """Give the exact size of the weight file that holds these arrays."""
    infos = [info for stored in arrays for info in _with_padding(stored.info)]
    return file_bytes(infos, metadata=_METADATA, alignment=ALIGN_BYTES)


def write_weights(
    path: Path,
    arrays: tuple[Stored, ...],
    model: QuantizedModel,
    tables: Mapping[str, F32Array],
    progress: Progress,
) -> None:
    """Write the weight file, holding the sources of one array at a time.

    Args:
        path: The file to make.
        arrays: From ``plan_arrays`` for this model.
        model: Read tensor by tensor.
        tables: The arrays without sources, by name.
        progress: Told after every array.

    Raises:
        ExportError: A tensor is not what its entry says.
        OSError: The file cannot be written.
    """
    infos = [info for stored in arrays for info in _with_padding(stored.info)]
    held: dict[str, ModelTensor] = {}
    try:
        with SafetensorsWriter(path, infos, metadata=_METADATA, alignment=ALIGN_BYTES) as writer:
            for n_done, stored in enumerate(arrays, start=1):
                # Codes and scales of the same sources follow each other: read once for both.
                if tuple(held) != stored.sources:
                    held.clear()
                    held.update((name, model.get(name)) for name in stored.sources)
                name = stored.info.name
                writer.append(name, _joined(held, stored) if held else tables[name])
                for padding in _with_padding(stored.info)[1:]:
                    writer.append(padding.name, bytes(padding.n_bytes))
                progress("write weights", n_done, len(arrays))
    except FormatError as error:
        raise ExportError(
            "the model is not what its entries say",
            got=error.what,
            do="Quantize the checkpoint again.",
        ) from error


def read_offsets(weights: SafetensorsFile, arrays: tuple[Stored, ...]) -> dict[str, int]:
    """Give the first byte of every array, counted from the start of the weight file.

    Raises:
        FormatError: The file does not hold exactly these arrays, in this order.
    """
    wanted = [info for stored in arrays for info in _with_padding(stored.info)]
    found = [tensor.info for tensor in weights.tensors.values()]
    if found != wanted:
        differing = [info.name for info in wanted if info not in found]
        raise FormatError(
            f"{weights.path}: arrays differ from what the exporter writes",
            got=", ".join(differing[:5]) or "others, or in another order",
            do="Export the model again.",
        )
    # Safetensors data run to the end of the file without a gap.
    data_start = weights.path.stat().st_size - sum(info.n_bytes for info in wanted)
    return {name: data_start + tensor.begin for name, tensor in weights.tensors.items()}


def _joined(tensors: Mapping[str, ModelTensor], stored: Stored) -> NDArray[Any]:
    """Give the rows of all sources in the form in which the file holds them."""
    parts = [_raw(tensor, stored) for tensor in tensors.values()]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _raw(tensor: ModelTensor, stored: Stored) -> NDArray[Any]:
    """Give what ``stored`` holds of a tensor, in the form in which the file holds it."""
    if isinstance(tensor, EncodedTensor):
        if stored.content is Content.CODES:
            return tensor.packed
        if stored.content is Content.SCALES:
            return tensor.scales.astype("<f4", copy=False)
        if stored.content is Content.ZERO_POINTS and tensor.zero_points is not None:
            return pack_rows(tensor.zero_points, tensor.encoding.code_bits)
    elif stored.content is Content.VALUES:
        return tensor.values.astype(DTYPES[stored.info.dtype].numpy, copy=False)
    raise ExportError(
        f"{tensor.name} is stored as {tensor.encoding}",
        wanted=f"{stored.content.value} for {stored.info.name}",
        do="Quantize the checkpoint again.",
    )


def _matrix(
    name: str, sources: tuple[str, ...], shape: tuple[int, ...], encoding: Encoding
) -> Iterator[Stored]:
    n_out, n_in = shape
    if encoding.block is None:
        dtype = {FP32: DType.FP32, FP16: DType.FP16}[encoding]
        yield _values(name, (n_out, n_in), sources, dtype)
        return
    codes = TensorInfo(f"{name}.codes", (n_out, n_in * encoding.bits // 8), DType.UINT8)
    n_blocks = encoding.n_blocks(n_in)
    scales = TensorInfo(f"{name}.scales", (n_out, n_blocks), DType.FP32)
    yield Stored(codes, Content.CODES, sources)
    yield Stored(scales, Content.SCALES, sources)
    if encoding.has_zero_points:
        shape = (n_out, -(-n_blocks * encoding.bits // 8))  # each row is packed by itself
        zeros = TensorInfo(f"{name}.zero_points", shape, DType.UINT8)
        yield Stored(zeros, Content.ZERO_POINTS, sources)


def _values(
    name: str, shape: tuple[int, ...], sources: tuple[str, ...], dtype: DType = DType.FP32
) -> Stored:
    return Stored(TensorInfo(name, shape, dtype), Content.VALUES, sources)


def _with_padding(info: TensorInfo) -> tuple[TensorInfo, ...]:
    """Add filler after an array that ends off the 64-byte grid; safetensors allows no gaps."""
    n_padding = -info.n_bytes % ALIGN_BYTES
    if not n_padding:
        return (info,)
    return (info, TensorInfo(f"padding.{info.name}", (n_padding,), DType.UINT8))


@dataclass(frozen=True, slots=True)
class RopeTable:
    """The pair of tables of one rotary encoding.

    Attributes:
        name: Starts the names of what belongs to it in the graph.
        cos: Name of the cosines.
        sin: Name of the sines.
        n_pairs: R // 2, columns of each table.
        changes_after: Positions after which the long angles apply, which are below the short ones
            in the table; None if one set is enough for the artifact's context.
    """

    name: str
    cos: str
    sin: str
    n_pairs: int
    changes_after: int | None


def plan_ropes(spec: DecoderSpec, n_positions: int) -> dict[RopeSpec, RopeTable]:
    """Name the tables of every rotary encoding in use, in file order."""
    planned = {}
    for index, rope in enumerate(spec.ropes):
        name = f"rope.{index}" if index else "rope"
        changes_after = None
        if isinstance(rope.scaling, LongRopeScaling):
            original = rope.scaling.original_context_length
            changes_after = original if n_positions > original else None
        planned[rope] = RopeTable(
            name=name,
            cos=f"{name}.cos",
            sin=f"{name}.sin",
            n_pairs=(rope.rotary_width or spec.head_width) // 2,
            changes_after=changes_after,
        )
    return planned


def has_attention_temperature(spec: DecoderSpec, n_positions: int) -> bool:
    """Tell whether any query in the artifact's context is scaled at all."""
    temperature = spec.query_scaling
    return temperature is not None and n_positions > temperature.original_context_length


def table_shapes(spec: DecoderSpec, n_positions: int) -> dict[str, tuple[int, int]]:
    """Give name and shape of every table, in file order."""
    shapes = {}
    for table in plan_ropes(spec, n_positions).values():
        n_rows = n_positions if table.changes_after is None else 2 * n_positions
        shapes[table.cos] = shapes[table.sin] = (n_rows, table.n_pairs)
    if has_attention_temperature(spec, n_positions):
        shapes[ATTENTION_TEMPERATURE] = (n_positions, 1)
    return shapes


def make_tables(spec: DecoderSpec, n_positions: int) -> dict[str, F32Array]:
    """Compute every table of ``table_shapes``."""
    tables: dict[str, F32Array] = {}
    for rope, table in plan_ropes(spec, n_positions).items():
        pair = rope_tables(rope, spec.head_width, n_positions)
        if table.changes_after is not None:
            long = rope_tables(rope, spec.head_width, n_positions, is_long=True)
            pair = np.concatenate([pair[0], long[0]]), np.concatenate([pair[1], long[1]])
        tables[table.cos], tables[table.sin] = pair
    if spec.query_scaling is not None and has_attention_temperature(spec, n_positions):
        tables[ATTENTION_TEMPERATURE] = attention_temperatures(spec.query_scaling, n_positions)[
            :, None
        ]
    return tables
