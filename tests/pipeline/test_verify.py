"""Claims about verification: equal weights are proven, every difference is counted exactly."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

import edgekit
from edgekit.artifact import MANIFEST_NAME, Artifact, FileEntry, Format, Manifest
from edgekit.errors import ArtifactError, EdgekitError, FormatError, UsageError
from edgekit.exporters import open_exporter
from edgekit.exporters.coreml.weights import identifier
from edgekit.file_hashes import hash_file
from edgekit.formats.mlpackage import PACKAGE_NAME, main_block, read_spec, spec_path
from edgekit.pipeline.agreement import FLOAT_FACTOR, reference_decoder
from edgekit.pipeline.verify import VerifyPlan, usual_plan, verification_tokens, verify
from edgekit.quantize.model import EncodedTensor, combine_hashes
from tests.builders import write_tiny_checkpoint
from tests.conftest import RUN_EVERYWHERE

WEIGHTS = "model.safetensors"
KINDS = ("int4", "int8")


def of_kind(artifacts: dict[str, Artifact], kind: str) -> list[Artifact]:
    return [artifacts[f"{f}-{kind}"] for f in RUN_EVERYWHERE]


def repair(folder: Path, *, tensors: bool) -> Artifact:
    """Make the manifest agree with changed files, and with the changed tensors too."""
    manifest = Manifest.from_json((folder / MANIFEST_NAME).read_text(encoding="utf-8"), where="m")
    if tensors:
        artifact = Artifact(folder, manifest)
        found = {t.name: t for t in open_exporter(manifest.format).recover(artifact)}
        entries = tuple(
            replace(entry, sha256=tensor.sha256())
            if isinstance(tensor := found[entry.name], EncodedTensor)
            else entry
            for entry in manifest.tensors
        )
        manifest = replace(manifest, tensors=entries, weights_sha256=combine_hashes(entries))
    if tensors and manifest.format is Format.COREML:
        spec = read_spec(folder / PACKAGE_NAME)
        spec.description.metadata.userDefined["edgekit.weights_sha256"] = manifest.weights_sha256
        spec_path(folder / PACKAGE_NAME).write_bytes(spec.SerializeToString())
    files = tuple(
        FileEntry(f.path, (folder / f.path).stat().st_size, hash_file(folder / f.path))
        for f in manifest.files
    )
    manifest = replace(manifest, files=files)
    (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return Artifact.open(folder)


def change_mlx(artifact: Artifact, folder: Path, change) -> Path:
    """Copy an MLX artifact and change its tensors."""
    shutil.copytree(artifact.path, folder)
    tensors = {name: array.copy() for name, array in load_file(folder / WEIGHTS).items()}
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "mlx"})
    return folder


def flip_code(tensors) -> None:
    name = next(n for n in sorted(tensors) if n.endswith("q_proj.weight"))
    tensors[name].view(np.uint8).reshape(-1)[5] ^= 1  # the low half of one byte: one code


def double_scale(tensors) -> None:
    """MLX keeps the offset as a bias of its own, which moves with the scale."""
    name = next(n for n in sorted(tensors) if n.endswith("q_proj.scales"))
    for part in (name, name.replace("scales", "biases")):
        tensors[part].reshape(-1)[3] *= 2


LIBRARIES = ("onnx", "mlx", "coremltools")
SHORT = VerifyPlan(n_tokens=48, n_prompts=2, n_new_tokens=8)


@pytest.mark.parametrize("kind", KINDS)
def test_three_formats_of_the_tiny_model_pass_all_three_checks(kind, tiny_artifacts):
    artifacts = of_kind(tiny_artifacts, kind)
    records = verify(artifacts, SHORT)
    assert [record.format for record in records] == ["onnx", "mlx", "coreml"]
    n_codes = sum(np.prod(t.shape) for t in artifacts[0].manifest.tensors if t.sha256)
    for record, library in zip(records, LIBRARIES, strict=True):
        weights, logits, run = record.weights, record.logits, record.run
        assert weights.library.startswith(library)
        assert (weights.n_codes_differing, weights.n_scales_differing) == (0, 0)
        assert weights.n_codes == n_codes
        assert weights.n_tensors == len(artifacts[0].manifest.tensors)
        assert 0 < logits.max_error <= logits.limit
        assert logits.top1_agreement >= 0.97
        assert (logits.n_tokens, logits.arithmetic, logits.tolerance) == (
            48, "fp32", "float32-sums"
        )  # fmt: skip
        assert 0 < run.kl_mean <= run.limit
        assert run.n_read == 48
        assert run.n_written == sum(len(answer.ids) for answer in run.answers)
        assert [len(answer.ids) for answer in run.answers] == [8, 8]
        assert record.is_met
        assert record.stock is None
    assert [record.run.arithmetic for record in records] == ["int8", "fp32", "fp16"]
    assert [record.run.limit for record in records] == [1e-2, 1e-6, 1e-3]
    # Engines that compute in the same numbers give the same answers: here one does.
    assert records[1].run.differences == ()


def test_three_formats_of_the_bundled_model_agree_in_both_schemes(pocket_artifacts):
    artifacts = [a for kind in KINDS for a in of_kind(pocket_artifacts, kind)]
    records = verify(artifacts, VerifyPlan(n_tokens=24, n_prompts=2, n_new_tokens=24))
    assert [record.scheme for record in records] == ["int4-g32"] * 3 + ["int8-g32"] * 3
    assert all(record.weights.n_codes > 4_000_000 for record in records)
    assert all(record.is_met for record in records)
    # Compared within a scheme: the two schemes hold other weights.
    assert len({record.weights.weights_sha256 for record in records}) == 2
    for trio in (records[:3], records[3:]):
        answers = {tuple(answer.text for answer in record.run.answers) for record in trio}
        assert len(answers) == 1
        assert not any(record.run.differences for record in trio)


def test_without_a_plan_nothing_runs(tiny_artifacts):
    (record,) = verify([tiny_artifacts["onnx-int4"]])
    assert (record.logits, record.run, record.stock) == (None, None, None)
    assert record.is_met


def test_large_models_are_checked_on_less(tiny_artifacts):
    artifact = tiny_artifacts["mlx-int4"]
    assert usual_plan(artifact) == VerifyPlan(192, 4, 32)
    large = Artifact(artifact.path, replace(artifact.manifest, n_parameters=3_000_000_000))
    assert usual_plan(large) == VerifyPlan(64, 2, 8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "n_codes", "n_scales"), [(flip_code, 1, 0), (double_scale, 0, 1)]
)
def test_one_changed_value_is_counted_even_with_a_repaired_manifest(
    kind, change, n_codes, n_scales, tiny_artifacts, tmp_path
):
    whole = tiny_artifacts[f"onnx-{kind}"]
    folder = change_mlx(tiny_artifacts[f"mlx-{kind}"], tmp_path / "m", change)
    changed = repair(folder, tensors=True)
    first, second = verify([whole, changed], SHORT)
    assert first.is_met
    weights = second.weights
    assert (weights.n_codes_differing, weights.n_scales_differing) == (n_codes, n_scales)
    assert weights.compared_with == first.artifact
    assert first.weights.weights_sha256 != weights.weights_sha256
    assert not second.is_met
    # Which check failed: the engine runs the changed weights rightly.
    assert second.logits.is_met
    assert second.run.is_met


def test_weights_that_are_not_those_of_their_manifest_are_refused(tiny_artifacts, tmp_path):
    folder = change_mlx(tiny_artifacts["mlx-int4"], tmp_path / "m", flip_code)
    with pytest.raises(ArtifactError, match="files changed since the export"):
        verify([Artifact.open(repair_size_only(folder))])
    changed = repair(folder, tensors=False)
    with pytest.raises(ArtifactError, match=r"false claims; got sha256 of layers\.0\.q"):
        verify([changed])


def repair_size_only(folder: Path) -> Path:
    path = folder / MANIFEST_NAME
    data = json.loads(path.read_text(encoding="utf-8"))
    for entry in data["files"]:
        entry["n_bytes"] = (folder / entry["path"]).stat().st_size
    del data["manifest_sha256"]
    path.write_text(json.dumps(data), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", ["onnx-int4", "mlx-int4", "coreml-int4"])
def test_a_changed_byte_in_any_file_is_found(name, tiny_artifacts, tmp_path):
    folder = shutil.copytree(tiny_artifacts[name].path, tmp_path / "a")
    entry = max(tiny_artifacts[name].manifest.files, key=lambda file: file.n_bytes)
    data = bytearray((folder / entry.path).read_bytes())
    data[len(data) // 2] ^= 0x10
    (folder / entry.path).write_bytes(data)
    with pytest.raises(ArtifactError) as caught:
        verify([Artifact.open(folder)])
    assert caught.value.got == entry.path


def test_artifacts_of_different_models_are_refused(tiny_artifacts, tmp_path):
    other = write_tiny_checkpoint(tmp_path / "other", seed=1)
    (artifact,) = edgekit.export(other, "mlx", "int4", tmp_path)
    with pytest.raises(UsageError, match="artifacts of different models"):
        verify([tiny_artifacts["mlx-int4"], artifact])
    with pytest.raises(UsageError, match="nothing to verify"):
        verify([])


def test_a_manifest_that_lists_other_tensors_is_refused(tiny_artifacts, tmp_path):
    folder = shutil.copytree(tiny_artifacts["mlx-int4"].path, tmp_path / "a")
    manifest = Artifact.open(folder).manifest
    short = replace(manifest, tensors=manifest.tensors[:-1])
    (folder / MANIFEST_NAME).write_text(short.to_json(), encoding="utf-8")
    with pytest.raises(
        FormatError, match=r"tensors that the manifest does not list; got model\.norm"
    ):
        verify([Artifact.open(folder)])


def test_weights_by_another_method_differ_and_it_says_by_how_much(
    tiny_model, tiny_artifacts, tmp_path
):
    (rough,) = edgekit.export(tiny_model, "mlx", "int4", tmp_path, method="rtn")
    first, second = verify([tiny_artifacts["onnx-int4"], rough])
    assert first.is_met
    assert 0 < second.weights.n_codes_differing < second.weights.n_codes / 2
    assert second.weights.n_scales_differing > 0
    assert not second.is_met


def test_the_reference_runs_over_the_weights_of_the_artifact_itself(tiny_artifacts):
    decoders = [reference_decoder(tiny_artifacts[f"{f}-int4"]) for f in RUN_EVERYWHERE]
    first, *others = [d.forward([1, 2, 3], n_past=0, n_logits=3) for d in decoders]
    assert first.std() > 0.1
    for other in others:
        np.testing.assert_array_equal(first, other)


def test_verification_tokens_are_chat_text_within_the_context(tiny_artifacts, tmp_path):
    artifact = tiny_artifacts["mlx-int4"]
    ids = verification_tokens(artifact, 100)
    assert len(ids) == 100
    assert ids == verification_tokens(artifact, 100)
    assert ids[0] == 1  # the template's begin token
    assert len(verification_tokens(artifact, 10**6)) == artifact.manifest.context_length
    bare = shutil.copytree(artifact.path, tmp_path / "a")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bare / name).unlink()
    spread = verification_tokens(Artifact(bare, artifact.manifest), 50)
    assert len(set(spread)) > 40
    assert all(0 <= i < 384 for i in spread)


def move_place(folder: Path, name: str, other: str) -> Path:
    """Let the graph of a copied ONNX artifact say that one weight lies where another does."""
    path = folder / "model.onnx"
    model = onnx.load_model(path, load_external_data=False)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    ours, theirs = ({e.key: e for e in tensors[n].external_data} for n in (name, other))
    ours["offset"].value = theirs["offset"].value
    path.write_bytes(model.SerializeToString())
    return folder


def move_in_onnx(folder: Path) -> None:
    move_place(folder, "layers.0.gate.codes", "layers.0.up.codes")


def move_in_mlx(folder: Path) -> None:
    """Let the header say that the words of gate lie where those of up do, and the other way."""
    path = folder / WEIGHTS
    data = path.read_bytes()
    n_header = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n_header])
    gate, up = (header[f"model.layers.0.mlp.{n}_proj.weight"] for n in ("gate", "up"))
    gate["data_offsets"], up["data_offsets"] = up["data_offsets"], gate["data_offsets"]
    text = json.dumps(header, separators=(",", ":")).encode().ljust(n_header)
    assert len(text) == n_header
    path.write_bytes(data[:8] + text + data[8 + n_header :])


def move_in_coreml(folder: Path) -> None:
    path = spec_path(folder / PACKAGE_NAME)
    spec = read_spec(folder / PACKAGE_NAME)
    ops = {o.name: op for op in main_block(spec).operations for o in op.outputs}
    gate, up = (
        ops[identifier(f"layers.0.{name}")].inputs["data"].arguments[0].value
        for name in ("gate", "up")
    )
    gate.blobFileValue.offset = up.blobFileValue.offset
    path.write_bytes(spec.SerializeToString())


MOVES = {"onnx": move_in_onnx, "mlx": move_in_mlx, "coreml": move_in_coreml}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", MOVES)
def test_weights_are_those_at_the_offsets_of_the_file(form, kind, tiny_artifacts, tmp_path):
    """What an engine would load: edgekit's own plan of the file has no say."""
    whole = tiny_artifacts[f"{form}-{kind}"]
    folder = shutil.copytree(whole.path, tmp_path / "a")
    MOVES[form](folder)
    moved = 2 if form == "mlx" else 1
    with pytest.raises(EdgekitError, match=r"layers\.0\.gate") as error:
        verify([repair(folder, tensors=False)])
    assert ("layers.0.up" in str(error.value)) is (form == "mlx")
    changed = repair(folder, tensors=True)
    first, second = verify([whole, changed], SHORT)
    tensors = {t.name: t for t in open_exporter(whole.format).recover(whole)}
    n_other = int((tensors["layers.0.gate"].codes() != tensors["layers.0.up"].codes()).sum())
    assert second.weights.n_codes_differing == moved * n_other
    assert second.weights.n_scales_differing == 0
    assert first.is_met
    assert not second.is_met
    # The engine runs exactly what was found.
    assert second.logits.is_met


