"""How far quantized weights are from the float model's: one float forward, values of each token.

The reference's log-probabilities are computed once and kept on disk, float32, one row a token.
Whatever is measured runs through edgekit's plain numpy forward in float32 on the same documents;
values of single tokens are kept, so that any other mean can be taken later.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from edgekit.dtypes import F32Array, F64Array
from edgekit.families.base import SourceModel
from edgekit.families.spec import DecoderSpec
from edgekit.reference.forward import Forward
from edgekit.statistics import block_bootstrap_mean
from study.texts import Document

_N_RESAMPLES: Final = 2000
_SEED: Final = 20260101
_N_AT_ONCE: Final = 16  # tokens whose rows of the vocabulary stay in the processor's cache

Logits = Callable[[Document], F32Array]
"""Token ids (T,) to the logits of every position, (T, V)."""


def forward_logits(spec: DecoderSpec, weights: Callable[[str], F32Array]) -> Logits:
    """Give the float forward of a decoder.

    Args:
        spec: The decoder.
        weights: Canonical name to float32 array.
    """
    forward = Forward(spec, weights, np.float32)

    def run(ids: Document) -> F32Array:
        forward.reserve(len(ids))
        is_long = forward.is_long(len(ids))
        residual = forward.embed(np.asarray(ids, dtype=np.int64))
        for layer in range(spec.n_layers):
            cache = forward.empty_cache(len(ids))
            residual = forward.run_layer(layer, residual, cache, 0, is_long=is_long)
        logits: F32Array = forward.head(forward.finish(residual)).astype(np.float32)
        return logits

    return run


@dataclass(frozen=True, slots=True, eq=False)
class TokenValues:
    """What was measured at every token that has a successor, all documents in one row.

    Attributes:
        kl: KL(float model || quantized) in nats, float64 (N,).
        nll: Minus log-probability of the right successor, float64 (N,).
        is_same: Whether the likeliest successor is the float model's, bool (N,).
        counts: Tokens of each document; their sum is N.
        about: What the row is: label, bits, seconds, versions.
    """

    kl: F64Array
    nll: F64Array
    is_same: NDArray[np.bool_]
    counts: tuple[int, ...]
    about: Mapping[str, Any]

    def save(self, path: Path) -> None:
        """Write a file, whole or not at all."""
        partial = path.with_suffix(".partial.npz")
        np.savez_compressed(
            partial,
            kl=self.kl,
            nll=self.nll,
            is_same=self.is_same,
            counts=np.asarray(self.counts),
            about=np.asarray(json.dumps(dict(self.about))),
        )
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what ``save`` wrote."""
        with np.load(path) as stored:
            return cls(
                stored["kl"],
                stored["nll"],
                stored["is_same"],
                tuple(int(n) for n in stored["counts"]),
                json.loads(str(stored["about"])),
            )

    @property
    def kl_mean(self) -> float:
        """Nats per token."""
        return float(self.kl.mean())

    @property
    def perplexity(self) -> float:
        """Perplexity per token."""
        return float(np.exp(self.nll.mean()))

    def kl_interval(self) -> tuple[float, float]:
        """Give the 95 % interval of the mean KL, resampling documents."""
        return block_bootstrap_mean(self.document_sums(), self.counts)

    def document_sums(self) -> list[float]:
        """Give the summed KL of each document."""
        return document_sums(self.kl, self.counts)


def document_sums(values: F64Array, counts: Sequence[int]) -> list[float]:
    """Sum the values of each document's tokens."""
    ends = np.cumsum(counts)
    return [float(values[end - n : end].sum()) for end, n in zip(ends, counts, strict=True)]


def ratio_interval(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Give the 95 % interval of sum(first) / sum(second) over the same documents, resampled.

    Args:
        first: A sum for each document.
        second: Another sum for the same documents, all above zero.
    """
    above, below = np.asarray(first), np.asarray(second)
    picks = np.random.default_rng(_SEED).integers(0, len(above), (_N_RESAMPLES, len(above)))
    ratios = above[picks].sum(axis=1) / below[picks].sum(axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)


class Reference:
    """The float model's log-probabilities of the documents, computed once and kept on disk.

    Args:
        source: The float model.
        documents: What it reads, two tokens each at least.
        folder: Where the values lie.
    """

    def __init__(self, source: SourceModel, documents: Sequence[Document], folder: Path) -> None:
        self.documents = tuple(documents)
        self.counts = tuple(len(ids) - 1 for ids in self.documents)
        self.spec = source.spec
        digest = hashlib.sha256(repr(self.documents).encode())
        digest.update(source.checkpoint.sha256().encode())
        self.key: str = digest.hexdigest()[:16]
        self._path = folder / f"reference-{self.key}.npy"
        if not self._path.is_file():
            self._write(source)
        self._log_probs: F32Array = np.load(self._path, mmap_mode="r")

    def _write(self, source: SourceModel) -> None:
        shape = (sum(self.counts), self.spec.vocab_size)
        partial = self._path.with_suffix(".partial")
        table = np.lib.format.open_memmap(partial, "w+", np.float32, shape)
        logits = forward_logits(self.spec, lambda name: source.tensor(name).read())
        start = 0
        for ids in self.documents:
            stop = start + len(ids) - 1
            table[start:stop] = log_softmax(logits(ids)[:-1])
            start = stop
        table.flush()
        del table
        partial.replace(self._path)

    def measure(self, logits: Logits, about: Mapping[str, Any]) -> TokenValues:
        """Compare a model with the reference.

        Args:
            logits: The model.
            about: Kept with the values.
        """
        kl, nll, is_same = [], [], []
        start = 0
        for ids in self.documents:
            found = logits(ids)
            successors = np.asarray(ids[1:])
            for first in range(0, len(successors), _N_AT_ONCE):
                part = slice(first, min(first + _N_AT_ONCE, len(successors)))
                rows = slice(start + part.start, start + part.stop)
                wanted = np.asarray(self._log_probs[rows], dtype=np.float64)
                got = log_softmax(found[part]).astype(np.float64)
                kl.append((np.exp(wanted) * (wanted - got)).sum(axis=-1))
                nll.append(-got[np.arange(len(got)), successors[part]])
                is_same.append(wanted.argmax(axis=-1) == got.argmax(axis=-1))
            start += len(successors)
        return TokenValues(
            np.maximum(np.concatenate(kl), 0.0),  # rounding pushes an exact zero a little below it
            np.concatenate(nll),
            np.concatenate(is_same),
            self.counts,
            about,
        )


def log_softmax(logits: F32Array) -> F32Array:
    """Give log-probabilities (T, V), summed in float64, as float32."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    result: F32Array = wide.astype(np.float32)
    return result
