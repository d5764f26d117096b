"""Divergence: how far a candidate's next-token distribution is from the float model's.

Both models see the same token ids; every position of a document counts except the last. The
reference's logits are kept (documents are short), so each model runs once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from edgekit.dtypes import F32Array, F64Array
from edgekit.errors import MeasureError
from edgekit.records import Divergence
from edgekit.statistics import block_bootstrap_mean

Logits: TypeAlias = Callable[[Sequence[int]], F32Array]
"""Token ids (T,) to logits (T, V)."""


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceRun:
    """The float model's log-probabilities, float32 (T - 1, V), one array a document."""

    documents: tuple[tuple[int, ...], ...]
    log_probs: tuple[F32Array, ...]

    @property
    def perplexity(self) -> float:
        """Perplexity of the float model itself, per token."""
        picked = [_picked(t, ids) for t, ids in zip(self.log_probs, self.documents, strict=True)]
        return float(np.exp(-np.concatenate(picked).mean()))

    def subsample(self, step: int) -> ReferenceRun:
        """Keep every ``step``-th document, for engines that are too slow for all of them."""
        return ReferenceRun(self.documents[::step], self.log_probs[::step])


def run_reference(logits: Logits, documents: Sequence[Sequence[int]]) -> ReferenceRun:
    """Run the float model over the documents once.

    Raises:
        MeasureError: No document has two tokens, or a logit is not finite.
    """
    kept = tuple(tuple(document) for document in documents if len(document) >= 2)
    if not kept:
        raise MeasureError("nothing to compare", got="no document of 2 tokens or more")
    tables = tuple(_log_softmax(logits(document)[:-1]) for document in kept)
    return ReferenceRun(kept, tables)


def measure_divergence(logits: Logits, reference: ReferenceRun) -> Divergence:
    """Compare a candidate with the reference on the reference's documents.

    Returns:
        KL(reference || candidate) in nats per token, top-1 agreement, both perplexities.

    Raises:
        MeasureError: The vocabularies differ, or a logit is not finite.
    """
    kl_sums: list[float] = []
    kl_tokens: list[F64Array] = []
    n_same = 0
    nll = 0.0
    for ids, wanted in zip(reference.documents, reference.log_probs, strict=True):
        got = _log_softmax(logits(ids)[:-1]).astype(np.float64)
        if got.shape != wanted.shape:
            raise MeasureError("logits to compare", got=got.shape, wanted=wanted.shape)
        expected = wanted.astype(np.float64)
        divergence = (np.exp(expected) * (expected - got)).sum(axis=-1)  # (T - 1,)
        # Rounding can push an exact zero a little below it.
        divergence = np.maximum(divergence, 0.0)
        kl_sums.append(float(divergence.sum()))
        kl_tokens.append(divergence)
        n_same += int((got.argmax(axis=-1) == expected.argmax(axis=-1)).sum())
        nll -= float(_picked(got, ids).sum())
    counts = [len(ids) - 1 for ids in reference.documents]
    n_tokens = sum(counts)
    low, high = block_bootstrap_mean(kl_sums, counts)
    every = np.concatenate(kl_tokens)
    return Divergence(
        n_documents=len(counts),
        n_tokens=n_tokens,
        kl_mean=sum(kl_sums) / n_tokens,
        kl_low=low,
        kl_high=high,
        kl_p99=float(np.quantile(every, 0.99)),
        kl_max=float(every.max()),
        top1_agreement=n_same / n_tokens,
        perplexity=float(np.exp(nll / n_tokens)),
        reference_perplexity=reference.perplexity,
    )


def _log_softmax(logits: F32Array) -> F32Array:
    """Sum in float64, keep float32: both sides round alike, so equal models differ by exactly 0."""
    wide = logits.astype(np.float64)
    if not np.isfinite(wide).all():
        raise MeasureError("logits to compare", got="NaN or infinity", wanted="finite numbers")
    shifted = wide - wide.max(axis=-1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    result: F32Array = log_probs.astype(np.float32)
    return result


def _picked(log_probs: F64Array | F32Array, ids: Sequence[int]) -> F64Array:
    rows = np.arange(len(ids) - 1)
    picked: F64Array = log_probs[rows, np.asarray(ids[1:])].astype(np.float64)
    return picked
