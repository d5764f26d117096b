"""Claims about what `edgekit verify` says: each check by its name, in 80 columns, and in JSON."""

from __future__ import annotations

import shutil

import pytest

from edgekit.artifact import Artifact
from tests.pipeline.test_verify import change_mlx, flip_code, repair

FAST = ("--tokens", 16, "--prompts", 1)


@pytest.fixture
def trio(tiny_artifacts):
    return [tiny_artifacts[f"{form}-int8"].path for form in ("onnx", "mlx", "coreml")]


def test_the_checks_are_separate_tables_that_fit_80_columns(
    pocket_artifacts, edgekit_cli, monkeypatch
):
    trio = [pocket_artifacts[f"{form}-int8"].path for form in ("onnx", "mlx", "coreml")]
    monkeypatch.setenv("COLUMNS", "80")
    said = edgekit_cli("verify", *trio, *FAST, "--stock")
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    titles = [
        "a) Weights: the same codes and scales in every format",
        "b) Logits: each graph in float32 against the plain numpy forward",
        "c) As run: the default engine against the plain numpy forward",
        "Stock runtimes against the default engine",
    ]
    found = [line.strip() for line in lines if line.strip() in titles]
    assert found == titles
    text = " ".join(said.out.split())
    assert "Tolerance int8-activations: activations are rounded to int8 in blocks." in text
    assert "Tolerance float32-sums: float32 sums in another order" in text
    assert "not run: needs macOS" in text
    assert "verified (not run: Core ML: needs macOS" in text


def test_the_document_holds_every_check(trio, edgekit_cli):
    said = edgekit_cli("verify", *trio, *FAST, "--json")
    assert said.code == 0, said.err
    assert said.data["is_verified"] is True
    assert [record["format"] for record in said.data["records"]] == ["onnx", "mlx", "coreml"]
    for record in said.data["records"]:
        assert record["weights"]["n_codes_differing"] == 0
        assert record["logits"]["n_tokens"] == record["run"]["n_read"] == 16
        (answer,) = record["run"]["answers"]
        assert len(answer["ids"]) == record["run"]["n_written"]
        assert record["stock"] is None


def test_weights_alone_run_nothing(trio, edgekit_cli):
    said = edgekit_cli("verify", *trio, "--weights-only", "--json")
    assert said.code == 0
    assert {(r["logits"], r["run"]) for r in said.data["records"]} == {(None, None)}
    for more in (("--stock",), ("--tokens", 8), ("--prompts", 1)):
        said = edgekit_cli("verify", *trio, "--weights-only", *more)
        assert said.code == 2
        assert said.parts()["what"] == "--weights-only runs nothing"


def test_the_verdict_names_the_check_that_failed(tiny_artifacts, tmp_path, edgekit_cli):
    folder = change_mlx(tiny_artifacts["mlx-int8"], tmp_path / "m", flip_code)
    changed = repair(folder, tensors=True)
    said = edgekit_cli("verify", tiny_artifacts["onnx-int8"].path, changed.path, "--weights-only")
    assert said.code == 1
    assert said.out.splitlines()[-1] == f"NOT verified: {changed.name}: weights"


@pytest.mark.parametrize("name", ["onnx-int8", "mlx-int8", "coreml-int8"])
def test_a_damaged_artifact_is_an_error_and_one_document(
    name, tiny_artifacts, tmp_path, edgekit_cli
):
    folder = shutil.copytree(tiny_artifacts[name].path, tmp_path / "a")
    entry = max(Artifact.open(folder).manifest.files, key=lambda file: file.n_bytes)
    data = bytearray((folder / entry.path).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / entry.path).write_bytes(data)
    said = edgekit_cli("verify", folder, "--json")
    assert said.code == 1
    assert said.data["error"] == "ArtifactError"
    assert said.data["got"] == entry.path
