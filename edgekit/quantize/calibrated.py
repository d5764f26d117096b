"""Calibrated quantization: layer by layer, on what the quantized model so far computes.

A calibration text runs through the model once. Before the matrices of a layer that read the same
input are quantized, that input is computed by the layers, and the matrices of this layer, that are
quantized already: so later matrices make good what earlier ones do to their inputs. In memory are
the matrices of one layer, its inputs for the whole text, and the second moments of one input.

Each finished layer is a file, written under another name first, in a folder whose name says
everything that decides its bytes. A run that was stopped goes on after the last of them and gives
the same bytes. Neither the number of threads nor the size of row blocks changes a byte: rows are
independent, and all sums over tokens or columns are made in a fixed order.

Source:
    Frantar et al. 2023, GPTQ (arXiv 2210.17323), section 4, quantizes layers in this order.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgekit.dtypes import DType, F32Array, F64Array
from edgekit.encoding import Encoding
from edgekit.errors import EdgekitError, QuantError
from edgekit.families.base import SourceModel
from edgekit.formats.safetensors import SafetensorsFile, SafetensorsWriter
from edgekit.progress import Progress, ignore_progress
from edgekit.quantize.fold import ChannelScales
from edgekit.quantize.input_statistics import InputStatistics
from edgekit.quantize.methods import (
    TRIED_BY_AUTO,
    Method,
    RowQuantizer,
    round_floats,
    row_quantizer,
)
from edgekit.quantize.methods.blocks import check_rows
from edgekit.quantize.model import EncodedTensor
from edgekit.quantize.plan import TensorPlan
from edgekit.quantize.prequantized import import_codes
from edgekit.quantize.threads import one_thread_a_product
from edgekit.reference.forward import FloatArray, Forward
from edgekit.tensors import LazyTensor, TensorInfo, row_blocks

_VERSION: Final = 1
"""Counts the changes of this code after which a layer may get other bytes."""
_TILE_ROWS: Final = 512
_TOKENS_AT_ONCE: Final = 2048
_HELD_OUT: Final = 8
"""One of so many sequences measures the output errors that ``auto`` compares."""
_KEY: Final = "key"
_METHOD: Final = "method "
_OUTPUT: Final = "output"


@dataclass(frozen=True, slots=True, eq=False)
class CalibratedCodes:
    """The codes of all matrices that a calibrated run made, on disk.

    Attributes:
        files: Canonical name of each matrix to the file that holds it.
        methods: Canonical name to the method that its codes come from.
        folder: Where all files lie; nothing else does.
    """

    files: Mapping[str, Path] = field(default_factory=dict)
    methods: Mapping[str, Method] = field(default_factory=dict)
    folder: Path | None = None

    def get(self, plan: TensorPlan) -> EncodedTensor:
        """Read a matrix.

        Raises:
            FormatError: The file is damaged.
            OSError: It cannot be read.
        """
        with contextlib.closing(SafetensorsFile(self.files[plan.name])) as file:
            return _read_tensor(file, plan)


@np.errstate(over="ignore", invalid="ignore")  # statistics that are no numbers are refused
def quantize_layers(
    source: SourceModel,
    plans: Sequence[TensorPlan],
    scales: ChannelScales,
    sequences: Sequence[Sequence[int]],
    folder: Path,
    *,
    method: Method = Method.GPTQ,
    n_threads: int = 1,
    progress: Progress = ignore_progress,
) -> CalibratedCodes:
    """Quantize the matrices of all layers, and a 4-bit output matrix, on a calibration text.

    Args:
        source: The float model.
        plans: What becomes of each tensor. Codes that the source brought and floats stay.
        scales: Channel scales that are moved first.
        sequences: Token ids of the text; each sequence is read from position 0 on. At least one
            has two tokens; ids beyond the context are left out.
        folder: Where the files of finished layers lie; a run of the same inputs goes on there.
        method: ``IMPORTANCE``, ``GPTQ`` or ``AUTO``.
        n_threads: Threads to round with.
        progress: Called as ``progress("calibrate and quantize", n_done, n_total)`` after each
            layer and the output matrix.

    Raises:
        QuantError: A weight cannot be held, or the model computes no finite numbers on the text.
        CheckpointError: A weight cannot be read.
        OSError: The folder cannot be written.
    """
    palettes = [plan.name for plan in plans if plan.encoding.has_palette]
    if palettes:
        raise QuantError(
            "a calibrated run makes scales, not palettes",
            got=", ".join(palettes[:3]),
            do="Use --method importance without a calibration text, or another scheme.",
        )
    text = _usable(sequences, source.spec.context_length)
    key = _key_of(source, plans, scales, text, method)
    place = folder / key[:32]
    place.mkdir(parents=True, exist_ok=True)
    run = _Run(source, plans, scales, method, n_threads)
    pieces = run.pieces()
    files = {piece: place / f"{piece}.safetensors" for piece, made in pieces.items() if made}
    is_done = [not made or _holds(files[piece], key, made) for piece, made in pieces.items()]
    n_needed = max((i + 1 for i, done in enumerate(is_done) if not done), default=0)
    residuals = run.embed_text(text) if n_needed else []
    for i, (piece, made) in enumerate(list(pieces.items())[:n_needed]):
        if is_done[i]:
            residuals = run.run_text(i, residuals, _read_piece(files.get(piece), made))
        elif piece == _OUTPUT:
            _write_piece(files[piece], key, *run.quantize_output(made[0], residuals))
        else:
            tensors, methods, residuals = run.quantize_layer(i, residuals)
            _write_piece(files[piece], key, tensors, methods)
        progress("calibrate and quantize", i + 1, len(pieces))
    return CalibratedCodes(
        {plan.name: files[piece] for piece, made in pieces.items() for plan in made},
        {name: item for path in files.values() for name, item in _methods_in(path).items()},
        place,
    )


class _Run(Forward):
    """The quantized model so far, with the weights of one layer in memory."""

    def __init__(
        self,
        source: SourceModel,
        plans: Sequence[TensorPlan],
        scales: ChannelScales,
        method: Method,
        n_threads: int,
    ) -> None:
        super().__init__(source.spec, self._give, np.float32, keeps_weights=False)
        self._source = source
        self._scales = scales
        self._plans = {plan.name: plan for plan in plans}
        self._method = method
        self._n_threads = n_threads
        self._now: dict[str, F32Array] = {}
        self._is_long = False
        self._made = {
            plan.name: plan for plan in plans if plan.encoding.is_quantized and not plan.keeps_codes
        }

    def pieces(self) -> dict[str, list[TensorPlan]]:
        """Give what is quantized together, in order, under the names of its files.

        All matrices of each layer; and the output matrix if it has 4 bits: 8-bit codes of so many
        rows gain nothing worth the time.
        """
        pieces = {
            f"layer-{layer:04d}": [
                plan for name, plan in self._made.items() if name.startswith(f"layers.{layer}.")
            ]
            for layer in range(self._spec.n_layers)
        }
        output = self._made.get("embed" if self._spec.is_tied else "lm_head")
        if output is not None and output.encoding.bits == 4:
            pieces[_OUTPUT] = [output]
        return pieces

    def quantize_layer(
        self, layer: int, residuals: list[FloatArray]
    ) -> tuple[dict[str, EncodedTensor], dict[str, Method], list[FloatArray]]:
        """Quantize the matrices of a layer, and run the text through it.

        Args:
            layer: Its number.
            residuals: What each sequence brings into the layer, (T, C) each.

        Returns:
            Tensors and their methods by canonical name, and what comes out of the layer.
        """
        tensors: dict[str, EncodedTensor] = {}
        methods: dict[str, Method] = {}

        def settle(names: Sequence[str], inputs: list[FloatArray]) -> None:
            made = [name for name in names if name in self._made]
            for tensor, method in self._settle(made, inputs) if made else ():
                tensors[tensor.name], methods[tensor.name] = tensor, method
            self._load(names, tensors)

        residuals = self._advance(layer, residuals, settle)
        return tensors, methods, residuals

    def quantize_output(
        self, plan: TensorPlan, residuals: list[FloatArray]
    ) -> tuple[dict[str, EncodedTensor], dict[str, Method]]:
        """Quantize the output matrix.

        One that is the embedding, too, has each row read by itself: there errors of different
        columns cannot make good for each other, so each only counts by its column.

        Args:
            plan: Of the output matrix.
            residuals: What comes out of the last layer.
        """
        inputs = [self.finish(residual) for residual in residuals]
        if plan.name == "embed":
            statistics = InputStatistics(_mean_squares(inputs))
            statistics.check(plan.name, plan.shape[1])
            quantizer = row_quantizer(Method.IMPORTANCE, statistics)
            return {plan.name: self._encode(plan.name, quantizer)}, {plan.name: Method.IMPORTANCE}
        ((tensor, method),) = self._settle([plan.name], inputs)
        return {plan.name: tensor}, {plan.name: method}

    def run_text(
        self, layer: int, residuals: list[FloatArray], tensors: Mapping[str, EncodedTensor]
    ) -> list[FloatArray]:
        """Run the text through a layer that is quantized already."""
        return self._advance(layer, residuals, lambda names, _: self._load(names, tensors))

    def embed_text(self, text: Sequence[NDArray[np.int64]]) -> list[FloatArray]:
        """Give what each sequence brings into the first layer, (T, C) each."""
        self.reserve(max(map(len, text)))
        self._is_long = self.is_long(max(map(len, text)))
        return [self.embed(ids) for ids in text]

    def _advance(
        self,
        layer: int,
        residuals: list[FloatArray],
        settle: Callable[[Sequence[str], list[FloatArray]], None],
    ) -> list[FloatArray]:
        """Run the text through a layer; ``settle`` is told what each of its matrices reads."""
        at = f"layers.{layer}."
        inner = [self.attention_input(layer, residual) for residual in residuals]
        settle([at + "q", at + "k", at + "v"], inner)
        mixed = [self._mix_text(layer, item) for item in inner]
        del inner
        settle([at + "o"], mixed)
        added = [self.add_attention(layer, *item) for item in zip(residuals, mixed, strict=True)]
        del mixed
        inner = [self.feed_forward_input(layer, residual) for residual in added]
        settle([at + "gate", at + "up"], inner)
        gated = [self.gate(layer, item) for item in inner]
        del inner
        settle([at + "down"], gated)
        left = [self.add_feed_forward(layer, *item) for item in zip(added, gated, strict=True)]
        self._now.clear()
        return left

    def _mix_text(self, layer: int, inner: FloatArray) -> FloatArray:
        cache = self.empty_cache(len(inner))
        return self.mix(layer, inner, cache, 0, is_long=self._is_long)

    def _settle(
        self, names: Sequence[str], inputs: list[FloatArray]
    ) -> Iterator[tuple[EncodedTensor, Method]]:
        """Quantize the matrices that read the same input, each by the best method for it."""
        if self._method is not Method.AUTO:
            quantizer = self._prepare(names, inputs, [self._method])[self._method]
            for name in names:
                yield self._encode(name, quantizer), self._method
            return
        shown, held = _split(inputs)
        tried = self._prepare(names, shown, TRIED_BY_AUTO)
        whole = self._prepare(names, inputs, TRIED_BY_AUTO)
        kept = np.concatenate(held)
        for name in names:
            errors = {
                method: self._output_error(self._encode(name, quantizer), kept)
                for method, quantizer in tried.items()
            }
            method = min(errors, key=errors.__getitem__)  # of equal ones, the first
            yield self._encode(name, whole[method]), method

    def _prepare(
        self, names: Sequence[str], inputs: list[FloatArray], methods: Sequence[Method]
    ) -> dict[Method, RowQuantizer]:
        """Prepare what quantizes the matrices that read the same input."""
        if Method.GPTQ in methods:
            statistics = InputStatistics.of_moments(_moments(inputs))
        else:
            statistics = InputStatistics(_mean_squares(inputs))
        for name in names:
            statistics.check(name, inputs[0].shape[1])
        return {method: row_quantizer(method, statistics) for method in methods}

    def _encode(self, name: str, quantizer: RowQuantizer) -> EncodedTensor:
        plan, tensor = self._plans[name], self._tensor(name)
        n_rows, n_cols = plan.shape
        n_blocks = plan.encoding.n_blocks(n_cols)
        codes = np.empty((n_rows, n_cols), dtype=np.uint8)
        scales = np.empty((n_rows, n_blocks), dtype=np.float32)
        zeros = (
            np.empty((n_rows, n_blocks), dtype=np.uint8) if plan.encoding.has_zero_points else None
        )

        def fill(part: slice) -> None:
            rows = tensor.read_rows(part.start, part.stop)
            check_rows(rows, plan.encoding, name, part.start)
            made = quantizer(rows, plan.encoding)
            codes[part], scales[part] = made.codes, made.scales
            if zeros is not None and made.zero_points is not None:
                zeros[part] = made.zero_points

        self._run_all(fill, plan.shape)
        return EncodedTensor.of_codes(name, plan.encoding, codes, scales, zeros)

    def _output_error(self, made: EncodedTensor, inputs: FloatArray) -> float:
        """Give the sum of the squared errors of a matrix's outputs."""
        tensor, rounded = self._tensor(made.name), made.dequantize()
        errors: dict[int, float] = {}

        def measure(part: slice) -> None:
            wrong = rounded[part] - tensor.read_rows(part.start, part.stop)
            errors[part.start] = float(np.square(wrong @ inputs.T, dtype=np.float64).sum())

        self._run_all(measure, made.shape)
        return sum(errors[start] for start in sorted(errors))

    def _run_all(self, work: Callable[[slice], None], shape: tuple[int, ...]) -> None:
        with one_thread_a_product(), ThreadPoolExecutor(self._n_threads) as pool:
            for _ in pool.map(work, row_blocks(shape, _TILE_ROWS * shape[1])):
                pass

    def _load(self, names: Sequence[str], tensors: Mapping[str, EncodedTensor]) -> None:
        """Take the matrices into memory as what their codes stand for."""
        for name in names:
            made = tensors.get(name)
            self._now[name] = self._as_stored(name) if made is None else made.dequantize()

    def _as_stored(self, name: str) -> F32Array:
        """Give a tensor that no method quantizes here as it will be stored."""
        plan, tensor = self._plans[name], self._tensor(name)
        brought = self._source.tensor(name).prequantized
        if plan.keeps_codes and brought is not None:
            return import_codes(brought, plan).dequantize()
        values = tensor.read()
        return (
            values if plan.encoding.is_quantized else round_floats(values, plan.encoding, name=name)
        )

    def _tensor(self, name: str) -> LazyTensor:
        return self._scales.apply(name, self._source.tensor(name))

    def _give(self, name: str) -> F32Array:
        kept = self._now.get(name)
        return self._as_stored(name) if kept is None else kept

    def _embedding_rows(self, ids: NDArray[np.int64]) -> FloatArray:
        plan, tensor = self._plans["embed"], self._source.tensor("embed")
        distinct, places = np.unique(ids, return_inverse=True)
        rows = np.concatenate([tensor.read_rows(int(i), int(i) + 1) for i in distinct])
        if plan.encoding.is_quantized and not plan.keeps_codes:
            check_rows(rows, plan.encoding, "embed", 0)
            made = row_quantizer(Method.SEARCH)(rows, plan.encoding)
            rows = made.dequantize(plan.encoding.code_bits)
        return rows[places]


