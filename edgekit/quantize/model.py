"""Quantized models and tensors, as exporters read them.

A ``QuantizedModel`` holds integer codes and scales, never the float matrix they came from, so
that quantizing once is a matter of types. Tensors live on disk and are read one at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from edgekit.artifact import EndToken, TensorEntry
from edgekit.dtypes import Bits, F32Array, U8Array, zero_point
from edgekit.families.spec import DecoderSpec
from edgekit.formats.packing import pack_codes
from edgekit.scheme import Scheme


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedTensor:
    """An (N, M) matrix on the common grid: ``w = (codes - zero_point) * scale``.

    Attributes:
        name: Canonical name (families/spec.py).
        bits: 4 or 8.
        group: Values along M that share a scale.
        codes: uint8, shape (N, M), values 0 .. 2**bits - 1.
        scales: float32, shape (N, M // group); each is exact in fp16 and has at most 8
            significant bits, so it is exact in bf16 too. A 4-bit scale may be negative.
    """

    name: str
    bits: Bits
    group: int
    codes: U8Array
    scales: F32Array

    @property
    def shape(self) -> tuple[int, int]:
        """(N, M)."""
        return (int(self.codes.shape[0]), int(self.codes.shape[1]))

    @property
    def zero_point(self) -> int:
        """The code that stands for 0.0: 8 or 128."""
        return zero_point(self.bits)

    @property
    def scheme(self) -> Scheme:
        """The scheme of this tensor."""
        return Scheme(f"int{self.bits}", self.group)

    def packed(self) -> U8Array:
        """Codes as bytes, low bits first along M, shape (N, M * bits // 8)."""
        return pack_codes(self.codes, self.bits)

    def dequantize(self) -> F32Array:
        """Give the float32 matrix, shape (N, M). Exact: the product needs 8 + 8 bits."""
        n_rows, n_cols = self.shape
        signed = self.codes.astype(np.float32) - np.float32(self.zero_point)
        grouped = signed.reshape(n_rows, n_cols // self.group, self.group)
        return (grouped * self.scales[:, :, None]).reshape(n_rows, n_cols)

    def sha256(self) -> str:
        """Hash name, shape, scheme, packed codes and float32 scales: equal in every format."""
        digest = hashlib.sha256(f"{self.name} {self.shape} {self.scheme}\n".encode())
        digest.update(np.ascontiguousarray(self.packed()).data)
        digest.update(np.ascontiguousarray(self.scales, dtype="<f4").data)
        return digest.hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class FloatTensor:
    """A tensor kept as floats: norms, biases, and every matrix of fp32 and fp16 schemes.

    ``values`` is float32 of any shape, already rounded to ``scheme`` (fp16 or fp32).
    """

    name: str
    scheme: Scheme
    values: F32Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return tuple(int(n) for n in self.values.shape)


ModelTensor: TypeAlias = QuantizedTensor | FloatTensor


@dataclass(frozen=True, slots=True)
class Source:
    """Where the weights came from.

    Attributes:
        name: Display name.
        origin: What the user named.
        sha256: Hash of config and weights.
        notes: What was left out, ignored or changed while reading, one sentence each.
        ignored_config_keys: Keys of the config that passed because the user said so.
        adapter: Folder of the adapter that was merged into the weights; empty without one.
        adapter_sha256: Hash of the adapter's config and tensors.
        ends: Tokens that end an answer.
        channel_scales: How channel scales were moved before quantizing, as a manifest says it;
            empty where none were.
    """

    name: str
    origin: str
    sha256: str
    notes: tuple[str, ...] = ()
    ignored_config_keys: tuple[str, ...] = ()
    adapter: str = ""
    adapter_sha256: str = ""
    ends: tuple[EndToken, ...] = ()
    channel_scales: Mapping[str, Any] = field(default_factory=dict)


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
        """Every tensor in file order, with its scheme, the reason, and its hash if it is known."""
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
    def assets(self) -> Mapping[str, Path]:
        """Tokenizer, chat template and config files that every artifact gets, by file name."""
        ...

    def get(self, name: str) -> ModelTensor:
        """Read one tensor from disk.

        Raises:
            QuantError: No tensor of that name.
        """
        ...


def combine_hashes(entries: Iterable[TensorEntry]) -> str:
    """Hash all quantized tensors of a model, whatever their order; empty if there are none."""
    lines = sorted(f"{entry.name} {entry.sha256}" for entry in entries if entry.sha256 is not None)
    if not lines:
        return ""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
