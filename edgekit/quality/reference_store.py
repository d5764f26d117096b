"""The reference store: what a float model says after every token of a text, kept in a file.

Of each token the likeliest ``TOP_K`` next tokens are kept with their log-probabilities, the
probability of all others together (the residual), and a sample of ``N_SAMPLES`` of the others,
drawn by their probability. So one run of the float model serves every artifact made from it, and
100,000 tokens of a vocabulary of 131,072 take 161 MB in place of 52 GB.

With P the residual of the float model and Q that of the candidate over the same tokens,

    bound = sum over the kept tokens of p (log p - log q)  +  P (log P - log Q)
    KL    = bound + P * mean over the sample of (r - 1 - log r),  r = (q / Q) / (p / P)

``bound`` takes all others as one token. Joining tokens never adds to a KL divergence (the log sum
inequality; Cover and Thomas, Elements of Information Theory, 2.7), so it is never above the KL of
the whole distributions. What is missing is P times the KL divergence among the others, of which the
sample gives an estimate without bias. (The mean of -log r would be one too. The mean of r over all
others is 1, so r - 1 adds nothing to it, and takes most of the chance out of it.)

Log-probabilities are kept as their distance from the likeliest token, in steps of 1/2048 nats; the
probabilities of the kept tokens are scaled so that they and the residual sum to 1. How much of all
this is lost is measured while the store is written (``StoreErrors``).

A file is the records of all tokens, a JSON text that says what they are, its length and a sha256
of everything before. It appears under its name in one step, so that a reader meets a whole file or
none; a file that is damaged or of another kind is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgekit.dtypes import F32Array, F64Array
from edgekit.errors import MeasureError
from edgekit.files import open_plain
from edgekit.paths import cache_dir
from edgekit.progress import Progress, ignore_progress
from edgekit.quality.divergence import (
    Compared,
    log_softmax,
    row_blocks_of,
    usable_documents,
    walk,
)
from edgekit.runtime.base import Decoder
from edgekit.units import format_bytes

TOP_K: Final = 256
N_SAMPLES: Final = 64
STEP: Final = 1 / 2048
"""Nats between two neighbouring values of a stored log-probability."""
MAX_CACHE_BYTES: Final = 4 << 30
"""Most bytes of all stores in the cache; those not used for longest are removed first."""
_FORMAT: Final = "edgekit reference store 1"
_FOLDER: Final = "reference"
_SUFFIX: Final = ".logprobs"
_PARTIAL: Final = ".partial-"
_MAX_GAP: Final = 0xFFFF
_DIGEST_BYTES: Final = hashlib.sha256().digest_size
_TAIL_BYTES: Final = 8 + _DIGEST_BYTES  # the length of the JSON text, and the sha256
_MAX_FACTS_BYTES: Final = 1 << 20
_CHUNK_BYTES: Final = 1 << 20
_MAX_LOG_RATIO: Final = 40.0  # beyond it only rounding and underflow speak
_LEFT_OVER_S: Final = 86_400.0  # no store takes longer to write
_SEED: Final = 20261
# The stand-in for a quantized model: the float model with noise on every logit, on some tokens.
_STAND_IN_EVERY: Final = 8
_STAND_IN_NOISE: Final = 0.3

Records: TypeAlias = NDArray[np.void]
Facts: TypeAlias = Mapping[str, Any]
"""What decides the content of a store: the model, the engine and its settings. JSON values."""


@dataclass(frozen=True, slots=True)
class StoreErrors:
    """What a store loses, measured against whole distributions while it is written.

    The stand-in is the float model itself with normally distributed noise on every logit, 0.3
    nats of standard deviation, about as far off as a good 4-bit model; on every eighth token.

    Attributes:
        residual_mean, residual_max: Probability of the tokens that are not kept.
        n_tokens: Tokens of the stand-in.
        kl_whole: KL(reference || stand-in) from whole distributions, nats per token.
        kl_stored: The same from the store.
        kl_bound: The part of it that needs no sample.
    """

    residual_mean: float
    residual_max: float
    n_tokens: int
    kl_whole: float
    kl_stored: float
    kl_bound: float


def record_type(vocab_size: int) -> np.dtype[np.void]:
    """Give the record of one token: 1,608 bytes for a vocabulary above 65,536, else 1,288.

    ``gaps`` holds the distances from the likeliest token in steps of ``STEP``: first the kept
    tokens, likeliest first, then the sample; ``ids`` and ``ids_high`` the low 16 and the next 8
    bits of their ids. ``next`` is the log-probability of the token that follows in the text.
    """
    n_kept = min(TOP_K, vocab_size)
    n = n_kept if n_kept == vocab_size else n_kept + N_SAMPLES
    fields: list[tuple[Any, ...]] = [("residual", "<f4"), ("next", "<f4")]
    fields += [("gaps", "<u2", (n,)), ("ids", "<u2", (n,))]
    if vocab_size > 1 << 16:
        fields.append(("ids_high", "u1", (n,)))
    return np.dtype(fields)


def encode(
    log_probs: F64Array, following: NDArray[np.int64], offsets: F64Array
) -> tuple[Records, F64Array]:
    """Make the records of T tokens.

    Args:
        log_probs: The float model's log-probabilities (T, V).
        following: Ids (T,) of the tokens that follow in the text.
        offsets: Numbers (T,) in 0..1 that decide which of the other tokens are drawn.

    Returns:
        The records (T,), and the residuals (T,) before they were rounded.
    """
    n_tokens, vocab_size = log_probs.shape
    n_kept = min(TOP_K, vocab_size)
    rows = np.arange(n_tokens)[:, None]
    first = log_probs.argmax(axis=-1)[:, None]
    ranked = -log_probs
    ranked[rows, first] = -np.inf  # of equally likely tokens that which argmax takes comes first
    kept = np.argpartition(ranked, n_kept - 1, axis=-1)[:, :n_kept]
    kept.sort(axis=-1)
    kept = np.take_along_axis(kept, np.argsort(ranked[rows, kept], axis=-1, kind="stable"), axis=-1)
    others = np.exp(log_probs)
    others[rows, kept] = 0.0
    residual: F64Array = others.sum(axis=-1)
    ids = kept if n_kept == vocab_size else np.hstack([kept, _draw(others, offsets)])
    gaps = (log_probs[rows, first] - log_probs[rows, ids]) / STEP
    records = np.zeros(n_tokens, record_type(vocab_size))
    records["residual"] = residual
    records["next"] = log_probs[rows[:, 0], following]
    records["gaps"] = np.minimum(np.rint(gaps), _MAX_GAP)
    records["ids"] = ids & 0xFFFF
    if "ids_high" in (records.dtype.names or ()):
        records["ids_high"] = ids >> 16
    return records, residual


def _draw(weights: F64Array, offsets: F64Array) -> NDArray[np.int64]:
    """Draw ``N_SAMPLES`` columns of each row by their weight, evenly spread over the total."""
    sums = weights.cumsum(axis=-1)
    places = (np.arange(N_SAMPLES) + offsets[:, None]) / N_SAMPLES * sums[:, -1:]
    # The last column with a weight; a place is not beyond it, whatever rounding does.
    last = sums.shape[-1] - 1 - (weights[:, ::-1] > 0).argmax(axis=-1)
    found = [np.searchsorted(s, p, side="right") for s, p in zip(sums, places, strict=True)]
    drawn: NDArray[np.int64] = np.minimum(np.stack(found), last[:, None])
    return drawn


def compare_records(records: Records, log_probs: F64Array) -> Compared:
    """Compare a candidate's log-probabilities (T, V) with stored ones.

    ``log_prob`` of the result is not filled in: the text is not known here.
    """
    n_tokens, vocab_size = log_probs.shape
    n_kept = min(TOP_K, vocab_size)
    rows = np.arange(n_tokens)[:, None]
    ids = records["ids"].astype(np.int64)
    if "ids_high" in (records.dtype.names or ()):
        ids |= records["ids_high"].astype(np.int64) << 16
    residual = records["residual"].astype(np.float64)
    gaps = records["gaps"].astype(np.float64) * STEP
    scale = np.log1p(-residual) - np.log(np.exp(-gaps[:, :n_kept]).sum(axis=-1))
    ours = scale[:, None] - gaps
    theirs = log_probs[rows, ids]
    kept, kept_theirs = ours[:, :n_kept], theirs[:, :n_kept]
    bound: F64Array = (np.exp(kept) * (kept - kept_theirs)).sum(axis=-1)
    estimate = bound
    if n_kept < vocab_size:
        log_residual = np.log(np.maximum(residual, np.finfo(np.float64).tiny))
        others = log_probs.copy()
        others[rows, ids[:, :n_kept]] = -np.inf
        log_others = _log_sum(others)
        bound = bound + residual * (log_residual - log_others)
        log_r = (theirs - ours)[:, n_kept:] - (log_others - log_residual)[:, None]
        log_r = np.minimum(log_r, _MAX_LOG_RATIO)
        estimate = bound + residual * (np.expm1(log_r) - log_r).mean(axis=-1)
    bound = np.maximum(bound, 0.0)  # rounding can push a zero a little below it
    return Compared(
        kl=estimate,
        kl_bound=bound,
        is_same=ids[:, 0] == log_probs.argmax(axis=-1),
        log_prob=np.full(n_tokens, np.nan),
        reference_log_prob=records["next"].astype(np.float64),
    )


def _log_sum(values: F64Array) -> F64Array:
    """Give the log of the sum of exponentials of each row; finite in at least one place."""
    top = values.max(axis=-1, keepdims=True)
    total: F64Array = top[:, 0] + np.log(np.exp(values - top).sum(axis=-1))
    return total


class StoredReference:
    """A float model on documents, from a file; satisfies ``Reference``.

    Attributes:
        errors: What the store loses, as measured when it was written.
        n_bytes: Size of the file.
    """

    def __init__(
        self,
        documents: tuple[tuple[int, ...], ...],
        vocab_size: int,
        records: Records,
        errors: StoreErrors,
        n_bytes: int,
    ) -> None:
        self._documents = documents
        self._vocab_size = vocab_size
        self._records = records
        self._starts = np.cumsum([0, *(len(ids) - 1 for ids in documents)])
        self.errors = errors
        self.n_bytes = n_bytes

    @property
    def documents(self) -> tuple[tuple[int, ...], ...]:
        """Token ids of each document."""
        return self._documents

    @property
    def vocab_size(self) -> int:
        """V."""
        return self._vocab_size

    @property
    def top_k(self) -> int | None:
        """How many tokens are kept of each distribution; None: all."""
        return None if self._vocab_size <= TOP_K else TOP_K

    def compare(self, document: int, start: int, logits: F32Array) -> Compared:
        """Compare a chunk; see ``Reference.compare``."""
        first = int(self._starts[document]) + start
        following = np.asarray(self._documents[document][start + 1 :][: len(logits)])
        parts = []
        for rows in row_blocks_of(logits):
            log_probs = log_softmax(logits[rows])
            records = np.array(
                self._records[first + rows.start : first + rows.stop][: len(log_probs)]
            )
            found = compare_records(records, log_probs)
            found.log_prob[:] = log_probs[np.arange(len(log_probs)), following[rows]]
            parts.append(found)
        return Compared.join(parts)


def stored_reference(
    open_decoder: Callable[[], contextlib.AbstractContextManager[Decoder]],
    documents: Sequence[Sequence[int]],
    facts: Facts,
    *,
    progress: Progress = ignore_progress,
) -> StoredReference:
    """Give a float model's store of documents; the model runs only if there is none.

    Args:
        open_decoder: Opens the float model.
        documents: Token ids; documents without a next token are left out.
        facts: What decides the model's answers: another value is another store.
        progress: Called as ``progress("float model", n_done, n_total)``, in tokens.

    Raises:
        MeasureError: No document has two tokens, a logit is not finite, or no disk has room.
        EngineError: The model failed.
    """
    usable = usable_documents(documents)
    said = json.loads(json.dumps({**facts, "documents": hash_documents(usable)}))
    path = _store_path(said)
    if path is not None:
        with contextlib.suppress(OSError, ValueError):
            found = read_store(path, usable, said)
            os.utime(path)
            return found
    with open_decoder() as decoder:
        return _write_somewhere(path, decoder, usable, said, progress)


def hash_documents(documents: Sequence[Sequence[int]]) -> str:
    """Give the sha256 of token ids as hex digits."""
    return hashlib.sha256(json.dumps([list(ids) for ids in documents]).encode()).hexdigest()


def _store_path(facts: Facts) -> Path | None:
    """Give the file of a store in the cache; None where the user has no cache."""
    try:
        folder = cache_dir() / _FOLDER
    except RuntimeError:  # the system knows no home for this user
        return None
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    return folder / (name + _SUFFIX)


def read_store(path: Path, documents: tuple[tuple[int, ...], ...], facts: Facts) -> StoredReference:
    """Open a store and check that every byte is as it was written.

    Raises:
        OSError: There is none, or it cannot be read.
        ValueError: It is damaged, or of another model, text or version.
    """
    with open_plain(path) as stream:
        return _read(stream, documents, facts)


def _read(
    stream: BufferedReader, documents: tuple[tuple[int, ...], ...], facts: Facts
) -> StoredReference:
    n_bytes = os.fstat(stream.fileno()).st_size
    digest = hashlib.sha256()
    for piece in _pieces(stream, n_bytes - _DIGEST_BYTES):
        digest.update(piece)
    if stream.read(_DIGEST_BYTES) != digest.digest():
        raise ValueError("damaged")
    stream.seek(n_bytes - _TAIL_BYTES)
    n_text = int.from_bytes(stream.read(8), "little")
    n_records_bytes = n_bytes - _TAIL_BYTES - n_text
    if not 0 < n_text <= _MAX_FACTS_BYTES or n_records_bytes < 0:
        raise ValueError("not a store")
    stream.seek(n_records_bytes)
    try:
        said = json.loads(stream.read(n_text))
        is_same = said["format"] == _FORMAT and said["facts"] == facts
        vocab_size, errors = said["vocab_size"], StoreErrors(**said["errors"])
    except (KeyError, TypeError) as error:
        raise ValueError("not a store") from error
    dtype = record_type(vocab_size)
    n_tokens = sum(len(ids) - 1 for ids in documents)
    if not is_same or n_records_bytes != n_tokens * dtype.itemsize:
        raise ValueError("a store of something else")
    records: Records = np.memmap(stream, dtype, mode="r", shape=(n_tokens,))
    return StoredReference(documents, vocab_size, records, errors, n_bytes)


def _pieces(stream: BufferedReader, n_bytes: int) -> Iterator[bytes]:
    """Read ``n_bytes`` from the start, a piece at a time.

    Raises:
        ValueError: There are fewer.
    """
    if n_bytes < _TAIL_BYTES - _DIGEST_BYTES:
        raise ValueError("shorter than any store")
    while n_bytes:
        piece = stream.read(min(_CHUNK_BYTES, n_bytes))
        if not piece:
            raise ValueError("cut off")
        n_bytes -= len(piece)
        yield piece


def _write_somewhere(
    path: Path | None,
    decoder: Decoder,
    documents: tuple[tuple[int, ...], ...],
    facts: Facts,
    progress: Progress,
) -> StoredReference:
    """Write a store into the cache, or where that cannot be written, into an unnamed file."""
    n_tokens = sum(len(ids) - 1 for ids in documents)
    n_wanted = n_tokens * record_type(decoder.vocab_size).itemsize
    partial = None if path is None else _start_file(path.parent, n_wanted)
    if path is None or partial is None:
        return _write_unnamed(decoder, documents, facts, progress, n_wanted)
    try:
        with _mapped_disk_errors(n_wanted):
            with partial.open("r+b") as stream:
                write_store(stream, decoder, documents, facts, progress)
            found = read_store(partial, documents, facts)
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        forget_oldest(path.parent, MAX_CACHE_BYTES, keep=path)
    return found


def _start_file(folder: Path, n_bytes: int) -> Path | None:
    """Make an empty file; None where it cannot be made or the disk has no room for ``n_bytes``."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if shutil.disk_usage(folder).free < n_bytes:
            return None
        descriptor, name = tempfile.mkstemp(prefix=_PARTIAL, dir=folder)
    except OSError:
        return None
    os.close(descriptor)
    return Path(name)


