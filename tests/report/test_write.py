"""Claims about writing a report: each file whole or untouched, the same bytes every time."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import edgekit
from edgekit.errors import ExportError, UsageError
from edgekit.pipeline.report import read_report
from edgekit.records import to_json
from edgekit.report.write import FILES, write_report
from tests.report.example import empty_report, example_report


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("data", [example_report(), empty_report()], ids=["full", "empty"])
def test_a_report_is_written_again_from_its_json_byte_for_byte(data, tmp_path):
    written = write_report(data, tmp_path / "a")
    assert [path.name for path in written] == list(FILES)
    assert sorted(contents(tmp_path / "a")) == sorted(FILES)
    write_report(read_report(tmp_path / "a" / "report.json"), tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_files_can_be_read_by_others_and_end_lines_alike_everywhere(tmp_path):
    for path in write_report(example_report(), tmp_path):
        assert path.stat().st_mode & 0o777 == 0o644
        assert b"\r" not in path.read_bytes()


def test_half_a_surrogate_pair_is_written_and_read_again(tmp_path):
    # Servers have been seen to cut an emoji in two; UTF-8 cannot hold the half.
    write_report(example_report("cut \ud83d"), tmp_path)
    assert read_report(tmp_path / "report.json") == example_report("cut \ud83d")
    assert "cut \\ud83d" in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_other_files_in_the_folder_stay(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    write_report(example_report(), tmp_path)
    assert sorted(contents(tmp_path)) == sorted([*FILES, "mine.txt"])


def test_a_folder_that_cannot_be_made_is_an_error_with_what_to_do(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ExportError, match=r"cannot write the report.*Choose another --out"):
        write_report(example_report(), tmp_path / "file" / "report")


LIMITED = """
import resource, sys
from pathlib import Path
from edgekit.errors import ExportError
from edgekit.pipeline.report import read_report
from edgekit.report.write import write_report
data = read_report(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
try:
    write_report(data, Path(sys.argv[2]))
except ExportError as error:
    print(error.got)
"""


def test_a_file_that_does_not_fit_leaves_the_earlier_one(tmp_path):
    source = tmp_path / "report.json"
    source.write_text(to_json(dataclasses.replace(example_report(), notes=("long " * 9000,))))
    write_report(empty_report(), tmp_path / "out")
    before = contents(tmp_path / "out")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, source, tmp_path / "out"],
        capture_output=True, text=True, check=True, cwd=Path(edgekit.__file__).parents[1],
    )  # fmt: skip
    assert done.stdout.strip() == os.strerror(27)
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not valid JSON"),
        ("[1]", "outermost value"),
        ("{}", "report version"),
        ('{"schema_version": 2}', "report version"),
        ('{"schema_version": 1}', "not a ReportData record"),
        ('{"schema_version": 1, "schema_version": 1}', "key given twice"),
        ('{"schema_version": NaN}', "NaN is not JSON"),
        ("[" * 100_000, "nesting too deep"),
    ],
)
def test_what_is_no_report_is_a_usage_error(text, said, tmp_path):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(UsageError, match=said):
        read_report(tmp_path / "r.json")


def test_a_report_that_is_not_there_or_holds_nan_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot read"):
        read_report(tmp_path / "nowhere.json")
    with pytest.raises(UsageError, match="cannot read"):
        read_report(tmp_path)
    data = json.loads(to_json(example_report()))
    data["profiles"][0]["metrics"][0]["value"] = 1e999
    (tmp_path / "r.json").write_text(json.dumps(data).replace("Infinity", "1e999"))
    with pytest.raises(UsageError, match="number too large: 1e999"):
        read_report(tmp_path / "r.json")
