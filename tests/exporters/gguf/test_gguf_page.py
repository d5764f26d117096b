"""docs/gguf_export.md says what the code does today."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import gguf_export_report

PAGE = (Path(__file__).parents[3] / "docs" / "gguf_export.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["architectures", "measured"])
def test_the_page_holds_the_tables_of_the_code(name):
    assert gguf_export_report.tables()[name] in PAGE
