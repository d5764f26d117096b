"""Sensitivity: how much a decoder's predictions change when some of its weights are rounded.

A trial rounds one matrix, or one in each of several layers, and leaves the others as they are. Its
damage is the KL divergence of its predictions from those of the float model on calibration text.
All trials go through the layers together: each weight is read once, and a trial runs only from the
first layer that it changes.

Damage grows with the square of a small change. So the damage of a matrix in another encoding
follows from the measured one and from the squared errors of its output in both encodings; and the
damage of several matrices at once is shared out by these errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgekit.dtypes import F32Array, F64Array
from edgekit.encoding import Encoding
from edgekit.families.spec import DecoderSpec
from edgekit.progress import Progress, ignore_progress
from edgekit.reference.forward import FloatArray, Forward

Read = Callable[[str], F32Array]
Round = Callable[[str, F32Array, F64Array, Encoding], F32Array]
"""Gives a matrix as it would be stored: canonical name, (N, M) weights, mean square of each input
channel (M,), encoding."""
LOGIT_STRIDE: Final = 4
"""Predictions are compared at every fourth position: neighbours say much the same."""
N_TOKENS: Final = (256, 128)
"""Tokens of the calibration text that trials read: many, or few where the model is large."""
N_SEQUENCES: Final = 2
MAX_FLOPS: Final = 30e12
"""Work of all trials; beyond it several layers share a trial. Ten minutes at 50 GFLOP/s."""
_MAX_RESIDUAL_BYTES: Final = 1 << 30  # of all trials that go through the layers together
_N_DIGITS: Final = 2
_PARTS: Final = ("q", "k", "v", "o", "gate", "up", "down")
_SAME_INPUT: Final = {"q": ("q", "k", "v"), "gate": ("gate", "up")}


@dataclass(frozen=True, slots=True)
class Trial:
    """Matrices that are rounded at once.

    Attributes:
        names: Canonical names, all of one part, such as ``down``.
        encoding: How they are stored.
    """

    names: tuple[str, ...]
    encoding: Encoding

    @property
    def first_layer(self) -> int:
        """The first layer that it changes; -1 for the embedding."""
        return min(map(layer_of, self.names))


@dataclass(frozen=True, slots=True, eq=False)
class Sensitivity:
    """What was measured.

    Attributes:
        damages: Matrix to encoding to the expected damage in nats per token, two digits.
        mean_squares: Matrix to the mean square of each input channel, (M,).
        n_trials: How often a part of the model was run.
        n_layers_together: Layers of a trial.
        n_tokens: Tokens that were read.
    """

    damages: Mapping[str, Mapping[Encoding, float]]
    mean_squares: Mapping[str, F64Array]
    n_trials: int
    n_layers_together: int
    n_tokens: int

    @property
    def method(self) -> str:
        """How it was measured, in words."""
        how = "one matrix at a time"
        if self.n_layers_together > 1:
            how = f"one kind of matrix in {self.n_layers_together} layers at a time"
        return f"KL divergence of {self.n_trials} trials, {how}, on {self.n_tokens} tokens"


def some_sequences(
    sequences: Sequence[Sequence[int]], n_tokens: int = N_TOKENS[0], n_wanted: int = N_SEQUENCES
) -> list[Sequence[int]]:
    """Take the beginnings of a few sequences that are spread over a calibration text."""
    n_taken = min(n_wanted, len(sequences))
    places = [number * len(sequences) // n_taken for number in range(n_taken)]
    return [sequences[place][: n_tokens // n_taken] for place in places]


def choose_extent(
    spec: DecoderSpec, names: Sequence[str], max_flops: float = MAX_FLOPS
) -> tuple[int, int]:
    """Choose how many tokens trials read, and how many layers share one, within some work.

    Fewer tokens come before shared trials: a trial of several layers tells them apart badly
    (docs/schemes.md).

    Returns:
        Tokens, and layers of a trial: 1, else the smallest power of two that is enough, at last all
        layers.
    """
    single = make_trials(spec, names, 1)
    for n_tokens in N_TOKENS:
        if trial_flops(spec, single, n_tokens) <= max_flops:
            return n_tokens, 1
    fewest, together = N_TOKENS[-1], 2
    while together < spec.n_layers:
        if trial_flops(spec, make_trials(spec, names, together), fewest) <= max_flops:
            return fewest, together
        together *= 2
    return fewest, spec.n_layers


def make_trials(spec: DecoderSpec, names: Iterable[str], n_layers_together: int) -> list[Trial]:
    """Group matrices of the same part in layers that follow each other; encodings are left open."""
    groups: dict[tuple[str, int], list[str]] = {}
    for name in names:
        layer = layer_of(name)
        is_inside = 0 <= layer < spec.n_layers
        place = layer // n_layers_together if is_inside else layer
        groups.setdefault((name.rpartition(".")[2], place), []).append(name)
    return [Trial(tuple(group), Encoding("fp32")) for group in groups.values()]


def trial_flops(spec: DecoderSpec, trials: Sequence[Trial], n_tokens: int) -> float:
    """Give the multiplications and additions of trials; those of the attention are left out."""
    shapes = spec.weight_shapes()
    layer = sum(_n_values(shapes[f"layers.0.{part}"]) for part in _PARTS)
    head = _n_values(shapes["embed" if spec.is_tied else "lm_head"])
    n_layers = spec.n_layers + sum(
        max(0, spec.n_layers - max(trial.first_layer, 0)) for trial in trials
    )
    n_predictions = n_tokens / LOGIT_STRIDE
    return 2.0 * (n_layers * layer * n_tokens + (len(trials) + 1) * head * n_predictions)


def measure_sensitivity(
    spec: DecoderSpec,
    read: Read,
    round_weights: Round,
    candidates: Mapping[str, Sequence[Encoding]],
    sequences: Sequence[Sequence[int]],
    *,
    n_layers_together: int = 1,
    progress: Progress = ignore_progress,
) -> Sensitivity:
    """Measure the damage of matrices in each of their candidate encodings.

    Args:
        spec: The decoder.
        read: Gives the float32 weight of a canonical name.
        round_weights: Gives a matrix as it would be stored.
        candidates: Matrix to encodings. The first is tried in the model; the damage of the others
            follows from it, except at the embedding and the output matrix, where each is tried.
        sequences: Token ids, each read by itself; no longer than the context.
        n_layers_together: Layers of a trial.
        progress: Called as ``progress("sensitivity", n_done, n_total)`` after each layer.
    """
    trials: list[Trial] = []
    for group in make_trials(spec, candidates, n_layers_together):
        ends = [name for name in group.names if name in ("embed", "lm_head")]
        tried = candidates[group.names[0]] if ends else candidates[group.names[0]][:1]
        trials += [Trial(group.names, encoding) for encoding in tried]
    walks = _split(trials, 4 * sum(map(len, sequences)) * spec.hidden_width)
    measured: dict[Trial, float] = {}
    errors: dict[str, dict[Encoding, float]] = {}
    mean_squares: dict[str, F64Array] = {}
    for number, batch in enumerate(walks):
        walk = _Walk(spec, read, round_weights, batch, sequences)
        for layer in range(spec.n_layers):
            walk.run_layer(layer)
            if not number:
                errors |= walk.errors({n: c for n, c in candidates.items() if layer_of(n) == layer})
            progress("sensitivity", number * spec.n_layers + layer + 1, len(walks) * spec.n_layers)
        measured |= dict(zip(batch, walk.damages(), strict=True))
        mean_squares |= walk.mean_squares
    damages: dict[str, dict[Encoding, float]] = {}
    for trial, damage in measured.items():
        shares = _shares([errors.get(name, {}).get(trial.encoding, 0.0) for name in trial.names])
        for name, share in zip(trial.names, shares, strict=True):
            found = damages.setdefault(name, {})
            found[trial.encoding] = _rounded(damage * share)
            error_of_trial = errors.get(name, {}).get(trial.encoding, 0.0)
            for encoding, error in errors.get(name, {}).items():
                ratio = error / error_of_trial if error_of_trial > 0 else 1.0
                found[encoding] = _rounded(damage * share * ratio)
    return Sensitivity(
        damages, mean_squares, len(trials), n_layers_together, sum(map(len, sequences))
    )


def output_error(weights: F32Array, rounded: F32Array, mean_squares: F64Array) -> float:
    """Give the squared error of a matrix's output over the square of the output.

    Inputs count as independent of each other, each with its mean square.

    Args:
        weights: (N, M).
        rounded: The same, as it is stored.
        mean_squares: Mean square of each input channel, (M,).
    """
    whole = float(_column_squares(weights) @ mean_squares)
    error = float(_column_squares(weights - rounded) @ mean_squares)
    return error / whole if whole > 0 else 0.0


def layer_of(name: str) -> int:
    """Give the layer of a matrix: -1 for the embedding, one behind all for the output matrix."""
    if name == "embed":
        return -1
    return int(name.split(".")[1]) if name.startswith("layers.") else 1 << 30


class _Walk:
    """One way through all layers, with the float model and some trials side by side.

    Attributes:
        mean_squares: Matrix to the mean square of each input channel, of the layers so far.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        read: Read,
        round_weights: Round,
        trials: Sequence[Trial],
        sequences: Sequence[Sequence[int]],
    ) -> None:
        self.mean_squares: dict[str, F64Array] = {}
        self._spec = spec
        self._read = read
        self._round = round_weights
        self._trials = trials
        self._floats: dict[str, F32Array] = {}
        self._rounded: dict[tuple[str, Encoding], F32Array] = {}
        self._forward = _TrialForward(spec, self._weight)
        self._forward.reserve(max(map(len, sequences)))
        self._ids = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
        self._residuals = self._embed(None)
        self._of_trials: dict[int, list[FloatArray]] = {
            number: self._embed(trial)
            for number, trial in enumerate(trials)
            if "embed" in trial.names
        }

    def run_layer(self, layer: int) -> None:
        """Run the float model and every trial that differs by now through a layer."""
        self._floats.clear()
        self._rounded.clear()
        self._forward.inputs = {}
        after = self._run(layer, self._residuals, None)
        n_tokens = sum(map(len, self._ids))
        for part, squares in self._forward.inputs.items():
            for other in _SAME_INPUT.get(part, (part,)):
                self.mean_squares[f"layers.{layer}.{other}"] = squares / n_tokens
        self._forward.inputs = None
        for number, trial in enumerate(self._trials):
            if number in self._of_trials or trial.first_layer == layer:
                begun = self._of_trials.get(number, self._residuals)
                self._of_trials[number] = self._run(layer, begun, trial)
        self._residuals = after

    def errors(
        self, candidates: Mapping[str, Sequence[Encoding]]
    ) -> dict[str, dict[Encoding, float]]:
        """Give the output errors of matrices of the layer that was run last."""
        return {
            name: {
                encoding: output_error(
                    self._weight(name, None),
                    self._as_stored(name, encoding),
                    self.mean_squares[name],
                )
                for encoding in encodings
            }
            for name, encodings in candidates.items()
        }

    def damages(self) -> list[float]:
        """Give the damage of each trial, once all layers were run."""
        self._floats.clear()
        self._rounded.clear()
        finished = self._finished(self._residuals)
        head = "embed" if self._spec.is_tied else "lm_head"
        squares: F64Array = np.square(finished, dtype=np.float64).mean(axis=0)
        self.mean_squares[head] = squares
        wanted = self._log_probabilities(finished, None)
        found: list[float] = []
        for number, trial in enumerate(self._trials):
            finished = self._finished(self._of_trials.get(number, self._residuals))
            ours = self._log_probabilities(finished, trial)
            divergence = np.einsum("tv,tv->t", np.exp(wanted), wanted - ours)
            found.append(max(0.0, float(divergence.mean())))
        return found

    def _weight(self, name: str, trial: Trial | None) -> F32Array:
        if trial is not None and name in trial.names:
            return self._as_stored(name, trial.encoding)
        if name not in self._floats:
            self._floats[name] = self._read(name)
        return self._floats[name]

    def _as_stored(self, name: str, encoding: Encoding) -> F32Array:
        key = (name, encoding)
        if key not in self._rounded:
            weights = self._weight(name, None)
            # An embedding is rounded before anything is read.
            squares = self.mean_squares.get(name) if name != "embed" else None
            if squares is None:
                squares = np.ones(weights.shape[1])
            self._rounded[key] = self._round(name, weights, squares, encoding)
        return self._rounded[key]

    def _embed(self, trial: Trial | None) -> list[FloatArray]:
        self._forward.trial = trial
        embedded = [self._forward.embed(ids) for ids in self._ids]
        self._floats.clear()
        self._rounded.clear()
        return embedded

    def _run(
        self, layer: int, residuals: Sequence[FloatArray], trial: Trial | None
    ) -> list[FloatArray]:
        self._forward.trial = trial
        outputs: list[FloatArray] = []
        for residual in residuals:
            cache = self._forward.empty_cache(len(residual))
            is_long = self._forward.is_long(len(residual))
            outputs.append(self._forward.run_layer(layer, residual, cache, 0, is_long=is_long))
        return outputs

    def _finished(self, residuals: Sequence[FloatArray]) -> FloatArray:
        self._forward.trial = None
        some = [residual[_positions(len(residual))] for residual in residuals]
        return self._forward.finish(np.concatenate(some))

    def _log_probabilities(self, finished: FloatArray, trial: Trial | None) -> F64Array:
        """Give the log-probabilities of every token, (P, V)."""
        self._forward.trial = trial
        logits = self._forward.head(finished).astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        normalized: F64Array = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return normalized