def _usable(sequences: Sequence[Sequence[int]], context_length: int) -> list[NDArray[np.int64]]:
    """Cut sequences to the context; one token alone has nothing before it to attend to."""
    cut = [np.asarray(ids[:context_length], dtype=np.int64) for ids in sequences]
    usable = [ids for ids in cut if len(ids) > 1]
    if not usable:
        raise QuantError("calibration text", got="no two tokens in a row", wanted="a longer text")
    return usable


def _split(inputs: list[FloatArray]) -> tuple[list[FloatArray], list[FloatArray]]:
    """Give sequences to try methods on and others to measure errors on; one alone does both."""
    held = inputs[_HELD_OUT - 1 :: _HELD_OUT] or inputs[-1:]
    shown = [item for i, item in enumerate(inputs) if i % _HELD_OUT != _HELD_OUT - 1]
    if len(inputs) < _HELD_OUT:
        shown = inputs[:-1] or inputs
    return shown, held


def _blocks_of_tokens(inputs: list[FloatArray]) -> Iterator[FloatArray]:
    """Join sequences to blocks of about as many tokens, so that sums are few and large."""
    waiting: list[FloatArray] = []
    for item in inputs:
        waiting.append(item)
        if sum(map(len, waiting)) >= _TOKENS_AT_ONCE:
            yield np.concatenate(waiting)
            waiting = []
    if waiting:
        yield np.concatenate(waiting)


