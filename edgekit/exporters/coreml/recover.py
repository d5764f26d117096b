"""Reading the tensors of a saved Core ML package back, with coremltools' own reader.

Program and weights are read with coremltools' own parser and blob reader; our reader only
checks that a record is inside the file before other code follows its offset.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgekit.artifact import Artifact
from edgekit.dtypes import U8Array
from edgekit.encoding import FP16, FP32, Encoding
from edgekit.errors import FormatError, UsageError
from edgekit.exporters.coreml.weights import identifier
from edgekit.families.spec import DecoderSpec
from edgekit.formats.mil_blob import BlobReader, BlobType
from edgekit.formats.mlpackage import (
    PACKAGE_NAME,
    main_block,
    read_spec,
    require_coremltools,
    stored_at,
    weights_path,
)
from edgekit.quantize.model import EncodedTensor, FloatTensor, ModelTensor

# Which method of coremltools' reader gives which type; fp16 is given as its bits.
_READERS: Final[dict[BlobType, tuple[str, str]]] = {
    BlobType.INT4: ("read_int4_data", "i1"),
    BlobType.INT8: ("read_int8_data", "i1"),
    BlobType.UINT4: ("read_uint4_data", "u1"),
    BlobType.UINT8: ("read_uint8_data", "u1"),
    BlobType.FP16: ("read_fp16_data", "<f2"),
    BlobType.FP32: ("read_float_data", "<f4"),
}


def recover_tensors(artifact: Artifact) -> Iterator[ModelTensor]:
    """Read every tensor of an artifact, in the order of ``DecoderSpec.weight_shapes``.

    Raises:
        FormatError: The package is damaged or not what the exporter writes.
    """
    package = artifact.path / PACKAGE_NAME
    try:
        shapes = DecoderSpec.from_dict(artifact.manifest.decoder).weight_shapes()
        encodings = {
            entry.name: Encoding.parse(entry.encoding) for entry in artifact.manifest.tensors
        }
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise FormatError(f"{artifact.path}: manifest of the decoder", got=error) from error
    ops = {
        output.name: op for op in main_block(read_spec(package)).operations for output in op.outputs
    }
    blobs = _Blobs(artifact)
    for name, shape in shapes.items():
        op = ops.get(identifier(name))
        if op is None:
            raise FormatError(f"{package}: no tensor", wanted=name, do="Export the model again.")
        tensor = _quantized(name, op, blobs) if op.type != "const" else _float(name, op, blobs)
        kept = encodings.get(name)
        if isinstance(tensor, FloatTensor) and kept in (FP16, FP32):
            # Norms are stored wider than their encoding says; the values are the same.
            tensor = FloatTensor(name, kept, tensor.values)
        if tensor.shape != shape:
            raise FormatError(f"{package}: shape of {name}", got=tensor.shape, wanted=shape)
        yield tensor


class _Blobs:
    """coremltools' reader behind our bounds check."""

    def __init__(self, artifact: Artifact) -> None:
        self._path = weights_path(artifact.path / PACKAGE_NAME)
        self._records = BlobReader(self._path)
        storage = require_coremltools("coremltools.libmilstoragepython")
        self._reader = storage._BlobStorageReader(str(self._path))

    def read(self, name: str, value: Any) -> NDArray[Any]:
        """Read a constant as an array of its declared shape."""
        if value.WhichOneof("value") != "blobFileValue":
            raise FormatError(f"{self._path}: {name}", got="a value kept in the program")
        offset, blob_type, shape = stored_at(value)
        self._records.check(offset, blob_type, shape)
        if blob_type not in _READERS:
            raise FormatError(f"{self._path}: {name}: type", got=blob_type.name)
        method, dtype = _READERS[blob_type]
        try:
            flat = getattr(self._reader, method)(offset)
        except (RuntimeError, ValueError) as error:
            raise FormatError(f"{self._path}: {name}", got=error) from error
        array: NDArray[Any] = np.asarray(flat).view(dtype).reshape(shape)
        return array


def _quantized(name: str, op: Any, blobs: _Blobs) -> EncodedTensor:
    values = {key: argument.arguments[0].value for key, argument in op.inputs.items()}
    if op.type == "constexpr_lut_to_dense":
        return _palettized(name, values, blobs)
    if op.type != "constexpr_blockwise_shift_scale":
        raise FormatError(f"{name}: stored by {op.type}", wanted="constexpr_blockwise_shift_scale")
    stored = blobs.read(name, values["data"])
    scales = blobs.read(f"{name}: scales", values["scale"]).astype(np.float32)
    kind = stored_at(values["data"])[1].name.lower()
    if stored.ndim != 2 or scales.ndim != 2 or not scales.size or stored.shape[1] % 2:
        raise FormatError(f"{name}: codes and scales", got=f"{stored.shape} and {scales.shape}")
    encoding = Encoding(kind, stored.shape[1] // scales.shape[1])
    zeros: U8Array | None = None
    if "offset" in values:
        zeros = blobs.read(f"{name}: zero points", values["offset"]).view(np.uint8)
    # Signed codes wrap to 0 .. 2**bits - 1.
    middle = np.uint8(0 if encoding.has_zero_points else 2 ** (encoding.bits - 1))
    codes = stored.view(np.uint8) + middle
    tensor = EncodedTensor.of_codes(name, encoding, codes, scales, zeros)
    n_blocks = encoding.n_blocks(stored.shape[1])
    if {scales.shape, *([] if zeros is None else [zeros.shape])} != {(len(codes), n_blocks)}:
        raise FormatError(f"{name}: codes and scales", got=f"{stored.shape} and {scales.shape}")
    return tensor


def _palettized(name: str, values: dict[str, Any], blobs: _Blobs) -> EncodedTensor:
    codes = blobs.read(name, values["indices"])
    palettes = blobs.read(f"{name}: palettes", values["lut"]).astype(np.float32)
    n_palettes = palettes.shape[0] if palettes.ndim else 0
    if codes.ndim != 2 or not n_palettes or len(codes) % n_palettes:
        raise FormatError(f"{name}: codes and palettes", got=f"{codes.shape} and {palettes.shape}")
    encoding = Encoding("lut4", len(codes) // n_palettes)
    wanted = encoding.scales_shape(*codes.shape)
    if palettes.shape != (wanted[0], 1, wanted[1], 1):
        raise FormatError(f"{name}: palettes", got=palettes.shape, wanted=wanted)
    return EncodedTensor.of_codes(name, encoding, codes.view(np.uint8), palettes.reshape(wanted))


def _float(name: str, op: Any, blobs: _Blobs) -> FloatTensor:
    values = blobs.read(name, op.attributes["val"])
    if values.dtype.kind != "f":
        raise FormatError(f"{name}: type", got=values.dtype, wanted="fp16 or fp32")
    return FloatTensor(name, FP16 if values.itemsize == 2 else FP32, values.astype(np.float32))
