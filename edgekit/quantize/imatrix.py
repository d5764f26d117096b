"""Importance matrices of a model: llama.cpp's entries as mean squares of the inputs of matrices.

llama.cpp and edgekit name the same matrices differently. Its converter moves rows of q and k, never
columns, so the input channels of every matrix are in the same order in both.

Some architectures store q, k and v (``attn_qkv``), or gate and up (``ffn_up``), as one tensor. What
is stored together reads the same inputs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np

from edgekit.checkpoint.gguf.architectures import ARCHITECTURES
from edgekit.dtypes import F32Array, F64Array
from edgekit.errors import CheckpointError
from edgekit.families.base import SourceModel
from edgekit.families.spec import DecoderSpec
from edgekit.formats.imatrix import Imatrix, ImatrixEntry, read_imatrix
from edgekit.progress import Progress, ignore_progress
from edgekit.reference.forward import FloatArray, Forward

# Part of a canonical name -> llama.cpp's names of the tensor that holds it, the usual one first.
_PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    "q": ("attn_q", "attn_qkv"),
    "k": ("attn_k", "attn_qkv"),
    "v": ("attn_v", "attn_qkv"),
    "o": ("attn_output",),
    "gate": ("ffn_gate", "ffn_up"),
    "up": ("ffn_up",),
    "down": ("ffn_down",),
}
_HEAD: Final = "output.weight"
_TIED_HEAD: Final = "token_embd.weight"
_MAX_NAMED: Final = 4


@dataclass(frozen=True, slots=True, eq=False)
class InputPower:
    """The mean square of each input channel of the matrices of a model.

    Attributes:
        mean_squares: Canonical name of a matrix to float64 (M,), finite and not negative. The
            output matrix (``lm_head``, or ``embed`` where it is tied) may be absent.
        n_tokens: How many tokens were read; 0 if it is not known.
        read: What was read, in words.
        notes: What a user should know, one sentence each.
    """

    mean_squares: Mapping[str, F64Array]
    n_tokens: int
    read: str
    notes: tuple[str, ...] = ()

    @property
    def of_layers(self) -> Mapping[str, F64Array]:
        """Those of all but a tied embedding, whose rows are also what tokens begin as."""
        return {name: values for name, values in self.mean_squares.items() if name != "embed"}


def open_input_power(path: str | Path, spec: DecoderSpec) -> InputPower:
    """Read an importance matrix file for a decoder.

    Args:
        path: A file of either of llama.cpp's forms.
        spec: The decoder that it must belong to.

    Raises:
        FormatError: The file is damaged, or no importance matrix.
        CheckpointError: It belongs to another model: a matrix has no entry or an entry of another
            width; or no token reached a matrix.
    """
    imatrix = read_imatrix(path)
    shapes = spec.weight_shapes()
    found: dict[str, F64Array] = {}
    used: set[str] = set()
    missing: list[str] = []
    for name, stored in _stored_names(spec):
        theirs = next((n for n in stored if n in imatrix.entries), None)
        if theirs is None:
            if name not in ("embed", "lm_head"):
                missing.append(f"{name} ({stored[0]})")
            continue
        used.add(theirs)
        found[name] = _mean_squares(f"{path}: {theirs}", imatrix.entries[theirs], shapes[name][1])
    if missing:
        raise CheckpointError(
            f"{path}: {len(missing)} matrices of the model have no entry",
            got=f"none for {', '.join(missing[:_MAX_NAMED])}",
            wanted="an importance matrix of this model",
            do="Name the file that was made with this model.",
        )
    notes = []
    if unused := sorted(imatrix.entries.keys() - used):
        more = f" and {len(unused) - 1} more" if unused[1:] else ""
        notes.append(f"imatrix entries of no matrix of the decoder: {unused[0]}{more}")
    n_tokens = imatrix.n_chunks * imatrix.n_chunk_tokens
    texts = (
        ", ".join(Path(name).name for name in imatrix.datasets) or "a text that it does not name"
    )
    size = f"{imatrix.n_chunks} chunks of {texts}" if imatrix.n_chunks else texts
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    read = f"imatrix file {Path(path).name} (sha256 {digest[:16]}): {size}"
    return InputPower(MappingProxyType(found), n_tokens, read, tuple(notes))


def make_imatrix(
    mean_squares: Mapping[str, F64Array],
    *,
    spec: DecoderSpec,
    model_type: str,
    n_tokens: int,
    n_chunk_tokens: int,
    datasets: Sequence[str],
) -> Imatrix:
    """Put what was measured under llama.cpp's names.

    Args:
        mean_squares: Canonical name of a matrix to the mean square of each input channel, (M,).
            Where several matrices are stored as one, the first one's count.
        spec: The decoder.
        model_type: As in config.json; says which architecture stores matrices together.
        n_tokens: How many tokens were read.
        n_chunk_tokens: Tokens of one piece of text.
        datasets: Names of the texts.
    """
    layer_names = {
        name
        for architecture in ARCHITECTURES.values()
        if architecture.model_type == model_type
        for name in architecture.layer
    }
    entries: dict[str, ImatrixEntry] = {}
    counts = np.array([float(n_tokens)])
    for name, stored in _stored_names(spec):
        if name not in mean_squares:
            continue
        # Where the architecture is not one of llama.cpp's, the usual names serve.
        known = (n for n in stored if not layer_names or _part_of(n) in {*layer_names, ""})
        entries.setdefault(
            next(known, stored[0]), ImatrixEntry(mean_squares[name][None, :], counts)
        )
    n_chunks = -(-n_tokens // n_chunk_tokens)
    return Imatrix(MappingProxyType(entries), tuple(datasets), n_chunks, n_chunk_tokens)


def measure_power(
    source: SourceModel,
    sequences: Sequence[Sequence[int]],
    *,
    progress: Progress = ignore_progress,
) -> dict[str, F64Array]:
    """Measure what an importance matrix holds: each token counts by how loud it is.

    Args:
        source: The model.
        sequences: Token ids, each read by itself.
        progress: Called as ``progress("measure inputs", n_done, n_layers)`` after each layer.

    Returns:
        Canonical name of each matrix, the output matrix included, to the mean square of each input
        channel, (M,).
    """
    spec = source.spec
    forward = _Summing(spec, lambda name: source.tensor(name).read())
    texts = [np.asarray(sequence, dtype=np.int64) for sequence in sequences if sequence]
    forward.reserve(max(map(len, texts)))
    n_tokens = sum(map(len, texts))
    residuals = [forward.embed(ids) for ids in texts]
    for layer in range(spec.n_layers):
        for place, residual in enumerate(residuals):
            cache, is_long = forward.empty_cache(len(residual)), forward.is_long(len(residual))
            residuals[place] = forward.run_layer(layer, residual, cache, 0, is_long=is_long)
        forward.close()  # a layer's weights are not needed again
        progress("measure inputs", layer + 1, spec.n_layers)
    head = "embed" if spec.is_tied else "lm_head"
    for residual in residuals:
        forward.add(head, forward.finish(residual))
    return {name: squares / n_tokens for name, squares in forward.squares.items()}


class _Summing(Forward):
    """A forward that sums the squares of what every matrix reads.

    Attributes:
        squares: Canonical name of a matrix to the sums of its input channels, (M,).
    """

    def __init__(self, spec: DecoderSpec, weights: Callable[[str], F32Array]) -> None:
        super().__init__(spec, weights)
        self.squares: dict[str, F64Array] = {}

    def add(self, name: str, inner: FloatArray) -> None:
        """Add the inputs of a matrix, (T, M)."""
        squares = np.square(inner, dtype=np.float64).sum(axis=0)
        self.squares[name] = self.squares.get(name, 0.0) + squares

    def _matmul(self, inner: FloatArray, name: str) -> FloatArray:
        self.add(name, inner)
        return super()._matmul(inner, name)


def _stored_names(spec: DecoderSpec) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Give each matrix that multiplies, and the names that its tensor may have in llama.cpp."""
    for layer in range(spec.n_layers):
        for part, theirs in _PARTS.items():
            yield f"layers.{layer}.{part}", tuple(f"blk.{layer}.{name}.weight" for name in theirs)
    # llama-imatrix measures the output matrix only when asked to.
    yield ("embed", (_TIED_HEAD, _HEAD)) if spec.is_tied else ("lm_head", (_HEAD,))


def _part_of(stored: str) -> str:
    """Give the name inside a layer; empty for tensors outside the layers."""
    return stored.split(".")[2] if stored.startswith("blk.") else ""


def _mean_squares(where: str, entry: ImatrixEntry, n_cols: int) -> F64Array:
    n_matrices, n_channels = entry.mean_squares.shape
    if (n_matrices, n_channels) != (1, n_cols):
        raise CheckpointError(
            f"{where}: input channels",
            got=n_channels if n_matrices == 1 else f"{n_matrices} matrices of {n_channels}",
            wanted=n_cols,
            do="Name the file that was made with this model.",
        )
    if not entry.counts[0] > 0:
        raise CheckpointError(
            f"{where}: tokens that were read",
            got=0,
            wanted="at least 1",
            do="Make the file again with a longer text.",
        )
    means: F64Array = entry.mean_squares[0]
    return means
