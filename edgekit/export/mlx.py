"""Answer one question: how does a quantized model become the folder that stock mlx-lm opens?

Number types: mlx computes in the type of scales and norms, so all floats of an artifact share
one type. It is the type of the scheme (fp32, fp16), for integer schemes that of the source
(``torch_dtype``), as ``mlx_lm.convert`` does it. Scales on the common grid and their biases
(-8 s, -128 s) are exact in each of them: eight significant bits within the range of fp16.

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
from edgekit.dtypes import DTYPES, Bits, DType, F32Array
from edgekit.errors import ExportError, FormatError, UsageError
from edgekit.export.base import ExportOptions, Progress, Written
from edgekit.export.mlx_config import (
    ARCHITECTURES,
    CONFIG_NAME,
    TORCH_DTYPES,
    TORCH_NAMES,
    make_config,
    module_of,
    quantization_of,
    read_config,
    write_config,
)
from edgekit.families.spec import DecoderSpec
from edgekit.formats.floats import to_float32
from edgekit.formats.packing import unpack_codes
from edgekit.formats.safetensors import SafetensorsFile, SafetensorsWriter
from edgekit.lazy import require
from edgekit.quantize.model import FloatTensor, ModelTensor, QuantizedModel, QuantizedTensor
from edgekit.scheme import Scheme
from edgekit.tensors import TensorInfo

WEIGHTS_NAME: Final = "model.safetensors"


class MlxExporter:
    """Writes ``config.json``, ``model.safetensors`` and the tokenizer files."""

    format: Final = Format.MLX

    def supports(self, spec: DecoderSpec, scheme: Scheme) -> Decision:
        """Say whether mlx-lm's own model code computes this decoder.

        Args:
            spec: The decoder.
            scheme: Any; mlx holds 4 and 8 bits at groups 32, 64, 128, and every float.
        """
        del scheme
        if spec.model_type not in ARCHITECTURES:
            known = ", ".join(sorted(ARCHITECTURES))
            return Rejected(
                f"no mlx-lm mapping for model_type {spec.model_type} (there is: {known})"
            )
        if spec.sliding_window is not None and spec.sliding_window < spec.context_length:
            return Rejected(
                f"mlx-lm runs {spec.model_type} with full attention in every layer and would be "
                f"wrong after {spec.sliding_window} tokens (sliding_window)"
            )
        if spec.has_qkv_bias != spec.has_o_bias:
            return Rejected("mlx-lm's llama has one attention_bias for q, k, v and o together")
        if spec.rope.scaling is not None and spec.rope.linear_factor != 1.0:
            return Rejected("mlx-lm takes one rope_scaling, not llama3 and linear together")
        return Accepted()

    def write(
        self, model: QuantizedModel, folder: Path, options: ExportOptions, progress: Progress
    ) -> Written:
        """Write the folder; one tensor is in memory at a time.

        Raises:
            ExportError: A scale does not fit the float type, or the source's config is unreadable.
            UsageError: More context than the model has.
        """
        context_length = options.context_length or model.spec.context_length
        if not 1 <= context_length <= model.spec.context_length:
            raise UsageError(
                "context_length", got=context_length, wanted=f"1 .. {model.spec.context_length}"
            )
        dtype = _float_dtype(model)
        config = make_config(model.spec, model.scheme, model.entries, dtype)
        write_config(folder, config)
        for name, path in model.assets.items():
            if name != CONFIG_NAME:
                shutil.copyfile(path, folder / name)
        infos = [info for entry in model.entries for info in _declare(entry, dtype)]
        n_rounded = 0
        with SafetensorsWriter(folder / WEIGHTS_NAME, infos, metadata={"format": "mlx"}) as writer:
            for n_done, entry in enumerate(model.entries):
                progress("mlx weights", n_done, len(model.entries))
                encoded = _encode(model.get(entry.name), dtype)
                for info, (data, is_exact) in zip(_declare(entry, dtype), encoded, strict=True):
                    writer.append(info.name, data)
                    n_rounded += not is_exact
        progress("mlx weights", len(model.entries), len(model.entries))
        return Written(
            context_length=context_length,
            tool_versions={"numpy": np.__version__},
            settings={
                "float_dtype": TORCH_NAMES[dtype],
                "n_rounded_float_tensors": n_rounded,
                "mode": "affine",
            },
        )

    def recover(self, artifact: Artifact) -> Iterator[ModelTensor]:
        """Re-read every tensor with ``mlx.core.load``, in the order of the manifest.

        Raises:
            FormatError: The files are not what ``write`` writes.
        """
        arrays = _load_arrays(artifact.path / WEIGHTS_NAME)
        config = read_config(artifact.path)
        for entry in artifact.manifest.tensors:
            yield _decode(entry, arrays, config, artifact.path)
        if arrays:
            raise FormatError(
                f"{artifact.path / WEIGHTS_NAME}: tensors that the manifest does not list",
                got=", ".join(sorted(arrays)[:5]),
            )


def _float_dtype(model: QuantizedModel) -> DType:
    """Choose the one float type of the artifact."""
    if not model.scheme.is_quantized:
        return DType.FP32 if model.scheme.bits == 32 else DType.FP16
    path = model.assets.get(CONFIG_NAME)
    config: Mapping[str, Any] = {} if path is None else read_config(path.parent)
    # Absent means float32 in Hugging Face's own reading; transformers 5 renamed the key.
    name = config.get("torch_dtype") or config.get("dtype") or "float32"
    if name not in TORCH_DTYPES:
        raise ExportError(f"{path}: torch_dtype", got=name, wanted=", ".join(TORCH_DTYPES))
    return TORCH_DTYPES[name]


def _declare(entry: TensorEntry, dtype: DType) -> list[TensorInfo]:
    """Name, shape and type of what a weight becomes in the file."""
    module = module_of(entry.name)
    if entry.sha256 is None:
        kind = "bias" if entry.name.endswith(".bias") else "weight"
        return [TensorInfo(f"{module}.{kind}", entry.shape, dtype)]
    scheme = Scheme.parse(entry.scheme)
    n_out, n_in = entry.shape
    per_group = (n_out, n_in // (scheme.group or n_in))
    return [
        TensorInfo(f"{module}.weight", (n_out, n_in * scheme.bits // 32), DType.UINT32),
        TensorInfo(f"{module}.scales", per_group, dtype),
        TensorInfo(f"{module}.biases", per_group, dtype),
    ]


def _encode(tensor: ModelTensor, dtype: DType) -> Iterator[tuple[NDArray[Any], bool]]:
    """Give the arrays of ``_declare`` in its order, each with whether it is exact.

    Raises:
        ExportError: A scale or bias is not exact in ``dtype``.
    """
    if isinstance(tensor, FloatTensor):
        raw = _narrow(tensor.values, dtype)
        yield raw, np.array_equal(to_float32(raw, dtype), tensor.values)
        return
    yield tensor.packed().view("<u4"), True
    for values in (tensor.scales, -tensor.zero_point * tensor.scales):
        raw = _narrow(values.astype(np.float32), dtype)
        if not np.array_equal(to_float32(raw, dtype), values):
            raise ExportError(
                f"{tensor.name}: a scale is not exact in {dtype.value}",
                wanted=f"eight significant bits, {tensor.zero_point} times within its range",
                do="Export with scheme fp16 or another format.",
            )
        yield raw, True


def _narrow(values: F32Array, dtype: DType) -> NDArray[Any]:
    """Round float32 to the bits of a smaller float type, ties to even."""
    narrow: NDArray[Any]
    if dtype is DType.BF16:
        bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
        # Adding 0x7FFF plus the last kept bit carries exactly when the cut half rounds up.
        narrow = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    else:
        with np.errstate(over="ignore"):
            narrow = values.astype(DTYPES[dtype].numpy)
    return narrow


def _load_arrays(path: Path) -> dict[str, Any]:
    """Open the weights with mlx; each array is read from disk when it is looked at.

    Raises:
        FormatError: The file is damaged.
    """
    mx = require("mlx.core", package="mlx")
    # mlx believes the header; the strict reader does not, so it looks first.
    with SafetensorsFile(path):
        pass
    try:
        return dict(mx.load(str(path)))
    except (RuntimeError, ValueError) as error:
        raise FormatError(f"{path}: mlx cannot read the file", got=error) from error


def _decode(
    entry: TensorEntry, arrays: dict[str, Any], config: Mapping[str, Any], folder: Path
) -> ModelTensor:
    """Rebuild one tensor from the arrays that mlx loaded, taking them out of ``arrays``."""
    where = f"{folder / WEIGHTS_NAME}: {entry.name}"
    taken = []
    for info in _declare(entry, DType.FP32):
        array = arrays.pop(info.name, None)
        if array is None or tuple(array.shape) != info.shape:
            raise FormatError(
                f"{where}: array {info.name}",
                got="none" if array is None else tuple(array.shape),
                wanted=info.shape,
            )
        taken.append(_to_numpy(array))
    scheme = Scheme.parse(entry.scheme)
    if entry.sha256 is None:
        return FloatTensor(entry.name, scheme, taken[0].astype(np.float32))
    said = quantization_of(config, module_of(entry.name))
    if said != scheme:
        raise FormatError(f"{where}: {CONFIG_NAME} quantization", got=said, wanted=scheme)
    words, scales, biases = taken
    if words.dtype != np.uint32:
        raise FormatError(f"{where}: codes", got=words.dtype, wanted="uint32")
    bits: Bits = 4 if scheme.bits == 4 else 8
    tensor = QuantizedTensor(
        entry.name, bits, scheme.group or 0, unpack_codes(words.view(np.uint8), bits), scales
    )
    if not np.array_equal(biases, -tensor.zero_point * scales):
        raise FormatError(
            f"{where}: biases", wanted=f"-{tensor.zero_point} times the scales (symmetric codes)"
        )
    return tensor


def _to_numpy(array: Any) -> NDArray[Any]:
    """Copy an mlx array: words stay words, every float type is widened to float32."""
    mx = require("mlx.core", package="mlx")
    return np.array(array if array.dtype == mx.uint32 else array.astype(mx.float32))
