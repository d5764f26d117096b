"""Claim: the folder runs unchanged in stock onnxruntime-genai and says the same tokens."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime_genai
import pytest
from tokenizers import Tokenizer

from edgekit.artifact import Artifact
from edgekit.exporters.base import ExportOptions
from edgekit.exporters.onnx.exporter import OnnxExporter
from edgekit.exporters.staging import write_artifact
from edgekit.families import open_model
from edgekit.paths import models_dir
from edgekit.quantize.encoded_model import quantize_model
from edgekit.quantize.methods import Method
from edgekit.runtime.onnxruntime import OnnxruntimeDecoder
from edgekit.scheme import Scheme
from tests.builders import write_tiny_checkpoint
from tests.exporters.memory_model import TINY_SPEC, memory_model, tiny_spec
from tests.tiny_families import TINY_CONFIGS

ONE_THREAD = json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": 1}}}})
PROMPT = np.random.default_rng(5).integers(3, 96, 12).tolist()
SPECS = {
    "tied": TINY_SPEC,
    "everything": tiny_spec(
        is_tied=False, has_qkv_bias=True, has_o_bias=True, has_mlp_bias=True, sliding_window=8
    ),
    "unknown family without ids": tiny_spec(
        model_type="novel", bos_token_id=None, eos_token_ids=(), pad_token_id=None
    ),
}


def genai_model(artifact: Artifact):
    config = onnxruntime_genai.Config(str(artifact.path))
    config.overlay(ONE_THREAD)
    return onnxruntime_genai.Model(config)


def genai_tokens(artifact, prompt, n_new) -> list[int]:
    model = genai_model(artifact)
    generator = onnxruntime_genai.Generator(model, onnxruntime_genai.GeneratorParams(model))
    generator.append_tokens(prompt)
    tokens: list[int] = []
    while len(tokens) < n_new and not generator.is_done():
        generator.generate_next_token()
        tokens.append(int(generator.get_next_tokens()[0]))
    return tokens


def edgekit_tokens(artifact, prompt, n_new) -> list[int]:
    decoder = OnnxruntimeDecoder.open(artifact, n_threads=1)
    ends = set(artifact.manifest.decoder["eos_token_ids"])
    tokens = [int(decoder.forward(prompt, n_past=0)[0].argmax())]
    while len(tokens) < n_new and tokens[-1] not in ends:
        n_past = len(prompt) + len(tokens) - 1
        tokens.append(int(decoder.forward(tokens[-1:], n_past=n_past)[0].argmax()))
    return tokens


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
@pytest.mark.parametrize("scheme", ["fp32", "fp16", "int8", "int4-g64"])
def test_greedy_tokens_of_random_models_are_equal(tmp_path, scheme, spec):
    model = memory_model(spec, scheme, seed=1)
    artifact = write_artifact(OnnxExporter(), model, tmp_path / "a", ExportOptions())
    tokens = edgekit_tokens(artifact, PROMPT, 40)
    assert genai_tokens(artifact, PROMPT, 40) == tokens
    assert len(set(tokens)) > 1


# Their last token rarely changes when the scaled embedding is also the head.
UNTIED = {
    name: {"tie_word_embeddings": False}
    for name in ("gemma", "gemma2", "gemma3_text", "granite", "granitemoehybrid", "minicpm")
}


@pytest.mark.parametrize("name", TINY_CONFIGS)
def test_every_family_says_the_same_tokens_in_both(tmp_path, name):
    folder = write_tiny_checkpoint(tmp_path / "model", name, **UNTIED.get(name, {}))
    stored = quantize_model(
        open_model(folder), Scheme.parse("int4"), tmp_path / "store", method=Method.RTN
    )
    artifact = write_artifact(OnnxExporter(), stored, tmp_path / "a", ExportOptions())
    # Past every window (24) and every original length (64) of these models.
    prompt = np.random.default_rng(7).integers(4, 384, 30).tolist()
    tokens = edgekit_tokens(artifact, prompt, 60)
    assert genai_tokens(artifact, prompt, 60) == tokens
    assert len(set(tokens)) > 10


def test_a_sharded_checkpoint_says_the_same_tokens_in_both(tmp_path):
    write_tiny_checkpoint(tmp_path / "model", "llama", shards=3, tie_word_embeddings=False)
    source = open_model(tmp_path / "model")
    stored = quantize_model(source, Scheme.parse("int4"), tmp_path / "store", method=Method.RTN)
    artifact = write_artifact(OnnxExporter(), stored, tmp_path / "a", ExportOptions())
    assert genai_tokens(artifact, PROMPT, 30) == edgekit_tokens(artifact, PROMPT, 30)


def test_the_bundled_model_says_the_same_tokens_in_both(tmp_path):
    folder = models_dir() / "pocket"
    stored = quantize_model(
        open_model(folder), Scheme.parse("int4"), tmp_path / "store", method=Method.RTN
    )
    artifact = write_artifact(OnnxExporter(), stored, tmp_path / "a", ExportOptions())
    text = "[INST]Set a timer for seven minutes.[/INST]"
    prompt = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    stock = onnxruntime_genai.Tokenizer(onnxruntime_genai.Model(str(artifact.path)))
    assert list(stock.encode(text)) == prompt
    assert genai_tokens(artifact, prompt, 60) == edgekit_tokens(artifact, prompt, 60)