def _write_unnamed(
    decoder: Decoder,
    documents: tuple[tuple[int, ...], ...],
    facts: Facts,
    progress: Progress,
    n_wanted: int,
) -> StoredReference:
    with _mapped_disk_errors(n_wanted), tempfile.TemporaryFile() as stream:
        write_store(stream, decoder, documents, facts, progress)
        stream.seek(0)
        with os.fdopen(os.dup(stream.fileno()), "rb") as again:
            return _read(again, documents, facts)


@contextlib.contextmanager
def _mapped_disk_errors(n_wanted: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MeasureError(
            "the float model's probabilities cannot be stored",
            got=error.strerror or str(error),
            wanted=f"{format_bytes(n_wanted)} on a disk",
            do="Free some space, or set EDGEKIT_HOME to a folder on another disk.",
        ) from error


def write_store(
    stream: BinaryIO,
    decoder: Decoder,
    documents: tuple[tuple[int, ...], ...],
    facts: Facts,
    progress: Progress = ignore_progress,
) -> None:
    """Run a float model over documents and write what it says.

    Raises:
        MeasureError: A logit is not finite.
        EngineError: The model failed.
        OSError: The file cannot be written.
    """
    digest = hashlib.sha256()

    def put(data: bytes) -> None:
        digest.update(data)
        stream.write(data)

    rng = np.random.default_rng(_SEED)
    n_total = sum(len(ids) - 1 for ids in documents)
    losses = _Losses()
    n_done = 0
    for ids in documents:
        for start, logits in walk(decoder, ids):
            progress("float model", n_done, n_total)
            following = np.asarray(ids[start + 1 :][: len(logits)])
            for rows in row_blocks_of(logits):
                log_probs = log_softmax(logits[rows])
                records, residual = encode(log_probs, following[rows], rng.random(len(log_probs)))
                losses.add(records, residual, log_probs, n_done + rows.start)
                put(records.tobytes())
            n_done += len(logits)
    progress("float model", n_total, n_total)
    said = {
        "format": _FORMAT,
        "facts": facts,
        "vocab_size": decoder.vocab_size,
        "errors": asdict(losses.result()),
    }
    text = json.dumps(said, sort_keys=True).encode()
    put(text)
    put(len(text).to_bytes(8, "little"))
    stream.write(digest.digest())
    stream.flush()


class _Losses:
    """Adds up what ``StoreErrors`` says."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(_SEED + 1)
        self._residual_sum = self._residual_max = 0.0
        self._n_tokens = self._n_stand_in = 0
        self._sums = np.zeros(3)

    def add(self, records: Records, residual: F64Array, log_probs: F64Array, first: int) -> None:
        """Add T tokens, of which ``first`` is the number of the first in the text."""
        self._n_tokens += len(records)
        self._residual_sum += float(residual.sum())
        self._residual_max = max(self._residual_max, float(residual.max()))
        rows = np.flatnonzero((first + np.arange(len(records))) % _STAND_IN_EVERY == 0)
        if not rows.size:
            return
        expected = log_probs[rows]
        noise = self._rng.normal(0.0, _STAND_IN_NOISE, expected.shape)
        stand_in = log_softmax((expected + noise).astype(np.float32))
        whole = (np.exp(expected) * (expected - stand_in)).sum(axis=-1)
        found = compare_records(records[rows], stand_in)
        self._n_stand_in += len(rows)
        self._sums += [whole.sum(), found.kl.sum(), found.kl_bound.sum()]

    def result(self) -> StoreErrors:
        """Give the means."""
        whole, stored, bound = (float(value) / self._n_stand_in for value in self._sums)
        return StoreErrors(
            residual_mean=self._residual_sum / self._n_tokens,
            residual_max=self._residual_max,
            n_tokens=self._n_stand_in,
            kl_whole=whole,
            kl_stored=stored,
            kl_bound=bound,
        )


def forget_oldest(folder: Path, max_bytes: int, *, keep: Path) -> None:
    """Remove stores, those not used for longest first, until the rest takes ``max_bytes`` at most.

    A process that reads a removed store goes on reading it. What killed processes left unfinished
    is removed after a day.

    Args:
        folder: Where the stores are.
        max_bytes: See above.
        keep: A store that stays, even if it alone is larger.
    """
    entries = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            if path.name.startswith(_PARTIAL):
                if time.time() - status.st_mtime > _LEFT_OVER_S:
                    path.unlink(missing_ok=True)
            elif path.suffix == _SUFFIX and path != keep:
                entries.append((status.st_mtime_ns, path, status.st_size))
    n_bytes = keep.stat().st_size + sum(size for _, _, size in entries)
    for _, path, size in sorted(entries):
        if n_bytes <= max_bytes:
            return
        path.unlink(missing_ok=True)
        n_bytes -= size


def describe_errors(store: StoredReference) -> str:
    """Say in one sentence how much a store loses."""
    errors = store.errors
    if store.top_k is None:
        return "the float model's whole distributions are stored"
    return (
        f"stored: the {store.top_k} likeliest of {store.vocab_size:,} tokens "
        f"({format_bytes(store.n_bytes)}), {100 * errors.residual_mean:.2f} % of the probability "
        f"lies on others; on a stand-in {errors.kl_whole:.5f} nats away the store gives "
        f"{errors.kl_stored:.5f}, without its sample {errors.kl_bound:.5f}"
    )
