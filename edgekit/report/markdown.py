"""A report as Markdown."""

from __future__ import annotations

from edgekit.records import ReportData
from edgekit.report.sections import NOT_THESE_NUMBERS, build_tables, label_kinds
from edgekit.report.table import Table


def render_markdown(data: ReportData) -> str:
    """Write the report as GitHub Markdown, verdict first."""
    parts = [f"# {_escape(data.title)}"]
    parts.extend(f"**{_escape(c.verdict.sentence)}**" for c in data.comparisons)
    parts.extend(render_table(table) for table in build_tables(data))
    parts.append("## What the labels mean\n\n" + "\n".join(f"- {n}: {t}" for n, t in label_kinds()))
    parts.append(
        "## What these numbers are not\n\n" + "\n".join(f"- {t}" for t in NOT_THESE_NUMBERS)
    )
    return "\n\n".join(parts) + "\n"


def render_table(table: Table) -> str:
    """Write one table with its heading, caption and notes."""
    lines = [f"## {_escape(table.title)}", ""]
    if table.caption:
        lines += [_escape(table.caption), ""]
    lines.append("| " + " | ".join(_escape(c) for c in table.columns) + " |")
    lines.append("|" + " --- |" * len(table.columns))
    for row in table.rows:
        lines.append("| " + " | ".join(_escape(cell.labelled) for cell in row) + " |")
    if table.notes:
        lines += ["", *[f"- {_escape(note)}" for note in table.notes]]
    return "\n".join(lines)


def _escape(text: str) -> str:
    """Escape text from models and servers, so that it cannot become markup."""
    for mark in "\\`*_[]<>|#":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("\r", " ").replace("\n", " ")
