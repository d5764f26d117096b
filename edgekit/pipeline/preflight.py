"""Prediction of an export's disk, memory and time, before it starts.

Sizes and memory follow from shapes and encodings. Times, and the memory of the process itself,
follow from the rates of this machine. Everything here is computed; nothing was measured on the
model.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Final

from edgekit.artifact import Format
from edgekit.decision import Accepted
from edgekit.devices.probe import available_memory, probe_host
from edgekit.encoding import BF16, Encoding
from edgekit.errors import ExportError, QuantError
from edgekit.exporters import open_exporter
from edgekit.exporters.base import ExportOptions
from edgekit.exporters.staging import existing_parent
from edgekit.families.base import SourceModel
from edgekit.model_files import CONFIG_NAME
from edgekit.pipeline.rates import Rates
from edgekit.quantize.fold import find_sites
from edgekit.quantize.memory_estimate import PlannedModel, largest_held_bytes
from edgekit.quantize.plan import TensorPlan
from edgekit.quantize.prequantized import expected_plan
from edgekit.scheme import Scheme
from edgekit.units import format_bytes

_ENTRY_BYTES: Final = 400  # of one weight in a manifest
# A whole export took 11 to 22 % longer than its stages add up to, over eight exports of 0.1 to
# 1.7 B parameters: colder memory, the end of the process.
_WHOLE_OVER_STAGES: Final = 1.18
_USUAL_PROCESS_BYTES: Final = 200 << 20  # Python, numpy, two threads at work, the libraries

# Real exports took between these shares below and above the prediction (docs/predictions.md).
EXPECTED_ERROR: Final[Mapping[str, tuple[float, float]]] = {
    "artifact_bytes": (-0.01, 0.01),
    "disk_bytes": (-0.01, 0.01),
    "memory_bytes": (-0.05, 0.10),
    "time_s": (-0.25, 0.30),
}


@dataclass(frozen=True, slots=True)
class ExportPrediction:
    """What one export is expected to take.

    Attributes:
        scheme: As ``str(Scheme)``.
        artifact_bytes: Format -> size of the artifact.
        disk_bytes: Most bytes on the disk at once: all artifacts, and a copy of the text files.
        memory_bytes: Resident memory at the worst moment.
        time_s: From the start of the command to its end, without a download; None without rates.
    """

    scheme: str
    artifact_bytes: Mapping[str, int]
    disk_bytes: int
    memory_bytes: int
    time_s: float | None


def predict_export(
    source: SourceModel,
    scheme: Scheme,
    formats: Iterable[Format],
    options: ExportOptions | None = None,
    rates: Rates | None = None,
) -> ExportPrediction:
    """Predict an export of a model into formats that accept it.

    Args:
        source: The model; headers are enough.
        scheme: What will be asked for.
        formats: In the order in which they will be written.
        options: As for the export.
        rates: Rates of this machine; without them a usual process is assumed.

    Raises:
        QuantError: The scheme cannot hold the model.
        ExportError: A format cannot hold it.
    """
    checkpoint = source.checkpoint
    plans = expected_plan(source, scheme)
    entries = tuple(item.entry("" if item.encoding.is_quantized else None) for item in plans)
    config = checkpoint.text_files.read_object(CONFIG_NAME)
    model = PlannedModel(source.spec, scheme, entries, config)
    extra = checkpoint.assets_bytes + _ENTRY_BYTES * len(model.entries)
    wanted = list(formats)
    estimates = {
        form: open_exporter(form).predict(model, options or ExportOptions()) for form in wanted
    }
    sizes = {form: estimate.disk_bytes + extra for form, estimate in estimates.items()}
    held = largest_held_bytes(model.entries) + sum(f.memory_bytes for f in estimates.values())
    return ExportPrediction(
        scheme=str(scheme),
        artifact_bytes={form.value: size for form, size in sizes.items()},
        disk_bytes=checkpoint.assets_bytes + sum(sizes.values()),
        memory_bytes=_process_bytes(wanted, rates) + held,
        time_s=None if rates is None else _time_s(source, model, plans, sizes, rates),
    )


def join_predictions(predictions: Sequence[ExportPrediction]) -> ExportPrediction:
    """Predict exports into the same folder, one scheme after the other.

    The artifacts of each stay; what else one needs is removed before the next begins.
    """
    kept = [sum(item.artifact_bytes.values()) for item in predictions]
    beside = [item.disk_bytes - n for item, n in zip(predictions, kept, strict=True)]
    times = [item.time_s for item in predictions if item.time_s is not None]
    return ExportPrediction(
        scheme=", ".join(item.scheme for item in predictions),
        artifact_bytes={},
        disk_bytes=sum(kept) + max(beside),
        memory_bytes=max(item.memory_bytes for item in predictions),
        time_s=sum(times) if len(times) == len(predictions) else None,
    )


def accepting_formats(source: SourceModel, scheme: Scheme) -> list[Format]:
    """Give the formats that can hold a model in a scheme."""
    try:
        encodings = {item.name: item.encoding for item in expected_plan(source, scheme)}
    except QuantError:
        return []  # no block divides the rows of some matrix
    return [
        form
        for form in Format
        if isinstance(open_exporter(form).supports(source.spec, encodings), Accepted)
    ]


def check_room(
    prediction: ExportPrediction, parent: Path, n_download: int = 0, cache: Path | None = None
) -> list[str]:
    """Refuse an export that does not fit this machine; give warnings if it barely fits.

    Args:
        prediction: What it will take.
        parent: Folder that the artifacts go to; it need not exist.
        n_download: Bytes that a download will write first.
        cache: Folder of the download. The bytes count here only if it is on the same disk;
            elsewhere the download itself checks.

    Raises:
        ExportError: Less free disk than needed, or more memory needed than the machine has.
    """
    place = existing_parent(parent)
    free, need, what = shutil.disk_usage(place).free, prediction.disk_bytes, "export"
    if n_download and cache and existing_parent(cache).stat().st_dev == place.stat().st_dev:
        need, what = need + n_download, f"download {format_bytes(n_download)} and export"
    if need > free:
        raise ExportError(
            f"not enough disk space to {what} to {parent}",
            got=f"{format_bytes(free)} free",
            wanted=f"about {format_bytes(need)}",
            do="Free space, choose another --out, or export fewer formats at a time.",
        )
    host = probe_host()
    limit = min(host.memory_bytes, host.memory_limit_bytes or host.memory_bytes)
    if prediction.memory_bytes > limit:
        raise ExportError(
            "not enough memory to export this model here",
            got=f"{format_bytes(limit)} on this machine",
            wanted=f"about {format_bytes(prediction.memory_bytes)}",
            do="Export on a larger machine, or as int8 or int4, which take less.",
        )
    available = available_memory()
    if prediction.memory_bytes > available:
        return [
            f"memory is scarce: about {format_bytes(prediction.memory_bytes)} are needed and "
            f"{format_bytes(available)} are free now; the export may slow down or be ended"
        ]
    return []


def _process_bytes(formats: list[Format], rates: Rates | None) -> int:
    if rates is None:
        return _USUAL_PROCESS_BYTES
    return max(rates.process_bytes[form.value] for form in formats)


def _time_s(
    source: SourceModel,
    model: PlannedModel,
    plans: Sequence[TensorPlan],
    sizes: Mapping[Format, int],
    rates: Rates,
) -> float:
    counts: Counter[str] = Counter()
    for entry in model.entries:
        counts[_rated(Encoding.parse(entry.encoding))] += prod(entry.shape)
    time_s = rates.start_s + rates.hash_s * source.checkpoint.weights_bytes
    time_s += sum(rates.quantize_s[kind] * n for kind, n in counts.items())
    if find_sites(source.spec, plans):
        shapes = source.spec.weight_shapes()
        n_layer_weights = sum(prod(s) for name, s in shapes.items() if name.startswith("layers."))
        time_s += rates.calibrate_s * n_layer_weights
    for form, n_bytes in sizes.items():
        name = form.value
        time_s += rates.library_s[name] + rates.layer_s[name] * source.spec.n_layers
        time_s += rates.write_s[name][_rated(model.scheme.encoding)] * n_bytes
    return time_s * _WHOLE_OVER_STAGES


def _rated(encoding: Encoding) -> str:
    """Give the kind whose rate counts: zero points and the kind of 16-bit float do not matter."""
    return "fp16" if encoding == BF16 else encoding.kind.removeprefix("u")
