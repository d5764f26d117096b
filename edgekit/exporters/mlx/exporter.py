"""The MLX exporter: a quantized model as the folder that stock mlx-lm opens.

Number types: mlx computes in the type of scales and norms, so all floats of an artifact have one
type. It is the type of the encoding (fp32, fp16, bf16), and for integer encodings that of the
source (``torch_dtype``), as in ``mlx_lm.convert``. Scales on the common grid and their biases
(-8 s, -128 s) are exact in each of them: eight significant bits within the range of fp16. If
a float is beyond the range of fp16, an artifact of an integer encoding has bf16, with a note.

Source:
    mlx-lm 0.32 utils.py (load_model), models/llama.py; mlx 0.32 ops.cpp (affine, LSB first).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgekit.artifact import Artifact, Format, TensorEntry
from edgekit.decision import Accepted, Decision, Rejected
from edgekit.dtypes import DType
from edgekit.encoding import BF16, FP16, Encoding
from edgekit.errors import ExportError, FormatError
from edgekit.exporters.arrays import ArrayFile, StoredArray
from edgekit.exporters.base import ExportOptions, Sink, SizeEstimate, Written
from edgekit.exporters.context import ContextRange
from edgekit.exporters.mlx.arrays import encode, is_within, narrow, plan_slots
from edgekit.exporters.mlx.config import (
    CONFIG_NAME,
    TORCH_DTYPES,
    TORCH_NAMES,
    read_config,
    write_config,
)
from edgekit.exporters.mlx.models import (
    MODEL_FILES,
    ChosenFile,
    ModelFile,
    choose_file,
    make_config,
    why_shorter,
)
from edgekit.families.spec import DecoderSpec
from edgekit.formats.floats import to_float32
from edgekit.formats.safetensors import SafetensorsFile, file_bytes
from edgekit.lazy import require
from edgekit.quantize.model import (
    FloatTensor,
    ModelOutline,
    ModelTensor,
    QuantizedModel,
    encodings_of,
)
from edgekit.text.files import TextFiles

WEIGHTS_NAME: Final = "model.safetensors"
_HALVES: Final = {FP16: DType.FP16, BF16: DType.BF16}
_METADATA: Final = {"format": "mlx"}


class MlxExporter:
    """Writes ``config.json``, ``model.safetensors`` and the tokenizer files."""

    format: Final = Format.MLX

    def supports(self, spec: DecoderSpec, encodings: Mapping[str, Encoding]) -> Decision:
        """Tell whether mlx-lm's own model code computes this decoder, and up to which length.

        Args:
            spec: The decoder.
            encodings: All but palettes; mlx holds 4 and 8 bits in blocks of 32, 64, 128, and
                every float.
        """
        if any(encoding.has_palette for encoding in encodings.values()):
            return Rejected("mlx has no palettes (lut4); use int4")
        chosen = choose_file(spec, encodings.get("embed"))
        return chosen if isinstance(chosen, Rejected) else Accepted(chosen.notes)

    def supports_text(self, files: TextFiles, spec: DecoderSpec) -> Decision:
        """Tell that the format holds any tokenizer: its files lie beside the weights."""
        del files, spec
        return Accepted()

    def positions(self, spec: DecoderSpec) -> ContextRange:
        """Tell how many positions an artifact can hold; mlx-lm's cache grows with the text."""
        chosen = _chosen_file(spec)
        longest, reason = chosen.n_positions, ""
        if longest < spec.context_length:
            reason = f"mlx-lm is wrong beyond: {why_shorter(spec, chosen.file, longest)}"
        return ContextRange(longest, longest, reason)

    def predict(self, model: ModelOutline, options: ExportOptions) -> SizeEstimate:
        """Estimate the size of what ``write`` writes; reads no tensor.

        Raises:
            ExportError: mlx-lm does not compute the decoder.
        """
        del options
        chosen = _chosen_file(model.spec)
        dtype = _float_dtype(model)
        slots = plan_slots(chosen.file, model.entries)
        infos = [stored.info for slot in slots for stored in slot.arrays(dtype)]
        return SizeEstimate(
            file_bytes(infos, metadata=_METADATA),
            0,
        )

    def open(self, model: QuantizedModel, folder: Path, options: ExportOptions) -> Sink:
        """Begin an artifact.

        Raises:
            ExportError: mlx-lm does not compute the decoder, or the source's config is unreadable.
            UsageError: More context than the artifact can hold.
            OSError: A file cannot be written.
        """
        chosen = _chosen_file(model.spec)
        positions = self.positions(model.spec)
        n_positions = positions.choose(options.context_length, self.format.value)
        return _MlxSink(model, folder, chosen, n_positions)

    def recover(self, artifact: Artifact) -> Iterator[ModelTensor]:
        """Re-read every tensor with ``mlx.core.load``, in the order of the manifest.

        Raises:
            FormatError: The files are not what ``write`` writes.
        """
        arrays = _load_arrays(artifact.path / WEIGHTS_NAME)
        config = read_config(artifact.path)
        where = str(artifact.path / WEIGHTS_NAME)
        for slot in plan_slots(_file_of(config, artifact.path), artifact.manifest.tensors):
            yield from slot.decode(arrays, config, where)
        if arrays:
            raise FormatError(
                f"{artifact.path / WEIGHTS_NAME}: tensors that the manifest does not list",
                got=", ".join(sorted(arrays)[:5]),
            )


