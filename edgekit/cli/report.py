"""`edgekit report`: write the report pages again from report.json."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli.options import JsonOpt
from edgekit.cli.output import Output


def command(
    data: Annotated[
        Path, typer.Argument(metavar="REPORT_JSON", help="The report.json of a report.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write to.")] = Path(
        "report"
    ),
    as_json: JsonOpt = False,
) -> None:
    """Write the pages of a report again from its report.json.

    The pages are index.html, report.md, report.json and report.csv.

    Example:
      edgekit report demo-report/report.json --out page
    """
    from edgekit.pipeline.report import read_report
    from edgekit.report.write import write_report

    output = Output(is_json=as_json)
    written = write_report(read_report(data), out)
    output.result(
        [str(path) for path in written], lambda c: c.print(*written, sep="\n", soft_wrap=True)
    )
