"""Claims about the study of quantization and its scripts: what is pure arithmetic in them."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

import edgekit
from edgekit.families import open_model
from edgekit.quality.divergence import LiveReference, measure_divergence
from edgekit.quantize.calibration_text import CalibrationText
from edgekit.reference.forward import Forward
from edgekit.runtime.reference import ReferenceDecoder

ROOT = Path(edgekit.__file__).parent.parent


@pytest.fixture(autouse=True)
def _scripts_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))


@pytest.fixture
def source(tiny_model):
    opened = open_model(tiny_model)
    yield opened
    opened.close()


DOCUMENTS = ((5, 9, 2, 7, 40, 3), (8, 8, 1), (30, 4, 61, 17, 2))


def values(kl, counts, **about):
    from study.measure import TokenValues

    n = len(kl)
    return TokenValues(
        np.asarray(kl, np.float64), np.full(n, np.log(2.0)), np.ones(n, bool), counts, about
    )


# --- Texts ---------------------------------------------------------------------------------------


def test_a_calculators_notes_are_not_part_of_an_answer():
    from study.texts import _gsm8k_chat

    chat = _gsm8k_chat({"question": "Two and two?", "answer": "2 + 2 = <<2+2=4>>4\n#### 4"})
    assert chat == [
        {"role": "user", "content": "Two and two?"},
        {"role": "assistant", "content": "2 + 2 = 4\n#### 4"},
    ]


def test_items_are_picked_at_equal_distances():
    from study.texts import _pick

    assert _pick([{"n": i} for i in range(10)], 4) == [{"n": 0}, {"n": 2}, {"n": 5}, {"n": 7}]
    assert _pick([{"n": 0}], 4) == [{"n": 0}]


def test_no_document_is_both_compared_on_and_calibrated_on(source):
    from study.texts import calibration_text, evaluation_documents

    compared = evaluation_documents(source, None, n_documents=8, n_tokens=4096)["suites"]
    calibrated = calibration_text(source, 2048)
    assert calibrated.n_tokens == 2048
    joined = ",".join(",".join(map(str, ids)) for ids in calibrated.sequences)
    assert not any(",".join(map(str, ids)) in joined for ids in compared)


def test_a_folder_without_the_texts_is_refused(source, tmp_path):
    from study.texts import evaluation_documents

    with pytest.raises(edgekit.errors.UsageError, match=r"gsm8k\.test\.jsonl is missing"):
        evaluation_documents(source, tmp_path, n_documents=2, n_tokens=64)


# --- Bits and padding ----------------------------------------------------------------------------


def test_bits_count_what_is_stored_over_what_was_asked_for():
    from study.weights import Weights, linear_names

    shapes = {"embed": (10, 8), "layers.0.attn_norm": (8,), "layers.0.q": (8, 8)}
    spec = SimpleNamespace(weight_shapes=lambda: shapes)
    assert linear_names(spec) == ("layers.0.q",)
    # 64 weights in 36 bytes; the rest in 16 bits where it has two axes, in 32 where it has one.
    weights = Weights({}, {"layers.0.q": 36.0})
    assert weights.bits(spec, linear_only=True) == 4.5
    assert weights.bits(spec, linear_only=False) == 8 * (36 + 160 + 32) / (64 + 80 + 8)


def test_padding_adds_zero_columns_to_the_next_multiple():
    from study.weights import pad_columns

    padded = pad_columns(np.ones((2, 5), np.float32), 4)
    assert padded.tolist() == [[1.0] * 5 + [0.0] * 3] * 2
    whole = np.ones((2, 8), np.float32)
    assert pad_columns(whole, 4) is whole


def test_types_of_a_file_of_thirty_layers_are_llama_cpps():
    """As in the files that llama-cpp-python 0.3.36 writes: v and down of 30 layers, v of 6."""
    from study.ggml import kind_of, uses_more_bits

    more = [i for i in range(30) if uses_more_bits(i, 30)]
    assert more == [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 27, 28, 29]
    kinds = {part: kind_of("Q4_K_M", f"layers.5.{part}", 30) for part in ("q", "v", "down", "up")}
    assert kinds == {"q": "Q4_K", "v": "Q6_K", "down": "Q6_K", "up": "Q4_K"}
    assert kind_of("Q5_K_M", "layers.5.v", 30) == "Q6_K"
    assert kind_of("Q5_K_M", "layers.6.v", 30) == "Q5_K"
    small = {i: kind_of("Q4_K_S", f"layers.{i}.v", 30) for i in (3, 4)}
    assert small == {3: "Q5_K", 4: "Q4_K"}
    small = {i: kind_of("Q4_K_S", f"layers.{i}.down", 30) for i in (2, 3)}
    assert small == {2: "Q5_K", 3: "Q4_K"}


# --- Measures ------------------------------------------------------------------------------------


def test_a_measure_is_that_of_edgekit(source, tmp_path):
    """Same forward, same documents: the study's numbers are those of edgekit/quality."""
    from study.measure import Reference, forward_logits

    def noisy(name):
        read = source.tensor(name).read()
        return read + np.float32(0.01) * np.sign(read) if read.ndim == 2 else read

    reference = Reference(source, DOCUMENTS, tmp_path)
    found = reference.measure(forward_logits(source.spec, noisy), {"name": "noisy"})

    wanted = measure_divergence(
        ReferenceDecoder(source.spec, noisy),
        LiveReference(ReferenceDecoder.from_source(source), DOCUMENTS),
    )
    assert found.counts == (5, 2, 4)
    assert found.kl_mean == pytest.approx(wanted.kl_mean, rel=1e-3)
    assert found.kl_interval() == pytest.approx((wanted.kl_low, wanted.kl_high), rel=1e-3)
    assert found.perplexity == pytest.approx(wanted.perplexity, rel=1e-5)
    assert found.is_same.mean() == pytest.approx(wanted.top1_agreement)
    assert found.kl_mean > 1e-4


