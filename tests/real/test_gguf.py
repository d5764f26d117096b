"""The real model's GGUF file, alone in a folder: its tokens, prompts, ends, logits and artifacts.

What is compared with was computed without edgekit (scripts/gguf_report.py): ids, prompts and end
tokens by llama.cpp, logits by transformers' reading of the same file.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import edgekit
from edgekit.families import open_model
from edgekit.runtime import open_decoder
from edgekit.text.chat import ChatTemplate
from edgekit.text.tokenizer import Tokenizer

GOLDEN = Path(__file__).parent.parent / "golden" / "real" / "smollm2-135m-instruct.gguf.json"
FOUND = json.loads(GOLDEN.read_text(encoding="utf-8"))
LLAMA_CPP, TRANSFORMERS = FOUND["llama_cpp"], FOUND["transformers"]
# Float32 sums in another order, through 30 layers.
FLOAT32_SUMS = 5e-4


@pytest.fixture(scope="module")
def alone(real_gguf, tmp_path_factory):
    """The file in a folder of its own."""
    folder = tmp_path_factory.mktemp("alone")
    path = folder / real_gguf.name
    path.symlink_to(real_gguf)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == FOUND["sha256"]
    return path


@pytest.fixture(scope="module")
def artifacts(alone, tmp_path_factory):
    out = tmp_path_factory.mktemp("artifacts")
    made = [
        *edgekit.export(alone, ["onnx", "mlx", "coreml"], "int8", out),
        *edgekit.export(alone, "onnx", "fp32", out),
    ]
    yield made
    shutil.rmtree(out)


def test_token_ids_are_those_of_llama_cpp(alone):
    tokenizer = Tokenizer.open(open_model(alone).checkpoint.text_files)
    assert len(LLAMA_CPP["golden_texts"]) >= 55
    for text in LLAMA_CPP["golden_texts"]:
        assert tokenizer.encode(text["text"], allow_special=True) == text["ids"], text["text"]


def test_prompts_and_ends_are_those_of_llama_cpp(alone):
    source = open_model(alone)
    files = source.checkpoint.text_files
    tokenizer, template = Tokenizer.open(files), ChatTemplate.open(files)
    for prompt in LLAMA_CPP["golden_prompts"]:
        assert template.encode(prompt["messages"], tokenizer) == prompt["ids"]
    assert sorted(source.spec.eos_token_ids) == LLAMA_CPP["ends"] == [0, 2, 4]
    assert source.spec.eos_token_ids[0] == TRANSFORMERS["ends"][0]


def test_artifacts_of_every_format_tokenize_and_end_alike(artifacts):
    for artifact in artifacts:
        tokenizer, template = Tokenizer.open(artifact.path), ChatTemplate.open(artifact.path)
        for text in LLAMA_CPP["golden_texts"][::7]:
            assert tokenizer.encode(text["text"], allow_special=True) == text["ids"]
        for prompt in LLAMA_CPP["golden_prompts"]:
            assert template.encode(prompt["messages"], tokenizer) == prompt["ids"]
        with edgekit.load(artifact) as session:
            assert session.eos_ids == frozenset(LLAMA_CPP["ends"])


def test_logits_of_the_float_export_are_those_of_transformers_reading(artifacts):
    (artifact,) = [a for a in artifacts if a.manifest.scheme == "fp32"]
    decoder = open_decoder(artifact)
    for text in TRANSFORMERS["golden_logits"]:
        logits = decoder.forward(text["ids"], n_past=0, n_logits=len(text["ids"]))
        assert logits.argmax(axis=1).tolist() == text["argmax"]
        top = logits[-1][text["top_ids"]]
        assert np.abs(top - text["top_logits"]).max() <= FLOAT32_SUMS * text["std"]
    decoder.close()
