"""Reading a report.json back, to write its report again."""

from __future__ import annotations

from pathlib import Path

from edgekit.errors import FormatError, UsageError
from edgekit.records import SCHEMA_VERSION, ReportData, from_data
from edgekit.strict_json import parse_object

MAX_REPORT_BYTES = 512 * 1024**2


def read_report(path: Path) -> ReportData:
    """Read a ``report.json``.

    Raises:
        UsageError: No such file, not JSON, or not a report of this version.
    """
    try:
        if path.stat().st_size > MAX_REPORT_BYTES:
            raise UsageError(f"{path} is too large for a report", got=path.stat().st_size)
        data = parse_object(path.read_bytes(), str(path), allows_surrogates=True)
    except (OSError, FormatError) as error:
        raise UsageError(
            f"cannot read {path}",
            got=str(error),
            wanted="the report.json of a report",
            do="Name the report.json that `edgekit demo` or `edgekit compare` wrote.",
        ) from error
    version = data.get("schema_version")
    if version != SCHEMA_VERSION:
        raise UsageError(f"{path}: report version", got=version, wanted=SCHEMA_VERSION)
    return from_data(ReportData, data)
