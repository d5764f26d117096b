"""Claims about verification: equal weights are proven, every difference is counted exactly."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import edgekit
from edgekit.artifact import MANIFEST_NAME, Artifact, FileEntry, Format, Manifest
from edgekit.errors import ArtifactError, FormatError, UsageError
from edgekit.exporters import open_exporter
from edgekit.file_hashes import hash_file
from edgekit.pipeline.greedy import compare_greedy
from edgekit.pipeline.verify import (
    is_verified,
    reference_decoder,
    verification_tokens,
    verify,
)
from edgekit.progress import ignore_progress
from edgekit.quantize.model import QuantizedTensor, combine_hashes
from tests.builders import write_tiny_checkpoint

WEIGHTS = "model.safetensors"
KINDS = ("int4", "int8")


def of_kind(artifacts: dict[str, Artifact], kind: str) -> list[Artifact]:
    return [artifacts[f"{f.value}-{kind}"] for f in Format]


def repair(folder: Path, *, tensors: bool) -> Artifact:
    """Make the manifest agree with changed files, and with the changed tensors too."""
    old = Manifest.from_json((folder / MANIFEST_NAME).read_text(encoding="utf-8"), where="m")
    files = tuple(
        FileEntry(f.path, (folder / f.path).stat().st_size, hash_file(folder / f.path))
        for f in old.files
    )
    manifest = replace(old, files=files)
    if tensors:
        found = {t.name: t for t in open_exporter(old.format).recover(Artifact(folder, manifest))}
        entries = tuple(
            replace(entry, sha256=tensor.sha256())
            if isinstance(tensor := found[entry.name], QuantizedTensor)
            else entry
            for entry in old.tensors
        )
        manifest = replace(manifest, tensors=entries, weights_sha256=combine_hashes(entries))
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


@pytest.mark.parametrize("kind", KINDS)
def test_three_formats_of_the_tiny_model_agree_in_weights_and_logits(kind, tiny_artifacts):
    artifacts = of_kind(tiny_artifacts, kind)
    records = verify(artifacts, token_ids=verification_tokens(artifacts[0], 48))
    assert [record.format for record in records] == ["onnx", "mlx", "coreml"]
    n_codes = sum(np.prod(t.shape) for t in artifacts[0].manifest.tensors if t.sha256)
    for record in records:
        assert (record.n_codes_differing, record.n_scales_differing) == (0, 0)
        assert record.n_codes == n_codes
        assert record.n_tensors == len(artifacts[0].manifest.tensors)
        assert 0 < record.max_logit_error <= record.logit_tolerance
        assert record.top1_agreement >= 0.97
    assert {record.tolerance_name for record in records} == {"float32-sums"}
    assert is_verified(records)


def test_three_formats_of_the_bundled_model_agree_in_both_schemes(pocket_artifacts):
    artifacts = [a for kind in KINDS for a in of_kind(pocket_artifacts, kind)]
    records = verify(artifacts, token_ids=verification_tokens(artifacts[0], 24))
    assert [record.scheme for record in records] == ["int4-g32"] * 3 + ["int8-g32"] * 3
    assert all(record.is_identical for record in records)
    assert all(record.n_codes > 4_000_000 for record in records)
    assert all(r.max_logit_error <= r.logit_tolerance for r in records)
    assert is_verified(records)
    # Compared within a scheme: the two schemes hold other weights.
    assert len({record.weights_sha256 for record in records}) == 2


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
    first, second = verify([whole, changed])
    assert first.is_identical
    assert (second.n_codes_differing, second.n_scales_differing) == (n_codes, n_scales)
    assert first.weights_sha256 != second.weights_sha256
    assert not is_verified([first, second])


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
    assert second.n_codes_differing > 0
    assert second.n_codes_differing < second.n_codes / 2
    assert second.n_scales_differing > 0
    assert not is_verified([first, second])


def test_a_logit_error_above_its_tolerance_is_not_verified(tiny_artifacts):
    (record,) = verify([tiny_artifacts["onnx-int4"]], token_ids=[1, 5, 9])
    assert is_verified([record])
    assert not is_verified([replace(record, max_logit_error=2 * record.logit_tolerance)])
    (unrun,) = verify([tiny_artifacts["onnx-int4"]])
    assert unrun.max_logit_error is None
    assert is_verified([unrun])


def test_the_reference_runs_over_the_weights_of_the_artifact_itself(tiny_artifacts):
    decoders = [reference_decoder(tiny_artifacts[f"{f.value}-int4"]) for f in Format]
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


def test_greedy_text_of_the_bundled_model_is_the_same_in_every_format(pocket_artifacts):
    artifacts = of_kind(pocket_artifacts, "int4")[:2]
    record = compare_greedy(artifacts, 2, ignore_progress)
    assert record.is_identical
    assert record.sentence == "greedy text: 4 of 4 answers identical (2 prompts, 2 artifacts)"


def test_a_greedy_difference_is_found_and_quoted(pocket_artifacts, tmp_path):
    whole = pocket_artifacts["mlx-int4"]

    def garble(tensors) -> None:
        name = next(n for n in tensors if n.endswith("norm.weight") and ".layers." not in n)
        tensors[name] *= -1

    changed = repair(change_mlx(whole, tmp_path / "m", garble), tensors=False)
    record = compare_greedy([pocket_artifacts["onnx-int4"], changed], 1, ignore_progress)
    assert not record.is_identical
    difference = record.differences[0]
    assert difference.artifact == changed.name
    assert difference.wanted != difference.got
    assert record.sentence.startswith("greedy text: 1 of 2")