def test_swapped_scales_are_counted(tiny_artifacts, tmp_path):
    folder = shutil.copytree(tiny_artifacts["onnx-int8"].path, tmp_path / "a")
    move_place(folder, "layers.1.up.scales", "layers.1.gate.scales")
    _, second = verify([tiny_artifacts["mlx-int8"], repair(folder, tensors=True)])
    assert second.weights.n_codes_differing == 0
    assert second.weights.n_scales_differing > 100


def test_a_float_weight_that_differs_is_found_by_the_logits(tiny_artifacts, tmp_path):
    """Norms are stored as wide as a format likes: no hash says that they are the same."""

    def change(tensors) -> None:
        name = next(n for n in sorted(tensors) if n.endswith("input_layernorm.weight"))
        tensors[name].view(np.uint16)[3] ^= 1 << 5  # a few percent of one value

    folder = change_mlx(tiny_artifacts["mlx-int4"], tmp_path / "m", change)
    first, second = verify([tiny_artifacts["onnx-int4"], repair(folder, tensors=False)], SHORT)
    assert first.is_met
    assert second.weights.is_met
    assert second.logits.max_error > second.logits.limit
    assert not second.logits.is_met
    assert not second.is_met


def write_model_of_outliers(folder: Path) -> Path:
    """Write a model of which a few channels before ``down`` are a thousand times the others.

    Rounded to int8 beside them, the others are zero: what int8 activations cannot hold.
    """
    write_tiny_checkpoint(folder, "llama", tie_word_embeddings=False)
    tensors = load_file(folder / "model.safetensors")
    for name in tensors:
        if name.endswith("mlp.up_proj.weight"):
            tensors[name][::8] *= 256
        if name.endswith("mlp.down_proj.weight"):
            tensors[name][:, ::8] /= 256
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_an_artifact_whose_default_engine_rounds_too_much_is_not_verified(tmp_path, edgekit_cli):
    """The weights and the graph are right, and still what ships answers otherwise.

    With channel scales moved, as an export does by default, the same model is within the limit.
    """
    model = write_model_of_outliers(tmp_path / "m")
    (moved,) = verify(edgekit.export(model, "onnx", "int8", tmp_path / "moved"), SHORT)
    assert moved.is_met
    artifacts = edgekit.export(
        model, ["onnx", "mlx", "coreml"], "int8", tmp_path / "out", fold=False
    )
    onnx_record, mlx_record, coreml_record = verify(artifacts, SHORT)
    for record in (onnx_record, mlx_record, coreml_record):
        assert record.weights.is_met
        assert record.logits.is_met
    assert mlx_record.is_met
    assert onnx_record.run.kl_mean > onnx_record.run.limit == 1e-2
    assert not onnx_record.run.is_met
    assert not onnx_record.is_met
    said = edgekit_cli("verify", *(artifact.path for artifact in artifacts), "--tokens", 48)
    assert said.code == 1
    assert f"NOT verified: {artifacts[0].name}: as run" in said.out.replace("\n", " ")


