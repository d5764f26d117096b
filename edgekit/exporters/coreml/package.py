"""Writer of ``.mlpackage``: a MIL program and a quantized model in one package.

coremltools translates the program to protobuf. Our own writer streams the weights into
``weight.bin``, one tensor in memory at a time. No pass of coremltools runs: deduplication would
merge all placeholders, and ``remove_redundant_ops`` would merge reads of a state across writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgekit.dtypes import F32Array
from edgekit.errors import ExportError, FormatError
from edgekit.exporters.coreml.graph import Graph
from edgekit.exporters.coreml.weights import Slot
from edgekit.formats.mil_blob import BlobType, BlobWriter
from edgekit.formats.mlpackage import (
    BLOB_FILE_NAME,
    create_package,
    require_coremltools,
    spec_path,
    weights_path,
)
from edgekit.formats.packing import pack_rows
from edgekit.progress import Progress
from edgekit.quantize.model import EncodedTensor, ModelTensor, QuantizedModel

SPECIFICATION_VERSION: Final = 9  # iOS 18, macOS 15


def write_package(
    package: Path,
    graph: Graph,
    model: QuantizedModel,
    metadata: Mapping[str, str],
    features: Mapping[str, str],
    progress: Progress,
) -> None:
    """Write a package; the bytes depend on the arguments only.

    Args:
        package: Folder to make.
        graph: The program and its placeholders.
        model: Where the tensors come from.
        metadata: User-defined entries of the model description.
        features: One sentence for each input, state and output.
        progress: Called once per tensor.

    Raises:
        ExportError: coremltools refuses the program, or a tensor is not what was declared.
    """
    create_package(package)
    load = require_coremltools("coremltools.converters.mil.backend.mil.load")
    try:
        with BlobWriter(weights_path(package)) as blobs:
            weights = _WeightFile(graph.slots, model, blobs, progress)
            spec = load.CoreMLProtoExporter(
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
    description = spec.description
    description.metadata.shortDescription = f"{model.source.name}, {model.scheme}, with state"
    for key, value in sorted(metadata.items()):
        description.metadata.userDefined[key] = value
    for feature in (*description.input, *description.state, *description.output):
        feature.shortDescription = features[feature.name]
    spec_path(package).write_bytes(spec.SerializeToString(deterministic=True))


class _WeightFile:
    """Writes the bytes of constants to the weight file and gives the values that refer to them."""

    def __init__(
        self,
        slots: Mapping[str, Slot],
        model: QuantizedModel,
        blobs: BlobWriter,
        progress: Progress,
    ) -> None:
        self.slots = slots
        self._model = model
        self._blobs = blobs
        self._progress = progress
        self._tensor: ModelTensor | None = None
        self._n_total = len({slot.name for slot in slots.values()})
        self._n_done = 0

    def write(self, label: str, value: np.ndarray[Any, Any]) -> int:
        """Write the bytes of a constant; those of a placeholder come from the model."""
        slot = self.slots.get(label)
        if slot is None:
            return self._blobs.write(value)
        tensor = self._read(slot.name)
        if isinstance(tensor, EncodedTensor):
            _check(slot, tensor.shape if slot.part == "codes" else tensor.scales.shape, value)
            blob_type = BlobType[tensor.encoding.kind.upper()]
            if slot.part == "codes":
                return self._blobs.write_codes(tensor.packed, blob_type)
            if slot.part == "zero_points" and tensor.zero_points is not None:
                flat = tensor.zero_points.reshape(1, -1)  # packed over the whole tensor
                packed = pack_rows(flat, tensor.encoding.code_bits)
                return self._blobs.write_codes(packed, blob_type)
            return self._write_fp16(slot, tensor.scales)
        _check(slot, tensor.shape, value)
        if value.dtype == np.float32:
            return self._blobs.write(tensor.values)
        return self._write_fp16(slot, tensor.values)

    def _write_fp16(self, slot: Slot, values: F32Array) -> int:
        try:
            return self._blobs.write_fp16(values)
        except FormatError as error:
            raise ExportError(
                f"{slot.name}: {slot.part}",
                got=error.got,
                wanted=error.wanted,
                do="Quantize the model again.",
            ) from error

    def _read(self, name: str) -> ModelTensor:
        if self._tensor is None or self._tensor.name != name:
            self._tensor = None  # free the previous tensor before the next is read
            self._tensor = self._model.get(name)
            self._n_done += 1
            self._progress(name, self._n_done, self._n_total)
        return self._tensor


def _check(slot: Slot, shape: tuple[int, ...], placeholder: np.ndarray[Any, Any]) -> None:
    if shape != placeholder.shape:
        raise ExportError(f"{slot.name}: shape of {slot.part}", got=shape, wanted=placeholder.shape)


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
            """Write a constant and point at it."""
            return helper.create_file_value_tensor(
                file_name=BLOB_FILE_NAME,
                offset=weights.write(var.name, var.val),
                dim=var.val.shape,
                data_type=helper.types_to_proto_primitive(var.sym_type.get_primitive()),
            )

    return Translation(program, "", SPECIFICATION_VERSION).export()
