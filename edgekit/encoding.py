"""Encodings: how the numbers of one tensor are stored, such as ``fp16`` or ``int4-g32``.

An encoding is ``fp32``, ``fp16``, ``bf16``, or integer codes with one scale per block of values
along the input dimension: ``int4`` and ``int8`` are symmetric, with the zero point in the middle (8
of 16, 128 of 256); ``uint4`` and ``uint8`` store a whole zero point for each block, too. ``lut4``
stores 16 values for a block of rows (a palette), and codes that choose among them; only
Core ML has it. ``parse`` and ``str`` are inverses: ``str(Encoding.parse("int4")) == "int4-g32"``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from typing import Final, cast

from edgekit.dtypes import Bits
from edgekit.errors import UsageError

BLOCKS: Final = (32, 64, 128)
DEFAULT_BLOCK: Final = 32
_FLOAT_BITS: Final = {"fp32": 32, "fp16": 16, "bf16": 16}
_CODE_BITS: Final[dict[str, Bits]] = {"int4": 4, "int8": 8, "uint4": 4, "uint8": 8, "lut4": 4}
_SCALE_BYTES: Final = 2
_WANTED: Final = "fp32, fp16, bf16, int8, int4, uint8, uint4 or lut4 (int4-g64 for blocks of 64)"


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a tensor is stored.

    Attributes:
        kind: fp32, fp16, bf16, int8, int4, uint8, uint4 or lut4.
        block: Values along the input dimension that share a scale, or rows that share a palette;
            only for codes.
    """

    kind: str
    block: int | None = None

    def __post_init__(self) -> None:
        if self.kind in _FLOAT_BITS:
            if self.block is not None:
                raise UsageError(
                    f"encoding {self.kind} takes no block", got=self.block, do=f"Write {self.kind}."
                )
        elif self.kind not in _CODE_BITS:
            raise UsageError("unknown encoding", got=repr(self.kind), wanted=_WANTED)
        elif self.block not in BLOCKS:
            raise UsageError(
                f"encoding {self.kind}: block not supported", got=self.block, wanted="32, 64 or 128"
            )

    @classmethod
    def parse(cls, text: str) -> Encoding:
        """Read ``fp32``, ``fp16``, ``int8``, ``uint4-g64``; codes default to blocks of 32.

        Raises:
            UsageError: The text names no encoding.
        """
        match = re.fullmatch(r"([a-z]+[0-9]+)(?:-g([0-9]{1,4}))?", text.strip().lower())
        if match is None:
            raise UsageError("unknown encoding", got=repr(text), wanted=_WANTED)
        kind, block = match[1], match[2]
        if block is None:
            return cls(kind, DEFAULT_BLOCK if kind in _CODE_BITS else None)
        return cls(kind, int(block))

    def __str__(self) -> str:
        return self.kind if self.block is None else f"{self.kind}-g{self.block}"

    @property
    def is_quantized(self) -> bool:
        """True for integer codes."""
        return self.block is not None

    @property
    def has_zero_points(self) -> bool:
        """True where each block stores its own zero point."""
        return self.kind.startswith("uint")

    @property
    def has_palette(self) -> bool:
        """True where codes choose among values that rows share."""
        return self.kind.startswith("lut")

    @property
    def bits(self) -> int:
        """Bits of one stored value; scales and zero points are not counted."""
        return _CODE_BITS[self.kind] if self.is_quantized else _FLOAT_BITS[self.kind]

    @property
    def code_bits(self) -> Bits:
        """Bits of one code, 4 or 8.

        Raises:
            UsageError: Floats have no codes.
        """
        if not self.is_quantized:
            raise UsageError(
                f"encoding {self} has no codes", wanted="int4, int8, uint4, uint8 or lut4"
            )
        return cast(Bits, self.bits)

    @property
    def bits_per_weight(self) -> float:
        """Bits of one stored value with its share of fp16 scales and of zero points.

        The share of a palette depends on the length of its rows and is not counted.
        """
        if self.block is None or self.has_palette:
            return float(self.bits)
        beside = 8 * _SCALE_BYTES + (self.bits if self.has_zero_points else 0)
        return self.bits + beside / self.block

    def n_blocks(self, n_cols: int) -> int:
        """Give the blocks of a row of ``n_cols`` values; 0 for floats and palettes."""
        return 0 if self.block is None or self.has_palette else n_cols // self.block

    def scales_shape(self, n_rows: int, n_cols: int) -> tuple[int, int]:
        """Give the shape of the scales of an (N, M) matrix, or of its palettes."""
        if self.has_palette and self.block is not None:
            return (n_rows // self.block, 1 << self.bits)
        return (n_rows, self.n_blocks(n_cols))

    def bytes_of(self, n_rows: int, n_cols: int) -> int:
        """Bytes of an (N, M) matrix with fp16 scales; the zero points of each row are packed."""
        n_scales = prod(self.scales_shape(n_rows, n_cols))
        n_zeros = -(-self.n_blocks(n_cols) * self.bits // 8) if self.has_zero_points else 0
        return n_rows * (n_cols * self.bits // 8 + n_zeros) + n_scales * _SCALE_BYTES


FP32: Final = Encoding("fp32")
FP16: Final = Encoding("fp16")
BF16: Final = Encoding("bf16")
