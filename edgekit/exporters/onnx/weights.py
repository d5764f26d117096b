"""The weight file of an ONNX artifact: its arrays, and how they are written.

The weight file is a valid safetensors file that onnxruntime maps as external data, so other
runtimes can read the same bytes. Its content is planned from shapes and encodings before any weight
is read. This module knows nothing about graphs.

Besides the weights it holds tables indexed by position: cosines and sines of every rotary encoding
in use, and the attention temperature. LongRoPE has two sets of angles; both are in one table, so
changing from one to the other changes an index, not a table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgekit.dtypes import DTYPES, DType, F32Array
from edgekit.encoding import FP16, FP32, Encoding
from edgekit.exporters.arrays import ArrayFile, Content, StoredArray, part_of, with_padding
from edgekit.families.rope import attention_temperatures, rope_tables
from edgekit.families.rope_spec import LongRopeScaling, RopeSpec
from edgekit.families.spec import DecoderSpec
from edgekit.formats.packing import pack_rows
from edgekit.formats.safetensors import file_bytes
from edgekit.quantize.model import ModelTensor
from edgekit.tensors import TensorInfo

WEIGHTS_NAME: Final = "weights.safetensors"
ATTENTION_TEMPERATURE: Final = "attention_temperatures"
ALIGN_BYTES: Final = 64
_NO_TERMS: Final[Mapping[str, int]] = MappingProxyType({})
_METADATA: Final = {"format": "onnx", "producer": "edgekit"}


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
) -> tuple[StoredArray, ...]:
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


def weight_file_bytes(arrays: tuple[StoredArray, ...]) -> int:
    """Give the exact size of the weight file that holds these arrays."""
    infos = [info for stored in arrays for info in with_padding(stored.info, ALIGN_BYTES)]
    return file_bytes(infos, metadata=_METADATA, alignment=ALIGN_BYTES)


def open_weights(
    path: Path, arrays: tuple[StoredArray, ...], spec: DecoderSpec, n_positions: int
) -> ArrayFile:
    """Begin the weight file, and write its tables.

    Args:
        path: The file to make.
        arrays: From ``plan_arrays`` for this decoder.
        spec: The decoder.
        n_positions: Positions the artifact holds.

    Raises:
        OSError: The file cannot be written.
    """
    shapes = spec.weight_shapes()
    tables = make_tables(spec, n_positions)
    return ArrayFile(
        path,
        arrays,
        shapes,
        _encode,
        constants=tables,
        metadata=_METADATA,
        alignment=ALIGN_BYTES,
    )


def _encode(tensor: ModelTensor, stored: StoredArray) -> NDArray[Any]:
    """Give the rows that an array holds of a tensor, in the form in which the file holds them."""
    part = part_of(tensor, stored)
    if stored.content is Content.ZERO_POINTS:
        return pack_rows(part, tensor.encoding.code_bits)
    return part.astype(DTYPES[stored.info.dtype].numpy, copy=False)


def _matrix(
    name: str, sources: tuple[str, ...], shape: tuple[int, ...], encoding: Encoding
) -> Iterator[StoredArray]:
    n_out, n_in = shape
    if encoding.block is None:
        dtype = {FP32: DType.FP32, FP16: DType.FP16}[encoding]
        yield _values(name, (n_out, n_in), sources, dtype)
        return
    codes = TensorInfo(f"{name}.codes", (n_out, n_in * encoding.bits // 8), DType.UINT8)
    n_blocks = encoding.n_blocks(n_in)
    scales = TensorInfo(f"{name}.scales", (n_out, n_blocks), DType.FP32)
    yield StoredArray(codes, Content.CODES, sources)
    yield StoredArray(scales, Content.SCALES, sources)
    if encoding.has_zero_points:
        shape = (n_out, -(-n_blocks * encoding.bits // 8))  # each row is packed by itself
        zeros = TensorInfo(f"{name}.zero_points", shape, DType.UINT8)
        yield StoredArray(zeros, Content.ZERO_POINTS, sources)


def _values(
    name: str, shape: tuple[int, ...], sources: tuple[str, ...], dtype: DType = DType.FP32
) -> StoredArray:
    return StoredArray(TensorInfo(name, shape, dtype), Content.VALUES, sources)


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
