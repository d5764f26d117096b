"""Schemes: how the numbers of a tensor are stored, such as ``fp16`` or ``int4-g32``.

A scheme is ``fp32``, ``fp16``, or integer codes on the common grid: symmetric, zero point in
the middle (8 of 16, 128 of 256), one scale per ``group`` values along the input dimension.
``parse`` and ``str`` are inverses: ``str(Scheme.parse("int4")) == "int4-g32"``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from edgekit.dtypes import Bits
from edgekit.errors import UsageError

GROUPS: Final = (32, 64, 128)
DEFAULT_GROUP: Final = 32
_FLOAT_BITS: Final = {"fp32": 32, "fp16": 16}
_INT_BITS: Final[dict[str, Bits]] = {"int4": 4, "int8": 8}


@dataclass(frozen=True, slots=True)
class Scheme:
    """How tensors are stored: ``kind`` is fp32, fp16, int8 or int4; ``group`` only for integers."""

    kind: str
    group: int | None = None

    def __post_init__(self) -> None:
        if self.kind in _FLOAT_BITS:
            if self.group is not None:
                raise UsageError(
                    f"scheme {self.kind} takes no group", got=self.group, do=f"Write {self.kind}."
                )
        elif self.kind not in _INT_BITS:
            raise UsageError(
                "unknown scheme",
                got=repr(self.kind),
                wanted="fp32, fp16, int8 or int4 (int4-g64 for a group)",
                do="Write for example --scheme int4.",
            )
        elif self.group not in GROUPS:
            raise UsageError(
                f"scheme {self.kind}: group not supported", got=self.group, wanted="32, 64 or 128"
            )

    @classmethod
    def parse(cls, text: str) -> Scheme:
        """Read ``fp32``, ``fp16``, ``int8``, ``int4``, ``int4-g64``; integers default to group 32.

        Raises:
            UsageError: The text names no scheme.
        """
        match = re.fullmatch(r"([a-z]+[0-9]+)(?:-g([0-9]{1,4}))?", text.strip().lower())
        if match is None:
            raise UsageError(
                "unknown scheme",
                got=repr(text),
                wanted="fp32, fp16, int8 or int4 (int4-g64 for a group)",
                do="Write for example --scheme int4.",
            )
        kind, group = match[1], match[2]
        if group is None:
            return cls(kind, DEFAULT_GROUP if kind in _INT_BITS else None)
        return cls(kind, int(group))

    def __str__(self) -> str:
        return self.kind if self.group is None else f"{self.kind}-g{self.group}"

    @property
    def is_quantized(self) -> bool:
        """True for integer codes."""
        return self.group is not None

    @property
    def bits(self) -> int:
        """Bits of one stored value, scales not counted."""
        return _INT_BITS[self.kind] if self.is_quantized else _FLOAT_BITS[self.kind]

    def bytes_of(self, n_rows: int, n_cols: int) -> int:
        """Bytes of an (N, M) matrix, fp16 scales included."""
        payload = n_rows * n_cols * self.bits // 8
        return payload if self.group is None else payload + n_rows * (n_cols // self.group) * 2


FP32: Final = Scheme("fp32")
FP16: Final = Scheme("fp16")