def test_the_float_model_diverges_from_itself_by_nothing(source, tmp_path):
    from study.measure import Reference, forward_logits

    reference = Reference(source, DOCUMENTS, tmp_path)
    same = reference.measure(
        forward_logits(source.spec, lambda name: source.tensor(name).read()), {}
    )
    assert same.kl.tolist() == [0.0] * 11
    assert same.is_same.all()


def test_a_reference_is_computed_once(source, tmp_path, monkeypatch):
    from study.measure import Reference

    first = Reference(source, DOCUMENTS, tmp_path)
    monkeypatch.setattr(Forward, "head", None)
    assert Reference(source, DOCUMENTS, tmp_path).key == first.key


def test_values_of_tokens_survive_their_file(tmp_path):
    from study.measure import TokenValues

    row = values([0.1, 0.2, 0.3], (2, 1), name="a", linear_bits=4.5)
    row.save(tmp_path / "a.npz")
    again = TokenValues.load(tmp_path / "a.npz")
    assert again.kl.tolist() == [0.1, 0.2, 0.3]
    assert (again.counts, again.about) == ((2, 1), {"name": "a", "linear_bits": 4.5})
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_documents_are_summed_apart():
    from study.measure import document_sums

    assert document_sums(np.asarray([1.0, 2.0, 3.0, 4.0]), (1, 3)) == [1.0, 9.0]


def test_a_ratio_of_the_same_documents_is_certain():
    """Twice as bad on every document is twice as bad on every resample."""
    from study.measure import ratio_interval

    low, high = ratio_interval([2.0, 6.0, 4.0], [1.0, 3.0, 2.0])
    assert (low, high) == (2.0, 2.0)
    low, high = ratio_interval([1.0, 9.0], [1.0, 1.0])
    assert (low, high) == (1.0, 9.0)


# --- Calibration ---------------------------------------------------------------------------------


