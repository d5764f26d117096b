"""Writing the files of a report (HTML, Markdown, JSON, CSV) and of a table of costs (JSON, SVG)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from edgekit.errors import ExportError
from edgekit.records import CostRecord, ReportData, to_json
from edgekit.report.cost import cost_picture
from edgekit.report.csv_rows import render_csv
from edgekit.report.html import render_html
from edgekit.report.markdown import render_markdown

FILES: Final[dict[str, Callable[[ReportData], str]]] = {
    "index.html": render_html,
    "report.md": render_markdown,
    "report.json": to_json,
    "report.csv": render_csv,
}


COST_FILES: Final[dict[str, Callable[[CostRecord], str]]] = {
    "quality-cost.json": to_json,
    "quality-cost.svg": cost_picture,
}


def write_report(data: ReportData, folder: Path) -> tuple[Path, ...]:
    """Write the page and, next to it, the same report as Markdown, JSON and CSV.

    Raises:
        ExportError: A file cannot be written; each file is replaced whole.
    """
    return _write_all({name: render(data) for name, render in FILES.items()}, folder)


def write_cost(record: CostRecord, folder: Path) -> tuple[Path, ...]:
    """Write what quantizing costs as JSON and as a picture.

    Raises:
        ExportError: A file cannot be written; each file is replaced whole.
    """
    return _write_all({name: render(record) for name, render in COST_FILES.items()}, folder)


def _write_all(texts: Mapping[str, str], folder: Path) -> tuple[Path, ...]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return tuple(_write(folder / name, text) for name, text in texts.items())
    except OSError as error:
        raise ExportError(
            f"cannot write the report to {folder}",
            got=error.strerror or str(error),
            do="Choose another --out.",
        ) from error


def _write(path: Path, text: str) -> Path:
    descriptor, name = tempfile.mkstemp(prefix=".edgekit-", dir=path.parent)
    try:
        # A server may answer half of a surrogate pair, which UTF-8 cannot hold; "\\ud83d" is also
        # its spelling in JSON.
        with os.fdopen(
            descriptor, "w", encoding="utf-8", errors="backslashreplace", newline="\n"
        ) as stream:
            stream.write(text)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path
