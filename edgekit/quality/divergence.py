"""Divergence: how far a candidate's next-token distribution is from the float model's.

Both models see the same token ids; every position of a document counts except the last. A document
is walked in chunks, and of a chunk only a few numbers a token are kept, so memory does not depend
on how long the text is. The float model runs beside the candidate (``LiveReference``) or ran before
(``StoredReference``, reference_store.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import exp
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from edgekit.dtypes import F32Array, F64Array
from edgekit.errors import MeasureError
from edgekit.progress import Progress, ignore_progress
from edgekit.records import Divergence
from edgekit.runtime.base import Decoder
from edgekit.statistics import block_bootstrap_mean

_CHUNK_ELEMENTS: Final = 1 << 24  # 64 MiB of float32 logits
_MAX_CHUNK_TOKENS: Final = 256
_BLOCK_ELEMENTS: Final = 1 << 20  # 8 MiB of float64


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """What was found for T tokens; arrays of shape (T,).

    Attributes:
        kl: KL(reference || candidate) in nats; an estimate where the reference is stored.
        kl_bound: A value that KL is not below; equal to ``kl`` where it is exact.
        is_same: Whether both find the same next token likeliest.
        log_prob: The candidate's log-probability of the token that follows.
        reference_log_prob: The float model's.
    """

    kl: F64Array
    kl_bound: F64Array
    is_same: NDArray[np.bool_]
    log_prob: F64Array
    reference_log_prob: F64Array

    @classmethod
    def join(cls, parts: Sequence[Compared]) -> Compared:
        """Put the tokens of several together, in order."""
        return cls(
            np.concatenate([part.kl for part in parts]),
            np.concatenate([part.kl_bound for part in parts]),
            np.concatenate([part.is_same for part in parts]),
            np.concatenate([part.log_prob for part in parts]),
            np.concatenate([part.reference_log_prob for part in parts]),
        )


class Reference(Protocol):
    """The float model on documents, for candidates to be compared with."""

    @property
    def documents(self) -> tuple[tuple[int, ...], ...]:
        """Token ids of each document, at least two."""
        ...

    @property
    def vocab_size(self) -> int:
        """V."""
        ...

    @property
    def top_k(self) -> int | None:
        """How many tokens are known of each distribution; None: all."""
        ...

    def compare(self, document: int, start: int, logits: F32Array) -> Compared:
        """Compare a candidate's logits (T, V) after tokens ``start`` .. ``start + T - 1``.

        Chunks of a document are asked for in order, from its first token on.

        Raises:
            MeasureError: A logit is not finite.
        """
        ...


class LiveReference:
    """A float model that runs beside the candidate, on the same chunk of tokens.

    Args:
        decoder: The float model; the caller closes it.
        documents: Token ids; documents without a next token are left out.

    Raises:
        MeasureError: No document has two tokens.
    """

    def __init__(self, decoder: Decoder, documents: Sequence[Sequence[int]]) -> None:
        self._decoder = decoder
        self._documents = usable_documents(documents)

    @property
    def documents(self) -> tuple[tuple[int, ...], ...]:
        """Token ids of each document."""
        return self._documents

    @property
    def vocab_size(self) -> int:
        """V."""
        return self._decoder.vocab_size

    @property
    def top_k(self) -> None:
        """The whole distribution is known."""
        return

    def compare(self, document: int, start: int, logits: F32Array) -> Compared:
        """Run the float model on the same tokens and compare; see ``Reference.compare``."""
        stop = start + len(logits)
        ids = self._documents[document]
        wanted = self._decoder.forward(ids[start:stop], n_past=start, n_logits=len(logits))
        following = np.asarray(ids[start + 1 : stop + 1])
        return Compared.join(
            [
                _compare_whole(wanted[rows], logits[rows], following[rows])
                for rows in row_blocks_of(logits)
            ]
        )


def measure_divergence(
    decoder: Decoder,
    reference: Reference,
    *,
    step: int = 1,
    progress: Progress = ignore_progress,
    what: str = "divergence",
) -> Divergence:
    """Compare a candidate with the float model.

    Args:
        decoder: The candidate.
        reference: The float model on documents.
        step: Only every ``step``-th document, for engines that are too slow for all of them.
        progress: Called as ``progress(what, n_done, n_total)``, in tokens.
        what: What the progress is called.

    Returns:
        KL(reference || candidate) in nats per token, top-1 agreement, both perplexities.

    Raises:
        MeasureError: The vocabularies differ, or a logit is not finite.
        EngineError: An engine failed.
    """
    if decoder.vocab_size != reference.vocab_size:
        raise MeasureError(
            "vocabulary of the two models to compare",
            got=f"{decoder.vocab_size} tokens",
            wanted=f"{reference.vocab_size} tokens, as the float model has",
            do="Name the model that the artifact was exported from.",
        )
    picked = range(0, len(reference.documents), step)
    n_total = sum(len(reference.documents[index]) - 1 for index in picked)
    n_done = 0
    found: list[Compared] = []
    for index in picked:
        parts = []
        for start, logits in walk(decoder, reference.documents[index]):
            progress(what, n_done, n_total)
            parts.append(reference.compare(index, start, logits))
            n_done += len(logits)
        found.append(Compared.join(parts))
    progress(what, n_total, n_total)
    return _summarize(found, reference.top_k)


def walk(decoder: Decoder, ids: Sequence[int]) -> Iterator[tuple[int, F32Array]]:
    """Run a document in chunks and give (first position, logits (T, V)) of each.

    The last token is not run: nothing follows it.
    """
    n_tokens = len(ids) - 1
    n_chunk = chunk_tokens(decoder.vocab_size)
    for start in range(0, n_tokens, n_chunk):
        part = ids[start : min(start + n_chunk, n_tokens)]
        yield start, decoder.forward(part, n_past=start, n_logits=len(part))


def chunk_tokens(vocab_size: int) -> int:
    """Give how many tokens are run at a time, so that their logits take 64 MiB at most."""
    return min(_MAX_CHUNK_TOKENS, max(1, _CHUNK_ELEMENTS // vocab_size))


def row_blocks_of(logits: F32Array) -> Iterator[slice]:
    """Give slices of rows (T, V) whose float64 copies take 8 MiB at most, or are one row."""
    n_rows = max(1, _BLOCK_ELEMENTS // logits.shape[-1])
    for start in range(0, len(logits), n_rows):
        yield slice(start, start + n_rows)


def usable_documents(documents: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Leave out documents in which no token follows another.

    Raises:
        MeasureError: None is left.
    """
    kept = tuple(tuple(document) for document in documents if len(document) >= 2)
    if not kept:
        raise MeasureError("nothing to compare", got="no document of 2 tokens or more")
    return kept


