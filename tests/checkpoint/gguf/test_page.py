"""docs/gguf.md says what the code does today."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import gguf_report

PAGE = (Path(__file__).parents[3] / "docs" / "gguf.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", list(gguf_report.tables()))
def test_the_page_holds_the_tables_of_the_code(name):
    assert gguf_report.tables()[name] in PAGE


def test_no_type_differs_from_the_package():
    assert "| 0 |" in gguf_report.types_table()
    rows = [row.split(" | ") for row in gguf_report.types_table().splitlines() if "floats |" in row]
    assert len(rows) == 25
    assert {row[-1] for row in rows} == {"0 |", "rounds to float32 |"}
