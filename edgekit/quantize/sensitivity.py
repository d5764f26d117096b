"""Sensitivity: how much a decoder's predictions change when some of its weights are rounded.

A trial rounds one matrix, or several at once, and leaves the others as they are. What it costs is
the KL divergence of its predictions from those of the float model on calibration text. All trials
go through the layers together: each weight is read once, and a trial runs only from the first layer
that it changes.

Damage grows with the square of a small change. So the damage of a matrix in another encoding follows
from its measured one and from the two squared errors of its output; and the damage of several
matrices at once is shared out by these errors. How well that holds was measured
(docs/mixed_precision.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgekit.dtypes import F32Array, F64Array
from edgekit.families.spec import DecoderSpec
from edgekit.progress import Progress, ignore_progress
from edgekit.reference.forward import FloatArray, Forward

Read = Callable[[str], F32Array]
LOGIT_STRIDE: Final = 4
"""Predictions are compared at every fourth position: the output matrix is large, and neighbours say
much the same."""
_MAX_RESIDUAL_BYTES: Final = 1 << 30  # residuals of all trials that go through the layers together
_PARTS: Final = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True, slots=True)
class Trial:
    """Matrices that are rounded at once.

    Attributes:
        names: Canonical names; all of one part, such as ``down``, in one or more layers, or one of
            ``embed`` and ``lm_head``.
    """

    names: tuple[str, ...]

    @property
    def first_layer(self) -> int:
        """The first layer that it changes; -1 for the embedding."""
        return min(map(_layer_of, self.names))


def make_trials(spec: DecoderSpec, names: Iterable[str], n_layers_together: int) -> list[Trial]:
    """Group matrices of the same part in layers that follow each other.

    Args:
        spec: The decoder.
        names: The matrices.
        n_layers_together: Layers of a group; 1 measures every matrix by itself.
    """
    groups: dict[tuple[str, int], list[str]] = {}
    for name in names:
        layer = _layer_of(name)
        part = name.rpartition(".")[2]
        place = layer // n_layers_together if 0 <= layer < spec.n_layers else layer
        groups.setdefault((part, place), []).append(name)
    return [Trial(tuple(group)) for group in groups.values()]


def trial_flops(spec: DecoderSpec, trials: Sequence[Trial], n_tokens: int) -> float:
    """Give the multiplications and additions that trials take, those of the attention left out."""
    shapes = spec.weight_shapes()
    layer = sum(_n_values(shapes[f"layers.0.{part}"]) for part in _PARTS)
    head = _n_values(shapes["embed" if spec.is_tied else "lm_head"])
    n_layers = sum(spec.n_layers - max(trial.first_layer, 0) for trial in trials) + spec.n_layers
    n_predictions = n_tokens / LOGIT_STRIDE
    return 2.0 * (n_layers * layer * n_tokens + (len(trials) + 1) * head * n_predictions)


def measure_damage(
    spec: DecoderSpec,
    read: Read,
    read_rounded: Read,
    trials: Sequence[Trial],
    sequences: Sequence[Sequence[int]],
    *,
    progress: Progress = ignore_progress,
) -> list[float]:
    """Measure the damage of trials.

    Args:
        spec: The decoder.
        read: Gives the float32 weight of a canonical name.
        read_rounded: Gives the same as a trial has it.
        trials: What is rounded.
        sequences: Token ids, each read by itself; no longer than the context.
        progress: Called as ``progress("sensitivity", n_done, n_total)`` after each layer.

    Returns:
        The KL divergence of each trial, in nats per token; not negative.
    """
    n_tokens = sum(map(len, sequences))
    n_residual_bytes = 4 * n_tokens * spec.hidden_width
    n_together = max(1, _MAX_RESIDUAL_BYTES // n_residual_bytes)
    ordered = sorted(range(len(trials)), key=lambda i: trials[i].first_layer)
    damages = [0.0] * len(trials)
    batches = [ordered[at : at + n_together] for at in range(0, len(ordered), n_together)]
    n_total = len(batches) * spec.n_layers
    for number, batch in enumerate(batches):

        def tell(what: str, n_done: int, _: int, first: int = number * spec.n_layers) -> None:
            progress(what, first + n_done, n_total)

        walk = _Walk(spec, read, read_rounded, [trials[i] for i in batch], sequences, tell)
        for place, damage in zip(batch, walk.run(), strict=True):
            damages[place] = damage
    return damages


def share_damage(
    trials: Sequence[Trial], damages: Sequence[float], errors: Mapping[str, float]
) -> dict[str, float]:
    """Share the damage of each trial out to its matrices, by the errors of their outputs.

    Args:
        trials: What was rounded.
        damages: The damage of each.
        errors: Matrix to its relative squared output error (``output_error``).
    """
    shared: dict[str, float] = {}
    for trial, damage in zip(trials, damages, strict=True):
        whole = sum(errors[name] for name in trial.names)
        for name in trial.names:
            share = errors[name] / whole if whole > 0 else 1 / len(trial.names)
            shared[name] = damage * share
    return shared


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


def _column_squares(matrix: F32Array) -> F64Array:
    squares: F64Array = np.einsum("nm,nm->m", matrix, matrix, dtype=np.float64)
    return squares


class _Walk:
    """One way through all layers, with the float model and some trials side by side."""

    def __init__(
        self,
        spec: DecoderSpec,
        read: Read,
        read_rounded: Read,
        trials: Sequence[Trial],
        sequences: Sequence[Sequence[int]],
        progress: Progress,
    ) -> None:
        self._spec = spec
        self._read = read
        self._read_rounded = read_rounded
        self._trials = trials
        self._ids = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
        self._progress = progress
        self._floats: dict[str, F32Array] = {}
        self._rounded: dict[str, F32Array] = {}
        self._changed: frozenset[str] = frozenset()
        self._forward = Forward(spec, self._weight, np.float32, keeps_weights=False)
        self._forward.reserve(max(map(len, sequences)))

    def run(self) -> list[float]:
        """Give the damage of each trial."""
        residuals = self._embed(frozenset())
        trial_residuals: dict[int, list[FloatArray]] = {}
        for number, trial in enumerate(self._trials):
            if "embed" in trial.names:
                trial_residuals[number] = self._embed(frozenset(trial.names))
        for layer in range(self._spec.n_layers):
            self._forget()
            for number, trial in enumerate(self._trials):
                if number in trial_residuals or trial.first_layer == layer:
                    begun = trial_residuals.get(number, residuals)
                    trial_residuals[number] = self._layer(layer, begun, frozenset(trial.names))
            residuals = self._layer(layer, residuals, frozenset())
            self._progress("sensitivity", layer + 1, self._spec.n_layers)
        self._forget()
        damages: list[float] = []
        wanted = self._log_probabilities(residuals, frozenset())
        for number, trial in enumerate(self._trials):
            ours = trial_residuals.get(number, residuals)
            found = self._log_probabilities(ours, frozenset(trial.names))
            divergence = np.einsum("tv,tv->t", np.exp(wanted), wanted - found)
            damages.append(max(0.0, float(divergence.mean())))
        return damages

    def _weight(self, name: str) -> F32Array:
        if name in self._changed:
            if name not in self._rounded:
                self._rounded[name] = self._read_rounded(name)
            return self._rounded[name]
        if name not in self._floats:
            self._floats[name] = self._read(name)
        return self._floats[name]

    def _forget(self) -> None:
        """Let go of the weights of the layer before."""
        self._floats.clear()
        self._rounded.clear()

    def _embed(self, changed: frozenset[str]) -> list[FloatArray]:
        self._changed = changed
        return [self._forward.embed(ids) for ids in self._ids]

    def _layer(
        self, layer: int, residuals: Sequence[FloatArray], changed: frozenset[str]
    ) -> list[FloatArray]:
        self._changed = changed
        outputs: list[FloatArray] = []
        for residual in residuals:
            cache = self._forward.empty_cache(len(residual))
            is_long = self._forward.is_long(len(residual))
            outputs.append(self._forward.run_layer(layer, residual, cache, 0, is_long=is_long))
        return outputs

    def _log_probabilities(
        self, residuals: Sequence[FloatArray], changed: frozenset[str]
    ) -> F64Array:
        """Give the log-probabilities of every token at some positions, (P, V)."""
        self._changed = changed
        some = np.concatenate([residual[_positions(len(residual))] for residual in residuals])
        logits = self._forward.head(self._forward.finish(some)).astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        normalized: F64Array = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return normalized


def _positions(n_tokens: int) -> NDArray[np.int64]:
    """Give the positions at which predictions are compared; always the last one."""
    return np.arange((n_tokens - 1) % LOGIT_STRIDE, n_tokens, LOGIT_STRIDE)


def _layer_of(name: str) -> int:
    """Give the layer of a matrix: -1 for the embedding, one behind all for the output matrix."""
    if name == "embed":
        return -1
    return int(name.split(".")[1]) if name.startswith("layers.") else 1 << 30


def _n_values(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))
