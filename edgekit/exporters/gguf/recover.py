"""Reading the weights of a GGUF artifact back, with the ``gguf`` package.

The package gives the bytes of each tensor and, for codes, the weights that it makes of them; these
must be the weights that edgekit makes of the codes and scales it reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.artifact import Artifact
from edgekit.dtypes import DType, F32Array, U8Array
from edgekit.errors import FormatError
from edgekit.exporters.gguf.blocks import decode
from edgekit.exporters.gguf.graphs import GRAPHS
from edgekit.exporters.gguf.layout import StoredWeight, plan_tensors
from edgekit.families.spec import DecoderSpec
from edgekit.formats.floats import to_float32
from edgekit.formats.gguf import GgufFile
from edgekit.formats.gguf_writer import TensorHeader
from edgekit.lazy import require
from edgekit.quantize.model import EncodedTensor, FloatTensor, ModelTensor
from edgekit.tensors import row_blocks


def recover_tensors(artifact: Artifact, path: Path) -> Iterator[ModelTensor]:
    """Re-read every tensor of an artifact, in the order of the manifest.

    Raises:
        FormatError: The file is damaged, or not what the exporter writes for the manifest's
            decoder.
    """
    manifest = artifact.manifest
    try:
        spec = DecoderSpec.from_dict(manifest.decoder)
    except ValueError as error:
        raise FormatError(f"{artifact.path}: decoder in the manifest", got=error) from error
    tensors, architecture = _open(path)
    if architecture not in GRAPHS:
        raise FormatError(
            f"{path}: general.architecture", got=architecture, wanted=", ".join(GRAPHS)
        )
    graph = GRAPHS[architecture]
    planned = plan_tensors(graph, spec, manifest.tensors)
    for header in planned.headers:
        _check(header, tensors.get(header.name), path)
    for name, table in graph.tables(spec).items():
        if not np.array_equal(_values(tensors.pop(name)), table):
            raise FormatError(f"{path}: {name}", wanted="the divisors of the manifest's decoder")
    for entry in manifest.tensors:
        yield _recover(planned.weights[entry.name], tensors, path)
    extra = tensors.keys() - {weight.tensor for weight in planned.weights.values()}
    if extra:
        raise FormatError(
            f"{path}: tensors that the manifest does not list", got=", ".join(sorted(extra)[:5])
        )


def _open(path: Path) -> tuple[dict[str, Any], str]:
    """Give the tensors of a file by name, as the package reads them, and its architecture."""
    # The package trusts the header, so the strict reader checks it first.
    with GgufFile(path) as file:
        architecture = str(file.metadata.get("general.architecture", ""))
    try:
        reader = require("gguf").GGUFReader(path)
    except (OSError, ValueError, LookupError) as error:
        raise FormatError(f"{path}: gguf cannot read the file", got=error) from error
    return {tensor.name: tensor for tensor in reader.tensors}, architecture


def _check(header: TensorHeader, stored: Any, path: Path) -> None:
    found = None
    if stored is not None:
        found = (stored.tensor_type.name, tuple(int(n) for n in reversed(stored.shape)))
    if found != (header.kind.name, header.shape):
        raise FormatError(
            f"{path}: tensor {header.name}",
            got=found or "none",
            wanted=(header.kind.name, header.shape),
        )


def _recover(weight: StoredWeight, tensors: dict[str, Any], path: Path) -> ModelTensor:
    entry, stored = weight.entry, tensors[weight.tensor]
    rows = slice(weight.first_row, weight.first_row + entry.shape[0])
    raw = np.asarray(stored.data)[rows]
    places = weight.places()
    if entry.sha256 is not None:
        blocks: U8Array = raw if places is None else raw[places]
        tensor = decode(blocks, entry.name, weight.encoding, str(path))
        _check_with_gguf(tensor, blocks, stored, path)
        return tensor
    values = _values(stored)[rows]
    values = values if places is None else values[places]
    if weight.shift:
        values = values - np.float32(weight.shift)
    return FloatTensor(entry.name, weight.encoding, np.ascontiguousarray(values))


def _values(stored: Any) -> F32Array:
    data = np.asarray(stored.data)
    if stored.tensor_type.name == "BF16":  # the package gives its bytes
        return to_float32(data.view("<u2"), DType.BF16)
    values: F32Array = data.astype(np.float32)
    return values


def _check_with_gguf(tensor: EncodedTensor, blocks: U8Array, stored: Any, path: Path) -> None:
    """Refuse codes that the package turns into other weights than we do."""
    quants = require("gguf").quants
    for rows in row_blocks(tensor.shape):
        theirs = quants.dequantize(np.ascontiguousarray(blocks[rows]), stored.tensor_type)
        ours = tensor.rows(rows).dequantize()
        if not np.array_equal(theirs, ours):
            raise FormatError(
                f"{path}: {tensor.name}: gguf.quants.dequantize",
                got="other weights than our reading",
            )