def test_an_answer_that_differs_is_shown_with_how_near_the_choice_was(tmp_path):
    model = write_model_of_outliers(tmp_path / "m")
    (artifact,) = edgekit.export(model, "onnx", "int8", tmp_path / "out")
    (record,) = verify([artifact], VerifyPlan(n_tokens=8, n_prompts=3, n_new_tokens=12))
    difference = record.run.differences[0]
    answer = next(a for a in record.run.answers if a.prompt == difference.prompt)
    reference = reference_decoder(artifact)
    ids = (*answer.prompt_ids, *answer.ids[: difference.index])
    logits = reference.forward(ids, n_past=0, n_logits=1)[0]
    theirs = answer.ids[difference.index]
    assert logits.argmax() != theirs
    assert difference.margin == pytest.approx(logits.max() - logits[theirs], abs=1e-4)
    assert difference.limit is None
    assert difference.wanted != difference.got


def test_where_the_numbers_are_the_same_the_answers_must_be(tiny_artifacts, tmp_path):
    """The last norm upside down, and nothing but the answers to tell: mlx computes in float32."""

    def change(tensors) -> None:
        name = next(n for n in tensors if n.endswith("norm.weight") and ".layers." not in n)
        tensors[name] *= -1

    folder = change_mlx(tiny_artifacts["mlx-int4"], tmp_path / "m", change)
    _, record = verify([tiny_artifacts["onnx-int4"], repair(folder, tensors=False)], SHORT)
    assert len(record.run.differences) == 2
    for difference in record.run.differences:
        assert difference.margin > difference.limit
        assert not difference.is_met
    assert not record.run.is_met


