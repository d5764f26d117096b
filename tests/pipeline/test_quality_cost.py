"""Claims about ``quality-cost``: each setting measured once, the float model run once for all."""

from __future__ import annotations

import json

import pytest

import edgekit
from edgekit.artifact import Artifact, Format
from edgekit.errors import ExportError, MeasureError, UsageError
from edgekit.families import open_model
from edgekit.pipeline import quality_cost as module
from edgekit.pipeline.evaluate import float_model, measure_session
from edgekit.pipeline.quality_cost import (
    CostPlan,
    Setting,
    mean_bits,
    parse_settings,
    quality_cost,
)
from edgekit.pipeline.run import load
from edgekit.quality import reference_store
from edgekit.quality.evaluate import SuitePlan
from edgekit.quantize.methods import Method
from edgekit.scheme import Scheme
from tests.builders import write_tiny_checkpoint
from tests.checkpoint.gguf.test_gguf import write_gguf

TOKENS = 40


@pytest.fixture
def exports(monkeypatch):
    """What is exported, as (scheme, method, fold)."""
    seen = []
    original = module.export

    def counted(model, formats, scheme, out, **options):
        method = options["method"] and options["method"].value
        seen.append((str(scheme), method, options["fold"]))
        return original(model, formats, scheme, out, **options)

    monkeypatch.setattr(module, "export", counted)
    return seen


@pytest.fixture(autouse=True)
def _own_store(tmp_path, monkeypatch):
    monkeypatch.setattr(reference_store, "cache_dir", lambda: tmp_path / "cache")


def plan(settings: str, **changes) -> CostPlan:
    return CostPlan(parse_settings(settings), **{"n_tokens": TOKENS, **changes})


@pytest.mark.parametrize(
    ("text", "scheme", "method", "fold", "written"),
    [
        ("int4", "int4-g32", None, True, "int4-g32"),
        ("int4-g128:gptq", "int4-g128", "gptq", True, "int4-g128:gptq"),
        (" INT8 : search : no-fold ", "int8-g32", "search", False, "int8-g32:search:no-fold"),
        ("balanced", "balanced", None, True, "balanced"),
        ("fp16", "fp16", None, True, "fp16"),
    ],
)
def test_a_setting_is_a_scheme_with_what_is_not_usual(text, scheme, method, fold, written):
    found = Setting.parse(text)
    assert found == Setting(Scheme.parse(scheme), method and Method(method), fold)
    assert str(found) == written
    assert Setting.parse(written) == found


def test_settings_named_twice_count_once():
    assert [str(s) for s in parse_settings("int8,int4,int4-g32, ,INT4")] == [
        "int8-g32", "int4-g32",
    ]  # fmt: skip
    with pytest.raises(UsageError, match="no scheme given"):
        parse_settings(" , ")
    with pytest.raises(
        UsageError, match=r"setting 'int4:best'; got 'best'; wanted rtn, search, .*no-fold"
    ):
        parse_settings("int4:best")
    with pytest.raises(UsageError, match="unknown scheme"):
        parse_settings("int5")


def test_each_setting_is_measured_as_evaluate_measures_it(tiny_model, tmp_path, exports):
    told = []
    record = quality_cost(
        tiny_model, plan("int8,int4:rtn:no-fold,fp16"), tmp_path / "out", tell=told.append
    )
    assert exports == [("int8-g32", None, True), ("int4-g32", "rtn", False),
                       ("fp16", None, True)]  # fmt: skip
    assert [point.name for point in record.points] == ["int8-g32", "int4-g32:rtn:no-fold", "fp16"]
    assert record.n_tokens == TOKENS
    by_name = {point.name: point for point in record.points}
    int4, fp16 = by_name["int4-g32:rtn:no-fold"], by_name["fp16"]
    assert int4.n_bytes < by_name["int8-g32"].n_bytes < fp16.n_bytes
    assert (
        fp16.divergence.kl_mean < by_name["int8-g32"].divergence.kl_mean < int4.divergence.kl_mean
    )
    assert record.front == ("int4-g32:rtn:no-fold", "int8-g32", "fp16")
    assert (int4.linear_bits, fp16.linear_bits) == (4.5, 16)
    assert int4.linear_bits < int4.weight_bits < 8.5
    assert record.float_perplexity == int4.divergence.reference_perplexity
    assert not (tmp_path / "out" / "artifacts").exists()
    # The same numbers as from the function that evaluate calls, with the same text.
    (artifact,) = edgekit.export(
        tiny_model, "onnx", "int4", tmp_path / "own", method="rtn", fold=False
    )
    with open_model(tiny_model).checkpoint as checkpoint:
        assert record.source_sha256 == checkpoint.sha256()
    source = open_model(tiny_model)
    documents, _ = module.take_tokens(
        module.builtin_documents(source.text), TOKENS, source.spec.context_length
    )
    source.close()
    with float_model(tiny_model, documents) as reference, load(artifact) as session:
        assert measure_session(session, reference) == int4.divergence
    assert int4.n_bytes == artifact.n_bytes
    assert told[-1].startswith("fp16: 16.00 bits, KL ")