class _TrialForward(Forward):
    """A forward with the weights of a trial, which can sum the squares of its inputs.

    Attributes:
        trial: What is rounded now.
        inputs: Part of a layer, such as ``q``, to the summed squares of its input channels, (M,);
            None while nothing is summed.
    """

    def __init__(self, spec: DecoderSpec, weights: Callable[[str, Trial | None], F32Array]) -> None:
        super().__init__(
            spec, lambda name: weights(name, self.trial), np.float32, keeps_weights=False
        )
        self.trial: Trial | None = None
        self.inputs: dict[str, F64Array] | None = None

    def _matmul(self, inner: FloatArray, name: str) -> FloatArray:
        part = name.rpartition(".")[2]
        if self.inputs is not None and part in ("q", "o", "gate", "down"):
            squares = np.square(inner, dtype=np.float64).sum(axis=0)
            self.inputs[part] = self.inputs.get(part, 0.0) + squares
        return super()._matmul(inner, name)


def _split(trials: Sequence[Trial], n_residual_bytes: int) -> list[list[Trial]]:
    """Split trials into batches whose residuals are in memory together; neighbours stay together.

    Trials that begin in the same layers share one way through the rest.
    """
    n_together = max(1, _MAX_RESIDUAL_BYTES // n_residual_bytes)
    ordered = sorted(trials, key=lambda trial: trial.first_layer)
    return [ordered[at : at + n_together] for at in range(0, len(ordered), n_together)]


def _shares(errors: Sequence[float]) -> list[float]:
    whole = sum(errors)
    return [error / whole if whole > 0 else 1 / len(errors) for error in errors]


def _rounded(damage: float) -> float:
    """Keep two digits: further ones depend on the order in which a processor adds."""
    return float(f"{damage:.{_N_DIGITS - 1}e}")


def _positions(n_tokens: int) -> NDArray[np.int64]:
    """Give the positions at which predictions are compared; always the last one."""
    return np.arange((n_tokens - 1) % LOGIT_STRIDE, n_tokens, LOGIT_STRIDE)


def _column_squares(matrix: F32Array) -> F64Array:
    squares: F64Array = np.einsum("nm,nm->m", matrix, matrix, dtype=np.float64)
    return squares


def _n_values(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))
