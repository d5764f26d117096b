"""Mixed precision: a scheme in which the most sensitive matrices get more bits, within a budget.

The budget is bits per weight of the matrices in the layers, bytes of an artifact, or the memory of
a device; it holds in every format at once. What each matrix costs is measured on calibration text
(quantize/sensitivity.py) and spent greedily (quantize/budget.py). The result is a scheme with one
rule for each matrix that differs, and the reason.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Final

from edgekit.artifact import TensorEntry
from edgekit.decision import Rejected
from edgekit.devices.facts import KV_ELEMENT_BYTES
from edgekit.devices.match import sourced_limit
from edgekit.devices.probe import probe_host
from edgekit.devices.profile import DeviceProfile, EngineSupport
from edgekit.dtypes import F32Array, F64Array
from edgekit.encoding import Encoding
from edgekit.errors import QuantError, UsageError
from edgekit.exporters.base import Exporter, ExportOptions
from edgekit.families.base import SourceModel
from edgekit.model_files import CONFIG_NAME
from edgekit.pipeline.calibration import flops_per_s
from edgekit.pipeline.preflight import EXPECTED_ERROR
from edgekit.pipeline.run import open_profile
from edgekit.progress import Progress, ignore_progress
from edgekit.quantize.budget import Option, Spending, Step, spend
from edgekit.quantize.calibration_text import CalibrationText
from edgekit.quantize.encoded_model import find_scales
from edgekit.quantize.fold import ChannelScales
from edgekit.quantize.input_statistics import InputStatistics
from edgekit.quantize.memory_estimate import PlannedModel
from edgekit.quantize.methods import Method, quantize_rows
from edgekit.quantize.plan import TensorPlan, fitting_block
from edgekit.quantize.prequantized import expected_plan, plan_source
from edgekit.quantize.sensitivity import (
    Sensitivity,
    choose_extent,
    make_trials,
    measure_sensitivity,
    some_sequences,
    trial_flops,
)
from edgekit.scheme import Rule, Scheme, is_bits_per_weight, with_rules
from edgekit.units import format_bytes, format_seconds, parse_bytes

_LAYERS: Final = "the layers"
"""Stands for a format in a budget of bits per weight."""
_ENDS: Final = ("embed", "lm_head")
_ENTRY_BYTES: Final = 400  # of one weight in a manifest
# Room for what predictions of sizes leave out: their error, and the reasons in the manifest.
_PREDICTED_PCT: Final = 100 + round(100 * EXPECTED_ERROR["artifact_bytes"][1])
_MANIFEST_BYTES: Final = 32 << 10
_ROUNDING_S: Final = 100e-9  # a weight, in one encoding; on one core of 2024, beside other work


@dataclass(frozen=True, slots=True)
class Budget:
    """What a user allows; at most one of the three is given.

    Attributes:
        bits_per_weight: Of the matrices in the layers, with scales and zero points.
        max_bytes: Of each artifact.
        device: Each artifact must fit into the memory of one app on it.
    """

    bits_per_weight: float | None = None
    max_bytes: int | None = None
    device: DeviceProfile | None = None

    def __post_init__(self) -> None:
        given = {
            "--bits-per-weight": self.bits_per_weight,
            "--max-bytes": self.max_bytes,
            "--device": self.device,
        }
        named = [name for name, value in given.items() if value is not None]
        if len(named) > 1:
            raise UsageError("one budget at a time", got=" and ".join(named), wanted="one of them")
        if self.bits_per_weight is not None and not is_bits_per_weight(self.bits_per_weight):
            raise UsageError("--bits-per-weight", got=self.bits_per_weight, wanted="2 to 16")

    @property
    def is_given(self) -> bool:
        """Whether anything is limited."""
        limits = (self.bits_per_weight, self.max_bytes, self.device)
        return any(limit is not None for limit in limits)

    @property
    def suffix(self) -> str:
        """What the name of a scheme ends in where this budget was spent."""
        if self.bits_per_weight is not None:
            return f"-{self.bits_per_weight:g}bpw"
        if self.max_bytes is not None:
            return f"-{self.max_bytes / 1e6:g}MB"
        return f"-{self.device.id}" if self.device is not None else ""


def read_budget(bits_per_weight: float | None, max_bytes: str | None, device: str | None) -> Budget:
    """Read the budget of a command line.

    Args:
        bits_per_weight: As given.
        max_bytes: A size such as ``900MB``.
        device: As ``open_profile`` takes it.

    Raises:
        UsageError: The size is none, a number is out of range, or several are given.
        ProfileError: No such device profile.
    """
    n_bytes = None
    if max_bytes is not None:
        try:
            n_bytes = parse_bytes(max_bytes)
        except ValueError as error:
            raise UsageError(
                "--max-bytes", got=repr(max_bytes), wanted="a size such as 900MB"
            ) from error
    profile = None if device is None else open_profile(device, probe_host())
    return Budget(bits_per_weight, n_bytes, profile)


@dataclass(frozen=True, slots=True)
class MixedScheme:
    """A scheme whose budget was spent.

    Attributes:
        scheme: One rule for each matrix that differs; nothing is left to decide.
        spending: What was bought, in order; None where no matrix had a choice.
        sensitivity: What was measured; None where no matrix had a choice.
    """

    scheme: Scheme
    spending: Spending | None = None
    sensitivity: Sensitivity | None = None


def needs_budget(scheme: Scheme, budget: Budget) -> bool:
    """Tell whether a scheme's encodings depend on measurements."""
    return budget.is_given or (
        scheme.mixed is not None and scheme.mixed.bits_per_weight is not None
    )


