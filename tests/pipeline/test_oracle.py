"""Claims about the oracle: optimum over the weights of an artifact, in its real environment."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import edgekit
from edgekit.artifact import Artifact
from edgekit.errors import ArtifactError, ExportError, UnsupportedArchError, UsageError
from edgekit.families import open_model
from edgekit.pipeline import oracle
from edgekit.pipeline.agreement import open_float_decoder
from edgekit.pipeline.oracle import OracleRun, check_oracle, compare_with_oracle
from edgekit.records import LogitsCheck, OracleRecord
from tests.builders import write_tiny_checkpoint
from tests.conftest import RUN_EVERYWHERE

pytestmark = pytest.mark.usefixtures("optimum_environment")
IDS = [(31 * i + 7) % 384 for i in range(200)]


def of_kind(artifacts: dict[str, Artifact], kind: str) -> list[Artifact]:
    return [artifacts[f"{f}-{kind}"] for f in RUN_EVERYWHERE]


def relative_error(record: OracleRecord) -> float:
    return record.logits.max_error / record.logits.limit


def test_three_formats_and_two_schemes_equal_optimums_graph(tiny_artifacts):
    artifacts = [*of_kind(tiny_artifacts, "int4"), tiny_artifacts["onnx-int8"]]
    told: list[str] = []
    records = compare_with_oracle(artifacts, IDS, progress=lambda what, *_: told.append(what))
    assert [(r.format, r.scheme) for r in records] == [
        ("onnx", "int4-g32"), ("mlx", "int4-g32"), ("coreml", "int4-g32"), ("onnx", "int8-g32"),
    ]  # fmt: skip
    assert all(0 < relative_error(record) < 1 for record in records)
    assert all(record.logits.top1_agreement >= 0.99 for record in records)
    assert {record.logits.tolerance for record in records} == {"float32-sums"}
    assert {(record.logits.n_tokens, record.logits.compared_with) for record in records} == {
        (200, "optimum-onnx 0.1.0, transformers 4.57.6")
    }
    assert [r.weights_sha256 for r in records] == [a.manifest.weights_sha256 for a in artifacts]
    # One trace for each scheme, not one for each artifact.
    assert told.count("trace the model") == 2


@pytest.mark.parametrize(
    ("member", "scheme", "n_tokens"),
    [
        ("gemma3_text", "int4", 200),  # a window and two position encodings
        ("phi3", "int8", 64),  # fused matrices; LongRoPE up to the original length
    ],
)
def test_families_that_need_translation_equal_it_too(member, scheme, n_tokens, tmp_path):
    model = write_tiny_checkpoint(tmp_path / "a model", member)
    (artifact,) = edgekit.export(model, "onnx", scheme, tmp_path)
    (record,) = compare_with_oracle([artifact], IDS)
    assert 0 < relative_error(record) < 1
    assert record.logits.n_tokens == n_tokens
    assert ("LongRoPE" in record.logits.compared_with) is (member == "phi3")


def test_the_checkpoint_for_the_oracle_is_the_source_itself_when_nothing_is_rounded(tmp_path):
    model = write_tiny_checkpoint(tmp_path / "m", "phi3", dtype="fp32")
    (artifact,) = edgekit.export(model, "onnx", "fp32", tmp_path)
    (tmp_path / "given").mkdir()
    oracle._write_checkpoint(artifact, tmp_path / "given")
    wanted = load_file(model / "model.safetensors")
    found = load_file(tmp_path / "given" / "model.safetensors")
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values)
    config = json.loads((tmp_path / "given" / "config.json").read_text(encoding="utf-8"))
    assert (config["model_type"], config["torch_dtype"]) == ("phi3", "float32")
    assert config["rope_scaling"]["type"] == "longrope"


def test_the_text_decoder_of_a_multimodal_source_is_judged_by_itself(tmp_path):
    inner = write_tiny_checkpoint(tmp_path / "inner", "gemma3_text", dtype="fp32")
    config = json.loads((inner / "config.json").read_text(encoding="utf-8"))
    model = tmp_path / "m"
    shutil.copytree(inner, model)
    outer = {"model_type": "gemma3", "text_config": config, "vision_config": {}}
    (model / "config.json").write_text(json.dumps(outer), encoding="utf-8")
    weights = load_file(inner / "model.safetensors")
    renamed = {f"language_model.{name}": values for name, values in weights.items()}
    save_file(renamed, model / "model.safetensors", metadata={"format": "pt"})
    (artifact,) = edgekit.export(model, "onnx", "fp32", tmp_path)
    (tmp_path / "given").mkdir()
    oracle._write_checkpoint(artifact, tmp_path / "given")
    source = open_model(tmp_path / "given")
    assert source.spec.model_type == "gemma3_text"
    assert source.n_parameters == artifact.manifest.n_parameters
    source.close()
    found = load_file(tmp_path / "given" / "model.safetensors")
    assert found.keys() == weights.keys()
    for name, values in weights.items():
        np.testing.assert_array_equal(found[name], values)


def test_a_scale_that_edgekit_rounds_goes_into_an_embedding_of_its_own(tmp_path):
    model = write_tiny_checkpoint(tmp_path / "m", "gemma3_text", dtype="bf16")
    (artifact,) = edgekit.export(model, "onnx", "fp32", tmp_path)
    (tmp_path / "given").mkdir()
    oracle._write_checkpoint(artifact, tmp_path / "given")
    found = load_file(tmp_path / "given" / "model.safetensors")
    # bfloat16 holds 11.3125 of the root of 128.
    ratio = np.float32(11.3125 / 128**0.5)
    np.testing.assert_array_equal(
        found["model.embed_tokens.weight"], found["lm_head.weight"] * ratio
    )
    config = json.loads((tmp_path / "given" / "config.json").read_text(encoding="utf-8"))
    assert config["tie_word_embeddings"] is False


def test_logits_that_are_not_those_of_the_oracle_are_not_verified(tiny_artifacts):
    artifact = tiny_artifacts["onnx-int4"]
    decoder = open_float_decoder(artifact)
    logits = decoder.forward(IDS, n_past=0, n_logits=len(IDS))
    decoder.close()
    same = oracle._compare(artifact, OracleRun(tuple(IDS), logits, "itself"))
    assert (same.logits.max_error, same.logits.top1_agreement) == (0, 1)
    assert same.logits.is_met
    changed = logits.copy()
    changed[150, 9] += same.logits.limit * 1.01
    other = oracle._compare(artifact, OracleRun(tuple(IDS), changed, "one logit off"))
    assert not other.logits.is_met
    narrow = OracleRun(tuple(IDS), logits[:, :-1], "another vocabulary")
    with pytest.raises(ArtifactError, match=r"got \(200, 384\); wanted \(200, 383\)"):
        oracle._compare(artifact, narrow)


def test_the_command_shows_a_table_and_its_json_a_record(tiny_artifacts, edgekit_cli):
    path = tiny_artifacts["mlx-int4"].path
    said = edgekit_cli("verify", path, "--oracle", "optimum", "--tokens", 32, "--json")
    assert said.code == 0, said.err
    (record,) = said.data["oracle"]
    assert record["artifact"] == "tiny mlx int4-g32"
    assert record["logits"]["max_error"] <= record["logits"]["limit"]
    assert said.data["is_verified"] is True
    plain = edgekit_cli("verify", path, "--tokens", 32, "--json")
    assert plain.data["oracle"] == []


def test_a_missed_tolerance_ends_with_exit_code_1(tiny_artifacts, edgekit_cli, monkeypatch):
    def wrong(artifacts, token_ids, **_):
        return tuple(
            OracleRecord(
                a.name, a.format.value, a.manifest.scheme, "",
                LogitsCheck("mlx", "fp32", 32, 1.0, 0.1, "float32-sums", "why", 0.5, "optimum"),
            )
            for a in artifacts
        )  # fmt: skip

    monkeypatch.setattr(oracle, "compare_with_oracle", wrong)
    path = tiny_artifacts["mlx-int4"].path
    said = edgekit_cli("verify", path, "--oracle", "optimum", "--tokens", 32)
    assert said.code == 1
    assert "Against optimum's graph over the same weights" in said.out
    assert "NOT verified" in said.out


def test_families_that_optimum_does_not_know_are_refused_with_the_versions(tmp_path, edgekit_cli):
    model = write_tiny_checkpoint(tmp_path / "m", "ministral3")
    (artifact,) = edgekit.export(model, "mlx", "int4", tmp_path)
    with pytest.raises(UnsupportedArchError) as caught:
        check_oracle("optimum", [artifact])
    assert caught.value.got == "'ministral3'"
    assert caught.value.wanted.startswith("one that optimum-onnx 0.1.0 with transformers 4.57")
    said = edgekit_cli("verify", artifact.path, "--oracle", "optimum")
    assert said.code == 1
    assert said.parts()["do"].startswith("optimum cannot judge this family")


def test_another_oracle_is_a_usage_error_before_anything_runs(tiny_artifacts, edgekit_cli):
    said = edgekit_cli("verify", tiny_artifacts["mlx-int4"].path, "--oracle", "delphi")
    assert said.code == 2
    assert said.parts() == {
        "what": "unknown value of --oracle", "got": "'delphi'", "wanted": "optimum",
    }  # fmt: skip
    with pytest.raises(UsageError):
        check_oracle("", [])


def test_a_source_that_is_gone_or_changed_is_an_error(tmp_path):
    model = write_tiny_checkpoint(tmp_path / "m")
    (artifact,) = edgekit.export(model, "mlx", "int4", tmp_path)
    write_tiny_checkpoint(model, seed=1)
    with pytest.raises(ArtifactError, match="is not the model that") as caught:
        compare_with_oracle([artifact], IDS)
    assert caught.value.wanted == artifact.manifest.source_sha256[:12]
    shutil.rmtree(model)
    with pytest.raises(ArtifactError, match="cannot be opened") as caught:
        compare_with_oracle([artifact], IDS)
    assert caught.value.do == f"Put it back at {model}, or export it again."


def test_a_full_disk_is_refused_before_the_weights_are_written(tiny_artifacts, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ExportError, match="not enough space for the oracle") as caught:
        compare_with_oracle([tiny_artifacts["mlx-int4"]], IDS)
    assert caught.value.do == "Free space or set TMPDIR."