def test_prompts_that_one_artifact_reads_otherwise_are_found(tiny_artifacts, tmp_path):
    folder = shutil.copytree(tiny_artifacts["mlx-int4"].path, tmp_path / "m")
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["chat_template"] = content["chat_template"].replace("'[INST]' +", "'[INST] ' +")
    path.write_text(json.dumps(content), encoding="utf-8")
    _, record = verify([tiny_artifacts["onnx-int4"], repair(folder, tensors=False)], SHORT)
    assert len(record.run.problems) == 2
    assert record.run.problems[0].endswith(
        "other token ids than in the first artifact of the scheme"
    )
    assert not record.is_met


def test_a_model_without_a_tokenizer_is_checked_on_ids(tmp_path):
    model = write_tiny_checkpoint(tmp_path / "m")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).unlink()
    artifacts = edgekit.export(model, "all", "int4", tmp_path / "out")
    records = verify(artifacts, replace(SHORT, asks_stock=True))
    assert all(record.is_met for record in records)
    assert [len(answer.prompt_ids) for answer in records[0].run.answers] == [16, 16]
    assert records[0].run.answers[0].text == ""
    for record in records[:2]:
        assert record.stock.not_run == "needs a tokenizer, which this model has none of"


def test_the_reference_keeps_weights_only_where_there_is_room(tiny_artifacts, monkeypatch):
    artifact, ids, made = tiny_artifacts["onnx-int4"], [1, 5, 9, 7], []
    dequantize = EncodedTensor.dequantize

    def noted(tensor):
        made.append(tensor.name)
        return dequantize(tensor)

    monkeypatch.setattr(EncodedTensor, "dequantize", noted)
    logits = []
    for n_bytes, n_times in ((2 << 30, 1), (1000, 2)):
        monkeypatch.setattr("edgekit.pipeline.agreement.KEPT_BYTES", n_bytes)
        decoder = reference_decoder(artifact)
        made.clear()
        logits += [decoder.forward(ids, n_past=0, n_logits=4) for _ in range(2)]
        assert made.count("layers.1.down") == n_times
    for other in logits[1:]:
        np.testing.assert_array_equal(logits[0], other)


def test_the_limit_of_logits_goes_with_their_spread(tiny_artifacts):
    (record,) = verify([tiny_artifacts["onnx-int4"]], replace(SHORT, n_prompts=0))
    reference = reference_decoder(tiny_artifacts["onnx-int4"])
    ids = verification_tokens(tiny_artifacts["onnx-int4"], 48)
    std = reference.forward(ids, n_past=0, n_logits=48).std()
    assert record.logits.limit == pytest.approx(FLOAT_FACTOR * std, rel=1e-6)
    assert record.run.answers == ()