def mix(
    source: SourceModel,
    scheme: Scheme,
    budget: Budget,
    exporters: Sequence[Exporter],
    options: ExportOptions,
    text: CalibrationText,
    *,
    tell: Callable[[str], None] = lambda line: None,
    progress: Progress = ignore_progress,
) -> MixedScheme:
    """Measure what each matrix costs, and spend a budget.

    Args:
        source: The float model.
        scheme: What matrices get at least, and what they may get. Matrices of the layers that a
            rule names keep what it says.
        budget: What the user allows; where nothing is given, the scheme's own bits per weight.
        exporters: Formats in which the budget holds and every encoding is legal.
        options: As for the export.
        text: What the model reads.
        tell: Gets sentences: what is measured and how long it takes, before it starts; what came
            out.
        progress: As ``measure_sensitivity``.

    Raises:
        UsageError: The user names a budget and no matrix has a choice, or the device runs none of
            the formats.
        QuantError: Even the smallest encodings do not fit; the message says what does.
    """
    plans = plan_source(source, scheme)
    bits = budget.bits_per_weight
    if not budget.is_given and scheme.mixed is not None:
        bits = scheme.mixed.bits_per_weight
    candidates = _candidates(
        source, scheme, plans, exporters, takes_ends=bits is None, is_asked=budget.is_given
    )
    if not candidates:
        return MixedScheme(with_rules(scheme, scheme.name, ()))
    if bits is not None:
        room = _room_for_bits(plans, candidates, bits)
    elif budget.max_bytes is not None:
        room = _room_in_files(
            source, scheme, plans, candidates, exporters, options, budget.max_bytes
        )
    elif budget.device is not None:
        room = _room_on_device(source, plans, candidates, exporters, options, budget.device)
    else:
        raise UsageError(f"scheme {scheme}: no budget", wanted="bits per weight, or a size")
    _refuse_impossible(room, candidates, plans, replace(budget, bits_per_weight=bits))
    scales = find_scales(source, plans) if scheme.fold else ChannelScales()
    sensitivity = _measure(source, scales, candidates, text, tell, progress)
    spent = spend(
        {
            name: [Option(e, sensitivity.damages[name][e], room.bytes_of(name, e)) for e in offered]
            for name, offered in candidates.items()
        },
        room.limits,
    )
    rules = tuple(_rules(plans, spent))
    mixed = with_rules(scheme, f"{scheme.name}{budget.suffix}", rules)
    tell(_summary(source, mixed, spent))
    return MixedScheme(mixed, spent, sensitivity)


def bits_in_layers(plans: Iterable[TensorPlan]) -> float:
    """Give the bits per weight of the matrices in the layers, with scales and zero points."""
    inside = [item for item in plans if item.name.startswith("layers.") and len(item.shape) == 2]
    n_bytes = sum(item.encoding.bytes_of(*item.shape) for item in inside)
    return 8 * n_bytes / sum(prod(item.shape) for item in inside)


@dataclass(frozen=True, slots=True)
class _Room:
    """What a budget leaves for the matrices that have a choice.

    Attributes:
        limits: Most bytes, by format or other name.
        bytes_of: Bytes of a matrix in an encoding, by the same names.
    """

    limits: Mapping[str, int]
    bytes_of: Callable[[str, Encoding], Mapping[str, int]]


