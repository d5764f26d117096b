"""Claims about the real model as a folder: published config, exports, answers, logits.

Logits and answers of the float export are those of transformers (scripts/golden_real_model.py).
"""

from __future__ import annotations

import numpy as np
import pytest

import edgekit
from edgekit.families.inspect import inspect_model
from edgekit.pipeline.evaluate import evaluate, float_model, measure_session
from edgekit.pipeline.verify import VerifyPlan, verify
from edgekit.quality.evaluate import SuitePlan
from edgekit.runtime import open_decoder
from edgekit.runtime.base import Finish, GenerateOptions
from edgekit.text.tokenizer import Tokenizer

# Float32 sums in another order, through 30 layers: 1e-4 of the logits' spread was the largest.
FLOAT32_SUMS = 5e-4
END_OF_TURN = 2  # <|im_end|>
FORMATS = ("onnx", "mlx", "coreml")


def test_the_published_config_opens_and_is_read_rightly(real_folder):
    found = inspect_model(real_folder)
    assert (found.model_type, found.n_parameters) == ("llama", 134_515_008)
    assert (found.context_length, found.is_tied, found.dtypes) == (8192, True, ("bf16",))
    assert (found.n_layers, found.n_heads, found.n_kv_heads, found.head_width) == (30, 9, 3, 64)


def test_token_ids_are_those_of_transformers(real_folder, golden):
    tokenizer = Tokenizer.open(real_folder)
    for text in golden["texts"]:
        assert tokenizer.encode(text["text"], allow_special=False) == text["ids"]


def test_logits_of_the_float_export_are_those_of_transformers(real_artifacts, golden):
    decoder = open_decoder(real_artifacts["onnx-fp32"])
    for text in golden["texts"]:
        ids = text["ids"]
        logits = decoder.forward(ids, n_past=0, n_logits=len(ids))
        assert logits.argmax(axis=-1).tolist() == text["argmax"]
        last, tolerance = logits[-1], FLOAT32_SUMS * text["std"]
        assert np.argsort(-last)[: len(text["top_ids"])].tolist() == text["top_ids"]
        assert np.abs(last[text["top_ids"]] - text["top_logits"]).max() <= tolerance
        assert np.abs(last[::997] - text["every"]).max() <= tolerance
    decoder.close()


def test_answers_of_the_float_export_are_those_of_transformers(real_artifacts, golden):
    with edgekit.load(real_artifacts["onnx-fp32"]) as session:
        for chat in golden["chats"]:
            messages = [{"role": "user", "content": chat["question"]}]
            assert session.encode_chat(messages) == chat["prompt_ids"]
            answer = session.chat(messages, GenerateOptions(max_tokens=48))
            assert answer.text == chat["answer"]
            assert answer.finish is Finish.STOP
            assert [e.token_id for e in answer.events if e.token_id is not None] == chat["ids"]
            assert chat["ids"][-1] == END_OF_TURN


# MatMulNBits with accuracy_level 4 rounds what goes into each matmul to int8. A few channels of
# this model are thousands of times larger than the others: it answers only since these are evened
# out before they are quantized (quantize/fold.py).
@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("form", FORMATS)
def test_a_quantized_export_answers_and_ends_its_turn(real_artifacts, golden, form, kind):
    question = golden["chats"][0]
    messages = [{"role": "user", "content": question["question"]}]
    with edgekit.load(real_artifacts[f"{form}-{kind}"]) as session:
        assert session.encode_chat(messages) == question["prompt_ids"]
        answer = session.chat(messages, GenerateOptions(max_tokens=48))
    assert "Paris" in answer.text
    assert "<|im_end|>" not in answer.text
    assert answer.finish is Finish.STOP


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_the_formats_hold_the_same_codes_and_give_the_same_logits(real_artifacts, golden, kind):
    trio = [real_artifacts[f"{form}-{kind}"] for form in FORMATS]
    records = verify(trio, VerifyPlan(n_tokens=64, n_prompts=0))
    assert len(records) == len(trio)
    assert all(record.is_met for record in records)


def test_a_suite_runs_to_its_end(real_artifacts):
    record = evaluate(real_artifacts["onnx-int4"], plan=SuitePlan(n_items=2))
    assert record.suites
    assert all(suite.n_items == 2 for suite in record.suites)


def test_what_is_stored_of_the_float_model_gives_nearly_its_numbers(real_artifacts, golden):
    """256 of 49,152 tokens and a sample, of 60 tokens of text; the bound alone is far off."""
    documents = [[ids for text in golden["texts"] for ids in text["ids"]][:61]]
    path = real_artifacts["onnx-fp32"].path
    with edgekit.load(real_artifacts["onnx-int8"]) as session:
        with float_model(path, documents, is_exact=True) as running:
            exact = measure_session(session, running)
        with float_model(path, documents) as reference:
            stored = measure_session(session, reference)
    assert (exact.top_k, stored.top_k) == (None, 256)
    assert stored.kl_mean == pytest.approx(exact.kl_mean, rel=0.02)
    assert stored.kl_bound < 0.98 * exact.kl_mean
    assert stored.top1_agreement == exact.top1_agreement
    assert stored.perplexity == exact.perplexity
