"""A report's tables on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgekit.lazy import require
from edgekit.records import Choice, ReportData
from edgekit.report.sections import build_tables
from edgekit.report.table import Cell, Table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_SHORT: Final = 22
_STYLE: Final = {True: "green", False: "red", None: "yellow"}
_CHOICE_STYLE: Final = {
    Choice.DEVICE: "bold green",
    Choice.SERVER: "bold red",
    Choice.UNDECIDED: "bold yellow",
}


def print_report(
    data: ReportData, console: Console, *, keys: tuple[str, ...] | None = None
) -> None:
    """Print verdicts, then tables (all, or those whose key starts with one of ``keys``)."""
    for comparison in data.comparisons:
        verdict = comparison.verdict
        console.print(_plain(verdict.sentence, style=_CHOICE_STYLE[verdict.choice]))
    for table in build_tables(data):
        if keys is None or table.key.startswith(keys):
            print_table(table, console)


def print_table(table: Table, console: Console) -> None:
    """Print one table with its caption and notes."""
    rich_table = require("rich.table")
    grid = rich_table.Table(
        title=_plain(table.title),
        title_justify="left",
        title_style="bold",
        box=require("rich.box").SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    widths = [_width(table, index) for index in range(len(table.columns))]
    is_fitting = sum(widths) + 2 * len(widths) <= console.width
    for index, name in enumerate(table.columns):
        is_kept = widths[index] <= _SHORT and (index == 0 or is_fitting)
        grid.add_column(_plain(name), overflow="fold", no_wrap=is_kept)
    for row in table.rows:
        grid.add_row(*[_plain(cell.labelled, style=_cell_style(cell)) for cell in row])
    console.print()
    console.print(grid)
    for line in (table.caption, *table.notes):
        if line:
            console.print(_plain(line, style="dim"))


def _plain(words: str, style: str = "") -> Text:
    """Make text without control characters, which could control the terminal."""
    shown = "".join(c if c.isprintable() else " " for c in words)
    text: Text = require("rich.text").Text(shown, style=style)
    return text


def _width(table: Table, index: int) -> int:
    cells = [row[index].labelled for row in table.rows]
    return max(len(cell) for cell in (*cells, table.columns[index]))


def _cell_style(cell: Cell) -> str:
    return _STYLE[cell.is_met] if cell.has_mark else ""
