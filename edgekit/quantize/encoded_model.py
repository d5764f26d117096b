"""A model that is encoded while it is read: rows are quantized when somebody asks for them.

What takes one pass over the whole model comes first: the plan, the channel scales, and for
calibrated methods all layers, whose codes then lie in files. Nothing here depends on the export
format.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from edgekit.artifact import TensorEntry
from edgekit.checkpoint.assets import copy_assets
from edgekit.dtypes import F64Array
from edgekit.errors import ExportError, QuantError
from edgekit.families.base import SourceModel
from edgekit.families.spec import DecoderSpec
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
from edgekit.quantize.methods import Method, quantize_rows, round_floats
from edgekit.quantize.model import EncodedTensor, FloatTensor, ModelTensor, Source, join_rows
from edgekit.quantize.plan import TensorPlan
from edgekit.quantize.prequantized import import_codes, plan_source
from edgekit.scheme import Scheme
from edgekit.strict_json import read_object
from edgekit.tensors import LazyTensor, row_blocks
from edgekit.text.view import TextView

ASSETS_NAME: Final = "assets"
LAYERS_NAME: Final = "layers"
_BLOCK_ELEMENTS: Final = 1 << 20  # 4 MiB of float32: larger ones cost more page faults (measured)


@dataclass(frozen=True, slots=True, eq=False)
class EncodedModel:
    """A model whose tensors are encoded when they are read; satisfies ``QuantizedModel``.

    The source must stay open.

    Attributes:
        spec: The decoder.
        scheme: What was asked for.
        source: Where the weights come from.
        plans: What becomes of each tensor, in file order.
        assets: Tokenizer, template and config files, by file name.
    """

    spec: DecoderSpec
    scheme: Scheme
    source: Source
    plans: tuple[TensorPlan, ...]
    assets: Mapping[str, Path]
    _model: SourceModel
    _hash: Future[str]
    _moved: ChannelScales
    _statistics: Mapping[str, InputStatistics]
    _layers: CalibratedCodes
    _method: Method

    @property
    def entries(self) -> tuple[TensorEntry, ...]:
        """Every tensor in file order; the hash of a tensor is known once all of it was read."""
        return tuple(plan.entry(None) for plan in self.plans)

    @property
    def source_sha256(self) -> str:
        """Hash of the source's config and weights, made beside other work; waits for its end.

        Raises:
            CheckpointError: config.json cannot be read any more.
            FormatError: A weight file cannot be read any more.
        """
        return self._hash.result()

    @property
    def config(self) -> Mapping[str, Any]:
        """The config.json of the source; empty if there is none."""
        path = self.assets.get(CONFIG_NAME)
        return {} if path is None else read_object(path)

    def get(self, name: str) -> ModelTensor:
        """Encode a tensor.

        Raises:
            QuantError: No tensor of that name, or a weight that cannot be held.
            CheckpointError: It cannot be read.
        """
        return join_rows([self.rows(name, part) for part in self.row_blocks(name)])

    def row_blocks(self, name: str) -> Iterator[slice]:
        """Cut a tensor into the rows that are worth encoding at a time; even numbers of rows."""
        plan = self._plan(name)
        if self._is_whole(plan):
            yield slice(0, plan.shape[0])
        else:
            together = plan.encoding.block if plan.encoding.has_palette else None
            yield from row_blocks(plan.shape, _BLOCK_ELEMENTS, together or 2)

    def rows(self, name: str, part: slice) -> ModelTensor:
        """Encode some rows of a tensor, those of a slice that ``row_blocks`` gave.

        Raises:
            QuantError: No tensor of that name, or a weight that cannot be held.
            CheckpointError: It cannot be read.
        """
        plan = self._plan(name)
        weights = self._model.tensor(name)
        if plan.keeps_codes and weights.prequantized is not None:
            return import_codes(weights.prequantized, plan)
        if name in self._layers.files:
            return self._layers.get(plan)
        scaled, known = self._moved.apply(name, weights), self._statistics.get(name)
        chosen = Method.SEARCH if self._method.reads_text and known is None else self._method
        return encode_rows(scaled, plan, part, chosen, known)

    def refuse_changed(self) -> None:
        """Refuse a source that was changed while it was read.

        Raises:
            CheckpointError: It was.
        """
        self._model.checkpoint.refuse_changed(self.source_sha256)

    def close(self) -> None:
        """Close the source."""
        wait([self._hash])
        self._model.close()

    def discard_layers(self) -> None:
        """Remove what a calibrated run left to go on from, once all of it is written elsewhere."""
        folder = self._layers.folder
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # another run's layers lie there
                folder.parent.rmdir()

    def _is_whole(self, plan: TensorPlan) -> bool:
        return plan.keeps_codes or plan.name in self._layers.files

    def _plan(self, name: str) -> TensorPlan:
        found = next((plan for plan in self.plans if plan.name == name), None)
        if found is None:
            raise QuantError("no such tensor", got=name, wanted=f"one of {len(self.plans)}")
        return found


def encode_rows(
    source: LazyTensor,
    plan: TensorPlan,
    part: slice,
    method: Method = Method.SEARCH,
    statistics: InputStatistics | None = None,
) -> ModelTensor:
    """Read rows of a tensor and convert them to their planned encoding.

    Args:
        source: Float tensor of shape ``plan.shape``.
        plan: Name, shape and encoding.
        part: Which rows.
        method: How scales are chosen.
        statistics: Of what the matrix reads, for the methods that need them.

    Returns:
        Codes and scales for an integer encoding, else rounded floats.

    Raises:
        QuantError: The shape is not the planned one, a weight cannot be held, or statistics are
            missing or not those of the matrix.
    """
    if source.info.shape != plan.shape:
        raise QuantError(f"{plan.name}: shape", got=source.info.shape, wanted=plan.shape)
    encoding, name = plan.encoding, plan.name
    rows = source.read_rows(part.start, part.stop)
    if not encoding.is_quantized:
        values = round_floats(rows, encoding, name=name, first_row=part.start)
        return FloatTensor(name, encoding, values)
    made = quantize_rows(rows, encoding, method, statistics, name=name, first_row=part.start)
    return EncodedTensor.of_codes(name, encoding, made.codes, made.scales, made.zero_points)


def quantize_model(
    source: SourceModel,
    scheme: Scheme,
    folder: str | Path,
    *,
    method: Method = Method.SEARCH,
    text: Sequence[Sequence[int]] | None = None,
    layers_dir: str | Path | None = None,
    mean_squares: Mapping[str, F64Array] | None = None,
    calibration: Mapping[str, Any] | None = None,
    fold: bool = True,
    n_threads: int = 1,
    progress: Progress = ignore_progress,
) -> EncodedModel:
    """Prepare a model to be encoded; calibrated methods encode its layers now.

    Codes that the source holds already are kept where the grid has them (prequantized.py); between
    the other matrices, channel scales are moved first (fold.py).
    The same source, scheme, method and text give the same bytes, whatever ``n_threads`` is.

    Args:
        source: The float model; it must stay open as long as tensors are read.
        scheme: What was asked for; plan.py decides what each tensor gets.
        folder: Where tokenizer and config files are copied, and finished layers left.
        method: How codes and scales are chosen. ``IMPORTANCE`` without a text takes what the
            channel scales are chosen by, too.
        text: Token ids that the model is calibrated on, in sequences; default edgekit's own
            conversation.
        layers_dir: Where a calibrated run leaves the layers that it has finished, to go on from
            there if it is stopped; default a folder inside ``folder``.
        mean_squares: Of the inputs of matrices, from an importance matrix, for ``IMPORTANCE``; in
            place of a text.
        calibration: What the manifest says of the text or of the importance matrix.
        fold: Whether channel scales are moved first (fold.py).
        n_threads: Threads that calibrated methods compute with.
        progress: Called as ``progress(what, n_done, n_total)`` after each layer that is calibrated.

    Raises:
        QuantError: The scheme cannot hold the model; the message names the tensors.
        CheckpointError: The model cannot be read.
        ExportError: The folder cannot be written.
    """
    plans = plan_source(source, scheme)
    is_layered = method in (Method.GPTQ, Method.AUTO) or (
        method is Method.IMPORTANCE and text is not None and mean_squares is None
    )
    checkpoint = source.checkpoint
    beside = ThreadPoolExecutor(1)
    hashed = beside.submit(checkpoint.sha256)
    beside.shutdown(wait=False)
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
    place = Path(folder)
    adapter, view = checkpoint.adapter, source.text
    origin = Source(
        checkpoint.name,
        checkpoint.origin,
        (*checkpoint.notes, *view.notes),
        ignored_config_keys=checkpoint.ignored_config_keys,
        adapter=str(adapter.folder) if adapter is not None else "",
        adapter_sha256=adapter.sha256() if adapter is not None else "",
        ends=view.ends,
        channel_scales=moved.describe(),
        calibration=calibration or {},
    )
    try:
        place.mkdir(parents=True, exist_ok=True)
        assets = _copy_assets(view, place)
        layers = CalibratedCodes()
        if is_layered:
            layers = quantize_layers(
                source,
                plans,
                moved,
                text or [calibration_ids(view, source.spec.vocab_size)[0]],
                place / LAYERS_NAME if layers_dir is None else Path(layers_dir),
                method=method,
                n_threads=n_threads,
                progress=progress,
            )
    except OSError as error:
        raise ExportError(
            f"cannot write to {place}",
            got=error.strerror or str(error),
            do="Free space, or choose another folder.",
        ) from error
    spec = replace(source.spec, eos_token_ids=view.end_ids)
    return EncodedModel(
        spec, scheme, origin, plans, assets, source, hashed, moved, statistics, layers, method
    )


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


def _copy_assets(view: TextView, folder: Path) -> Mapping[str, Path]:
    """Copy tokenizer, template and config files."""
    target = folder / ASSETS_NAME
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    return MappingProxyType({name: target / name for name in copy_assets(view, target)})
