"""Answer one question: what does a weight offer that its source holds as integer codes?

It reads as floats like every other tensor, and it also gives the codes and scales themselves,
so that a caller can keep them. A group longer than edgekit's longest is several groups with the
same scale. It must not know how a source packs its codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from edgekit.dtypes import DTYPES, Bits, DType, F32Array, U8Array
from edgekit.errors import CheckpointError
from edgekit.formats.packing import unpack_codes
from edgekit.formats.safetensors import SafetensorsTensor
from edgekit.scheme import GROUPS, Scheme
from edgekit.tensors import TensorInfo

DOWNLOAD_AGAIN: Final = "Download the model again."


class CodeRows(Protocol):
    """How one source holds a matrix of codes; rows are those of the (N, M) matrix."""

    def codes(self, start: int, stop: int) -> U8Array:
        """Read codes, shape (stop - start, M), values 0 .. 2**bits - 1."""
        ...

    def scales(self, start: int, stop: int) -> F32Array:
        """Read scales, shape (stop - start, M // G) with the source's own group G."""
        ...

    def biases(self, start: int, stop: int) -> F32Array | None:
        """Read what is added to code times scale; None: the zero point is in the middle."""
        ...


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
        return max(group for group in GROUPS if self.source_group % group == 0)

    @property
    def scheme(self) -> Scheme:
        """The scheme that holds these codes."""
        return Scheme(f"int{self.bits}", self.group)

    @property
    def label(self) -> str:
        """Format, bits and group of the source, such as ``gptq int4-g128``."""
        return f"{self.origin} int{self.bits}-g{self.source_group}"

    @property
    def zero_point(self) -> int:
        """The code in the middle: 8 or 128."""
        return 1 << (self.bits - 1)

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


def make_prequantized(
    name: str,
    shape: tuple[int, int],
    *,
    n_words: int,
    n_groups: int,
    dtype: DType,
    origin: str,
    rows: CodeRows,
) -> PrequantizedTensor:
    """Work out bits and group from the sizes of the stored parts, and check that they fit.

    Args:
        name: The weight's own name in the checkpoint.
        shape: (N, M).
        n_words: 32-bit words that hold the codes of one row.
        n_groups: Scales of one row.
        dtype: Type of the scales.
        origin: The source's format.
        rows: The stored parts.

    Raises:
        CheckpointError: Sizes that disagree, or bits or groups that edgekit has not.
    """
    n_rows, n_cols = shape
    bits: Bits | None = 4 if 8 * n_words == n_cols else 8 if 4 * n_words == n_cols else None
    if bits is None or n_rows < 1 or n_cols < 1:
        raise CheckpointError(
            f"{name}: packed codes",
            got=f"{n_words} words of 32 bits for a row of {n_cols} weights",
            wanted="4 or 8 bits for each weight",
            do=DOWNLOAD_AGAIN,
        )
    group = n_cols // n_groups if n_groups > 0 and n_cols % n_groups == 0 else 0
    if group < 1 or group % min(GROUPS):
        raise CheckpointError(
            f"{name}: group size",
            got=f"{n_groups} scales for a row of {n_cols} weights",
            wanted="32, 64, 128 or another multiple of 32 weights for each scale",
            do="Take a checkpoint with such groups, or the model before quantization.",
        )
    return PrequantizedTensor(TensorInfo(name, shape, dtype), bits, group, origin, rows)


def take_part(
    tensors: Mapping[str, SafetensorsTensor],
    name: str,
    wanted: str,
    shape: tuple[int | None, ...],
) -> SafetensorsTensor:
    """Find a part of a coded weight and check its type and shape.

    Args:
        tensors: Checkpoint tensors by their own names.
        name: Name of the part.
        wanted: ``floats``, or a type of safetensors such as ``I32``.
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
        fits = kind.is_float if wanted == "floats" else kind.safetensors == wanted
        if (
            fits
            and len(found) == len(shape)
            and all(w is None or w == f for f, w in zip(found, shape, strict=True))
        ):
            return tensor
        got = f"{kind.safetensors} of shape {list(found)}"
    raise CheckpointError(name, got=got, wanted=f"{wanted} of shape [{sizes}]", do=DOWNLOAD_AGAIN)


def unpack_words(words: NDArray[Any], bits: Bits) -> U8Array:
    """Unpack 32-bit words, (n, W), whose low bits come first: (n, W * 32 // bits) codes."""
    return unpack_codes(np.ascontiguousarray(words).view(np.uint8), bits)
