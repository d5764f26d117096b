"""Schemes: what a user asks for a whole model, such as ``int4``; each names tensors and encodings.

A scheme is data: one encoding for all matrices, and rules that give some of them another one. The
plan (quantize/plan.py) applies it to a decoder. A scheme may also say how codes are chosen, and how
many bits the matrices that are most sensitive may get beside it (pipeline/mixed_precision.py).

Presets and users' own schemes are TOML files (edgekit/schemes/*.toml). ``parse`` and ``str`` are
inverses for words: ``str(Scheme.parse("int4")) == "int4-g32"``.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from edgekit.encoding import Encoding
from edgekit.errors import UsageError
from edgekit.files import open_plain, read_capped
from edgekit.paths import schemes_dir
from edgekit.typed_values import WrongValuesError, from_plain

MAX_FILE_BYTES: Final = 1 << 18
MIN_BITS_PER_WEIGHT: Final = 2.0
MAX_BITS_PER_WEIGHT: Final = 16.0
METHODS: Final = ("rtn", "search", "importance", "gptq", "auto")
RECOMMENDED: Final = "balanced"
_SUFFIX: Final = ".toml"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_SEE: Final = "See edgekit/schemes/balanced.toml for the form."

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
class Mixed:
    """How many bits matrices may get together, and what the most sensitive ones may get.

    Attributes:
        bits_per_weight: Of the matrices in the layers, with scales and zero points; None where only
            a size in bytes is given.
        wide: Encodings that a sensitive matrix may get in place of the scheme's own.
    """

    bits_per_weight: float | None
    wide: tuple[Encoding, ...]


@dataclass(frozen=True, slots=True)
class Scheme:
    """Which encoding each matrix of a model gets, and how its codes are chosen.

    Attributes:
        name: What the user wrote, in full; part of the names of artifacts.
        encoding: Of the matrices that no rule names.
        rules: Exceptions; the first that names a matrix counts.
        method: How codes are chosen, one of ``METHODS``; None leaves it to the command.
        fold: Whether channel scales are moved first.
        mixed: How many bits more the most sensitive matrices get; None: none.
        about: What it is for, in a sentence; empty for schemes of one word.
    """

    name: str
    encoding: Encoding
    rules: tuple[Rule, ...] = ()
    method: str | None = None
    fold: bool = True
    mixed: Mixed | None = None
    about: str = ""

    @classmethod
    def parse(cls, text: str) -> Scheme:
        """Read ``fp32``, ``fp16``, ``int8``, ``int4``, ``int4-g64``, ``uint4``, a preset or a file.

        A text that ends in ``.toml`` is the path of a file.

        Raises:
            UsageError: The text names no scheme, or the file is wrong.
        """
        if text.endswith(_SUFFIX):
            return read_scheme(Path(text))
        word = text.strip().lower()
        if word in preset_names():
            return read_scheme(schemes_dir() / f"{word}{_SUFFIX}")
        try:
            encoding = Encoding.parse(text)
        except UsageError as error:
            raise UsageError(
                error.what.replace("encoding", "scheme"),
                got=error.got,
                wanted=f"{error.wanted}, {', '.join(preset_names())}, or a {_SUFFIX} file",
                do="Write for example --scheme int4.",
            ) from error
        return cls(str(encoding), encoding, _edge_rules(encoding))

    def __str__(self) -> str:
        return self.name

    @property
    def is_quantized(self) -> bool:
        """True where matrices become integer codes."""
        return self.encoding.is_quantized

    @property
    def is_word(self) -> bool:
        """Whether the name alone says everything, as ``int4`` does; else ``describe`` does."""
        return self == Scheme(str(self.encoding), self.encoding, _edge_rules(self.encoding))

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


def preset_names() -> tuple[str, ...]:
    """Name the presets, from the fastest export to the best quality."""
    return _PRESETS


_PRESETS: Final = ("fast", "tiny", "balanced", "quality")


def read_scheme(path: Path) -> Scheme:
    """Read a scheme from a TOML file; its name is that of the file.

    Raises:
        UsageError: The file cannot be read, is no TOML, or has keys that are unknown, absent or of
            the wrong type; all are named.
    """
    try:
        with open_plain(path) as stream:
            text = read_capped(stream, MAX_FILE_BYTES).decode("utf-8").replace("\r\n", "\n")
        data = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"cannot read scheme {path}",
            got=(isinstance(error, OSError) and error.strerror) or str(error),
            wanted="a TOML file in UTF-8",
            do=_SEE,
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{path} is not TOML", got=str(error) or "nested too deep", do=_SEE
        ) from error
    if _NAME.fullmatch(path.stem) is None:
        raise UsageError(
            f"{path}: the name of a scheme becomes part of folder names",
            got=repr(path.stem),
            wanted="up to 64 letters, digits, hyphens, underscores and dots",
        )
    return scheme_of(data, name=path.stem, where=str(path))


def scheme_of(data: Mapping[str, Any], *, name: str, where: str) -> Scheme:
    """Build a scheme from the keys of a file, or from what ``describe`` gave.

    Raises:
        UsageError: Keys are unknown, absent or of the wrong type or value; all are named.
    """
    try:
        read = from_plain(_File, dict(data), is_for_terminal=True)
    except WrongValuesError as error:
        raise UsageError(f"{where} is not a scheme", got=str(error), do=_SEE) from error
    rules = tuple(Rule(r.tensors, _encoding(r.encoding), r.reason) for r in read.rules)
    mixed = None
    if read.mixed is not None:
        wide = tuple(map(_encoding, read.mixed.wide))
        mixed = Mixed(read.mixed.bits_per_weight, wide)
    return Scheme(name, _encoding(read.encoding), rules, read.method, read.fold, mixed, read.about)


def describe(scheme: Scheme) -> dict[str, Any]:
    """Give a scheme as the keys of a file; ``scheme_of`` reads them."""
    described: dict[str, Any] = {"about": scheme.about, "encoding": str(scheme.encoding)}
    if scheme.method is not None:
        described["method"] = scheme.method
    described["fold"] = scheme.fold
    if scheme.mixed is not None:
        described["mixed"] = {"wide": [str(encoding) for encoding in scheme.mixed.wide]}
        if scheme.mixed.bits_per_weight is not None:
            described["mixed"]["bits_per_weight"] = scheme.mixed.bits_per_weight
    described["rules"] = [
        {
            "tensors": list(rule.tensors),
            "encoding": str(rule.encoding),
            "reason": rule.reason,
        }
        for rule in scheme.rules
    ]
    return described


def with_rules(scheme: Scheme, name: str, rules: tuple[Rule, ...]) -> Scheme:
    """Give a scheme with rules before its own, and nothing left to decide."""
    return replace(scheme, name=name, rules=(*rules, *scheme.rules), mixed=None)


@dataclass(frozen=True, slots=True)
class _RuleTable:
    tensors: tuple[str, ...]
    encoding: str
    reason: str

    def __post_init__(self) -> None:
        if not self.tensors:
            raise ValueError("at least one pattern of tensor names, such as layers.*.v")
        if not self.reason.strip():
            raise ValueError("a reason")
        _encoding(self.encoding)


@dataclass(frozen=True, slots=True)
class _MixedTable:
    wide: tuple[str, ...]
    bits_per_weight: float | None = None

    def __post_init__(self) -> None:
        if not self.wide or not all(_encoding(text).is_quantized for text in self.wide):
            raise ValueError("encodings with codes in wide, such as int8-g128")
        bits = self.bits_per_weight
        if bits is not None and not is_bits_per_weight(bits):
            raise ValueError(
                f"bits_per_weight from {MIN_BITS_PER_WEIGHT:g} to {MAX_BITS_PER_WEIGHT:g}"
            )


@dataclass(frozen=True, slots=True)
class _File:
    about: str
    encoding: str
    method: str | None = None
    fold: bool = True
    mixed: _MixedTable | None = None
    rules: tuple[_RuleTable, ...] = ()

    def __post_init__(self) -> None:
        encoding = _encoding(self.encoding)
        if self.method is not None and self.method not in METHODS:
            raise ValueError(f"a method of {', '.join(METHODS)}")
        if self.mixed is not None and not encoding.is_quantized:
            raise ValueError("an encoding with codes where bits are mixed")


def is_bits_per_weight(bits: float) -> bool:
    """Tell whether a number can be the bits of a weight."""
    return math.isfinite(bits) and MIN_BITS_PER_WEIGHT <= bits <= MAX_BITS_PER_WEIGHT


def _encoding(text: str) -> Encoding:
    try:
        return Encoding.parse(text)
    except UsageError as error:
        raise ValueError(f"an encoding: {error.wanted or error.what}") from error
