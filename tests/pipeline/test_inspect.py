"""What `edgekit inspect` says before any weight is read."""

from __future__ import annotations

import safetensors.numpy

from edgekit.artifact import Format
from edgekit.decision import Accepted, Rejected
from edgekit.pipeline.inspect import describe_support, inspect
from tests.builders import write_tiny_checkpoint


def test_every_format_answers_for_every_scheme(tmp_path):
    found = inspect(write_tiny_checkpoint(tmp_path / "m"))
    assert set(found.support) == set(Format)
    for by_scheme in found.support.values():
        assert list(by_scheme) == ["fp32", "fp16", "int8-g32", "int4-g32"]
    refused = {
        (form.value, scheme)
        for form, by_scheme in found.support.items()
        for scheme, decision in by_scheme.items()
        if isinstance(decision, Rejected)
    }
    assert refused == {("coreml", "fp32")}


def test_schemes_with_the_same_answer_share_a_line():
    by_scheme = {"a": Accepted(), "b": Rejected("too wide"), "c": Accepted(), "d": Accepted(("x",))}
    assert describe_support(by_scheme) == ["a, c: yes", "b: no: too wide", "d: yes; x"]


def test_weights_are_not_read(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "m", "mistral3")
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    name = "language_model.model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name] * float("nan")
    safetensors.numpy.save_file(tensors, path)
    found = inspect(folder)
    assert found.summary.n_parameters == 344_704
    assert sum(found.summary.left_out.values()) == 2


def test_the_command_names_limits_and_what_is_left_out(edgekit_cli, tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "m", "mistral3", sliding_window=24)
    said = edgekit_cli("inspect", folder, "--no-measure")
    assert said.code == 0
    assert "24 keys in 2 layers" in said.out
    assert "the vision tower" in said.err
    data = edgekit_cli("inspect", folder, "--no-measure", "--json").data
    assert data["support"]["coreml"]["fp32"]["is_possible"] is False
    assert data["n_sliding_layers"] == 2
