"""Claims: exports read the text or the importance matrix that the user names, and say so."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgekit.errors import CheckpointError, ExportError, UsageError
from edgekit.families import open_model
from edgekit.formats.imatrix import read_imatrix
from edgekit.pipeline import calibration as pipeline_calibration
from edgekit.pipeline.calibration import Calibration, calibrated_s, read_text, write_power
from edgekit.pipeline.export import choose_method, export
from edgekit.quantize.imatrix import measure_power, open_input_power
from edgekit.quantize.methods import Method
from edgekit.runtime.reference import ReferenceDecoder
from edgekit.scheme import Scheme
from tests.builders import write_tiny_checkpoint

TEXT = [[(37 * i + 5) % 384 for i in range(40)], [(11 * i + 3) % 384 for i in range(24)]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("m") / "tiny", "llama")


@pytest.fixture(scope="module")
def source(folder):
    model = open_model(folder)
    yield model
    model.close()


@pytest.fixture(scope="module")
def user_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "mine.jsonl"
    lines = [{"text": f"the number {i} and the thing that it counts " * 4} for i in range(40)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_power_is_the_mean_square_of_every_input(source):
    """Compared with the reference engine's own inputs, text by text."""
    found = measure_power(source, TEXT)
    shapes = source.spec.weight_shapes()
    assert {n: (v.shape[0],) for n, v in found.items()} == {
        n: (s[1],)
        for n, s in shapes.items()
        if len(s) == 2 and (n != "embed" or source.spec.is_tied)
    }
    seen: dict[str, list[np.ndarray]] = {}

    class Noting(ReferenceDecoder):
        def __init__(self, *args, **more):
            super().__init__(*args, **more)
            multiply = self._forward._matmul

            def note(inner, name):
                seen.setdefault(name, []).append(np.array(inner))
                return multiply(inner, name)

            self._forward._matmul = note

    for ids in TEXT:
        decoder = Noting(source.spec, lambda name: source.tensor(name).read(), dtype=np.float64)
        decoder.forward(ids, n_past=0, n_logits=len(ids))
    for name, inputs in seen.items():
        wanted = np.square(np.concatenate(inputs)).mean(axis=0)
        np.testing.assert_allclose(found[name], wanted, rtol=2e-4, atol=1e-9)


@pytest.mark.parametrize("name", ["a.gguf", "a.dat"])
def test_a_matrix_that_was_written_is_used_again(folder, source, tmp_path, name):
    path = tmp_path / name
    (first,) = export(
        folder, "onnx", "int4-g64", tmp_path / "1", method="search",
        calibration=Calibration(n_tokens=512, write_imatrix=path),
    )  # fmt: skip
    text = read_text(source, Calibration(n_tokens=512))
    wanted = measure_power(source, text.sequences)
    found = open_input_power(path, source.spec)
    for matrix, values in wanted.items():
        np.testing.assert_allclose(found.mean_squares[matrix], values, rtol=1e-6)
    assert read_imatrix(path).datasets == ("edgekit: edgekit's own text",)
    # Writing one changes nothing of the export itself.
    assert first.manifest.settings.get("calibration") is None
    (plain,) = export(folder, "onnx", "int4-g64", tmp_path / "2", method="search")
    assert plain.manifest.weights_sha256 == first.manifest.weights_sha256
    weighed = export(
        folder, ["onnx", "mlx"], "int4-g64", tmp_path / "3", calibration=Calibration(imatrix=path)
    )
    assert weighed[0].manifest.weights_sha256 == weighed[1].manifest.weights_sha256
    assert weighed[0].manifest.weights_sha256 != plain.manifest.weights_sha256
    said = weighed[0].manifest.settings["calibration"]
    assert said == {"method": "importance", "imatrix": found.read}


def test_weighing_by_the_matrix_lowers_the_weighed_error(folder, source, tmp_path):
    from edgekit.exporters import open_exporter

    path = tmp_path / "a.gguf"
    write_power(source, read_text(source, Calibration(n_tokens=512)), path)
    power = open_input_power(path, source.spec)
    errors = {}
    for number, calibration in enumerate((Calibration(), Calibration(imatrix=path))):
        (artifact,) = export(
            folder, "onnx", "int4-g64", tmp_path / f"{number}", fold=False, calibration=calibration
        )
        errors[number] = {
            tensor.name: float(
                np.square(tensor.dequantize() - source.tensor(tensor.name).read()).sum(axis=0)
                @ power.mean_squares[tensor.name]
            )
            for tensor in open_exporter(artifact.format).recover(artifact)
            if tensor.name.startswith("layers.") and len(tensor.shape) == 2
        }
    assert sum(errors[1].values()) < sum(errors[0].values())
    assert all(errors[1][name] <= errors[0][name] * 1.001 for name in errors[0])