def test_the_float_model_runs_once_and_finished_settings_are_kept(
    tiny_model, tmp_path, exports, monkeypatch
):
    out = tmp_path / "out"
    steps: list[str] = []
    first = quality_cost(
        tiny_model, plan("int8"), out, progress=lambda what, *_: steps.append(what)
    )
    assert any(what.endswith("float model") for what in steps)
    steps.clear()
    exports.clear()
    both = quality_cost(
        tiny_model, plan("int8,int4"), out, progress=lambda what, *_: steps.append(what)
    )
    assert exports == [("int4-g32", None, True)]
    assert not any("float model" in what for what in steps)
    assert both.points[0] == first.points[0]
    exports.clear()
    assert quality_cost(tiny_model, plan("int8,int4"), out) == both
    assert exports == []


def test_a_run_that_ends_in_the_middle_goes_on_where_it_was(tiny_model, tmp_path, monkeypatch):
    out = tmp_path / "out"
    original = module._measure

    def fails(name, *rest):
        if name == "int4-g32":
            raise KeyboardInterrupt
        return original(name, *rest)

    monkeypatch.setattr(module, "_measure", fails)
    with pytest.raises(KeyboardInterrupt):
        quality_cost(tiny_model, plan("int8,int4"), out)
    assert [path.name for path in (out / "settings").iterdir()] == ["int8-g32.json"]
    monkeypatch.setattr(module, "_measure", original)
    exported = []
    original_export = module.export
    monkeypatch.setattr(
        module, "export", lambda *a, **o: exported.append(str(a[2])) or original_export(*a, **o)
    )
    record = quality_cost(tiny_model, plan("int8,int4"), out)
    assert exported == ["int4-g32"]
    assert [point.name for point in record.points] == ["int8-g32", "int4-g32"]


@pytest.mark.parametrize("change", ["text", "model", "suites", "damage", "version"])
def test_what_was_kept_of_something_else_is_measured_again(
    tiny_model, tmp_path, exports, monkeypatch, change
):
    out, model, changes = tmp_path / "out", tiny_model, {}
    quality_cost(model, plan("int4"), out)
    exports.clear()
    (path,) = (out / "settings").iterdir()
    if change == "text":
        changes["n_tokens"] = TOKENS - 1
    elif change == "model":
        model = write_tiny_checkpoint(tmp_path / "m", seed=5)
    elif change == "suites":
        model = write_tiny_checkpoint(tmp_path / "m", max_position_embeddings=1024)
        quality_cost(model, plan("int4"), out)
        exports.clear()
        changes["suites"] = SuitePlan(("multi_step",), 1)
    elif change == "damage":
        path.write_text(path.read_text()[:-40])
    else:
        monkeypatch.setattr(module, "code_sha256", lambda *packages: "another edgekit")
    record = quality_cost(model, plan("int4", **changes), out)
    assert exports == [("int4-g32", None, True)]
    assert len(record.points[0].suites) == (change == "suites")
    assert json.loads(path.read_text())["point"]["name"] == "int4-g32"


def test_artifacts_can_be_kept_and_can_be_given(tiny_model, tiny_artifacts, tmp_path):
    out = tmp_path / "out"
    quality_cost(tiny_model, plan("int4"), out)  # of which no artifact is kept yet
    record = quality_cost(tiny_model, plan("int4,int4:rtn", keeps_artifacts=True), out)
    kept = sorted((out / "artifacts").iterdir())
    assert [folder.name for folder in kept] == ["int4-g32", "int4-g32_rtn"]
    artifacts = [Artifact.open(next(folder.iterdir())) for folder in kept]
    assert [artifact.n_bytes for artifact in artifacts] == [p.n_bytes for p in record.points]
    given = (tiny_artifacts["onnx-int4"], tiny_artifacts["mlx-int4"])
    both = quality_cost(tiny_model, plan("int8", artifacts=given), out)
    assert [point.name for point in both.points] == ["int8-g32", "tiny-onnx-int4-g32",
                                                     "tiny-mlx-int4-g32"]  # fmt: skip
    assert both.points[1].divergence == record.points[0].divergence
    assert [point.engine.engine for point in both.points] == ["onnxruntime", "onnxruntime", "mlx"]
    assert both.notes == ()
    twice = quality_cost(tiny_model, plan("int8", artifacts=(given[0], given[0])), out)
    names = [point.name for point in twice.points]
    assert names == ["int8-g32", "tiny-onnx-int4-g32", str(given[0].path)]
    assert sorted(path.name for path in (out / "artifacts").iterdir()) == [
        "int4-g32", "int4-g32_rtn",
    ]  # fmt: skip


