"""Claims: which matmuls take two int8 terms, what that leaves of the error, and what is said."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from edgekit.artifact import Format
from edgekit.errors import FormatError
from edgekit.exporters import open_exporter
from edgekit.exporters.base import ExportOptions
from edgekit.exporters.onnx.activations import plan_precision, terms_of
from edgekit.exporters.staging import write_artifact
from edgekit.families import open_model
from edgekit.pipeline.claims import false_claims, recover_entries
from edgekit.quantize.encoded_model import quantize_model
from edgekit.runtime.onnxruntime import OnnxruntimeDecoder
from edgekit.runtime.reference import ReferenceDecoder
from edgekit.scheme import Scheme
from tests.builders import write_tiny_checkpoint
from tests.checkpoint.prequantized.folders import Grid, write_compressed

LITTLE = 2e-3  # of the logits' spread; one term leaves many times more
IDS = [(29 * i + 3) % 384 for i in range(40)]


def write(source, scheme, folder):
    model = quantize_model(source, Scheme.parse(scheme), folder / "store")
    return model, write_artifact(open_exporter(Format.ONNX), model, folder / "artifact")


def error_of(model, artifact, **options):
    decoder = OnnxruntimeDecoder.open(artifact, n_threads=1, options=options)
    found = decoder.forward(IDS, n_past=0, n_logits=len(IDS))
    one_by_one = decoder.forward(IDS[:1], n_past=0)
    decoder.close()
    reference = ReferenceDecoder.from_quantized(model)
    wanted = reference.forward(IDS, n_past=0, n_logits=len(IDS))
    np.testing.assert_allclose(one_by_one[0], found[0], atol=0.02 * wanted.std())
    return float(np.abs(found - wanted).max() / wanted.std())


def nodes_of(artifact):
    graph = onnx.load(artifact.path / "model.onnx", load_external_data=False).graph
    return {node.name: node for node in graph.node}


@pytest.mark.parametrize("is_tied", [True, False])
def test_only_the_head_of_a_float_source_takes_two_terms(tmp_path, is_tied):
    source = open_model(write_tiny_checkpoint(tmp_path / "m", tie_word_embeddings=is_tied))
    model, artifact = write(source, "int4", tmp_path)
    terms = terms_of(plan_precision(model.spec, model.entries, is_exact=False))
    assert {name for name, n in terms.items() if n == 2} == {"lm_head"}
    nodes = nodes_of(artifact)
    assert nodes["lm_head"].output[0] == "lm_head.terms"
    assert nodes["layers.0.qkv"].output[0] == "layers.0.qkv.out"
    assert (
        sum(node.op_type == "ReduceSum" and "terms" in node.input[0] for node in nodes.values())
        == 1
    )
    one, two = artifact.manifest.settings["matmuls"]
    assert (one["n_terms"], one["accuracy_level"], len(one["matmuls"])) == (1, 4, 10)
    assert (two["n_terms"], two["matmuls"]) == (2, ["lm_head"])
    assert two["reason"].startswith("two int8 terms: ")


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])  # without biases and with them
def test_kept_codes_of_eight_bits_run_nearly_as_exactly_as_floats(tmp_path, model_type):
    folder, _ = write_compressed(tmp_path / "m", Grid(8, 32), model_type=model_type)
    model, artifact = write(open_model(folder), "int8", tmp_path)
    terms = terms_of(plan_precision(model.spec, model.entries, is_exact=False))
    assert set(terms.values()) == {2}
    assert error_of(model, artifact) < LITTLE
    assert error_of(model, artifact, activation="fp32") < 2e-4
    kept = artifact.manifest.settings["matmuls"]
    assert [item["n_terms"] for item in kept] == [2, 2]
    assert "the 8-bit codes are those of the source" in kept[0]["reason"]


@pytest.mark.parametrize("scheme", ["int8", "int4", "uint4-g64"])
def test_exact_activations_are_nearly_as_exact_as_floats(tmp_path, scheme):
    source = open_model(write_tiny_checkpoint(tmp_path / "m"))
    model = quantize_model(source, Scheme.parse(scheme), tmp_path / "store")
    options = ExportOptions(exact_activations=True)
    artifact = write_artifact(open_exporter(Format.ONNX), model, tmp_path / "a", options)
    assert error_of(model, artifact) < LITTLE
    settings = artifact.manifest.settings
    assert settings["exact_activations"] is True
    assert {item["n_terms"] for item in settings["matmuls"]} == {2}
    recovered = {tensor.name for tensor in open_exporter(Format.ONNX).recover(artifact)}
    assert recovered == {entry.name for entry in model.entries}
    assert false_claims(artifact, recover_entries(artifact)) == []


def test_kept_codes_of_four_bits_take_one_term(tmp_path):
    folder, _ = write_compressed(tmp_path / "m", Grid(4, 32))
    model, artifact = write(open_model(folder), "int4", tmp_path)
    terms = terms_of(plan_precision(model.spec, model.entries, is_exact=False))
    assert {name for name, n in terms.items() if n == 2} == {"lm_head"}
    assert error_of(model, artifact) > 3 * LITTLE


def test_a_block_of_zeros_is_no_division_by_zero(tmp_path):
    source = open_model(write_tiny_checkpoint(tmp_path / "m"))

    class Silent:
        """The same model; the last norm silences two blocks of the head's input."""

        def __init__(self, model):
            self._model = model

        def __getattr__(self, name):
            return getattr(self._model, name)

        def get(self, name):
            tensor = self._model.get(name)
            if name != "final_norm":
                return tensor
            return replace(tensor, values=np.where(np.arange(128) < 64, 0, tensor.values))

    model = Silent(quantize_model(source, Scheme.parse("int8"), tmp_path / "store"))
    artifact = write_artifact(open_exporter(Format.ONNX), model, tmp_path / "artifact")
    assert np.isfinite(error_of(model, artifact))


def test_a_manifest_that_says_otherwise_than_the_graph_is_found(tmp_path):
    folder, _ = write_compressed(tmp_path / "m", Grid(8, 32))
    _, artifact = write(open_model(folder), "int8", tmp_path)
    entries = tuple(replace(entry, keeps_codes=False) for entry in artifact.manifest.tensors)
    claimed = replace(artifact, manifest=replace(artifact.manifest, tensors=entries))
    with pytest.raises(FormatError, match="differs from what the exporter writes"):
        list(open_exporter(Format.ONNX).recover(claimed))
