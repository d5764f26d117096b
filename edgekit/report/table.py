"""``Table``: the content of a table, before any output format draws it.

Every output format draws the same tables, so that they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from edgekit.records import Kind


@dataclass(frozen=True, slots=True)
class Cell:
    """One value as text; ``kind`` labels a number, ``is_met`` marks pass or fail."""

    text: str
    kind: Kind | None = None
    is_met: bool | None = None
    has_mark: bool = False

    @property
    def labelled(self) -> str:
        """The text, with everything that colour or style would express, in words."""
        parts = [self.text]
        if self.kind is not None and self.kind is not Kind.MEASURED:
            parts.append(f"({self.kind.value})")
        if self.has_mark:
            parts.append({True: "✓ met", False: "✗ not met", None: "? open"}[self.is_met])
        return " ".join(parts)


@dataclass(frozen=True, slots=True)
class Table:
    """A titled grid; the first column names the row."""

    key: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    notes: tuple[str, ...] = field(default=())


def make_table(
    key: str,
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Cell | str]],
    *,
    caption: str = "",
    notes: Sequence[str] = (),
) -> Table:
    """Build a table; plain strings become cells without a kind, short rows are filled up."""
    n_columns = len(columns)
    cells = tuple(
        tuple(cell if isinstance(cell, Cell) else Cell(cell) for cell in row)
        + (Cell(""),) * (n_columns - len(row))
        for row in rows
    )
    return Table(key, title, tuple(columns), cells, caption, tuple(notes))
