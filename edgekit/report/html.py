"""A report as one HTML file that opens offline.

It has no script, no external file and a strict content policy; all text from models is escaped.
"""

from __future__ import annotations

from html import escape
from importlib import resources
from typing import Final

from edgekit.records import Choice, ReportData, to_json
from edgekit.report.charts import build_charts
from edgekit.report.sections import NOT_THESE_NUMBERS, build_tables, label_kinds
from edgekit.report.svg import Chart, draw
from edgekit.report.table import Cell, Table

_CHOICE_CLASS: Final = {
    Choice.DEVICE: "device",
    Choice.SERVER: "server",
    Choice.UNDECIDED: "undecided",
}
_MARKS: Final = {True: ("yes", "✓ met"), False: ("no", "✗ not met"), None: ("open", "? open")}


def render_html(data: ReportData) -> str:
    """Write the report as one self-contained page."""
    title = escape(data.title)
    subtitle = f"{data.model} · {data.created} · edgekit {data.edgekit_version}"
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta http-equiv="Content-Security-Policy" '
            "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">",
            f"<title>{title}</title><style>{_style()}</style></head><body><main>",
            f"<h1>{title}</h1>",
            f'<p class="soft">{escape(subtitle)}</p>',
            *_verdicts(data),
            *_body(data),
            *_labels(),
            "</main>",
            f'<script type="application/json" id="report-data">{_embed(data)}</script>',
            "</body></html>",
            "",
        ]
    )


def _style() -> str:
    return resources.files("edgekit.report").joinpath("page.css").read_text(encoding="utf-8")


def _embed(data: ReportData) -> str:
    """Escape so that no text of a model can close the script element."""
    return to_json(data).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _verdicts(data: ReportData) -> list[str]:
    parts = []
    for comparison in data.comparisons:
        verdict = comparison.verdict
        parts.append(
            f'<section class="verdict {_CHOICE_CLASS[verdict.choice]}">'
            f"<strong>{escape(verdict.choice.value.capitalize())}</strong>"
            f"<p>{escape(verdict.sentence)}</p>"
            f'<p class="soft">Rule, stated before the run: {escape(verdict.rule)}.</p></section>'
        )
    return parts


def _body(data: ReportData) -> list[str]:
    tables, charts = build_tables(data), build_charts(data)
    groups: dict[str, tuple[str, ...]] = {
        "speed": ("chart-speed", "chart-latency"),
        "memory": ("chart-memory", "chart-size"),
    }
    known = {key for group in groups.values() for key in group}
    drawn: list[str] = []
    for table in tables:
        drawn.append(_table(table))
        keys = groups.get(table.key, ())
        if table.key == "suites":
            keys = tuple(chart.key for chart in charts if chart.key not in known)
        drawn.extend(_figure(chart) for chart in charts if chart.key in keys)
    return drawn


def _figure(chart: Chart) -> str:
    caption = f"<b>{escape(chart.title)}.</b> {escape(chart.message)}"
    return f"<figure>{draw(chart)}<figcaption>{caption}</figcaption></figure>"


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.columns)
    rows = "".join(
        "<tr>"
        + f'<th scope="row">{_cell(row[0])}</th>'
        + "".join(f"<td>{_cell(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in table.rows
    )
    notes = "".join(f'<p class="soft">{escape(note)}</p>' for note in table.notes)
    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    return (
        f'<section id="{escape(table.key.replace(" ", "-"))}"><h2>{escape(table.title)}</h2>'
        f'<div class="scroll"><table>{caption}'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{notes}</section>"
    )


def _cell(cell: Cell) -> str:
    text = escape(cell.text)
    if cell.kind is not None:
        text += f'<span class="tag">{cell.kind.value}</span>'
    if cell.has_mark:
        style, mark = _MARKS[cell.is_met]
        text += f' <span class="{style}">{mark}</span>'
    return text


def _labels() -> list[str]:
    kinds = "".join(
        f"<li><b>{escape(name)}</b>: {escape(text)}</li>" for name, text in label_kinds()
    )
    nots = "".join(f"<li>{escape(text)}</li>" for text in NOT_THESE_NUMBERS)
    return [
        f"<section><h2>What the labels mean</h2><ul>{kinds}</ul></section>",
        f"<section><h2>What these numbers are not</h2><ul>{nots}</ul></section>",
    ]