def _summarize(found: Sequence[Compared], top_k: int | None) -> Divergence:
    """Sum up the tokens of each document; intervals are those of whole documents drawn again."""
    counts = [len(document.kl) for document in found]
    n_tokens = sum(counts)

    def mean_of(
        value: Callable[[Compared], NDArray[np.generic]],
    ) -> tuple[float, float, float]:
        sums = [float(value(document).sum()) for document in found]
        return (sum(sums) / n_tokens, *block_bootstrap_mean(sums, counts))

    kl_mean, kl_low, kl_high = mean_of(lambda document: document.kl)
    kl_bound, _, _ = mean_of(lambda document: document.kl_bound)
    top1, top1_low, top1_high = mean_of(lambda document: document.is_same)
    loss, loss_low, loss_high = mean_of(lambda document: -document.log_prob)
    reference_loss, _, _ = mean_of(lambda document: -document.reference_log_prob)
    every = np.concatenate([document.kl for document in found])
    return Divergence(
        n_documents=len(counts),
        n_tokens=n_tokens,
        kl_mean=kl_mean,
        kl_low=kl_low,
        kl_high=kl_high,
        kl_median=float(np.median(every)),
        kl_p99=float(np.quantile(every, 0.99)),
        kl_max=float(every.max()),
        kl_bound=kl_bound,
        top1_agreement=top1,
        top1_low=top1_low,
        top1_high=top1_high,
        perplexity=_perplexity(loss),
        perplexity_low=_perplexity(loss_low),
        perplexity_high=_perplexity(loss_high),
        reference_perplexity=_perplexity(reference_loss),
        top_k=top_k,
    )


def _perplexity(loss: float) -> float:
    """Give exp(loss), kept finite: a record holds no infinity."""
    return exp(min(loss, 700.0))


def token_divergence(wanted: F32Array, got: F32Array) -> F64Array:
    """Give KL(wanted || got) of each row of logits (T, V), in nats.

    Raises:
        MeasureError: The shapes differ, or a logit is not finite.
    """
    if got.shape != wanted.shape:
        raise MeasureError("logits to compare", got=got.shape, wanted=wanted.shape)
    blocks = [_divergence(log_softmax(wanted[r]), log_softmax(got[r])) for r in row_blocks_of(got)]
    return np.concatenate(blocks) if blocks else np.zeros(0)


def _compare_whole(wanted: F32Array, got: F32Array, following: NDArray[np.int64]) -> Compared:
    expected, found = log_softmax(wanted), log_softmax(got)
    rows = np.arange(len(following))
    divergence = _divergence(expected, found)
    return Compared(
        kl=divergence,
        kl_bound=divergence,
        is_same=expected.argmax(axis=-1) == found.argmax(axis=-1),
        log_prob=found[rows, following],
        reference_log_prob=expected[rows, following],
    )


def _divergence(expected: F64Array, got: F64Array) -> F64Array:
    """KL of log-probabilities (T, V), for each row."""
    divergence: F64Array = (np.exp(expected) * (expected - got)).sum(axis=-1)
    # Rounding can push an exact zero a little below it.
    return np.maximum(divergence, 0.0)


def log_softmax(logits: F32Array) -> F64Array:
    """Give log-probabilities of rows of logits (T, V), rounded to float32.

    They are summed in float64 and rounded, so that both sides round alike and equal models differ
    by exactly 0.

    Raises:
        MeasureError: A logit is not finite.
    """
    wide = logits.astype(np.float64)
    if not np.isfinite(wide).all():
        raise MeasureError("logits to compare", got="NaN or infinity", wanted="finite numbers")
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide.astype(np.float32).astype(np.float64)