def _candidates(
    source: SourceModel,
    scheme: Scheme,
    plans: Sequence[TensorPlan],
    exporters: Sequence[Exporter],
    *,
    takes_ends: bool,
    is_asked: bool,
) -> dict[str, tuple[Encoding, ...]]:
    """Give the matrices that have a choice, and their encodings; the one to try comes first.

    None have one where a model that is codes already keeps them all; that is refused only where the
    user asked for a budget.
    """
    offered: dict[str, list[Encoding]] = {}
    for item in plans:
        if not item.encoding.is_quantized or item.keeps_codes:
            continue
        if item.name in _ENDS:
            more = [scheme.encoding] if takes_ends else []
        elif scheme.rule_of(item.name) is not None:
            more = []
        elif scheme.mixed is not None:
            more = list(scheme.mixed.wide)
        else:
            more = [Encoding("int8", item.encoding.block)]
        fitted = [_fitted(encoding, item.shape[1]) for encoding in more]
        others = [e for e in fitted if e is not None and e != item.encoding]
        offered[item.name] = [item.encoding, *dict.fromkeys(others)]
    refused = _refused(source, plans, offered, exporters)
    candidates = {
        name: tuple(e for number, e in enumerate(encodings) if not number or e not in refused)
        for name, encodings in offered.items()
    }
    found = {name: encodings for name, encodings in candidates.items() if len(encodings) > 1}
    if not found and is_asked:
        raise UsageError(
            f"scheme {scheme}: no matrix can have more or fewer bits",
            got="; ".join(f"{encoding}: {why}" for encoding, why in refused.items())
            or f"{scheme.encoding} for all",
            wanted="a scheme of 4 bits, and formats that hold 8 bits beside them",
            do="Name another scheme, such as balanced, or leave out a format.",
        )
    return found


def _refused(
    source: SourceModel,
    plans: Sequence[TensorPlan],
    offered: Mapping[str, Sequence[Encoding]],
    exporters: Sequence[Exporter],
) -> dict[Encoding, str]:
    """Ask every format about every encoding that a matrix may get; give reasons of refusals."""
    refused: dict[Encoding, str] = {}
    for encoding in dict.fromkeys(e for encodings in offered.values() for e in encodings[1:]):
        encodings = {
            item.name: encoding if encoding in offered.get(item.name, ()) else item.encoding
            for item in plans
        }
        for exporter in exporters:
            decision = exporter.supports(source.spec, encodings)
            if isinstance(decision, Rejected):
                refused[encoding] = f"{exporter.format.value}: {decision.reason}"
    return refused


def _fitted(encoding: Encoding, n_cols: int) -> Encoding | None:
    if encoding.block is None:
        return encoding
    block = fitting_block(n_cols, encoding.block)
    return None if block is None else Encoding(encoding.kind, block)


def _room_for_bits(
    plans: Sequence[TensorPlan], candidates: Mapping[str, Sequence[Encoding]], bits: float
) -> _Room:
    """Count the matrices in the layers alone; those without a choice take their part."""
    inside = {
        item.name: item
        for item in plans
        if item.name.startswith("layers.") and len(item.shape) == 2
    }
    limit = int(bits * sum(prod(item.shape) for item in inside.values()) / 8)
    limit -= _bytes_beside(inside.values(), candidates)
    return _Room(
        {_LAYERS: limit}, lambda name, e: {_LAYERS: e.bytes_of(*_matrix(inside[name].shape))}
    )


def _room_in_files(
    source: SourceModel,
    scheme: Scheme,
    plans: Sequence[TensorPlan],
    candidates: Mapping[str, Sequence[Encoding]],
    exporters: Sequence[Exporter],
    options: ExportOptions,
    max_bytes: int,
) -> _Room:
    """Ask each format what its artifact takes with one matrix in another encoding."""
    config = source.checkpoint.text_files.read_object(CONFIG_NAME)
    planned = {item.name: item for item in plans}
    beside = source.checkpoint.assets_bytes + _ENTRY_BYTES * len(plans)

    def predict(exporter: Exporter, changed: Mapping[str, Encoding]) -> int:
        entries: list[TensorEntry] = []
        for item in plans:
            encoding = changed.get(item.name, item.encoding)
            sha256 = "" if encoding.is_quantized else None
            entries.append(replace(item, encoding=encoding).entry(sha256))
        outline = PlannedModel(source.spec, scheme, tuple(entries), config)
        return exporter.predict(outline, options).disk_bytes + beside

    wholes = {e.format.value: predict(e, {}) for e in exporters}
    known: dict[tuple[str, Encoding, Encoding], Mapping[str, int]] = {}

    def bytes_of(name: str, encoding: Encoding) -> Mapping[str, int]:
        item = planned[name]
        # Matrices of the same part are of the same shape in every layer.
        key = (name.rpartition(".")[2], item.encoding, encoding)
        if key not in known:
            first = item.encoding.bytes_of(*_matrix(item.shape))
            known[key] = {
                e.format.value: first + predict(e, {name: encoding}) - wholes[e.format.value]
                for e in exporters
            }
        return known[key]

    chosen = sum(
        planned[name].encoding.bytes_of(*_matrix(planned[name].shape)) for name in candidates
    )
    allowed = _allowed(max_bytes)
    return _Room({fmt: allowed - whole + chosen for fmt, whole in wholes.items()}, bytes_of)