def test_a_users_text_is_read_and_named(folder, tmp_path, user_file):
    calibration = Calibration(file=user_file, n_tokens=300)
    (artifact,) = export(
        folder, "onnx", "int4-g64", tmp_path / "1", method="gptq", calibration=calibration
    )
    said = artifact.manifest.settings["calibration"]
    assert (said["file"], said["n_tokens"], said["method"]) == ("mine.jsonl", 300, "gptq")
    (other,) = export(
        folder, "onnx", "int4-g64", tmp_path / "2", method="gptq",
        calibration=Calibration(n_tokens=300),
    )  # fmt: skip
    assert other.manifest.settings["calibration"]["content"] == "edgekit's own text"
    assert other.manifest.weights_sha256 != artifact.manifest.weights_sha256


def test_how_long_it_takes_is_said_before_it_starts(folder, tmp_path):
    said = []
    export(
        folder, "onnx", "int4-g64", tmp_path, method="gptq",
        calibration=Calibration(n_tokens=256), warn=said.append,
        progress=lambda what, *n: said.append(what),
    )  # fmt: skip
    line = "calibrating on 256 tokens (edgekit's own text): about "
    at = next(i for i, words in enumerate(said) if words.startswith(line))
    assert at < said.index("calibrate and quantize")


def test_the_estimate_grows_with_the_work(source, monkeypatch):
    monkeypatch.setattr(pipeline_calibration, "flops_per_s", lambda: 1e9)
    spec = source.spec
    few, many = (calibrated_s(spec, Method.IMPORTANCE, n) for n in (100, 200))
    shapes = spec.weight_shapes()
    n_weights = sum(
        np.prod(s) for n, s in shapes.items() if n.startswith("layers.") and len(s) == 2
    )
    # Two runs through the layers, two operations a weight and token.
    assert many - few == pytest.approx(4 * n_weights * 100 / 1e9)
    assert calibrated_s(spec, Method.GPTQ, 100) > few


@pytest.mark.parametrize(
    ("scheme", "method", "wanted"),
    [
        ("int4", None, Method.IMPORTANCE),
        ("int4", "rtn", Method.RTN),
        ("balanced", None, Method.GPTQ),
        ("balanced", "auto", Method.AUTO),
        ("int4", Method.GPTQ, Method.GPTQ),
    ],
)
def test_the_method_that_is_meant(scheme, method, wanted):
    assert choose_method(method, Scheme.parse(scheme)) is wanted


def test_an_unknown_method():
    with pytest.raises(UsageError, match="unknown method; got 'awq'; wanted rtn, search"):
        choose_method("awq", Scheme.parse("int4"))


def test_contradictions_are_refused_before_any_work(folder, tmp_path, user_file):
    there = tmp_path / "there.gguf"
    for calibration, method, words in (
        (Calibration(imatrix=there), "gptq", "wanted --method importance"),
        (Calibration(imatrix=there, file=user_file), None, "--imatrix takes the place"),
        (Calibration(write_imatrix=tmp_path), None, "got a folder"),
        (Calibration(write_imatrix=tmp_path / "no" / "a.gguf"), None, "got no folder"),
        (Calibration(n_tokens=5), "gptq", "--calibration-tokens; got 5; wanted 256 to"),
        (Calibration(file=tmp_path / "none.txt"), "gptq", "No such file"),
    ):
        with pytest.raises(UsageError) as caught:
            export(folder, "onnx", "int4", tmp_path / "out", method=method, calibration=calibration)
        assert words in str(caught.value)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_matrix_of_another_model_is_refused(folder, source, tmp_path):
    path = tmp_path / "a.gguf"
    write_power(source, read_text(source, Calibration(n_tokens=256)), path)
    other = write_tiny_checkpoint(tmp_path / "other", "llama", num_hidden_layers=3)
    with pytest.raises(CheckpointError, match="7 matrices of the model have no entry"):
        export(other, "onnx", "int4", tmp_path / "out", calibration=Calibration(imatrix=path))


def test_a_matrix_that_cannot_be_written(source, tmp_path):
    text = read_text(source, Calibration(n_tokens=256))
    with pytest.raises(ExportError, match="cannot write"):
        write_power(source, text, tmp_path / "a" / "b" / "c.gguf")


def test_own_answers_are_part_of_the_text(source):
    plain = read_text(source, Calibration(n_tokens=2048))
    text = read_text(source, Calibration(n_tokens=2048, answers=True))
    assert text.n_tokens == plain.n_tokens == 2048
    assert "answers that the model sampled" in text.content
    assert text.sha256() != plain.sha256()
