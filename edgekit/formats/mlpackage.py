"""Core ML packages (``.mlpackage``): their files, and the model spec inside.

Exporter and engines use coremltools only through this module. It is imported at the first use and
with its log silenced, because on Linux it logs a line for every missing macOS part. This module
does not know what a program computes.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from edgekit.errors import FormatError
from edgekit.files import read_inside
from edgekit.formats.mil_blob import BlobType
from edgekit.lazy import require

PACKAGE_NAME: Final = "model.mlpackage"
# Inputs, states and output, named as in Apple's Llama sample and swift-transformers.
INPUT_IDS: Final = "inputIds"
CAUSAL_MASK: Final = "causalMask"
KEY_CACHE: Final = "keyCache"
VALUE_CACHE: Final = "valueCache"
LOGITS: Final = "logits"
_DATA: Final = Path("Data")
_MODEL: Final = "com.apple.CoreML/model.mlmodel"
_WEIGHTS: Final = "com.apple.CoreML/weights"
_WEIGHT_FILE: Final = "weight.bin"
BLOB_FILE_NAME: Final = f"@model_path/weights/{_WEIGHT_FILE}"
# Fixed ids, so that the same model gives the same bytes; any two distinct ids are valid.
_MODEL_ID: Final = "6F9B6F0E-0B5D-4C0A-9E55-3D1C2A7E0001"
_WEIGHTS_ID: Final = "6F9B6F0E-0B5D-4C0A-9E55-3D1C2A7E0002"
_MAX_SPEC_BYTES: Final = 256 << 20


def require_coremltools(module: str = "coremltools") -> ModuleType:
    """Import coremltools, or a part of it, without its start-up log lines.

    Raises:
        MissingExtraError: coremltools is not installed.
    """
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        require("coremltools")
    finally:
        logging.disable(before)
    return require(module)


def spec_path(package: Path) -> Path:
    """Give the path of the model spec in a package."""
    return package / _DATA / _MODEL


def weights_path(package: Path) -> Path:
    """Give the path of the weight file in a package."""
    return package / _DATA / _WEIGHTS / _WEIGHT_FILE


def create_package(package: Path) -> None:
    """Make the folders of an empty package and its ``Manifest.json``."""
    weights_path(package).parent.mkdir(parents=True)
    entries = {
        _MODEL_ID: ("CoreML Model Specification", "model.mlmodel", _MODEL),
        _WEIGHTS_ID: ("CoreML Model Weights", "weights", _WEIGHTS),
    }
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {
            key: {
                "author": "com.apple.CoreML",
                "description": text,
                "name": name,
                "path": path,
            }
            for key, (text, name, path) in entries.items()
        },
        "rootModelIdentifier": _MODEL_ID,
    }
    (package / "Manifest.json").write_text(json.dumps(manifest, indent=4) + "\n", encoding="utf-8")


def read_spec(package: Path) -> Any:
    """Parse the model spec of a package; give a ``Model_pb2.Model``.

    Raises:
        FormatError: No such file, too large, or not a Core ML model spec.
        MissingExtraError: coremltools is not installed.
    """
    path = spec_path(package)
    spec = require_coremltools("coremltools.proto.Model_pb2").Model()
    decode_error = require("google.protobuf.message", package="protobuf").DecodeError
    try:
        spec.ParseFromString(read_inside(path, _MAX_SPEC_BYTES))
    except (OSError, decode_error) as error:
        raise FormatError(
            f"{path} is not a Core ML model spec", got=str(error), do="Export the model again."
        ) from error
    if spec.WhichOneof("Type") != "mlProgram":
        raise FormatError(f"{path}: kind of model", got=spec.WhichOneof("Type"), wanted="mlProgram")
    return spec


def main_block(spec: Any) -> Any:
    """Give the ``MIL_pb2.Block`` of the one function.

    Raises:
        FormatError: There is no function ``main`` with one block.
    """
    functions = spec.mlProgram.functions
    if "main" not in functions or len(functions["main"].block_specializations) != 1:
        raise FormatError("Core ML program", got=sorted(functions), wanted="one function 'main'")
    return next(iter(functions["main"].block_specializations.values()))


def type_name(value_type: Any) -> str:
    """Name of the element type of a ``MIL_pb2.ValueType``, such as ``FLOAT16``.

    Raises:
        FormatError: A number that is not a type.
    """
    types = require_coremltools("coremltools.proto.MIL_pb2").DataType
    try:
        return str(types.Name(value_type.tensorType.dataType))
    except ValueError as error:
        raise FormatError(
            "Core ML program: element type", got=value_type.tensorType.dataType
        ) from error


def stored_at(value: Any) -> tuple[int, BlobType, tuple[int, ...]]:
    """Give record offset, type and shape of a constant that is stored in the weight file.

    Raises:
        FormatError: The weight file cannot hold such a type, or it is another file.
    """
    kind = type_name(value.type).replace("FLOAT", "FP")
    if kind not in BlobType.__members__:
        raise FormatError("constant in the weight file: type", got=kind)
    if value.blobFileValue.fileName != BLOB_FILE_NAME:
        raise FormatError(
            "constant in the weight file: path",
            got=value.blobFileValue.fileName,
            wanted=BLOB_FILE_NAME,
        )
    shape = tuple(int(dim.constant.size) for dim in value.type.tensorType.dimensions)
    return int(value.blobFileValue.offset), BlobType[kind], shape
