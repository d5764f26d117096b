"""Claims about claims: what a manifest says falsely is found, and what is true is never doubted."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

import edgekit
from edgekit.artifact import Format
from edgekit.errors import ArtifactError
from edgekit.pipeline.claims import false_claims, recover_entries, refuse_false_claims
from tests.builders import write_tiny_checkpoint
from tests.checkpoint.gguf.test_parts import write_model
from tests.relist import claim, relist
from tests.test_docs import ROOT, load_script
from tests.tiny_adapters import ADAPTERS, write_tiny_adapter
from tests.tiny_families import TINY_CONFIGS

# Each is also loaded; the engine of GGUF is an optional package.
FORMATS = [fmt.value for fmt in Format if fmt is not Format.GGUF]


@pytest.fixture(scope="module")
def script():
    return load_script("integrity")


@pytest.fixture(scope="module")
def pocket(pocket_artifacts):
    return [pocket_artifacts[f"{name}-int4"] for name in FORMATS]


def test_random_bits_in_any_file_are_found_and_refused(script, pocket):
    rows = list(script.try_flips(pocket, 60, seed=1))
    assert sum(row.n_tried for row in rows) == 60
    assert all(row.n_found == row.n_refused == row.n_tried for row in rows), rows


def test_planted_removed_and_replaced_files_are_found(script, pocket):
    for row in script.try_planted(pocket):
        by_design = {
            "planted, under a name that nothing reads": (row.n_tried, 0),
            "kept by file managers, git and downloads": (0, 0),
        }.get(row.kind, (row.n_tried, row.n_tried))
        assert (row.n_found, row.n_refused) == by_design, row


def test_every_false_claim_is_found_and_without_a_new_seal_refused(script, pocket):
    rows = list(script.try_claims(pocket, script.FALSE_CLAIMS))
    assert len({row.kind for row in rows}) >= 30
    assert all(row.n_found == row.n_refused == row.n_tried for row in rows), rows


def test_a_false_claim_is_found_by_itself_and_not_by_what_goes_wrong_elsewhere(script, pocket):
    """With the true tensors in hand: what the manifest says is judged, not how it is read back."""
    about_bytes = ("sha256 of a file", "size of a file")  # check_files compares these
    for artifact in pocket:
        entries = recover_entries(artifact)
        for item in script.FALSE_CLAIMS:
            if artifact.format in item.formats and item.field not in about_bytes:
                lying = replace(artifact, manifest=item.change(artifact.manifest))
                assert false_claims(lying, entries), (item.field, artifact.format)


def test_what_cannot_be_checked_is_what_the_page_says(script, pocket):
    rows = list(script.try_claims(pocket, script.UNCHECKED))
    assert all((row.n_found, row.n_refused) == (0, row.n_tried) for row in rows), rows


def test_the_page_has_every_claim_that_the_script_tries(script):
    page = (ROOT / "docs" / "integrity.md").read_text(encoding="utf-8")
    for item in (*script.FALSE_CLAIMS, *script.UNCHECKED):
        assert f"| {item.field} | " in page, item.field
    assert "| all | | 500 | 500 of 500 | 500 of 500 |" in page


@pytest.mark.parametrize("model_type", TINY_CONFIGS)
def test_what_an_export_of_a_family_writes_is_true(model_type, tmp_path):
    model = write_tiny_checkpoint(tmp_path / "m", model_type)
    formats = "all" if model_type != "gemma" else ["onnx", "coreml", "gguf"]
    for artifact in edgekit.export(model, formats, "int4", tmp_path / "o"):
        assert false_claims(artifact, recover_entries(artifact)) == []


@pytest.mark.parametrize("name", ADAPTERS)
def test_what_an_export_with_an_adapter_writes_is_true(name, tmp_path):
    base, adapter = write_tiny_adapter(tmp_path, name)
    for artifact in edgekit.export(base, "all", "int8", tmp_path / "o", adapter=adapter):
        assert false_claims(artifact, recover_entries(artifact)) == []


@pytest.mark.parametrize("scheme", ["int4", "int8", "fp16"])
def test_what_an_export_of_imported_codes_writes_is_true(scheme, tmp_path):
    model = write_model(tmp_path)
    for artifact in edgekit.export(model, "all", scheme, tmp_path / "o"):
        assert false_claims(artifact, recover_entries(artifact)) == []


def test_a_context_that_was_asked_for_and_an_ignored_key_are_true(tmp_path):
    model = write_tiny_checkpoint(tmp_path / "m", odd_key=True)
    for artifact in edgekit.export(
        model, "all", "int8", tmp_path / "o", context_length=32, ignore_config_keys=["odd_key"]
    ):
        assert false_claims(artifact, recover_entries(artifact)) == []


def test_an_artifact_without_a_tokenizer_is_true(tmp_path):
    model = write_tiny_checkpoint(tmp_path / "m")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).unlink()
    for artifact in edgekit.export(model, "all", "int8", tmp_path / "o"):
        assert false_claims(artifact, recover_entries(artifact)) == []


@pytest.mark.parametrize("name", FORMATS)
def test_an_exchanged_tokenizer_config_is_held_against_the_end_tokens(
    name, tiny_artifacts, tmp_path
):
    """Files and manifest agree, and the manifest's end tokens are not those of the files."""
    folder = shutil.copytree(tiny_artifacts[f"{name}-int4"].path, tmp_path / "a")
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [2, 5]}))
    artifact = relist(folder)
    (found,) = false_claims(artifact, recover_entries(artifact))
    assert found.startswith("decoder.eos_token_ids: the manifest says {2}, the files say {2, 5}")


def test_false_claims_are_told_together_and_cut(tiny_artifacts, tmp_path):
    folder = shutil.copytree(tiny_artifacts["mlx-int4"].path, tmp_path / "a")
    tensors = tuple(
        replace(entry, reason="x" * 4000) for entry in tiny_artifacts["mlx-int4"].manifest.tensors
    )
    artifact = claim(folder, tensors=tensors, n_parameters=1)
    with pytest.raises(ArtifactError, match="false claims") as caught:
        refuse_false_claims(artifact, recover_entries(artifact))
    assert "n_parameters: the manifest says 1, the files say" in caught.value.got
    assert f"and {len(tensors) + 1 - 8} more" in caught.value.got
    assert len(caught.value.got) < 3000


@pytest.mark.parametrize(
    "settings",
    [{}, {"float_dtype": {}}, {"float_dtype": []}, {"float_dtype": "bfloat17"}, {"mode": [1]}],
)
def test_settings_without_sense_are_false_claims(settings, tiny_artifacts, tmp_path):
    folder = shutil.copytree(tiny_artifacts["mlx-int4"].path, tmp_path / "a")
    artifact = claim(folder, settings=settings)
    assert false_claims(artifact, recover_entries(artifact))


@pytest.mark.parametrize("text", ["{}", '{"model_type": []}', '{"model_type": "bert"}', "[", "7"])
def test_a_config_without_sense_is_a_false_claim(text, tiny_artifacts, tmp_path):
    folder = shutil.copytree(tiny_artifacts["onnx-int4"].path, tmp_path / "a")
    (folder / "config.json").write_text(text)
    artifact = relist(folder)
    assert false_claims(artifact, recover_entries(artifact))
