"""Claims about exporting: one quantization, the formats asked for, nothing else left behind."""

from __future__ import annotations

import shutil

import pytest

from edgekit.artifact import Format
from edgekit.errors import CheckpointError, ExportError, QuantError, UsageError
from edgekit.pipeline.export import export, parse_formats
from tests.builders import write_tiny_checkpoint
from tests.conftest import RUN_EVERYWHERE


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_all_means_every_format_and_duplicates_count_once():
    assert parse_formats("all") == list(Format)
    assert parse_formats(["mlx", "onnx", "mlx", Format.ONNX]) == [Format.MLX, Format.ONNX]
    assert parse_formats(["coreml", "all"])[0] is Format.COREML
    assert len(parse_formats(["coreml", "all"])) == len(Format)


@pytest.mark.parametrize("bad", ["ggml", "", "ONNX", "onnx,mlx"])
def test_an_unknown_format_is_refused_with_the_list(bad):
    with pytest.raises(UsageError, match="wanted onnx, mlx, coreml, gguf or all"):
        parse_formats(["onnx", bad])


def test_no_format_at_all_is_refused():
    with pytest.raises(UsageError, match="no format given"):
        parse_formats([])


def test_artifacts_are_named_by_model_format_and_scheme_in_the_order_asked(tiny_model, tmp_path):
    artifacts = export(tiny_model, ["mlx", "onnx"], "int8-g64", tmp_path / "out")
    assert [a.path.name for a in artifacts] == ["tiny-mlx-int8-g64", "tiny-onnx-int8-g64"]
    assert names(tmp_path / "out") == ["tiny-mlx-int8-g64", "tiny-onnx-int8-g64"]
    for artifact in artifacts:
        artifact.check_files()


@pytest.mark.parametrize("scheme", ["fp32", "fp16", "int8-g128", "int4-g64", "int4-g128"])
def test_every_scheme_gives_one_set_of_weights_in_every_format_that_holds_it(
    scheme, tiny_model, tmp_path
):
    artifacts = []
    for artifact_format in Format:
        try:
            artifacts += export(tiny_model, artifact_format, scheme, tmp_path)
        except ExportError as error:
            assert f"{artifact_format.value}: " in error.got
    assert Format.ONNX in {a.format for a in artifacts}
    assert {a.manifest.scheme for a in artifacts} == {scheme}
    assert len({a.manifest.weights_sha256 for a in artifacts}) == 1
    assert bool(artifacts[0].manifest.weights_sha256) is scheme.startswith("int")
    assert len(names(tmp_path)) == len(artifacts)


def test_int4_and_int8_hold_the_same_weights_in_three_formats(tiny_artifacts):
    for kind in ("int4", "int8"):
        found = [tiny_artifacts[f"{f}-{kind}"].manifest for f in RUN_EVERYWHERE]
        assert len({m.weights_sha256 for m in found}) == 1
        assert len({m.tensors for m in found}) == 1
        assert len({m.source_sha256 for m in found}) == 1


def test_the_same_export_twice_writes_the_same_bytes(tiny_model, tmp_path):
    first, second = (export(tiny_model, "all", "int4", tmp_path / name) for name in "ab")
    for one, other in zip(first, second, strict=True):
        assert one.manifest.files == other.manifest.files


def test_a_format_that_cannot_hold_the_model_is_refused_before_any_work(tmp_path):
    model = write_tiny_checkpoint(tmp_path / "biased", "qwen3", attention_bias=True)
    progress: list[str] = []
    with pytest.raises(ExportError, match="cannot be written as int4-g32") as caught:
        export(
            model, "all", "int4", tmp_path / "out", progress=lambda what, *_: progress.append(what)
        )
    assert ": " in caught.value.got
    assert "Leave these formats out" in caught.value.do
    assert progress == []
    assert not (tmp_path / "out").exists()


def test_a_scheme_that_no_group_divides_is_refused_and_leaves_nothing(tmp_path):
    model = write_tiny_checkpoint(tmp_path / "odd", hidden_size=144, intermediate_size=272)
    with pytest.raises(QuantError, match="no block divides"):
        export(model, "mlx", "int4", tmp_path / "out")
    assert not (tmp_path / "out").exists() or names(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"scheme": "int3"}, "unknown scheme"),
        ({"method": "magic"}, "unknown method; got 'magic'; wanted rtn, search"),
        ({"formats": "ggml"}, "unknown format"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_before_the_model_is_opened(
    arguments, said, tmp_path
):
    with pytest.raises(UsageError, match=said):
        export("no-such-model", **arguments, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_model_names_the_bundled_ones(tmp_path):
    with pytest.raises(CheckpointError, match=r"Did you mean 'pocket'\?"):
        export("pockett", out=tmp_path / "out")


def test_a_model_larger_than_the_disk_is_refused_before_it_is_read(
    tiny_model, tmp_path, monkeypatch
):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ExportError, match=r"not enough disk space.*got 1000 B free"):
        export(tiny_model, "mlx", "int4", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_progress_names_the_tensors_and_ends(tiny_model, tmp_path):
    told: list[tuple[str, int, int]] = []
    export(tiny_model, "mlx", "int4", tmp_path, progress=lambda *step: told.append(step))
    assert told[0][0] == "calibrate"
    assert all(0 <= done <= total for _, done, total in told)
    assert {total for what, _, total in told if what.startswith("quantize")} == {20}


def test_a_shorter_context_is_written_down(tiny_model, tmp_path):
    (artifact,) = export(tiny_model, "onnx", "int4", tmp_path, context_length=64)
    assert artifact.manifest.context_length == 64


def test_exact_activations_without_onnx_are_refused(tmp_path):
    with pytest.raises(UsageError, match="a choice of ONNX artifacts; got mlx"):
        export("pocket", "mlx", "int8", tmp_path, exact_activations=True)
    assert list(tmp_path.iterdir()) == []
