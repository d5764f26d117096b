"""Claims about the report: every format says the same, and foreign text stays text."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from html.parser import HTMLParser

import pytest
from hypothesis import Phase, given, settings
from rich.console import Console

from edgekit.records import Kind, QualityRecord, ReportData, from_data, to_json
from edgekit.report.csv_rows import COLUMNS, render_csv
from edgekit.report.html import render_html
from edgekit.report.markdown import render_markdown
from edgekit.report.sections import build_tables, divergence_table
from edgekit.report.terminal import print_report, print_table
from tests.record_values import values_of
from tests.report.example import empty_report, example_divergence, example_report

HOSTILE = (
    '<script>alert(1)</script> | a * b `c` [x](http://evil.example) "q" & \x1b[31m\r\n# h =cmd()'
)
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Collects elements, attributes, table rows and the text of a page; checks nesting."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "script" in self._open:
            self.scripts.append(data)
            return
        self.text += data
        if {"td", "th"} & set(self._open):
            self.tables[-1][-1][-1] += data


def terminal_text(data: ReportData) -> str:
    stream = io.StringIO()
    print_report(data, Console(file=stream, width=2000, force_terminal=True, color_system=None))
    return stream.getvalue()


def markdown_rows(text: str) -> list[list[str]]:
    """Cells of every table line, read as GitHub reads them: an escaped bar does not part cells."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [
        [re.sub(r"\\(.)", r"\1", cell).strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in lines
    ]


@pytest.fixture(params=["plain", "empty"])
def data(request) -> ReportData:
    return example_report() if request.param == "plain" else empty_report()


def test_every_table_is_whole_in_every_format(data):
    page, lines = Page(render_html(data)), markdown_rows(render_markdown(data))
    shown = terminal_text(data)
    tables = build_tables(data)
    assert len(page.tables) == len(tables)
    for table, drawn in zip(tables, page.tables, strict=True):
        wanted = [list(table.columns), *[[cell.text for cell in row] for row in table.rows]]
        for row, cells in zip(drawn, wanted, strict=True):
            for got, text in zip(row, cells, strict=True):
                assert got.startswith(text)
        labelled = [list(table.columns), *[[c.labelled for c in row] for row in table.rows]]
        for row in labelled:
            assert [cell.strip() for cell in row] in lines
            for cell in row:
                assert cell in shown
        for line in (table.title, table.caption, *table.notes):
            assert line in page.text
            assert line in re.sub(r"\\(.)", r"\1", render_markdown(data))
            assert line in shown


def test_the_example_shows_every_table():
    keys = {table.key.partition("-")[0] for table in build_tables(example_report())}
    assert keys >= {
        "decision", "weights", "speed", "gaps", "memory", "fidelity", "suites", "breakdown",
        "failures", "paired", "environment",
    }  # fmt: skip
    assert [table.key for table in build_tables(empty_report())] == ["environment"]


def test_the_verdict_comes_first():
    data = example_report()
    for text in (render_html(data), render_markdown(data), terminal_text(data)):
        body = text[text.find("</head>") + 1 :]
        sentence = body.index("Ship pocket on the server.")
        assert sentence < body.index("a) Weights: the same codes")


def test_numbers_in_csv_json_and_records_are_the_same_to_the_last_bit():
    data = example_report()
    rows = list(csv.DictReader(io.StringIO(render_csv(data))))
    assert tuple(rows[0]) == COLUMNS
    by_key = {(row["candidate"], row["group"], row["metric"]): row for row in rows}
    assert len(by_key) == len(rows)
    written = json.loads(to_json(data))
    n_seen = 0
    for profile, plain in zip(data.profiles, written["profiles"], strict=True):
        for metric, entry in zip(profile.metrics, plain["metrics"], strict=True):
            row = by_key[profile.candidate, "profile", metric.name]
            assert float(row["value"]) == entry["value"] == metric.value
            assert tuple(map(float, row["samples"].split())) == metric.samples
            assert (float(row["low"]), float(row["high"])) == (metric.low, metric.high)
            assert row["kind"] == entry["kind"] == metric.kind.value
            n_seen += 1
    assert n_seen == 22
    assert float(by_key["pocket onnx", "suite", "tool_calls"]["value"]) == 0.75
    assert float(by_key["pocket onnx", "paired difference", "tool_calls"]["value"]) == -0.25
    assert float(by_key["pocket onnx", "fidelity", "kl_mean"]["value"]) == 0.01234
    assert by_key["pocket mlx", "verify", "codes_differing"]["value"] == "7"
    assert by_key["pocket onnx", "server", "e2e_s"]["value"] == ""


def test_what_was_not_measured_here_says_so_in_every_format():
    data = example_report()
    (row,) = [
        r for t in build_tables(data) if t.key == "speed" for r in t.rows if "core" in r[0].text
    ]
    assert {cell.kind for cell in row[2:]} == {Kind.EMULATED}
    page = Page(render_html(data))
    drawn = next(t for t in page.tables if t[0][:2] == ["candidate", "engine"])
    assert all(cell.endswith("emulated") for cell in drawn[2][2:])
    line = next(r for r in markdown_rows(render_markdown(data)) if r[0] == "pocket coreml")
    assert all(cell.endswith("(emulated)") for cell in line[2:])
    assert "30.8 tok/s (emulated)" in terminal_text(data)


