"""Writer of ``.mlpackage``: a MIL program and a quantized model in one package.

coremltools translates the program to protobuf. Our own writer streams the weights into
``weight.bin``, one tensor in memory at a time. No pass of coremltools runs: deduplication would
merge all placeholders, and ``remove_redundant_ops`` would merge reads of a state across writes.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgekit.dtypes import U8Array
from edgekit.encoding import Encoding
from edgekit.errors import ExportError, FormatError
from edgekit.exporters.coreml.graph import Graph
from edgekit.exporters.coreml.weights import Slot, code_type
from edgekit.formats.mil_blob import BlobType, BlobWriter, exact_fp16, signed_codes
from edgekit.formats.mlpackage import (
    BLOB_FILE_NAME,
    create_package,
    require_coremltools,
    spec_path,
    weights_path,
)
from edgekit.formats.packing import pack_rows
from edgekit.quantize.model import EncodedTensor, FloatTensor, ModelTensor

SPECIFICATION_VERSION: Final = 9  # iOS 18, macOS 15


class PackageWriter:
    """A package that is being written; the program comes first, the weights in any order.

    The bytes depend on the arguments and on the tensors only.

    Args:
        package: Folder to make.
        graph: The program and its placeholders.
        encodings: How each canonical tensor is stored.
        shapes: Shape of each canonical tensor.

    Raises:
        ExportError: coremltools refuses the program.
        OSError: A file cannot be written.
    """

    def __init__(
        self,
        package: Path,
        graph: Graph,
        encodings: Mapping[str, Encoding],
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self._package = package
        create_package(package)
        blobs = BlobWriter(weights_path(package))
        self._weights = _WeightFile(graph.slots, encodings, shapes, blobs)
        try:
            self._spec = _make_spec(graph, self._weights)
        except BaseException:
            blobs.discard()
            raise

    def put(self, tensor: ModelTensor, first_row: int) -> None:
        """Write rows of a tensor.

        Raises:
            ExportError: It is not what was declared.
            OSError: The file cannot be written.
        """
        self._weights.put(tensor, first_row)

    def finish(
        self, summary: str, metadata: Mapping[str, str], features: Mapping[str, str]
    ) -> None:
        """Write the program.

        Args:
            summary: What the model is.
            metadata: User-defined entries of the model description.
            features: One sentence for each input, state and output.

        Raises:
            ExportError: Rows of a tensor are missing.
            OSError: A file cannot be written.
        """
        self._weights.close()
        description = self._spec.description
        description.metadata.shortDescription = summary
        for key, value in sorted(metadata.items()):
            description.metadata.userDefined[key] = value
        for feature in (*description.input, *description.state, *description.output):
            feature.shortDescription = features[feature.name]
        spec_path(self._package).write_bytes(self._spec.SerializeToString(deterministic=True))

    def discard(self) -> None:
        """Close what is open; the caller removes the folder."""
        self._weights.discard()


def _make_spec(graph: Graph, weights: _WeightFile) -> Any:
    load = require_coremltools("coremltools.converters.mil.backend.mil.load")
    try:
        return load.CoreMLProtoExporter(
            prog=graph.program,
            mil_proto=_translate(load, graph.program, weights),
            predicted_feature_name=None,
            predicted_probabilities_name=None,
            classifier_config=None,
            convert_to="mlprogram",
            convert_from="milinternal",
            specification_version=SPECIFICATION_VERSION,
        ).export(SPECIFICATION_VERSION)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ExportError(
            "coremltools refuses the program",
            got=str(error),
            do="Check the versions of coremltools and numpy.",
        ) from error


@dataclass(frozen=True, slots=True)
class _Place:
    """A reserved blob: what it holds of a tensor, its type, its record and the bytes of a row."""

    slot: Slot
    type: BlobType
    offset: int
    row_bytes: float


class _WeightFile:
    """Gives constants places in the weight file, and writes the bytes of tensors there."""

    def __init__(
        self,
        slots: Mapping[str, Slot],
        encodings: Mapping[str, Encoding],
        shapes: Mapping[str, tuple[int, ...]],
        blobs: BlobWriter,
    ) -> None:
        self.slots = slots
        self._encodings = encodings
        self._shapes = shapes
        self._blobs = blobs
        self._places: dict[str, list[_Place]] = {}
        self._missing_rows = {slot.name: shapes[slot.name][0] for slot in slots.values()}
        self._lock = threading.Lock()

    def place(self, label: str, value: np.ndarray[Any, Any]) -> int:
        """Write a constant, or reserve room for a placeholder; give the offset of its record."""
        slot = self.slots.get(label)
        if slot is None:
            return self._blobs.write(value)
        encoding = self._encodings[slot.name]
        if slot.part in ("codes", "zero_points"):
            blob_type, n_bits = code_type(encoding), encoding.bits
        else:
            is_wide = value.dtype == np.float32
            blob_type, n_bits = (BlobType.FP32, 32) if is_wide else (BlobType.FP16, 16)
        offset = self._blobs.reserve(blob_type, (value.size * n_bits + 7) // 8)
        # Of a row of the tensor; rows that share a palette share its bytes.
        row_bytes = value.size * n_bits / 8 / self._shapes[slot.name][0]
        self._places.setdefault(slot.name, []).append(_Place(slot, blob_type, offset, row_bytes))
        return offset

    def put(self, tensor: ModelTensor, first_row: int) -> None:
        """Write rows of a tensor."""
        wanted = self._shapes.get(tensor.name)
        is_declared = wanted is not None and (
            tensor.encoding == self._encodings[tensor.name]
            and tensor.shape[1:] == wanted[1:]
            and first_row + tensor.shape[0] <= wanted[0]
        )
        if not is_declared:
            raise ExportError(
                f"{tensor.name}: shape and encoding",
                got=f"{list(tensor.shape)} {tensor.encoding}",
                wanted=f"{list(wanted or ())} {self._encodings.get(tensor.name)}",
                do="Quantize the model again.",
            )
        for place in self._places.get(tensor.name, ()):
            data = _data_of(tensor, place)
            self._blobs.fill(place.offset, data, int(first_row * place.row_bytes))
        with self._lock:
            self._missing_rows[tensor.name] -= tensor.shape[0]

    def close(self) -> None:
        """Finish the file."""
        wrong = [name for name, n_rows in self._missing_rows.items() if n_rows]
        if wrong:
            raise ExportError("tensors not written, or written twice", got=", ".join(wrong[:5]))
        self._blobs.close()

    def discard(self) -> None:
        """Remove the file."""
        self._blobs.discard()


def _data_of(tensor: ModelTensor, place: _Place) -> U8Array:
    """Give what a blob holds of a tensor, as bytes."""
    slot = place.slot
    try:
        match slot.part, tensor:
            case "codes", EncodedTensor():
                return signed_codes(tensor.packed, place.type)
            case "scales", EncodedTensor():
                return exact_fp16(tensor.scales)
            case "zero_points", EncodedTensor(zero_points=zeros) if zeros is not None:
                # Packed over the whole tensor: an even number of rows fills whole bytes.
                return pack_rows(zeros.reshape(1, -1), tensor.encoding.code_bits)
            case "values", FloatTensor():
                if place.type is BlobType.FP32:
                    return np.ascontiguousarray(tensor.values, "<f4").reshape(-1).view(np.uint8)
                return exact_fp16(tensor.values)
    except FormatError as error:
        raise ExportError(
            f"{slot.name}: {slot.part}",
            got=error.got,
            wanted=error.wanted,
            do="Quantize the model again.",
        ) from error
    raise ExportError(f"{slot.name}: no {slot.part}", got=tensor.encoding)


def _translate(load: Any, program: Any, weights: _WeightFile) -> Any:
    """Run coremltools' translation with our weight file; give a ``MIL_pb2.Program``."""
    helper = require_coremltools("coremltools.converters.mil.backend.mil.helper")

    # The base class is imported at run time, so that only this call imports coremltools.
    class Translation(load.MILProtoExporter):  # type: ignore[misc]
        """coremltools' translation, except that constants go to our weight file."""

        def get_milproto_value(self, var: Any) -> Any:
            """Keep small constants in the program; a placeholder is never small."""
            if var.name in weights.slots:
                return self.create_file_value(var)
            return super().get_milproto_value(var)

        def create_file_value(self, var: Any) -> Any:
            """Write a constant, or reserve room for it, and point at it."""
            return helper.create_file_value_tensor(
                file_name=BLOB_FILE_NAME,
                offset=weights.place(var.name, var.val),
                dim=var.val.shape,
                data_type=helper.types_to_proto_primitive(var.sym_type.get_primitive()),
            )

    return Translation(program, "", SPECIFICATION_VERSION).export()
