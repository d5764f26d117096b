"""``PrequantizedTensor`` and ``DecodedTensor``: weights that their source stores quantized.

Both kinds can be read as floats like every other tensor. A ``PrequantizedTensor`` also gives its
integer codes and scales, so that a caller can keep them: 4 or 8 bits, groups along the input that
are multiples of 32. A ``DecodedTensor`` gives only floats, and the reason why its codes cannot be
kept. The file of each method knows how its parts are packed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from edgekit.dtypes import DTYPES, Bits, F32Array, I64Array, U8Array, zero_point
from edgekit.encoding import BLOCKS, Encoding
from edgekit.errors import CheckpointError
from edgekit.formats.packing import unpack_codes
from edgekit.formats.safetensors import SafetensorsTensor
from edgekit.tensors import LazyTensor, TensorInfo

DOWNLOAD_AGAIN: Final = "Download the model again."


class CodeRows(Protocol):
    """Rows of a matrix of codes, whatever the source's layout; rows of the (N, M) matrix."""

    def codes(self, start: int, stop: int) -> U8Array:
        """Read codes, shape (stop - start, M), values 0 .. 2**bits - 1."""
        ...

    def scales(self, start: int, stop: int) -> F32Array:
        """Read scales, shape (stop - start, M // G) with the source's own group G."""
        ...

    def biases(self, start: int, stop: int) -> F32Array | None:
        """Read what is added to code times scale; None: the zero point is in the middle."""
        ...


class AffineRows(CodeRows, Protocol):
    """Codes with any zero point."""

    def zeros(self, start: int, stop: int) -> F32Array | None:
        """Read the code that stands for 0 in each group, shaped like scales; None: the middle."""
        ...