def _chosen_file(spec: DecoderSpec) -> ChosenFile:
    chosen = choose_file(spec)
    if isinstance(chosen, Rejected):
        raise ExportError("MLX cannot hold this model", got=chosen.reason)
    return chosen


def _file_of(config: Mapping[str, Any], folder: Path) -> ModelFile:
    """Give the mlx-lm model file that an artifact names."""
    name = config.get("model_type")
    if not isinstance(name, str) or name not in MODEL_FILES:
        raise FormatError(
            f"{folder / CONFIG_NAME}: model_type", got=name, wanted=", ".join(MODEL_FILES)
        )
    return MODEL_FILES[name]


def _float_dtype(model: ModelOutline) -> DType:
    """Choose the one float type of the artifact."""
    if not _has_codes(model):
        kinds = encodings_of(model.entries).values()
        return next((dtype for kind, dtype in _HALVES.items() if kind in kinds), DType.FP32)
    config = model.config
    # Absent means float32 in Hugging Face's own reading; transformers 5 renamed the key.
    inner = config.get("text_config")
    both = [config, inner] if isinstance(inner, dict) else [config]
    said = [part.get(key) for part in both for key in ("torch_dtype", "dtype")]
    name = next(filter(None, said), "float32")
    if name not in TORCH_DTYPES:
        raise ExportError(f"{CONFIG_NAME}: torch_dtype", got=name, wanted=", ".join(TORCH_DTYPES))
    return TORCH_DTYPES[name]


def _has_codes(model: ModelOutline) -> bool:
    return any(e.is_quantized for e in encodings_of(model.entries).values())


def _dtype_that_holds(model: QuantizedModel) -> tuple[DType, tuple[str, ...]]:
    """Choose the one float type of the artifact by its values too, and say if they decided.

    The source's fp16 can be too small for what is no fp16 there: weights that an adapter was merged
    into, tensors stored in another type than the config says. bf16 has the same size and the range
    of fp32, and holds every scale exactly.
    """
    dtype = _float_dtype(model)
    if dtype is DType.FP16 and _has_codes(model):
        for name, encoding in encodings_of(model.entries).items():
            tensor = None if encoding.is_quantized else model.get(name)
            if isinstance(tensor, FloatTensor) and not is_within(tensor.values, dtype):
                largest = np.abs(tensor.values).max()
                return DType.BF16, (
                    f"floats are bf16, not the source's fp16, which cannot hold {tensor.name} "
                    f"(a value of {largest:g})",
                )
    return dtype, ()


class _MlxSink:
    """An MLX artifact that is being written; satisfies ``Sink``."""

    def __init__(
        self, model: QuantizedModel, folder: Path, chosen: ChosenFile, n_positions: int
    ) -> None:
        self._n_positions = n_positions
        self._dtype, self._notes = _dtype_that_holds(model)
        self._rounded: set[str] = set()
        slots = plan_slots(chosen.file, model.entries)
        arrays = [stored for slot in slots for stored in slot.arrays(self._dtype)]
        write_config(folder, make_config(chosen, model.spec, model.entries, self._dtype))
        for name, path in model.assets.items():
            if name != CONFIG_NAME:
                shutil.copyfile(path, folder / name)
        shapes = {entry.name: entry.shape for entry in model.entries}
        zeros = {
            stored.info.name: narrow(np.zeros(stored.info.shape, np.float32), self._dtype)
            for stored in arrays
            if not stored.sources
        }
        path = folder / WEIGHTS_NAME
        self._file = ArrayFile(
            path, arrays, shapes, self._encode, constants=zeros, metadata=_METADATA
        )

    def put(self, tensor: ModelTensor, first_row: int = 0) -> None:
        """Write rows of a tensor."""
        self._file.put(tensor, first_row)

    def finish(self, entries: tuple[TensorEntry, ...]) -> Written:
        """Close the file."""
        del entries
        self._file.close()
        settings = {
            "float_dtype": TORCH_NAMES[self._dtype],
            "n_rounded_float_tensors": len(self._rounded),
            "mode": "affine",
        }
        versions = {"numpy": np.__version__}
        return Written(self._n_positions, versions, settings, self._notes)

    def discard(self) -> None:
        """Close what is open; the caller removes the folder."""
        self._file.discard()

    def _encode(self, tensor: ModelTensor, stored: StoredArray) -> NDArray[Any]:
        """Give the rows that an array holds, and note the float tensors that were rounded."""
        rows = encode(tensor, stored)
        if isinstance(tensor, FloatTensor):
            is_exact = np.array_equal(to_float32(rows, self._dtype), tensor.values)
            self._rounded |= set() if is_exact else {tensor.name}
        return rows


def _load_arrays(path: Path) -> dict[str, Any]:
    """Open the weights with mlx; each array is read from disk when it is used.

    Raises:
        FormatError: The file is damaged.
    """
    mx = require("mlx.core")
    # mlx trusts the header, so the strict reader checks it first.
    with SafetensorsFile(path):
        pass
    try:
        return dict(mx.load(str(path)))
    except (RuntimeError, ValueError) as error:
        raise FormatError(f"{path}: mlx cannot read the file", got=error) from error