def test_moments_are_those_of_the_inputs(source, tmp_path):
    from study.moments import Moments

    met = []

    class Watched(Forward):
        def _matmul(self, inner, name):
            if name == "layers.1.down":
                met.append(np.array(inner))
            return super()._matmul(inner, name)

    forward = Watched(source.spec, lambda name: source.tensor(name).read(), np.float32)
    for ids in DOCUMENTS:
        forward.reserve(len(ids))
        residual = forward.embed(np.asarray(ids))
        for layer in range(source.spec.n_layers):
            cache = forward.empty_cache(len(ids))
            residual = forward.run_layer(layer, residual, cache, 0, is_long=False)
    inputs = np.concatenate(met).astype(np.float64)
    moments = Moments(source, CalibrationText(DOCUMENTS, "some tokens"), tmp_path)
    wanted = inputs.T @ inputs / 14
    np.testing.assert_allclose(moments.of("layers.1.down"), wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(moments.importance("layers.1.down"), np.diag(wanted), rtol=1e-4)
    np.testing.assert_array_equal(moments.of("layers.0.k"), moments.of("layers.0.q"))


def test_a_root_has_the_moments_it_came_from():
    from study.onnx_rows import _root

    inputs = np.random.default_rng(3).standard_normal((50, 6))
    moments = (inputs.T @ inputs).astype(np.float32)
    root = _root(moments)
    assert root.shape == (6, 6)
    np.testing.assert_allclose(root.T @ root, moments, rtol=1e-5, atol=1e-4)


# --- Formats -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_cols", [64, 80])
@pytest.mark.parametrize("zeros", ["none", "whole", "float"])
def test_codes_of_matmulnbits_are_read_as_onnxruntime_reads_them(n_cols, zeros):
    from study.onnx_rows import dequantize_nbits

    rng = np.random.default_rng(5)
    n_rows, block, n_blocks = 6, 32, -(-n_cols // 32)
    codes = rng.integers(0, 256, (n_rows, n_blocks, block // 2), np.uint8)
    scales = rng.uniform(0.5, 2, (n_rows, n_blocks)).astype(np.float32)
    zero_points = {
        "none": None,
        "whole": rng.integers(0, 256, (n_rows, -(-n_blocks // 2)), np.uint8),
        "float": rng.uniform(0, 15, (n_rows, n_blocks)).astype(np.float32),
    }[zeros]
    names = ["x", "codes", "scales"] + (["zeros"] if zero_points is not None else [])
    given = {"codes": codes, "scales": scales, "zeros": zero_points}
    node = helper.make_node(
        "MatMulNBits", names, ["y"], domain="com.microsoft",
        K=n_cols, N=n_rows, bits=4, block_size=block,
    )  # fmt: skip
    kinds = {"x": TensorProto.FLOAT, "codes": TensorProto.UINT8, "scales": TensorProto.FLOAT}
    kinds["zeros"] = TensorProto.UINT8 if zeros == "whole" else TensorProto.FLOAT
    inputs = [helper.make_tensor_value_info(name, kinds[name], None) for name in names]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(
        helper.make_graph([node], "g", inputs, outputs), opset_imports=opsets, ir_version=10
    )
    session = onnxruntime.InferenceSession(model.SerializeToString())
    feeds = {name: given[name] for name in names[1:]}
    product = session.run(None, {"x": np.eye(n_cols, dtype=np.float32), **feeds})[0]
    floats = dequantize_nbits(codes, scales, zero_points, n_cols, block)
    np.testing.assert_allclose(floats, product.T, rtol=1e-5, atol=1e-5)


def test_rows_of_q_and_k_are_in_the_order_of_llama_cpp():
    from study.float_gguf import halve_rows, pair_rows

    rows = np.arange(8, dtype=np.float32)[:, None]  # two heads of four
    paired = pair_rows(rows, 2)
    assert paired[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    np.testing.assert_array_equal(halve_rows(paired, 2), rows)


def test_a_float_gguf_file_holds_the_model(source, tmp_path):
    """edgekit's own reader, which undoes the order of rows, gives the model back."""
    from study.float_gguf import gguf_name, read_gguf, write_gguf

    path = tmp_path / "float.gguf"
    write_gguf(source, path)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    assert kinds["output_norm.weight"] == "F32"
    assert kinds[gguf_name("layers.1.gate")] == kinds["blk.1.ffn_gate.weight"] == "BF16"
    for name, values, n_bytes in read_gguf(source.spec, path):
        np.testing.assert_array_equal(values, source.tensor(name).read())
        assert n_bytes == values.size * (4 if values.ndim == 1 else 2)


# --- The real model, dithered --------------------------------------------------------------------


def test_dithered_weights_round_to_the_codes_they_came_from():
    from real_model import _dither, _steps_of_q4_1

    rng = np.random.default_rng(2)
    kind = gguf.GGMLQuantizationType.Q4_1
    blocks = gguf.quants.quantize(rng.standard_normal((6, 64)).astype(np.float32), kind)
    values = gguf.quants.dequantize(blocks, kind)
    steps = _steps_of_q4_1(blocks)
    assert steps.shape == (12, 1)
    moved = _dither(values, steps, np.random.default_rng(3))
    shares = (moved - values).reshape(-1, 32) / steps
    assert np.abs(shares).max() <= 0.5 + 1e-5
    assert np.abs(shares).mean() == pytest.approx(0.25, abs=0.03)
    assert len(np.unique(moved.reshape(-1, 32)[0])) == 32


# --- Export speed --------------------------------------------------------------------------------


def test_a_table_of_exports_gives_medians_and_the_range_of_times():
    from export_speed import Sample, table

    samples = [
        asdict(Sample("tiny", "edgekit onnx", seconds, 2_000_000, 3_000_000, 4_000_000, 1_000_000))
        for seconds in (1.0, 3.0, 2.0)
    ]
    assert (
        table({"samples": samples})[2]
        == "| tiny | edgekit onnx | 2.0 (1.0 to 3.0) | 2 | 3 | 4 | 1 |"
    )


def test_an_export_is_measured_in_a_process_of_its_own(tmp_path):
    from export_speed import ExportFailedError, Tool, measure

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(bytes(1000))
    writes = """
import pathlib, sys, time
held = bytearray(50_000_000)
for i in range(0, len(held), 4096):
    held[i] = 1
time.sleep(0.2)
pathlib.Path(sys.argv[2], "a").write_bytes(bytes(500))
"""

    def command(code):
        return lambda model, out: [sys.executable, "-c", code, str(model), str(out)]

    sample = measure(Tool("writer", (), command(writes)), "model", tmp_path)
    assert (sample.shape, sample.what, sample.size_bytes) == ("model", "writer", 500)
    assert 50_000_000 < sample.private_bytes < min(sample.resident_bytes, 200_000_000)
    assert sample.wall_s > 0.2
    with pytest.raises(ExportFailedError, match=r"writer of model: exit status 3, no space"):
        fails = "import sys; print('no space'); sys.exit(3)"
        measure(Tool("writer", (), command(fails)), "model", tmp_path)


# --- The page ------------------------------------------------------------------------------------


def test_a_table_says_what_each_row_is_and_how_far_from_the_yardstick(tmp_path):
    from study.page import YARDSTICK, write_table

    rows = [
        values([0.2, 0.4], (1, 1), name="a", label="one way", linear_bits=4.5, all_bits=5.25,
               tool="edgekit"),
        values([0.1, 0.2], (1, 1), name=YARDSTICK, label="M", linear_bits=4.77, all_bits=5.5,
               tool="ggml 1"),
    ]  # fmt: skip
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n<!-- measured: tiny -->\n\nold\n\n## After\n", encoding="utf-8")
    write_table(page, "tiny", rows, {"gsm8k": 2}, 99, {"b": "no tool", "c": "no tool"})
    lines = page.read_text(encoding="utf-8").splitlines()
    assert lines[4] == "2 tokens in 2 documents (2 of gsm8k); 99 other tokens to calibrate on."
    assert lines[8] == (
        "| one way | 4.50 | 5.25 | 0.300 [0.200, 0.400] | 2.00 [2.00, 2.00] | 1.000 | 2.00 |"
    )
    assert "- b, c: no tool" in lines
    assert lines[-3:] == [lines[-3], "", "## After"]
    assert lines[-3].startswith("Tools: edgekit; ggml 1; numpy")
    assert "old" not in lines


def test_names_of_rows_are_files_and_differ():
    import quantization_study

    names = [row.name for row in quantization_study.all_rows()]
    assert len(set(names)) == len(names) > 40
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.") for name in names)