def _allowed(max_bytes: int) -> int:
    """Give the predicted size that a budget has room for."""
    return max_bytes * 100 // _PREDICTED_PCT - _MANIFEST_BYTES


def _size_with(allowed: int) -> int:
    """Give the smallest budget with room for a predicted size; the inverse of ``_allowed``."""
    return -(-(allowed + _MANIFEST_BYTES) * _PREDICTED_PCT // 100)


def _room_on_device(
    source: SourceModel,
    plans: Sequence[TensorPlan],
    candidates: Mapping[str, Sequence[Encoding]],
    exporters: Sequence[Exporter],
    options: ExportOptions,
    device: DeviceProfile,
) -> _Room:
    """Leave room for the key/value cache and the engine, as devices/match.py counts them."""
    spec, planned = source.spec, {item.name: item for item in plans}
    beside = _bytes_beside(plans, candidates)
    limits: dict[str, int] = {}
    for exporter in exporters:
        fmt = exporter.format
        engines = [engine for engine in device.engines if fmt in engine.formats]
        if not engines:
            continue
        positions = exporter.positions(spec).choose(options.context_length, fmt.value)
        cache = 2 * spec.n_layers * spec.n_kv_heads * spec.head_width * KV_ELEMENT_BYTES[fmt]
        limits[fmt.value] = (
            max(
                weights_room(engine, sourced_limit(device).value or 0, cache * positions)
                for engine in engines
            )
            - beside
        )
    if not limits:
        runs = ", ".join(sorted({f.value for e in device.engines for f in e.formats}))
        raise UsageError(
            f"no engine on {device.name} runs these formats",
            got=", ".join(e.format.value for e in exporters),
            wanted=runs or "a device that runs models",
        )

    def bytes_of(name: str, encoding: Encoding) -> Mapping[str, int]:
        return dict.fromkeys(limits, encoding.bytes_of(*_matrix(planned[name].shape)))

    return _Room(limits, bytes_of)


def _refuse_impossible(
    room: _Room,
    candidates: Mapping[str, Sequence[Encoding]],
    plans: Sequence[TensorPlan],
    budget: Budget,
) -> None:
    """Refuse a budget that cannot hold before anything is measured; say the smallest that can."""
    short: dict[str, int] = {}
    for fmt, limit in room.limits.items():
        smallest = sum(min(room.bytes_of(n, e)[fmt] for e in c) for n, c in candidates.items())
        short[fmt] = smallest - limit
    fmt = max(short, key=short.__getitem__)
    if short[fmt] <= 0:
        return
    do = "Raise the budget, take a smaller scheme such as tiny, or a smaller model."
    if budget.bits_per_weight is not None:
        n_weights = sum(
            prod(p.shape) for p in plans if p.name.startswith("layers.") and len(p.shape) == 2
        )
        least = budget.bits_per_weight + 8 * short[fmt] / n_weights
        raise QuantError(
            "--bits-per-weight",
            got=f"{budget.bits_per_weight:g}",
            wanted=f"at least {math.ceil(least * 100) / 100:.2f} for this scheme",
            do=do,
        )
    if budget.max_bytes is not None:
        raise QuantError(
            f"--max-bytes is too small for {fmt}",
            got=f"{budget.max_bytes} bytes",
            wanted=f"at least {_size_with(_allowed(budget.max_bytes) + short[fmt])}",
            do=f"{do} Or leave out this format.",
        )
    name = budget.device.name if budget.device is not None else ""
    raise QuantError(
        f"{name} cannot hold the model as {fmt}",
        got=f"room for {format_bytes(max(0, room.limits[fmt]))} of weights",
        wanted=f"at least {format_bytes(room.limits[fmt] + short[fmt])}",
        do="Take a smaller model, a shorter --context, or leave out this format.",
    )


def _bytes_beside(plans: Iterable[TensorPlan], candidates: Mapping[str, object]) -> int:
    """Count the bytes of the tensors that have no choice."""
    return sum(
        item.encoding.bytes_of(*_matrix(item.shape))
        for item in plans
        if item.name not in candidates
    )


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    return (1, shape[0]) if len(shape) == 1 else (shape[0], shape[1])


def _measure(
    source: SourceModel,
    scales: ChannelScales,
    candidates: Mapping[str, Sequence[Encoding]],
    text: CalibrationText,
    tell: Callable[[str], None],
    progress: Progress,
) -> Sensitivity:
    """Say how long it takes, and measure."""
    spec, names = source.spec, list(candidates)
    n_tokens, together = choose_extent(spec, names)
    sequences = some_sequences(text.sequences, n_tokens)
    n_tokens = sum(map(len, sequences))
    trials = make_trials(spec, names, together)
    shapes = spec.weight_shapes()
    n_rounded = sum(prod(shapes[name]) * len(candidates[name]) for name in names)
    seconds = trial_flops(spec, trials, n_tokens) / flops_per_s() + n_rounded * _ROUNDING_S
    how = "each by itself" if together == 1 else f"of {together} layers together"
    tell(
        f"measuring how much {len(names)} matrices cost in fewer bits ({how}, {n_tokens} tokens): "
        f"about {format_seconds(seconds)}"
    )

    def read(name: str) -> F32Array:
        return scales.apply(name, source.tensor(name)).read()

    return measure_sensitivity(
        spec,
        read,
        round_by_importance,
        candidates,
        sequences,
        n_layers_together=together,
        progress=progress,
    )


def round_by_importance(
    name: str, weights: F32Array, mean_squares: F64Array, encoding: Encoding
) -> F32Array:
    """Give a matrix as it would be stored if each column's error counted by its input.

    Args:
        name: Canonical name.
        weights: (N, M).
        mean_squares: Mean square of each input channel, (M,).
        encoding: How it is stored; floats stay.

    Raises:
        QuantError: A weight cannot be held.
    """
    if not encoding.is_quantized:
        return weights
    statistics = InputStatistics(mean_squares)
    made = quantize_rows(weights, encoding, Method.IMPORTANCE, statistics, name=name)
    return made.dequantize(encoding.code_bits)


def _rules(plans: Sequence[TensorPlan], spent: Spending) -> Iterable[Rule]:
    """Give a rule for each matrix that gets another encoding than the plan says, and why."""
    last: dict[str, tuple[int, Step]] = {}
    for number, step in enumerate(spent.steps, start=1):
        last[step.name] = (number, step)
    n_steps = len(spent.steps)
    for item in plans:
        option = spent.chosen.get(item.name)
        if option is None or option.encoding == item.encoding:
            continue
        if item.name in last:
            number, step = last[item.name]
            more = format_bytes(step.after.most_bytes - step.before.most_bytes)
            reason = (
                f"{option.encoding.bits} bits: avoids a KL divergence of "
                f"{step.before.damage - step.after.damage:.2g} for {more} more (step {number} of "
                f"{n_steps})"
            )
        else:
            reason = f"{option.encoding.bits} bits: the budget leaves no room for more"
        yield Rule((item.name,), option.encoding, reason)


def _summary(source: SourceModel, mixed: Scheme, spent: Spending) -> str:
    plans = expected_plan(source, mixed)
    counts = Counter(str(option.encoding) for option in spent.chosen.values())
    shown = ", ".join(f"{n} {encoding}" for encoding, n in counts.most_common())
    return (
        f"{mixed.name}: {bits_in_layers(plans):.2f} bits per weight in the layers ({shown}); "
        f"expected KL divergence {spent.damage:.2g}, if the damages add up"
    )


def weights_room(engine: EngineSupport, limit_bytes: int, cache_bytes: int) -> int:
    """Give the most bytes of weights that an engine can hold within a memory limit.

    The inverse of ``need_bytes`` (devices/match.py).
    """
    room = limit_bytes - cache_bytes - (engine.overhead_bytes.value or 0)
    factor = engine.weights_factor.value
    copied = int(room / (1.0 if factor is None else factor))
    if engine.max_copy_bytes is not None and copied * (factor or 1.0) > engine.max_copy_bytes:
        # Beyond this size the engine makes no copy.
        return max(room, int(engine.max_copy_bytes / (factor or 1.0)))
    return copied
