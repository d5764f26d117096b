"""Sampling of the next token from logits: temperature, top-k, top-p.

Pure numpy, the same for every engine. The filters apply in this order. Ties go to the smaller id.
Reported log-probabilities are those of the model (temperature 1, no filter), as servers report
them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from edgekit.dtypes import F32Array, F64Array, I64Array
from edgekit.errors import EngineCrashError, UsageError
from edgekit.runtime.base import GenerateOptions


@dataclass(frozen=True, slots=True)
class Pick:
    """A chosen token; ``logprob`` and ``top`` (id, logprob) only if asked for."""

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Picks tokens; two samplers with the same options and seed pick the same ones.

    Raises:
        UsageError: An option is out of range.
    """

    def __init__(self, options: GenerateOptions) -> None:
        check_options(options)
        self._options = options
        self._random = np.random.default_rng(options.seed)

    def pick(self, logits: F32Array) -> Pick:
        """Choose the next token.

        Args:
            logits: Shape (V,).

        Raises:
            EngineCrashError: The logits are not numbers.
        """
        if self._options.temperature == 0:
            token_id = int(np.argmax(logits))
            # argmax returns the first NaN if there is one, so this check is enough.
            if not math.isfinite(logits[token_id]):
                raise _not_numbers()
        else:
            token_ids, probabilities = distribution(logits, self._options)
            bounds = np.cumsum(probabilities)
            drawn = np.searchsorted(bounds, self._random.random() * bounds[-1], side="right")
            token_id = int(token_ids[min(int(drawn), len(token_ids) - 1)])
        if self._options.n_logprobs == 0:
            return Pick(token_id)
        logprobs = log_softmax(logits)
        best = most_likely(logits, self._options.n_logprobs)
        top = tuple((int(i), float(logprobs[i])) for i in best)
        return Pick(token_id, float(logprobs[token_id]), top)


def check_options(options: GenerateOptions) -> None:
    """Refuse options that no engine can follow.

    Raises:
        UsageError: A number is out of range, or a stop text is empty.
    """
    rules = (
        ("max_tokens", options.max_tokens >= 1, "at least 1"),
        ("temperature", 0 <= options.temperature < math.inf, "0 (greedy) or more"),
        ("top_p", 0 <= options.top_p <= 1, "0 .. 1"),
        ("top_k", options.top_k >= 0, "0 (all) or more"),
        ("n_logprobs", options.n_logprobs >= 0, "0 (none) or more"),
        ("seed", options.seed is None or options.seed >= 0, "0 or more"),
    )
    for name, is_right, wanted in rules:
        if not is_right:
            raise UsageError(f"option {name}", got=getattr(options, name), wanted=wanted)
    if isinstance(options.stop, str) or not all(options.stop):
        raise UsageError("option stop", got=repr(options.stop), wanted="texts that are not empty")


def distribution(logits: F32Array, options: GenerateOptions) -> tuple[I64Array, F64Array]:
    """Give the tokens that may be drawn and their probabilities, most likely first.

    Top-p keeps the shortest head of the list whose sum reaches ``top_p``, at least one token.

    Args:
        logits: Shape (V,).
        options: ``temperature`` above 0, ``top_k``, ``top_p``.

    Returns:
        Ids and probabilities (sum 1), both of shape (N,) with 1 <= N <= V.

    Raises:
        EngineCrashError: The logits are not numbers.
    """
    n_kept = min(options.top_k or len(logits), len(logits))
    if n_kept < len(logits) or options.top_p < 1:
        token_ids = most_likely(logits, n_kept)
    else:
        token_ids = np.arange(len(logits), dtype=np.int64)
    weights = _softmax(logits[token_ids].astype(np.float64) / options.temperature)
    if options.top_p < 1:
        n_nucleus = int(np.searchsorted(np.cumsum(weights), options.top_p, side="left")) + 1
        token_ids, weights = token_ids[:n_nucleus], weights[:n_nucleus]
        weights = weights / weights.sum()
    return token_ids, weights


def most_likely(logits: F32Array, n_kept: int) -> I64Array:
    """Give the ids of the ``n_kept`` largest logits, largest first, ties by smaller id."""
    n_kept = min(n_kept, len(logits))
    if n_kept == len(logits):
        candidates = np.arange(len(logits), dtype=np.int64)
    else:
        # A partition is O(V) where a sort of a 150k vocabulary would cost more than a layer.
        limit = np.partition(logits, len(logits) - n_kept)[len(logits) - n_kept]
        above = np.flatnonzero(logits > limit)
        level = np.flatnonzero(logits == limit)[: n_kept - len(above)]
        candidates = np.sort(np.concatenate([above, level])).astype(np.int64)
    order = np.argsort(-logits[candidates], kind="stable")
    ranked: I64Array = candidates[order]
    return ranked


def log_softmax(logits: F32Array) -> F64Array:
    """Give natural-log probabilities in float64, same shape as ``logits`` (..., V)."""
    shifted = logits.astype(np.float64) - np.max(logits, axis=-1, keepdims=True)
    result: F64Array = shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))
    return result


def _softmax(values: F64Array) -> F64Array:
    peak = values.max()
    if not math.isfinite(peak):
        raise _not_numbers()
    weights: F64Array = np.exp(values - peak)
    if math.isnan(weights.sum()):
        raise _not_numbers()
    weights /= weights.sum()
    return weights


def _not_numbers() -> EngineCrashError:
    return EngineCrashError(
        "the engine returned logits that are not numbers",
        got="NaN or infinity",
        do="Try the fp32 scheme or another engine; the weights may not fit half precision.",
    )