def _moments(inputs: list[FloatArray]) -> F64Array:
    """Give the mean outer product of all tokens, (M, M)."""
    size = inputs[0].shape[1]
    total: F64Array = np.zeros((size, size))
    for block in _blocks_of_tokens(inputs):
        total += block.T @ block
    total /= sum(map(len, inputs))
    return total


def _mean_squares(inputs: list[FloatArray]) -> F64Array:
    """Give the mean square of each channel over all tokens, (M,)."""
    total: F64Array = np.zeros(inputs[0].shape[1])
    for item in inputs:
        total += np.einsum("tm,tm->m", item, item, dtype=np.float64)
    total /= sum(map(len, inputs))
    return total


def _key_of(
    source: SourceModel,
    plans: Sequence[TensorPlan],
    scales: ChannelScales,
    text: Sequence[NDArray[np.int64]],
    method: Method,
) -> str:
    """Hash everything that decides the bytes of the files."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        digest.update(json.dumps(value).encode() + b"\n")

    adapter = source.checkpoint.adapter
    merged = "" if adapter is None else adapter.sha256()
    add([_VERSION, source.checkpoint.sha256(), merged, method.value])
    add([[plan.name, str(plan.encoding), plan.keeps_codes] for plan in plans])
    for kind in (scales.columns, scales.rows, scales.floats):
        for name in sorted(kind):
            add([name, hashlib.sha256(np.ascontiguousarray(kind[name]).data).hexdigest()])
    add([ids.tolist() for ids in text])
    return digest.hexdigest()


def _infos(name: str, encoding: Encoding, shape: tuple[int, ...]) -> list[TensorInfo]:
    n_rows, n_cols = shape
    per_block = (n_rows, encoding.n_blocks(n_cols))
    infos = [
        TensorInfo(f"{name}.codes", (n_rows, n_cols * encoding.bits // 8), DType.UINT8),
        TensorInfo(f"{name}.scales", per_block, DType.FP16),
    ]
    if encoding.has_zero_points:
        infos.append(TensorInfo(f"{name}.zero_points", per_block, DType.UINT8))
    return infos


def _write_piece(
    path: Path, key: str, tensors: Mapping[str, EncodedTensor], methods: Mapping[str, Method]
) -> None:
    """Write the file of a piece; under its name it is whole or not there."""
    metadata = {_KEY: key, **{f"{_METHOD}{name}": item.value for name, item in methods.items()}}
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    infos = [
        info for item in tensors.values() for info in _infos(item.name, item.encoding, item.shape)
    ]
    with SafetensorsWriter(unfinished, infos, metadata=metadata) as writer:
        for item in tensors.values():
            writer.write(f"{item.name}.codes", item.packed)
            writer.write(f"{item.name}.scales", item.scales.astype("<f2"))
            if item.zero_points is not None:
                writer.write(f"{item.name}.zero_points", item.zero_points)
    unfinished.replace(path)


def _holds(path: Path, key: str, made: Sequence[TensorPlan]) -> bool:
    """Tell whether the file of a piece is there, whole, and of this run."""
    try:
        with contextlib.closing(SafetensorsFile(path)) as file:
            wanted = {
                info.name: info
                for plan in made
                for info in _infos(plan.name, plan.encoding, plan.shape)
            }
            found = {name: tensor.info for name, tensor in file.tensors.items()}
            return file.metadata.get(_KEY) == key and found == wanted
    except (OSError, EdgekitError):
        return False


def _methods_in(path: Path) -> dict[str, Method]:
    with contextlib.closing(SafetensorsFile(path)) as file:
        return {
            name.removeprefix(_METHOD): Method(value)
            for name, value in file.metadata.items()
            if name.startswith(_METHOD)
        }


def _read_piece(path: Path | None, made: Sequence[TensorPlan]) -> dict[str, EncodedTensor]:
    """Read the tensors of a piece; without a file there are none."""
    if path is None:
        return {}
    with contextlib.closing(SafetensorsFile(path)) as file:
        return {plan.name: _read_tensor(file, plan) for plan in made}


def _read_tensor(file: SafetensorsFile, plan: TensorPlan) -> EncodedTensor:
    name, tensors = plan.name, file.tensors
    zeros = tensors[f"{name}.zero_points"].raw() if plan.encoding.has_zero_points else None
    return EncodedTensor(
        name, plan.encoding, tensors[f"{name}.codes"].raw(), tensors[f"{name}.scales"].read(), zeros
    )