class FloatRows(Protocol):
    """Rows of a matrix from which edgekit takes only the values, whatever the source's layout."""

    def read(self, start: int, stop: int) -> F32Array:
        """Read rows ``start:stop`` as a fresh float32 array, shape (stop - start, M)."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class AffineFloats:
    """The floats that codes, scales and zero points stand for; satisfies ``FloatRows``.

    Attributes:
        stored: The stored parts.
        groups: As ``affine_values`` takes them.
        middle: The zero point where ``stored`` gives neither zeros nor biases.
    """

    stored: AffineRows
    groups: I64Array | int
    middle: int

    def read(self, start: int, stop: int) -> F32Array:
        """Read rows ``start:stop`` as float32."""
        codes, scales = self.stored.codes(start, stop), self.stored.scales(start, stop)
        zeros, biases = self.stored.zeros(start, stop), self.stored.biases(start, stop)
        if zeros is None and biases is None:
            zeros = np.full_like(scales, self.middle)
        return affine_values(codes, scales, zeros=zeros, biases=biases, groups=self.groups)


@dataclass(frozen=True, slots=True)
class NotRead:
    """Rows of a matrix of which only the header was read."""

    def read(self, start: int, stop: int) -> F32Array:
        """Refuse: there is nothing to read.

        Raises:
            CheckpointError: Always.
        """
        raise CheckpointError(
            "the weights were not downloaded", got="their header", wanted="the weights"
        )


@dataclass(frozen=True, slots=True, eq=False)
class DecodedTensor:
    """An (N, M) matrix of a quantized source, read as floats; satisfies ``LazyTensor``.

    Attributes:
        info: Name, shape, and the float type of its scales.
        label: Format, bits and group of the source, such as ``gptq int3-g128``.
        reason: Why its codes cannot be kept, such as ``3 bits``.
        bits: Bits of a stored value, scales not counted.
        rows: The stored parts.
        has_shape: Whether ``info`` has the weight's own shape; not if only headers were read
            and the shape is among the values.
    """

    info: TensorInfo
    label: str
    reason: str
    bits: int
    rows: FloatRows
    has_shape: bool = True

    def read(self) -> F32Array:
        """Read the whole matrix as float32, shape ``info.shape``."""
        return self.read_rows(0, self.info.shape[0])

    def read_rows(self, start: int, stop: int) -> F32Array:
        """Read rows ``start:stop`` as float32."""
        # NaN and infinity are found by the reader (families/base.py); numpy need not warn.
        with np.errstate(invalid="ignore", over="ignore"):
            return self.rows.read(start, stop)


def describe_decoded(weights: Mapping[str, LazyTensor]) -> list[str]:
    """Describe what is read as floats, a sentence for each way in which it is stored."""
    decoded = [tensor for tensor in weights.values() if isinstance(tensor, DecodedTensor)]
    counts = Counter(tensor.label for tensor in decoded)
    lines = []
    for label, n in counts.items():
        first = next(tensor for tensor in decoded if tensor.label == label)
        stored = "1 matrix is" if n == 1 else f"{n} matrices are"
        lines.append(
            f"{stored} stored as {label} and read as floats, such as {first.info.name}: "
            f"{first.reason}"
        )
    return lines


@dataclass(frozen=True, slots=True, eq=False)
class PrequantizedTensor:
    """An (N, M) matrix of codes; satisfies ``LazyTensor``.

    ``w = (codes - zero_point) * scale``, or ``codes * scale + bias`` where there are biases.

    Attributes:
        info: Name, shape, and the type of the scales.
        bits: 4 or 8.
        source_group: Values along M that share a scale, as the source has it.
        origin: The source's format, such as ``gptq``.
        rows: The stored parts.
        first: The row of the stored matrix that row 0 is.
    """

    info: TensorInfo
    bits: Bits
    source_group: int
    origin: str
    rows: CodeRows
    first: int = 0

    @property
    def group(self) -> int:
        """The largest of edgekit's groups that divides the source's."""
        return max(group for group in BLOCKS if self.source_group % group == 0)

    @property
    def encoding(self) -> Encoding:
        """The encoding that holds these codes."""
        return Encoding(f"int{self.bits}", self.group)

    @property
    def label(self) -> str:
        """Format, bits and group of the source, such as ``gptq int4-g128``."""
        return f"{self.origin} int{self.bits}-g{self.source_group}"

    @property
    def zero_point(self) -> int:
        """The code in the middle: 8 or 128."""
        return zero_point(self.bits)

    def codes(self, start: int, stop: int) -> U8Array:
        """Read codes of rows ``start:stop``, shape (stop - start, M)."""
        return self.rows.codes(self.first + start, self.first + stop)

    def scales(self, start: int, stop: int) -> F32Array:
        """Read scales of rows ``start:stop``, shape (stop - start, M // group).

        Raises:
            CheckpointError: A scale is NaN or infinite.
        """
        return self._spread(self.rows.scales(self.first + start, self.first + stop), "scales")

    def biases(self, start: int, stop: int) -> F32Array | None:
        """Read biases of rows ``start:stop`` like scales; None: zero point in the middle.

        Raises:
            CheckpointError: A bias is NaN or infinite.
        """
        biases = self.rows.biases(self.first + start, self.first + stop)
        return None if biases is None else self._spread(biases, "biases")

    def read(self) -> F32Array:
        """Read the whole matrix as float32, shape ``info.shape``."""
        return self.read_rows(0, self.info.shape[0])

    def read_rows(self, start: int, stop: int) -> F32Array:
        """Read rows ``start:stop`` as float32."""
        values = self.codes(start, stop).astype(np.float32)
        scales, biases = self.scales(start, stop), self.biases(start, stop)
        n_rows, n_cols = values.shape
        grouped = values.reshape(n_rows, n_cols // self.group, self.group)
        if biases is None:
            grouped -= np.float32(self.zero_point)
        grouped *= scales[:, :, None]
        if biases is not None:
            grouped += biases[:, :, None]
        return values

    def part(self, info: TensorInfo, first: int) -> PrequantizedTensor:
        """Give the rows of ``info.shape`` from ``first`` on, a matrix of its own."""
        return replace(self, info=info, first=self.first + first)

    def _spread(self, values: F32Array, kind: str) -> F32Array:
        if not np.isfinite(values).all():
            n_bad = int(values.size - np.isfinite(values).sum())
            raise CheckpointError(
                f"{self.info.name}: {kind}",
                got=f"{n_bad} of {values.size} are NaN or infinite",
                wanted="finite numbers",
                do=DOWNLOAD_AGAIN,
            )
        times = self.source_group // self.group
        return values if times == 1 else np.repeat(values, times, axis=1)


def whole_groups(n_cols: int, n_groups: int) -> int:
    """Give the weights of a row that share one of its scales; 0 where no number fits."""
    return n_cols // n_groups if n_groups > 0 and n_cols % n_groups == 0 else 0


def why_not_kept(bits: int, group: int) -> str | None:
    """Say why no grid of edgekit has codes of these bits and groups; None if one does."""
    if bits not in (4, 8):
        return f"{bits} bits"
    if group < 1 or group % min(BLOCKS):
        return f"groups of {group} weights"
    return None


def affine_values(
    codes: U8Array,
    scales: F32Array,
    *,
    zeros: F32Array | None = None,
    biases: F32Array | None = None,
    groups: I64Array | int,
) -> F32Array:
    """Compute ``(codes - zeros) * scales``, or ``codes * scales + biases``.

    Args:
        codes: (n, M).
        scales: float32, (n, groups).
        zeros: float32 of the same shape: what is taken off each code before.
        biases: float32 of the same shape: what is added after.
        groups: Columns of a group, the last of which may be shorter; or the group of each column,
            (M,).

    Returns:
        float32, (n, M); every step rounded to float32 once.
    """
    values = codes.astype(np.float32)
    if zeros is not None:
        by_group(values, zeros, np.subtract, groups)
    by_group(values, scales, np.multiply, groups)
    if biases is not None:
        by_group(values, biases, np.add, groups)
    return values


def make_prequantized(
    info: TensorInfo,
    *,
    bits: int,
    group: int,
    origin: str,
    rows: AffineRows,
    columns: I64Array | None = None,
    reason: str | None = None,
) -> PrequantizedTensor | DecodedTensor:
    """Make a matrix of integer codes: one whose codes can be kept where that may be so.

    Args:
        info: Name, shape and the type of the scales.
        bits: Bits of a code, 1 to 8.
        group: Weights along M that share a scale.
        origin: The source's format.
        rows: The stored parts.
        columns: The group of each column where they are not one after the other.
        reason: Why the codes cannot be kept, if bits and group are not it.
    """
    reason = reason or why_not_kept(bits, group) or ("another order" if columns is not None else "")
    if not reason:
        return PrequantizedTensor(info, 4 if bits == 4 else 8, group, origin, rows)
    label = f"{origin} int{bits}-g{group}"
    groups = group if columns is None else columns
    values = AffineFloats(rows, groups, 1 << (bits - 1))
    return DecodedTensor(info, label, reason, bits, values)


def by_group(values: F32Array, numbers: F32Array, change: np.ufunc, groups: I64Array | int) -> None:
    """Change each value by the number of its group, in place, without spreading the numbers.

    Args:
        values: (n, M), contiguous.
        numbers: (n, groups), or (1, groups) for all rows.
        change: ``np.multiply`` and the like.
        groups: As in ``affine_values``.
    """
    if not isinstance(groups, int):
        change(values, numbers[:, groups], out=values)
        return
    n_rows, n_cols = values.shape
    n_whole = n_cols // groups
    n_whole_cols = n_whole * groups
    whole = values[:, :n_whole_cols].reshape(n_rows, n_whole, groups)  # a view
    change(whole, numbers[:, :n_whole, None], out=whole)
    rest = values[:, n_whole_cols:]
    if rest.size:
        change(rest, numbers[:, n_whole : n_whole + 1], out=rest)


def take_part(
    tensors: Mapping[str, SafetensorsTensor],
    name: str,
    wanted: str,
    shape: tuple[int | None, ...],
) -> SafetensorsTensor:
    """Find a part of a pre-quantized weight and check its type and shape.

    Args:
        tensors: Checkpoint tensors by their own names.
        name: Name of the part.
        wanted: ``floats``, or types of safetensors such as ``I32`` or ``U8 or I8``.
        shape: Sizes; None for any.

    Raises:
        CheckpointError: Absent, or of another type or shape.
    """
    tensor = tensors.get(name)
    sizes = ", ".join("any" if size is None else str(size) for size in shape)
    if tensor is None:
        got = "no such tensor"
    else:
        found, kind = tensor.info.shape, DTYPES[tensor.info.dtype]
        fits = kind.is_float if wanted == "floats" else kind.safetensors in wanted.split(" or ")
        if (
            fits
            and len(found) == len(shape)
            and all(w is None or w == f for f, w in zip(found, shape, strict=True))
        ):
            return tensor
        got = f"{kind.safetensors} of shape {list(found)}"
    raise CheckpointError(name, got=got, wanted=f"{wanted} of shape [{sizes}]", do=DOWNLOAD_AGAIN)


def read_order(tensor: SafetensorsTensor, n_groups: int, group: int) -> I64Array | None:
    """Read the group of each input; None if the groups follow one after another.

    Args:
        tensor: Integers, (M,).
        n_groups: Groups of a row.
        group: Inputs of a group, of which the last may have fewer.

    Raises:
        CheckpointError: An input is in no group.
    """
    groups = tensor.raw().astype(np.int64)
    if (groups == np.arange(len(groups)) // group).all():
        return None
    if (groups == -1).all():
        return None  # not filled in, because no input was moved
    outside = (groups < 0) | (groups >= n_groups)
    if outside.any():
        raise CheckpointError(
            f"{tensor.info.name}: groups of inputs",
            got=int(groups[outside][0]),
            wanted=f"0 .. {n_groups - 1}",
            do=DOWNLOAD_AGAIN,
        )
    return groups


def put_together(
    tensors: Mapping[str, SafetensorsTensor],
    joined: Mapping[str, LazyTensor],
    used: Collection[str],
) -> dict[str, LazyTensor]:
    """Replace parts by the weights joined from them; other tensors pass through.

    Raises:
        CheckpointError: A weight is also stored as floats.
    """
    rest: dict[str, LazyTensor] = {n: t for n, t in tensors.items() if n not in used}
    twice = sorted(rest.keys() & joined.keys())
    if twice:
        raise CheckpointError(
            f"{twice[0]}: weight stored twice",
            got=f"as floats and as codes ({len(twice)} such weights)",
            wanted="one of them",
        )
    return rest | dict(joined)


def unpack_words(words: NDArray[Any], bits: int) -> U8Array:
    """Unpack words, (n, W), whose codes follow one after another, low bits first.

    A code may be split over two words. Codes of 1 to 8 bits: (n, W * word bits // bits).
    """
    packed = np.ascontiguousarray(words).view(np.uint8)
    if bits == 4 or bits == 8:
        return unpack_codes(packed, 4 if bits == 4 else 8)
    # Every 8 codes fill ``bits`` bytes.
    n_rows, n_bytes = packed.shape
    n_codes = n_bytes * 8 // bits
    n_eights = -(-n_codes // 8)
    padded = np.zeros((n_rows, n_eights * bits + 1), np.uint16)
    padded[:, :n_bytes] = packed
    codes = np.empty((n_rows, n_eights, 8), np.uint8)
    for place in range(8):
        byte, shift = divmod(place * bits, 8)
        low = padded[:, byte : byte + n_eights * bits : bits]
        high = padded[:, byte + 1 : byte + 1 + n_eights * bits : bits]
        two = low | (high[:, :n_eights] << np.uint16(8))
        codes[:, :, place] = (two >> np.uint16(shift)) & np.uint16((1 << bits) - 1)
    return codes.reshape(n_rows, n_eights * 8)[:, :n_codes]
