"""The store: a temporary folder with a quantized model, written once and read by every exporter.

``weights.safetensors`` holds ``{name}.codes`` (packed, uint8) with ``{name}.scales`` (fp16,
exact) and, where the encoding has them, ``{name}.zero_points`` (uint8), or ``{name}`` itself for
floats; ``assets/`` holds tokenizer and config files. Nothing in it depends on the export format.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from edgekit.artifact import TensorEntry
from edgekit.checkpoint.assets import copy_assets
from edgekit.dtypes import DType, F64Array
from edgekit.encoding import Encoding
from edgekit.errors import ExportError, QuantError
from edgekit.families.base import SourceModel
from edgekit.families.spec import DecoderSpec
from edgekit.formats.safetensors import SafetensorsFile, SafetensorsWriter
from edgekit.model_files import CONFIG_NAME
from edgekit.progress import Progress, ignore_progress
from edgekit.quantize.calibrated import CalibratedCodes, quantize_layers
from edgekit.quantize.calibration import calibration_ids, measure_inputs
from edgekit.quantize.fold import (
    ChannelScales,
    choose_scales,
    explain,
    find_sites,
    float_names,
    input_groups,
)
from edgekit.quantize.input_statistics import InputStatistics
from edgekit.quantize.methods import Method
from edgekit.quantize.model import EncodedTensor, FloatTensor, ModelTensor, Source
from edgekit.quantize.plan import TensorPlan
from edgekit.quantize.prequantized import import_codes, plan_source
from edgekit.quantize.row_blocks import quantize_tensor
from edgekit.scheme import Scheme
from edgekit.strict_json import read_object
from edgekit.tensors import TensorInfo
from edgekit.text.view import TextView

WEIGHTS_NAME: Final = "weights.safetensors"
ASSETS_NAME: Final = "assets"
LAYERS_NAME: Final = "layers"
_FLOAT_DTYPES: Final = {"fp32": DType.FP32, "fp16": DType.FP16}


@dataclass(frozen=True, slots=True, eq=False)
class StoredModel:
    """A quantized model on disk, as ``quantize_model`` left it; satisfies ``QuantizedModel``."""

    spec: DecoderSpec
    scheme: Scheme
    source: Source
    entries: tuple[TensorEntry, ...]
    assets: Mapping[str, Path]
    _weights: SafetensorsFile

    @property
    def config(self) -> Mapping[str, Any]:
        """The config.json of the source; empty if there is none."""
        path = self.assets.get(CONFIG_NAME)
        return {} if path is None else read_object(path)

    def get(self, name: str) -> ModelTensor:
        """Read one tensor.

        Raises:
            QuantError: No tensor of that name.
        """
        entry = next((entry for entry in self.entries if entry.name == name), None)
        if entry is None:
            raise QuantError("no such tensor", got=name, wanted=f"one of {len(self.entries)}")
        encoding = Encoding.parse(entry.encoding)
        tensors = self._weights.tensors
        if encoding.block is None:
            return FloatTensor(name, encoding, tensors[name].read())
        scales = tensors[f"{name}.scales"].read()
        zeros = tensors[f"{name}.zero_points"].raw() if encoding.has_zero_points else None
        return EncodedTensor(name, encoding, tensors[f"{name}.codes"].raw(), scales, zeros)

    def close(self) -> None:
        """Close the weights file; safe to call twice."""
        self._weights.close()


def quantize_model(
    source: SourceModel,
    scheme: Scheme,
    store_dir: str | Path,
    *,
    method: Method = Method.SEARCH,
    text: Sequence[Sequence[int]] | None = None,
    layers_dir: str | Path | None = None,
    mean_squares: Mapping[str, F64Array] | None = None,
    calibration: Mapping[str, Any] | None = None,
    fold: bool = True,
    n_threads: int = 1,
    progress: Progress = ignore_progress,
) -> StoredModel:
    """Quantize a model once, tensor by tensor, into a store.

    Codes that the source holds already are kept where the grid has them (imports.py); between the
    other matrices, channel scales are moved first (fold.py).
    The same source, scheme, method and text give the same bytes, whatever ``n_threads`` is.

    Args:
        source: The float model.
        scheme: What was asked for; plan.py decides what each tensor gets.
        store_dir: Folder of the store; an earlier store there is replaced.
        method: How codes and scales are chosen. ``IMPORTANCE`` without a text takes what the
            channel scales are chosen by, too.
        text: Token ids that the model is calibrated on, in sequences; default edgekit's own
            conversation.
        layers_dir: Where a calibrated run leaves the layers that it has finished, to go on from
            there if it is stopped; default a folder of the store.
        mean_squares: Of the inputs of matrices, from an importance matrix, for ``IMPORTANCE``; in
            place of a text.
        calibration: What the manifest says of the text or of the importance matrix.
        fold: Whether channel scales are moved first (fold.py).
        n_threads: Threads to compute with.
        progress: Called as ``progress(what, n_done, n_total)`` after each layer that is calibrated
            and each tensor that is quantized.

    Returns:
        The store, open.

    Raises:
        QuantError: The scheme cannot hold the model; the message names the tensors.
        CheckpointError: The model was changed while it was read.
        ExportError: The store cannot be written.
    """
    plans = plan_source(source, scheme)
    is_layered = method in (Method.GPTQ, Method.AUTO) or (
        method is Method.IMPORTANCE and text is not None and mean_squares is None
    )
    moved, statistics = _measure(
        source,
        plans,
        fold,
        method is Method.IMPORTANCE and not is_layered and mean_squares is None,
        progress,
    )
    if mean_squares is not None:
        statistics = {
            name: InputStatistics(squares / moved.squares_of(name))
            for name, squares in mean_squares.items()
        }
    plans = explain(source.spec, moved.sites, plans)
    folder = Path(store_dir)
    checkpoint = source.checkpoint
    adapter, view = checkpoint.adapter, source.text
    origin = Source(
        checkpoint.name,
        checkpoint.origin,
        checkpoint.sha256(),
        (*checkpoint.notes, *view.notes),
        ignored_config_keys=checkpoint.ignored_config_keys,
        adapter=str(adapter.folder) if adapter is not None else "",
        adapter_sha256=adapter.sha256() if adapter is not None else "",
        ends=view.ends,
        channel_scales=moved.describe(),
        calibration=calibration or {},
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        assets = _copy_assets(view, folder)
        layers = CalibratedCodes()
        if is_layered:
            layers = quantize_layers(
                source,
                plans,
                moved,
                text or [calibration_ids(view, source.spec.vocab_size)[0]],
                folder / LAYERS_NAME if layers_dir is None else Path(layers_dir),
                method=method,
                n_threads=n_threads,
                progress=progress,
            )
        entries: list[TensorEntry] = []
        infos = [
            info for item in plans for info in _stored_infos(item.name, item.shape, item.encoding)
        ]
        with SafetensorsWriter(folder / WEIGHTS_NAME, infos, alignment=4096) as writer:
            for n_done, item in enumerate(plans, start=1):
                weights = source.tensor(item.name)
                if item.keeps_codes and weights.prequantized is not None:
                    tensor: ModelTensor = import_codes(weights.prequantized, item)
                elif item.name in layers.files:
                    tensor = layers.get(item)
                else:
                    scaled, known = moved.apply(item.name, weights), statistics.get(item.name)
                    chosen = Method.SEARCH if method.reads_text and known is None else method
                    tensor = quantize_tensor(scaled, item, chosen, known, n_threads=n_threads)
                _append(writer, tensor)
                entries.append(item.entry(_sha256(tensor)))
                progress(f"quantize {item.name}", n_done, len(plans))
        checkpoint.refuse_changed(origin.sha256)
        weights_file = SafetensorsFile(folder / WEIGHTS_NAME)
    except OSError as error:
        raise ExportError(
            f"cannot write the quantized weights to {folder}",
            got=error.strerror or str(error),
            do="Free space, or choose another folder.",
        ) from error
    spec = replace(source.spec, eos_token_ids=view.end_ids)
    return StoredModel(spec, scheme, origin, tuple(entries), assets, weights_file)


def find_scales(
    source: SourceModel, plans: Iterable[TensorPlan], progress: Progress = ignore_progress
) -> ChannelScales:
    """Choose the channel scales of a model by running it once over edgekit's own text.

    Args:
        source: The model.
        plans: What becomes of each tensor.
        progress: Called as ``progress("calibrate", n_done, n_total)`` after each layer.

    Raises:
        CheckpointError: A weight is no finite number.
    """
    return _measure(source, plans, True, False, progress)[0]


def _measure(
    source: SourceModel,
    plans: Iterable[TensorPlan],
    fold: bool,
    with_statistics: bool,
    progress: Progress,
) -> tuple[ChannelScales, Mapping[str, InputStatistics]]:
    """Run the model once over edgekit's own text, if anything is wanted from it.

    Returns:
        The channel scales, and the statistics of what each matrix reads once they are moved.
    """
    spec = source.spec
    plans = tuple(plans)
    sites = find_sites(spec, plans) if fold else ()
    groups = input_groups(spec, plans) if with_statistics else [site.readers for site in sites]
    if not groups:
        return ChannelScales(), {}
    ids, what = calibration_ids(source.text, spec.vocab_size)
    measured = measure_inputs(source, groups, ids, progress=progress)
    moved = ChannelScales()
    if sites:
        ratios = {site.readers[0]: measured[site.readers[0]].ratio for site in sites}
        floats = {name: source.tensor(name).read() for name in float_names(spec, sites)}
        moved = replace(choose_scales(spec, sites, ratios, floats), measured_on=what)
    statistics = {
        name: InputStatistics(measured[group[0]].mean_squares / moved.squares_of(name))
        for group in groups
        for name in group
    }
    return moved, statistics if with_statistics else {}


def _stored_infos(name: str, shape: tuple[int, ...], encoding: Encoding) -> list[TensorInfo]:
    """Give the tensors of the file that hold one tensor of the model."""
    if encoding.block is None:
        return [TensorInfo(name, shape, _FLOAT_DTYPES[encoding.kind])]
    n_rows, n_cols = shape
    per_block = (n_rows, encoding.n_blocks(n_cols))
    infos = [
        TensorInfo(f"{name}.codes", (n_rows, n_cols * encoding.bits // 8), DType.UINT8),
        TensorInfo(f"{name}.scales", per_block, DType.FP16),
    ]
    if encoding.has_zero_points:
        infos.append(TensorInfo(f"{name}.zero_points", per_block, DType.UINT8))
    return infos


def _append(writer: SafetensorsWriter, tensor: ModelTensor) -> None:
    if isinstance(tensor, FloatTensor):
        stored = "<f2" if tensor.encoding.kind == "fp16" else "<f4"
        writer.write(tensor.name, tensor.values.astype(stored, copy=False))
        return
    writer.write(f"{tensor.name}.codes", tensor.packed)
    writer.write(f"{tensor.name}.scales", tensor.scales.astype("<f2"))
    if tensor.zero_points is not None:
        writer.write(f"{tensor.name}.zero_points", tensor.zero_points)


def _sha256(tensor: ModelTensor) -> str | None:
    return None if isinstance(tensor, FloatTensor) else tensor.sha256()


def _copy_assets(view: TextView, folder: Path) -> Mapping[str, Path]:
    """Copy tokenizer, template and config files into the store."""
    target = folder / ASSETS_NAME
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    return MappingProxyType({name: target / name for name in copy_assets(view, target)})
