"""Quantized models and tensors, as exporters read them.

A ``QuantizedModel`` gives integer codes and scales, never the float matrix they came from, so
that quantizing once is a matter of types. Tensors are read some rows at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeGuard

import numpy as np

from edgekit.artifact import EndToken, TensorEntry
from edgekit.dtypes import F32Array, U8Array, zero_point
from edgekit.encoding import Encoding
from edgekit.errors import QuantError
from edgekit.families.spec import DecoderSpec
from edgekit.formats.packing import pack_codes, unpack_codes
from edgekit.scheme import Scheme


@dataclass(frozen=True, slots=True, eq=False)
class EncodedTensor:
    """An (N, M) matrix on the common grid: ``w = (code - zero_point) * scale``.

    With a palette, ``w[n, m] = palette[n // block, code]``; the palettes take the place of scales.

    Attributes:
        name: Canonical name (families/spec.py).
        encoding: How the codes are stored.
        packed: The codes, low bits first along M: uint8, shape (N, M * bits // 8).
        scales: float32, shape (N, M // block); each is exact in fp16 and has at most 8
            significant bits, so it is exact in bf16 too. A 4-bit scale may be negative. Palettes:
            (N // block, 16), values exact in fp16.
        zero_points: The code that stands for 0.0 in each block: uint8, shaped like the scales;
            None where it is in the middle (8 or 128). Zero point times scale is exact in fp16 and
            in bf16.
    """

    name: str
    encoding: Encoding
    packed: U8Array
    scales: F32Array
    zero_points: U8Array | None = None

    def __post_init__(self) -> None:
        if (self.zero_points is not None) != self.encoding.has_zero_points:
            raise QuantError(
                f"{self.name}: zero points",
                got="none" if self.zero_points is None else "some",
                wanted=f"what {self.encoding} stores",
            )

    @classmethod
    def of_codes(
        cls,
        name: str,
        encoding: Encoding,
        codes: U8Array,
        scales: F32Array,
        zero_points: U8Array | None = None,
    ) -> EncodedTensor:
        """Pack codes, uint8 of shape (N, M) with values 0 .. 2**bits - 1."""
        packed = pack_codes(codes, encoding.code_bits)
        return cls(name, encoding, packed, scales, zero_points)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, M)."""
        n_rows, n_bytes = self.packed.shape
        return (int(n_rows), int(n_bytes) * 8 // self.encoding.bits)

    def codes(self) -> U8Array:
        """Unpack the codes, uint8 of shape (N, M)."""
        return unpack_codes(self.packed, self.encoding.code_bits)

    def rows(self, part: slice) -> EncodedTensor:
        """Give some of the rows; they share memory with the whole."""
        zeros = None if self.zero_points is None else self.zero_points[part]
        scales = self.scales[self._scale_rows(part)]
        return replace(self, packed=self.packed[part], scales=scales, zero_points=zeros)

    def _scale_rows(self, part: slice) -> slice:
        block = self.encoding.block
        if not self.encoding.has_palette or block is None:
            return part
        start, stop, _ = part.indices(self.shape[0])
        if start % block or stop % block:
            raise QuantError(
                f"{self.name}: rows {start}:{stop}", wanted=f"whole palettes, {block} rows each"
            )
        return slice(start // block, stop // block)

    def biases(self) -> F32Array:
        """Give what code 0 stands for, ``-zero_point * scale``: float32, shaped like the scales.

        Raises:
            QuantError: A palette has none.
        """
        if self.encoding.has_palette:
            raise QuantError(f"{self.name}: a palette has no zero point")
        if self.zero_points is None:
            return np.float32(-zero_point(self.encoding.code_bits)) * self.scales
        return -self.zero_points.astype(np.float32) * self.scales

    def dequantize(self) -> F32Array:
        """Give the float32 matrix, shape (N, M). Exact: the product needs 8 + 8 bits."""
        n_rows, n_cols = self.shape
        if self.encoding.has_palette:
            codes = self.codes().reshape(len(self.scales), -1)
            return np.take_along_axis(self.scales, codes, axis=1).reshape(n_rows, n_cols)
        block = n_cols // self.scales.shape[1]
        values = self.codes().astype(np.float32).reshape(n_rows, -1, block)
        if self.zero_points is None:
            values -= np.float32(zero_point(self.encoding.code_bits))
        else:
            values -= self.zero_points[:, :, None].astype(np.float32)
        values *= self.scales[:, :, None]
        return values.reshape(n_rows, n_cols)

    def sha256(self) -> str:
        """Hash name, shape, encoding, codes, scales and zero points: equal in every format."""
        made = TensorHash(self.name, self.shape, self.encoding)
        made.add(self)
        return made.hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class FloatTensor:
    """A tensor kept as floats: norms, biases, and every matrix of fp32 and fp16 encodings.

    ``values`` is float32 of any shape, already rounded to ``encoding`` (fp32, fp16 or bf16).
    """

    name: str
    encoding: Encoding
    values: F32Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return tuple(int(n) for n in self.values.shape)


ModelTensor: TypeAlias = EncodedTensor | FloatTensor


@dataclass(frozen=True, slots=True)
class Source:
    """Where the weights came from.

    Attributes:
        name: Display name.
        origin: What the user named.
        notes: What was left out, ignored or changed while reading, one sentence each.
        ignored_config_keys: Keys of the config that passed because the user said so.
        adapter: Folder of the adapter that was merged into the weights; empty without one.
        adapter_sha256: Hash of the adapter's config and tensors.
        ends: Tokens that end an answer.
        channel_scales: How channel scales were moved before quantizing, as a manifest says it;
            empty where none were.
        calibration: How codes were chosen and on which text, as a manifest says it; empty where no
            text was read for it.
    """

    name: str
    origin: str
    notes: tuple[str, ...] = ()
    ignored_config_keys: tuple[str, ...] = ()
    adapter: str = ""
    adapter_sha256: str = ""
    ends: tuple[EndToken, ...] = ()
    channel_scales: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)


class ModelOutline(Protocol):
    """A model whose tensors can be listed, before or after it is quantized."""

    @property
    def spec(self) -> DecoderSpec:
        """The decoder."""
        ...

    @property
    def scheme(self) -> Scheme:
        """The scheme asked for; single tensors may differ (see ``entries``)."""
        ...

    @property
    def entries(self) -> tuple[TensorEntry, ...]:
        """Every tensor in file order: its encoding, the reason, and its hash if it is known."""
        ...

    @property
    def config(self) -> Mapping[str, Any]:
        """The config.json of the source; empty if there is none."""
        ...


class QuantizedModel(ModelOutline, Protocol):
    """A model whose tensors can be read; what every exporter writes."""

    @property
    def source(self) -> Source:
        """Where the weights came from."""
        ...

    @property
    def source_sha256(self) -> str:
        """Hash of the source's config and weights; waits until it is there."""
        ...

    @property
    def assets(self) -> Mapping[str, Path]:
        """Tokenizer, chat template and config files that every artifact gets, by file name."""
        ...

    def get(self, name: str) -> ModelTensor:
        """Give one tensor.

        Raises:
            QuantError: No tensor of that name.
        """
        ...

    def row_blocks(self, name: str) -> Iterable[slice]:
        """Cut a tensor into the rows to take at a time, in order, even numbers of rows."""
        ...

    def rows(self, name: str, part: slice) -> ModelTensor:
        """Give some rows of a tensor; threads may ask at the same time."""
        ...

    def refuse_changed(self) -> None:
        """Refuse a source that was changed while it was read.

        Raises:
            CheckpointError: It was.
        """
        ...


def join_rows(parts: Sequence[ModelTensor]) -> ModelTensor:
    """Join rows of one tensor, in order; a single part is given as it is."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, FloatTensor):
        return replace(first, values=np.concatenate([p.values for p in parts if _is_float(p)]))
    codes = [part for part in parts if isinstance(part, EncodedTensor)]
    zeros = [part.zero_points for part in codes if part.zero_points is not None]
    return replace(
        first,
        packed=np.concatenate([part.packed for part in codes]),
        scales=np.concatenate([part.scales for part in codes]),
        zero_points=np.concatenate(zeros) if zeros else None,
    )


def _is_float(part: ModelTensor) -> TypeGuard[FloatTensor]:
    return isinstance(part, FloatTensor)


class TensorHash:
    """The hash of a tensor whose rows come one block after another.

    Args:
        name: Canonical name.
        shape: (N, M) of the whole tensor.
        encoding: How it is stored.
    """

    def __init__(self, name: str, shape: tuple[int, ...], encoding: Encoding) -> None:
        self._digest = hashlib.sha256(f"{name} {shape} {encoding}\n".encode())
        self._scales: list[F32Array] = []
        self._zero_points: list[U8Array] = []

    def add(self, rows: EncodedTensor) -> None:
        """Take the next rows."""
        self._digest.update(np.ascontiguousarray(rows.packed).data)
        self._scales.append(rows.scales)
        if rows.zero_points is not None:
            self._zero_points.append(rows.zero_points)

    def hexdigest(self) -> str:
        """Give the hash, once all rows were added."""
        for scales in self._scales:
            self._digest.update(np.ascontiguousarray(scales, dtype="<f4").data)
        for zeros in self._zero_points:
            self._digest.update(np.ascontiguousarray(zeros).data)
        return self._digest.hexdigest()


def combine_hashes(entries: Iterable[TensorEntry]) -> str:
    """Hash all quantized tensors of a model, whatever their order; empty if there are none."""
    lines = sorted(f"{entry.name} {entry.sha256}" for entry in entries if entry.sha256 is not None)
    if not lines:
        return ""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def encodings_of(entries: Iterable[TensorEntry]) -> dict[str, Encoding]:
    """Give the encoding of each tensor, by canonical name."""
    return {entry.name: Encoding.parse(entry.encoding) for entry in entries}
