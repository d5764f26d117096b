"""Schemes: what a user asks for a whole model, such as ``int4``; each names tensors and encodings.

A scheme is data: one encoding for all matrices, and rules that give some of them another one. The
plan (quantize/plan.py) applies it to a decoder. ``parse`` and ``str`` are inverses:
``str(Scheme.parse("int4")) == "int4-g32"``.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from edgekit.encoding import Encoding
from edgekit.errors import UsageError

_EDGES: Final = (
    ("embed", "the first activation, and into the logits where it is the output matrix too"),
    ("lm_head", "the logits"),
)


@dataclass(frozen=True, slots=True)
class Rule:
    """The encoding of some matrices, and why.

    Attributes:
        tensors: Patterns of canonical names (families/spec.py), such as ``layers.*.v``.
        encoding: How these are stored.
        reason: Why, in words.
    """

    tensors: tuple[str, ...]
    encoding: Encoding
    reason: str

    def covers(self, name: str) -> bool:
        """Tell whether the rule names a tensor."""
        return any(fnmatchcase(name, pattern) for pattern in self.tensors)


@dataclass(frozen=True, slots=True)
class Scheme:
    """Which encoding each matrix of a model gets.

    Attributes:
        name: What the user wrote, in full; part of the names of artifacts.
        encoding: Of the matrices that no rule names.
        rules: Exceptions; the first that names a matrix counts.
    """

    name: str
    encoding: Encoding
    rules: tuple[Rule, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Scheme:
        """Read ``fp32``, ``fp16``, ``int8``, ``int4``, ``int4-g64``, ``uint4``.

        Raises:
            UsageError: The text names no scheme.
        """
        try:
            encoding = Encoding.parse(text)
        except UsageError as error:
            raise UsageError(
                error.what.replace("encoding", "scheme"),
                got=error.got,
                wanted=error.wanted,
                do="Write for example --scheme int4.",
            ) from error
        return cls(str(encoding), encoding, _edge_rules(encoding))

    def __str__(self) -> str:
        return self.name

    @property
    def is_quantized(self) -> bool:
        """True where matrices become integer codes."""
        return self.encoding.is_quantized

    def rule_of(self, name: str) -> Rule | None:
        """Give the rule that names a matrix; None where the scheme's own encoding counts."""
        return next((rule for rule in self.rules if rule.covers(name)), None)


def _edge_rules(encoding: Encoding) -> tuple[Rule, ...]:
    """Keep 8 bits at both ends of a 4-bit model.

    No later layer can average away the error of the embedding or of the output matrix.
    """
    if not encoding.is_quantized or encoding.bits > 4:
        return ()
    wide = Encoding("int8", encoding.block)
    return tuple(
        Rule((name,), wide, f"8 bits: its error goes straight into {reaches}")
        for name, reaches in _EDGES
    )
