"""Claims about `edgekit quality-cost`: table, files, one JSON document, bad input, a pipe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import edgekit
from edgekit.quality import reference_store
from edgekit.records import CostRecord, from_data
from tests.builders import write_tiny_checkpoint

ROOT = Path(edgekit.__file__).parent.parent


@pytest.fixture(autouse=True)
def _own_store(tmp_path, monkeypatch):
    monkeypatch.setattr(reference_store, "cache_dir", lambda: tmp_path / "cache")


def test_a_table_of_80_columns_two_files_and_what_the_store_loses(
    tiny_model, edgekit_cli, tmp_path, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "80")
    out = tmp_path / "out"
    said = edgekit_cli(
        "quality-cost", tiny_model, "--schemes", "int8,int4", "--tokens", 40, "--out", out
    )
    assert said.code == 0, said.err
    assert max(len(line.rstrip()) for line in said.out.splitlines()) <= 80
    rows = [line.split() for line in said.out.splitlines() if line.startswith(" int")]
    assert [row[0] for row in rows] == ["int8-g32", "int4-g32"]
    assert all(row[-1] == "*" for row in rows)
    assert "40 tokens of text (builtin), of which there is more (--tokens)" in said.err
    assert "int4-g32: 4.50 bits, KL " in said.err
    assert {path.name for path in out.iterdir()} == {
        "quality-cost.json", "quality-cost.svg", "settings",
    }  # fmt: skip
    # A second call has it all, and says the same as one JSON document.
    again = edgekit_cli(
        "quality-cost", tiny_model, "--schemes", "int8,int4", "--tokens", 40, "--out", out, "--json"
    )
    assert again.code == 0
    assert again.data == json.loads((out / "quality-cost.json").read_text(encoding="utf-8"))
    record = from_data(CostRecord, again.data)
    assert (record.text, record.n_tokens) == ("builtin", 40)
    assert record.front == ("int4-g32", "int8-g32")


def test_artifacts_and_suites_are_measured_beside(edgekit_cli, tmp_path):
    model = write_tiny_checkpoint(tmp_path / "m", max_position_embeddings=1024)
    (artifact,) = edgekit.export(model, "mlx", "int8", tmp_path)
    said = edgekit_cli(
        "quality-cost", model, "--schemes", "int4:rtn", "--artifact", artifact.path, "--tokens", 20,
        "--suite", "multi_step", "--items", 1, "--keep", "--out", tmp_path / "out", "--json",
    )  # fmt: skip
    assert said.code == 0, said.err
    points = said.data["points"]
    assert [point["name"] for point in points] == ["int4-g32:rtn", "m-mlx-int8-g32"]
    assert [point["suites"][0]["n_items"] for point in points] == [1, 1]
    assert (tmp_path / "out" / "artifacts" / "int4-g32_rtn" / "m-onnx-int4-g32").is_dir()


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--schemes", "int5"), 2, "unknown scheme"),
        (("--schemes", ","), 2, "no scheme given"),
        (("--schemes", "int4:best"), 2, "setting 'int4:best'"),
        (("--tokens", "0"), 2, "Invalid value for '--tokens'"),
        (("--text", "nowhere.txt"), 2, "nowhere.txt: the text cannot be read"),
        (("--suite", "chess"), 2, "no suite is called 'chess'"),
        (("--artifact", "nowhere"), 1, "nowhere is not an artifact"),
        (("--out", "/dev/null/x"), 1, "cannot write to /dev/null/x"),
    ],
)
def test_bad_input_is_said_before_anything_is_exported(
    edgekit_cli, tiny_model, tmp_path, monkeypatch, options, code, said
):
    monkeypatch.chdir(tmp_path)
    found = edgekit_cli("quality-cost", tiny_model, *options)
    assert found.code == code
    assert said in found.err
    assert not list(tmp_path.rglob("model.onnx"))
    document = edgekit_cli("quality-cost", tiny_model, *options, "--json")
    assert (document.code, set(document.data)) == (code, {"error", "what", "got", "wanted", "do"})


def test_an_id_that_the_model_lacks_is_said(edgekit_cli, tiny_model, tmp_path):
    path = tmp_path / "ids.jsonl"
    path.write_text('{"ids": [1, 2, 999999, 3]}')
    found = edgekit_cli("quality-cost", tiny_model, "--text", path, "--out", tmp_path / "out")
    assert found.code == 2
    assert "a token id is outside the vocabulary" in found.err
    assert list((tmp_path / "cache" / "reference").iterdir()) == []


def test_no_such_model(edgekit_cli, tmp_path):
    found = edgekit_cli("quality-cost", tmp_path / "none", "--out", tmp_path / "out")
    assert found.code == 1
    assert "none" in found.parts()["what"]


def test_a_closed_pipe_ends_it(tiny_model, tmp_path):
    """The results are in their files all the same."""
    command = [
        sys.executable, "-m", "edgekit", "quality-cost", str(tiny_model), "--schemes", "int8",
        "--tokens", "20", "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    read, write = os.pipe()
    os.close(read)
    child = subprocess.run(
        command, stdout=write, stderr=subprocess.PIPE, text=True, cwd=ROOT, timeout=300,
        env=os.environ | {"EDGEKIT_HOME": str(tmp_path / "home")},
    )  # fmt: skip
    os.close(write)
    assert child.returncode == 141
    assert "Traceback" not in child.stderr
    assert (tmp_path / "out" / "quality-cost.json").is_file()
