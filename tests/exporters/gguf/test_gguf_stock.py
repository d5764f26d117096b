"""Claims about stock llama.cpp: it opens the file as it is and computes what edgekit computes.

llama.cpp is that of the package xllamacpp, asked over its own server (scripts/llama_server.py).
"""

from __future__ import annotations

import json

import numpy as np
import pytest

import edgekit
from edgekit.artifact import Artifact
from edgekit.paths import models_dir
from edgekit.pipeline.agreement import read_spec, reference_decoder
from edgekit.runtime.stock import ask_llama_cpp
from edgekit.text.chat import ChatTemplate
from edgekit.text.tokenizer import Tokenizer
from scripts.gguf_texts import varied_texts
from scripts.llama_server import LlamaCpp
from tests.builders import write_tiny_checkpoint
from tests.checkpoint.gguf.vocab import sentencepiece_model

# Both sides sum in float32 in another order; 9e-5 nats was the largest difference seen.
FLOAT32_SUMS = 5e-4
# ggml reads GELU from a table in fp16: 1.1e-3 nats.
GELU_TABLE = 5e-3
# One member for each architecture and each key of it: rope tables and scalings, windows, norms,
# factors, caps, layers without positions.
MEMBERS = {
    "llama-3.2": {},
    "llama-yarn": {},
    "mistral-v0.1": {},
    "ministral3": {},
    "qwen2": {},
    "qwen3": {},
    "phi3": {"original_max_position_embeddings": 256, "max_position_embeddings": 512},
    "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 32},
    "gemma3_text": {"query_pre_attn_scalar": 64},
    "granite": {"attention_bias": True, "mlp_bias": True},
    "granitemoehybrid-nope": {},
    "hunyuan_v1_dense": {},
    "smollm3": {},
    "olmo2": {},
    "olmo3": {},
    "exaone4": {"head_dim": None},
    "exaone4-window": {
        "head_dim": None,
        "num_hidden_layers": 64,
        "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 16,
    },
}
LENGTHS = (3, 17, 31, 64, 100)


def log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize(("member", "changes"), MEMBERS.items(), ids=MEMBERS)
def test_llama_cpp_computes_every_architecture_as_edgekit_does(member, changes, tmp_path):
    source = write_tiny_checkpoint(tmp_path / "m", member, dtype="fp32", **changes)
    (artifact,) = edgekit.export(source, "gguf", "fp32", tmp_path / "out")
    n_most = artifact.manifest.context_length - 1
    ids = [(7 * i * i + 3 * i) % 300 + 3 for i in range(min(n_most, max(LENGTHS)))]
    wanted = log_softmax(reference_decoder(artifact).forward(ids, n_past=0, n_logits=len(ids)))
    limit = GELU_TABLE if member.startswith("gemma") else FLOAT32_SUMS
    n_compared = 0
    with LlamaCpp(artifact.path / "model.gguf", context=256, is_float=True) as llama:
        for length in LENGTHS:
            for step in llama.greedy(ids[:length], 1, 20) if length <= len(ids) else ():
                row = wanted[length - 1]
                for token_id, log_prob in step.log_probs.items():
                    assert abs(row[token_id] - log_prob) < limit, (length, token_id)
                    n_compared += 1
    assert n_compared >= 20


@pytest.fixture(scope="module")
def pocket(tmp_path_factory) -> Artifact:
    out = tmp_path_factory.mktemp("pocket")
    return edgekit.export(models_dir() / "pocket", "gguf", "int4", out)[0]


QUESTIONS = (
    "What is the capital of France?",
    "Tom has 3 apples and buys 4 more. How many apples does Tom have?",
    "Turn on the lights in the kitchen.",
)


def test_stock_llama_cpp_reads_text_and_answers_as_edgekit_does(pocket):
    tokenizer, template = Tokenizer.open(pocket.path), ChatTemplate.open(pocket.path)
    prompts = [[{"role": "user", "content": question}] for question in QUESTIONS]
    request = {
        "path": str(pocket.path),
        "n_new_tokens": 24,
        "end_candidates": [1, 2, 3],
        "prompts": [{"messages": m, "ids": template.encode(m, tokenizer)} for m in prompts],
    }
    found = ask_llama_cpp(request, lambda *_, **__: None)
    assert found["end_ids"] == list(read_spec(pocket).eos_token_ids) == [2]
    reference = reference_decoder(pocket)
    for prompt, answer in zip(request["prompts"], found["answers"], strict=True):
        assert answer["prompt_ids"] == prompt["ids"]
        said = answer["ids"]
        assert (answer["finish"], said[-1]) == ("stop", 2)
        assert answer["text"] == tokenizer.decode(said)
        logits = reference.forward([*prompt["ids"], *said[:-1]], n_past=0, n_logits=len(said))
        for row, token_id in zip(logits, said, strict=True):
            # Rounding activations to 8 bits may turn a tie round, and no more.
            assert row.max() - row[token_id] < 0.05 * row.std()


def test_stock_llama_cpp_gives_the_same_ids(pocket):
    tokenizer = Tokenizer.open(pocket.path)
    with LlamaCpp(pocket.path / "model.gguf", context=64) as llama:
        for text in varied_texts()[::10]:
            for special in (True, False):
                wanted = tokenizer.encode(text, allow_special=special)
                assert llama.encode(text, allow_special=special) == wanted, (text, special)
        wanted = tokenizer.encode("hello", allow_special=True, add_special=True)
        assert llama.encode("hello", allow_special=True, adds=True) == wanted


@pytest.mark.parametrize("prefix", [True, False])
def test_stock_llama_cpp_gives_the_ids_of_sentencepiece_merges(prefix, tmp_path):
    source = write_tiny_checkpoint(tmp_path / "m", "llama", vocab_size=600)
    (source / "tokenizer.json").unlink()
    (source / "tokenizer.model").write_bytes(sentencepiece_model().serialized_model_proto())
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": prefix, "add_prefix_space": prefix}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    (artifact,) = edgekit.export(source, "gguf", "int8", tmp_path / "out")
    tokenizer = Tokenizer.open(artifact.path)
    names = [name for name in tokenizer.added_tokens if name.strip()]
    texts = [t for t in varied_texts()[::5] if not any(name in t for name in names)]
    if prefix:  # llama.cpp puts one more space in front of a text that begins with one
        texts = [text for text in texts if not text.startswith(" ")]
    with LlamaCpp(artifact.path / "model.gguf", context=64) as llama:
        for text in texts:
            wanted = tokenizer.encode(text, allow_special=True)
            assert llama.encode(text, allow_special=True) == wanted, text