def test_the_page_needs_nothing_from_outside_and_runs_nothing():
    for text in ("pocket", HOSTILE):
        page = Page(render_html(example_report(text)))
        policies = [a["content"] for tag, a in page.elements if a.get("http-equiv")]
        assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
        for tag, attributes in page.elements:
            assert tag not in {"link", "iframe", "object", "embed", "img", "form", "base", "a"}
            assert not [n for n in attributes if n.startswith("on")]
            assert not {"src", "href", "xlink:href", "action", "style"} & set(attributes)
            if tag == "script":
                assert attributes["type"] == "application/json"
        style = re.search(r"<style>(.*?)</style>", render_html(example_report(text)), re.DOTALL)
        assert "@import" not in style[1]
        assert "url(" not in style[1]


def test_every_chart_has_a_title_and_a_description_of_its_own():
    for report in (example_report(), example_report(HOSTILE)):
        page = Page(render_html(report))
        ids = [a["id"] for _, a in page.elements if "id" in a]
        assert len(ids) == len(set(ids))
        charts = [a for tag, a in page.elements if tag == "svg"]
        assert len(charts) == 6
        assert [a["role"] for a in charts] == ["img"] * 6
        for attributes in charts:
            title, description = attributes["aria-labelledby"].split()
            tags = {a.get("id"): tag for tag, a in page.elements}
            assert (tags[title], tags[description]) == ("title", "desc")


def test_foreign_text_is_inert_in_html():
    page = Page(render_html(example_report(HOSTILE)))
    assert len([tag for tag, _ in page.elements if tag == "script"]) == 1
    assert "<script>alert(1)</script>" in page.text
    (embedded,) = page.scripts
    assert from_data(ReportData, json.loads(embedded)) == example_report(HOSTILE)
    assert "<" not in embedded


def test_names_from_a_report_file_cannot_leave_their_attribute():
    plain = example_report()
    suite = dataclasses.replace(plain.qualities[0].suites[0], suite='x"><script>alert(1)</script>')
    quality = dataclasses.replace(plain.qualities[0], suites=(suite,))
    page = Page(render_html(dataclasses.replace(plain, qualities=(quality,))))
    assert len([tag for tag, _ in page.elements if tag == "script"]) == 1


def test_foreign_text_is_inert_in_markdown():
    text = render_markdown(example_report(HOSTILE))
    lines = text.splitlines()
    assert "\r" not in text
    assert not re.search(r"(?<!\\)<", text)
    assert not re.search(r"(?<!\\)\]\(", text)
    assert all("=cmd" not in line for line in lines if line.startswith("#") and "=cmd" in line[:8])
    for table in build_tables(example_report(HOSTILE)):
        n_columns = len(table.columns)
        flat = table.title.replace("\r", " ").replace("\n", " ")
        start = next(
            i for i, line in enumerate(lines) if re.sub(r"\\(.)", r"\1", line) == f"## {flat}"
        )
        rows = []
        for line in lines[start + 1 :]:
            if line.startswith("## "):
                break
            rows += [line] if line.startswith("|") else []
        assert len(rows) == len(table.rows) + 2
        assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {n_columns + 1}


@pytest.mark.parametrize("start", ["=cmd()", "+1", "-1", "@x", "\tx", "\rx", "\n=x"])
def test_foreign_text_is_inert_in_csv(start):
    rows = list(csv.reader(io.StringIO(render_csv(example_report(start)), newline="")))
    assert len(rows) == len(list(csv.reader(io.StringIO(render_csv(example_report())))))
    for row in rows:
        assert len(row) == len(COLUMNS)
        for cell in row:
            is_number = re.fullmatch(r"-?[0-9.]+(e-?[0-9]+)?", cell) is not None
            assert is_number or cell[:1] not in tuple("=+-@\t\r\n")


def test_foreign_text_is_inert_on_a_terminal():
    shown = terminal_text(example_report(HOSTILE + "\x9b31m[red]x[/red]\x07"))
    assert not {c for c in shown if not c.isprintable()} - {"\n"}
    assert "[red]x[/red]" in shown


def test_a_report_is_its_json_and_back(data):
    again = from_data(ReportData, json.loads(to_json(data)))
    assert again == data
    for render in (to_json, render_html, render_markdown, render_csv):
        assert render(again) == render(data)


# Shrinking a whole report takes minutes.
@settings(max_examples=60, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(values_of(ReportData))
def test_no_report_breaks_a_format(data):
    page = Page(render_html(data))
    assert len([tag for tag, _ in page.elements if tag == "script"]) == 1
    assert render_markdown(data).startswith("# ")
    assert {len(row) for row in csv.reader(io.StringIO(render_csv(data), newline=""))} == {11}
    assert terminal_text(data)


def test_fidelity_is_a_line_for_each_artifact_in_80_columns():
    names = ("pocket onnx int8-g32", "pocket coreml int4-g32", "pocket mlx int4-g32")
    engine = example_report().qualities[0].engine
    qualities = [
        QualityRecord(name, engine, example_divergence(kl, top_k=k), ())
        for name, kl, k in zip(names, (0.00063, 0.0746, 2.5), (256, 256, None), strict=True)
    ]
    qualities[1] = dataclasses.replace(
        qualities[1], divergence=dataclasses.replace(qualities[1].divergence, n_tokens=2136)
    )
    table = divergence_table(qualities)
    console = Console(file=io.StringIO(), width=80, highlight=False)
    print_table(table, console)
    lines = console.file.getvalue().splitlines()
    (line,) = [line for line in lines if "coreml" in line and "±" in line]
    assert line.split() == [
        "pocket", "coreml", "int4-g32", "0.07460", "±0.015", "0.2000", "98.76", "%", "4.321",
        "1.0288",
    ]  # fmt: skip
    assert table.caption.startswith(
        "On 321 tokens of pocket onnx int8-g32, pocket mlx int4-g32; 2,136 tokens of pocket coreml"
    )
    assert table.notes == (
        "KL is estimated from the 256 likeliest tokens and a sample of the others "
        "(docs/quality.md).",
    )
