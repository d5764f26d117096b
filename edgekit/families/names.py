"""Tensor names: the checkpoint's and the canonical ones, and the prefixes that programs add."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class NameTable:
    """Canonical weight names and the checkpoint's, in both directions.

    Attributes:
        top: Names outside the layers, canonical to checkpoint.
        layer_prefix: Checkpoint prefix of layer ``{i}``.
        layer: Names inside a layer, canonical to checkpoint.
        fused: Names of ``layer`` that hold several canonical matrices, one below the other.
    """

    top: Mapping[str, str]
    layer_prefix: str
    layer: Mapping[str, str]
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def to_checkpoint(self, canonical: str) -> str:
        """Give the checkpoint's name of a canonical one; of a part, that of the whole."""
        if canonical in self.top:
            return self.top[canonical]
        _, index, part = canonical.split(".", 2)
        return self.layer_prefix.format(i=int(index)) + self.layer[self._whole_of(part)]

    def parts_above(self, canonical: str) -> tuple[str, ...]:
        """Give the canonical matrices that come above this one in the same checkpoint tensor."""
        at, _, part = canonical.rpartition(".")
        parts = self.fused.get(self._whole_of(part), ())
        return tuple(f"{at}.{p}" for p in parts[: parts.index(part)]) if parts else ()

    def _whole_of(self, part: str) -> str:
        return next((whole for whole, parts in self.fused.items() if part in parts), part)

    def to_canonical(self, name: str) -> str | None:
        """Give the canonical name of a checkpoint's, or None if the table has none."""
        for canonical, theirs in self.top.items():
            if theirs == name:
                return canonical
        before, after = self.layer_prefix.split("{i}")
        match = re.fullmatch(
            re.escape(before) + r"(0|[1-9][0-9]{0,8})" + re.escape(after) + "(.+)", name
        )
        if match is None:
            return None
        for canonical, theirs in self.layer.items():
            if theirs == match[2]:
                return f"layers.{match[1]}.{canonical}"
        return None

    def layer_of(self, name: str) -> int | None:
        """Give the number of the layer in a name, known or not; None outside the layers."""
        before, after = self.layer_prefix.split("{i}")
        match = re.match(re.escape(before) + r"(0|[1-9][0-9]{0,8})" + re.escape(after), name)
        return int(match[1]) if match else None

    @property
    def root(self) -> str:
        """The prefix of the layers' names and of most others, such as ``model.``."""
        before = self.layer_prefix.split("{i}")[0]
        return before[: before.rstrip(".").rfind(".") + 1]


@dataclass(frozen=True, slots=True)
class Alignment:
    """A name table, and the names of a checkpoint as that table has them.

    Attributes:
        table: The table that fits best.
        prefix: The prefix that the checkpoint has in place of the table's root; usually equal.
        renamed: The table's name of every stored name inside the decoder; other names are absent.
    """

    table: NameTable
    prefix: str
    renamed: Mapping[str, str]


def align(stored: Collection[str], tables: Sequence[NameTable]) -> Alignment:
    """Find the decoder among the stored names, whatever prefix they have.

    Programs put prefixes before all names (``base_model.model.``, ``_orig_mod.``, ``module.``,
    ``language_model.``) or remove ``model.``. The prefix under which most of a table's names are
    found is the right one, and of two with as many the one with more tensors: a vision tower may
    have more layers than the decoder, but never all the tensors that a decoder has. Names outside
    the root, such as ``lm_head.weight``, may have any shorter part of the prefix.

    Args:
        stored: Names in the checkpoint.
        tables: The family's tables; the first that fits best is used.
    """
    best = Alignment(tables[0], tables[0].root, {})
    best_score = (0, 0, False, 0)
    for table in tables:
        found: dict[str, Counter[str]] = {}
        for name in stored:
            for prefix, known in _known_parts(name, table):
                found.setdefault(prefix, Counter())[known] += 1
        for prefix, counts in found.items():
            score = (len(counts), counts.total(), prefix == table.root, -len(prefix))
            if score > best_score:
                best, best_score = Alignment(table, prefix, {}), score
    return Alignment(best.table, best.prefix, _rename(stored, best.table, best.prefix))


def _known_parts(name: str, table: NameTable) -> Iterator[tuple[str, str]]:
    """Find parts of a name that the table has under its root: (prefix before the part, part)."""
    for theirs in table.top.values():
        inner = theirs.removeprefix(table.root)
        if theirs.startswith(table.root) and (name == inner or name.endswith(f".{inner}")):
            yield name.removesuffix(inner), theirs
    before, after = table.layer_prefix.removeprefix(table.root).split("{i}")
    match = re.fullmatch(
        rf"((?:.*\.)?){re.escape(before)}(?:0|[1-9][0-9]{{0,8}}){re.escape(after)}(.+)", name
    )
    if match and match[2] in table.layer.values():
        yield match[1], match[2]


def _rename(stored: Collection[str], table: NameTable, prefix: str) -> dict[str, str]:
    renamed: dict[str, str] = {}
    for theirs in table.top.values():
        if not theirs.startswith(table.root) or not table.root:
            found = next((n for n in _with_shorter(prefix, theirs) if n in stored), None)
            if found is not None:
                renamed[found] = theirs
    for name in stored:
        if name.startswith(prefix) and name not in renamed:
            renamed[name] = table.root + name.removeprefix(prefix)
    return renamed


def _with_shorter(prefix: str, name: str) -> list[str]:
    """Put a prefix before a name, then ever shorter parts of it, down to none."""
    parts = prefix.split(".")[:-1]
    return [".".join([*parts[:n], name]) for n in range(len(parts), -1, -1)]
