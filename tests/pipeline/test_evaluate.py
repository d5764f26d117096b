"""Claims about evaluation: a model against itself differs by nothing, int4 by more than int8."""

from __future__ import annotations

import json

import pytest

import edgekit
from edgekit.errors import MeasureError, UnknownKeyError, UsageError
from edgekit.pipeline import evaluate as module
from edgekit.pipeline.evaluate import (
    evaluate,
    float_model,
    measure_session,
    session_documents,
)
from edgekit.pipeline.run import load
from edgekit.quality.evaluate import SuitePlan
from tests.tiny_adapters import write_tiny_adapter


@pytest.fixture(scope="module")
def documents(pocket_artifacts):
    with load(pocket_artifacts["onnx-fp32"]) as session:
        return sorted(session_documents(session, 1), key=len)[:2]


@pytest.fixture(scope="module")
def reference(pocket_artifacts, documents):
    with float_model(pocket_artifacts["onnx-fp32"].path, documents) as found:
        yield found


def test_the_float_model_does_not_differ_from_itself(pocket_artifacts, reference, documents):
    with load(pocket_artifacts["onnx-fp32"]) as session:
        found = measure_session(session, reference)
        with float_model(pocket_artifacts["onnx-fp32"].path, documents, is_exact=True) as exact:
            whole = measure_session(session, exact)
    assert whole.kl_mean == pytest.approx(0, abs=1e-9)
    assert found.kl_mean == pytest.approx(0, abs=1e-6)
    for record in (found, whole):
        assert record.top1_agreement == 1.0
        assert record.perplexity == pytest.approx(record.reference_perplexity, rel=1e-5)


def test_the_checkpoint_in_numpy_is_the_same_float_model(
    pocket_artifacts, pocket_model, documents, reference
):
    with (
        load(pocket_artifacts["onnx-fp32"]) as session,
        float_model(pocket_model, documents) as own,
    ):
        assert own.documents == reference.documents
        assert measure_session(session, own).kl_mean == pytest.approx(0, abs=1e-6)


def test_a_stored_float_model_gives_the_numbers_of_a_running_one(
    pocket_artifacts, reference, documents
):
    path = pocket_artifacts["onnx-fp32"].path
    with load(pocket_artifacts["onnx-int4"]) as session:
        stored = measure_session(session, reference)
        with float_model(path, documents, is_exact=True) as running:
            exact = measure_session(session, running)
    assert (stored.top_k, exact.top_k) == (256, None)
    assert stored.kl_mean == pytest.approx(exact.kl_mean, rel=0.01)
    assert stored.kl_bound <= exact.kl_mean == exact.kl_bound
    assert stored.kl_p99 == pytest.approx(exact.kl_p99, rel=0.05)
    assert stored.top1_agreement == exact.top1_agreement
    assert stored.perplexity == exact.perplexity
    assert stored.reference_perplexity == pytest.approx(exact.reference_perplexity, rel=1e-6)


@pytest.mark.parametrize("kind", ["artifact", "checkpoint"])
def test_the_float_model_runs_once(pocket_artifacts, pocket_model, monkeypatch, kind):
    """A second call with the same documents reads what the first one stored."""
    documents = [[1, 5, 9, 7, {"artifact": 8, "checkpoint": 9}[kind]]]
    path = pocket_artifacts["onnx-fp32"].path if kind == "artifact" else pocket_model
    runs: list[str] = []

    def told(what: str, *_: int) -> None:
        runs.append(what)

    with float_model(path, documents, progress=told) as first:
        assert "float model" in runs
    runs.clear()
    with float_model(path, documents, progress=told) as again:
        assert "float model" not in runs
        assert again.errors == first.errors
    monkeypatch.setattr(module, "code_sha256", lambda *packages: "another edgekit")
    with float_model(path, documents, progress=told):
        assert "float model" in runs