def test_an_artifact_of_another_source_is_measured_and_said(tiny_artifacts, tmp_path):
    other = write_tiny_checkpoint(tmp_path / "other", seed=9)
    given = (tiny_artifacts["onnx-int4"],)
    record = quality_cost(other, plan("int8", artifacts=given), tmp_path / "out")
    (note,) = record.notes
    assert note.startswith("tiny-onnx-int4-g32 was exported from another source than")
    wide = write_tiny_checkpoint(tmp_path / "wide", vocab_size=640)
    with pytest.raises(MeasureError, match="vocabulary"):
        quality_cost(wide, plan("int8", artifacts=given), tmp_path / "out")


def test_documents_are_as_long_as_every_artifact_can_hold(tiny_model, tmp_path):
    (short,) = edgekit.export(tiny_model, "onnx", "int8", tmp_path, context_length=16)
    record = quality_cost(tiny_model, plan("int4", artifacts=(short,)), tmp_path / "out")
    assert record.n_tokens == TOKENS
    assert record.n_documents == 3  # 15, 15 and 10 tokens that a next one follows


def test_text_of_a_file_and_of_the_suites(tmp_path):
    model = write_tiny_checkpoint(tmp_path / "m", max_position_embeddings=2048)
    path = tmp_path / "t.txt"
    path.write_text("words of a text that is short")
    told = []
    record = quality_cost(model, plan("int8", text=path), tmp_path / "out", tell=told.append)
    assert record.text == str(path)
    assert record.n_documents == 1
    assert record.n_tokens < TOKENS
    assert "of which there is more" not in told[0]
    told.clear()
    record = quality_cost(model, plan("int8", text="suites"), tmp_path / "out", tell=told.append)
    assert (record.text, record.n_tokens) == ("suites", TOKENS)
    assert "of which there is more (--tokens)" in told[0]


def test_bad_input_is_refused_before_any_work(tiny_model, tmp_path, exports):
    with pytest.raises(UsageError, match="the text cannot be read"):
        quality_cost(tiny_model, plan("int8", text=tmp_path / "none"), tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="Choose another --out"):
        quality_cost(tiny_model, plan("int8"), tmp_path / "file" / "out")
    assert exports == []


def test_the_bits_of_a_weight_by_hand(tiny_artifacts):
    """int4 in blocks of 32 with fp16 scales: 4 + 16 / 32; the embedding keeps 8 bits."""
    manifest = tiny_artifacts["onnx-int4"].manifest
    assert manifest.format is Format.ONNX
    edge = frozenset({"embed", "lm_head"})
    assert mean_bits(manifest, edge) == 4.5
    n_edge = sum(t.shape[0] * t.shape[1] for t in manifest.tensors if t.name in edge)
    n_all = sum(t.shape[0] * t.shape[1] for t in manifest.tensors if len(t.shape) == 2)
    assert mean_bits(manifest) == pytest.approx((8.5 * n_edge + 4.5 * (n_all - n_edge)) / n_all)


def test_the_time_left_comes_from_the_finished_settings(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    said = []
    shown = module._ShownProgress(lambda what, *counts: said.append(what), 4)
    shown("float model", 0, 100)
    clock[0] = 110
    shown("float model", 25, 100)
    assert said == ["1/4: float model"] * 2
    shown("quantize", 0, 10)
    clock[0] = 150
    shown.finish_one()
    shown("quantize", 0, 10)
    assert said[-2:] == ["1/4: quantize", "2/4, 2 min left in all: quantize"]
    clock[0] = 190
    shown("quantize", 5, 10)
    assert said[-1] == "2/4, 80 s left in all: quantize"
    clock[0] = 400  # longer than expected: nothing is said
    shown("quantize", 9, 10)
    assert said[-1] == "2/4: quantize"


def test_a_gguf_file_is_a_model_too(tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    path, _, _ = write_gguf(folder, "Q8_0")
    ids = tmp_path / "t.jsonl"
    ids.write_text(json.dumps({"ids": list(range(30))}))
    record = quality_cost(path, plan("int8,int4", text=ids), tmp_path / "out")
    assert record.n_tokens == 29
    assert record.points[0].divergence.kl_mean < record.points[1].divergence.kl_mean