def test_fewer_bits_lie_farther_from_the_float_model(pocket_artifacts, reference):
    found = {}
    for name in ("onnx-int8", "onnx-int4", "mlx-int4"):
        with load(pocket_artifacts[name]) as session:
            found[name] = measure_session(session, reference)
    assert 0 < found["onnx-int8"].kl_mean < found["onnx-int4"].kl_mean
    # The same codes, so nearly the same distance, whatever engine runs them.
    assert found["mlx-int4"].kl_mean == pytest.approx(found["onnx-int4"].kl_mean, rel=0.25)


def test_documents_are_questions_of_every_suite_within_the_context(pocket_artifacts):
    with load(pocket_artifacts["onnx-int4"]) as session:
        found = session_documents(session, 2)
        assert all(len(document) <= module.MAX_DOCUMENT_TOKENS for document in found)
        assert len(found) == 8
        assert found == session_documents(session, 2)


def test_one_call_gives_suites_and_divergence(pocket_artifacts, monkeypatch):
    monkeypatch.setattr(module, "session_documents", lambda session: [[1, 5, 9, 7], [1, 3, 2]])
    told: list[str] = []
    record = evaluate(
        pocket_artifacts["onnx-int4"],
        reference=pocket_artifacts["onnx-fp32"].path,
        plan=SuitePlan(("multi_step", "structured_output"), n_items=2),
        progress=lambda what, *_: told.append(what),
    )
    assert record.candidate == "pocket onnx int4-g32"
    assert [(suite.suite, suite.n_items) for suite in record.suites] == [
        ("multi_step", 2), ("structured_output", 2),
    ]  # fmt: skip
    assert (record.divergence.n_documents, record.divergence.n_tokens) == (2, 5)
    assert record.engine.engine == "onnxruntime"
    assert {"float model", "multi_step"} <= set(told)


def test_a_quantized_artifact_is_no_float_model(pocket_artifacts):
    with (
        pytest.raises(UsageError, match="is not a float model; got int8-g32"),
        float_model(pocket_artifacts["onnx-int8"].path, [[1, 2]]),
    ):
        pass


def test_a_float_model_of_another_vocabulary_is_refused(pocket_artifacts, tiny_model):
    with (
        float_model(tiny_model, [[1, 2, 3]]) as reference,
        load(pocket_artifacts["onnx-int4"]) as session,
        pytest.raises(MeasureError, match="vocabulary of the two models"),
    ):
        measure_session(session, reference)


def test_the_float_model_may_have_an_adapter_and_unknown_keys(tmp_path):
    """The reference is read as the export of the artifact was: with its adapter and its keys."""
    base, adapter = write_tiny_adapter(tmp_path, "lora")
    config = base / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "trick": 3}))
    options = {"adapter": adapter, "ignore_config_keys": ["trick"]}
    (merged,) = edgekit.export(base, "onnx", "fp32", tmp_path / "out", **options)
    documents = [[1, 5, 9, 7], [1, 3, 2]]
    with (
        load(merged) as session,
        float_model(base, documents, **options) as found,
        float_model(base, documents, ignore_config_keys=["trick"]) as plain,
    ):
        assert measure_session(session, found).kl_mean == pytest.approx(0, abs=1e-6)
        assert measure_session(session, plain).kl_mean > 1e-4
    with (
        pytest.raises(UnknownKeyError, match="trick"),
        float_model(base, documents, adapter=adapter),
    ):
        pass


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"adapter": "a"}, "--adapter"),
        ({"ignore_config_keys": ["trick"]}, "--ignore-config-key"),
    ],
)
def test_an_adapter_or_keys_go_with_a_checkpoint_only(pocket_artifacts, options, what):
    with (
        pytest.raises(UsageError, match=f"{what}; got the artifact .*fp32; wanted a --reference"),
        float_model(pocket_artifacts["onnx-fp32"].path, [[1, 2]], **options),
    ):
        pass
    with pytest.raises(UsageError, match=f"{what}; got no --reference"):
        evaluate(pocket_artifacts["onnx-int4"], **options)
