"""Claims: a calibrated run is exact about its inputs, its bytes, and what it goes on from."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import QuantError
from edgekit.families import open_model
from edgekit.quantize import calibrated
from edgekit.quantize.calibrated import quantize_layers
from edgekit.quantize.encoded_model import find_scales, quantize_model
from edgekit.quantize.fold import ChannelScales
from edgekit.quantize.input_statistics import InputStatistics
from edgekit.quantize.methods import Method, quantize_rows
from edgekit.quantize.model import EncodedTensor
from edgekit.quantize.prequantized import plan_source
from edgekit.runtime.reference import ReferenceDecoder
from edgekit.scheme import Scheme
from tests.builders import write_tiny_checkpoint
from tests.checkpoint.prequantized.folders import Grid, write_compressed
from tests.tiny_adapters import write_tiny_adapter
from tests.tiny_families import TINY_CONFIGS

INT4 = Scheme.parse("int4-g32")
UINT4 = Scheme.parse("uint4-g64")
TEXT = [[(37 * i + 5 * n) % 384 for i in range(40)] for n in range(10)]
CALIBRATED = (Method.IMPORTANCE, Method.GPTQ, Method.AUTO)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    write_tiny_checkpoint(folder, "qwen2", tie_word_embeddings=False)
    model = open_model(folder)
    yield model
    model.close()


def made_by(source, folder, scheme=INT4, **options):
    plans = plan_source(source, scheme)
    moved = options.pop("moved", ChannelScales())
    text = options.pop("text", TEXT)
    codes = quantize_layers(source, plans, moved, text, folder, **options)
    return {plan.name: codes.get(plan) for plan in plans if plan.name in codes.files}


def hashes(tensors) -> dict[str, str]:
    return {name: tensor.sha256() for name, tensor in tensors.items()}


def stored_bytes(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.safetensors")}


def inputs_while_reading(source, quantized, text, n_logits=1) -> dict[str, np.ndarray]:
    """What each matrix reads in a decoder of float64 that knows nothing of the run under test."""
    seen: dict[str, list[np.ndarray]] = {}

    def read(name: str) -> np.ndarray:
        made = quantized.get(name)
        return source.tensor(name).read() if made is None else made.dequantize()

    for ids in text:
        decoder = ReferenceDecoder(source.spec, read, dtype=np.float64)
        product = decoder._forward._matmul

        def note(inner, name, product=product):
            seen.setdefault(name, []).append(inner)
            return product(inner, name)

        decoder._forward._matmul = note
        decoder.forward(ids, n_past=0, n_logits=n_logits)
    return {name: np.concatenate(found) for name, found in seen.items()}


def quantized_embedding(source, scheme) -> EncodedTensor:
    plan = next(plan for plan in plan_source(source, scheme) if plan.name == "embed")
    made = quantize_rows(source.tensor("embed").read(), plan.encoding, name="embed")
    return EncodedTensor.of_codes("embed", plan.encoding, made.codes, made.scales, made.zero_points)


def test_each_matrix_is_quantized_on_what_the_quantized_model_so_far_computes(source, tmp_path):
    made = made_by(source, tmp_path)
    assert set(made) == {name for name in source.spec.weight_shapes() if name[-2:] in QKVO_ENDS}
    # The inputs of a whole quantized decoder are those that each matrix was quantized on: what
    # comes after a matrix does not change what it reads.
    seen = inputs_while_reading(source, {**made, "embed": quantized_embedding(source, INT4)}, TEXT)
    for name in ("layers.0.q", "layers.0.o", "layers.1.gate", "layers.1.down"):
        inputs = seen[name]
        statistics = InputStatistics.of_moments(inputs.T @ inputs / len(inputs))
        rows = source.tensor(name).read()
        alone = quantize_rows(rows, made[name].encoding, Method.GPTQ, statistics, name=name)
        # Float64 against float32: a weight next to the middle between two codes may differ.
        assert np.mean(alone.codes != made[name].codes()) < 0.002
        assert np.mean(alone.scales != made[name].scales) < 0.01


QKVO_ENDS = (".q", ".k", ".v", ".o", "te", "up", "wn")  # and gate, up, down


@pytest.mark.parametrize(
    ("scheme", "method"),
    [(INT4, Method.GPTQ), (UINT4, Method.AUTO), (UINT4, Method.IMPORTANCE)],
    ids=str,
)
def test_bytes_do_not_depend_on_threads_or_tiles(monkeypatch, source, tmp_path, scheme, method):
    made_by(source, tmp_path / "a", scheme, method=method)
    monkeypatch.setattr(calibrated, "_TILE_ROWS", 48)
    made_by(source, tmp_path / "b", scheme, method=method, n_threads=3)
    one = stored_bytes(tmp_path / "a")
    assert len(one) == source.spec.n_layers
    assert one == stored_bytes(tmp_path / "b")


def test_the_number_of_blas_threads_changes_no_byte(source, tmp_path):
    program = (
        "import sys, pathlib\n"
        "from tests.quantize.test_calibrated import UINT4, made_by, hashes, open_model\n"
        "source = open_model(sys.argv[1])\n"
        "print(sorted(hashes(made_by(source, pathlib.Path(sys.argv[2]), UINT4)).items()))\n"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", program, str(source.checkpoint.folder), str(tmp_path / n)],
            env={**os.environ, "OPENBLAS_NUM_THREADS": n, "PYTHONPATH": os.pathsep.join(sys.path)},
            check=True,
            capture_output=True,
        ).stdout
        for n in ("1", "3")
    }
    assert len(printed) == 1


class StoppedError(Exception):
    """Ends a run in its middle."""


@pytest.mark.parametrize("n_done", [0, 1])
def test_a_stopped_run_goes_on_and_gives_the_same_bytes(monkeypatch, source, tmp_path, n_done):
    whole = hashes(made_by(source, tmp_path / "whole"))
    quantize = calibrated._Run.quantize_layer
    calls: list[int] = []

    def stop_after(run, layer, residuals):
        if len(calls) == n_done:
            raise StoppedError
        calls.append(layer)
        return quantize(run, layer, residuals)

    monkeypatch.setattr(calibrated._Run, "quantize_layer", stop_after)
    with pytest.raises(StoppedError):
        made_by(source, tmp_path / "cut")
    assert len(stored_bytes(tmp_path / "cut")) == n_done

    def note(run, layer, residuals):
        calls.append(layer)
        return quantize(run, layer, residuals)

    monkeypatch.setattr(calibrated._Run, "quantize_layer", note)
    calls.clear()
    assert hashes(made_by(source, tmp_path / "cut")) == whole
    assert calls == list(range(n_done, source.spec.n_layers))
    calls.clear()
    assert hashes(made_by(source, tmp_path / "cut")) == whole
    assert calls == []


@pytest.mark.parametrize("damage", ["cut", "empty", "other key", "noise"])
def test_a_damaged_layer_is_made_again(source, tmp_path, damage):
    whole = hashes(made_by(source, tmp_path))
    path = sorted(tmp_path.rglob("*.safetensors"))[0]
    content = path.read_bytes()
    if damage == "other key":
        at = content.index(b'"key"') + 8
        content = content[:at] + bytes(reversed(content[at : at + 8])) + content[at + 8 :]
    path.write_bytes(
        {"cut": content[:-9], "empty": b"", "other key": content, "noise": b"x" * 999}[damage]
    )
    assert hashes(made_by(source, tmp_path)) == whole


def test_whatever_decides_the_bytes_has_a_folder_of_its_own(source, tmp_path):
    moved = find_scales(source, plan_source(source, INT4))
    runs = [
        {},
        {"scheme": UINT4},
        {"method": Method.IMPORTANCE},
        {"text": TEXT[:-1]},
        {"moved": moved},
    ]
    found = [hashes(made_by(source, tmp_path, **options)) for options in runs]
    assert len(list(tmp_path.iterdir())) == len(runs)
    for i, one in enumerate(found):
        assert all(one != other for other in found[:i])
    assert hashes(made_by(source, tmp_path)) == found[0]


@pytest.mark.parametrize("family", sorted(TINY_CONFIGS))
def test_every_family_is_calibrated(tmp_path, family):
    source = open_model(write_tiny_checkpoint(tmp_path / "m", family, seed=3))
    made = made_by(source, tmp_path / "layers", text=[ids[:24] for ids in TEXT[:3]])
    assert len(made) == 7 * source.spec.n_layers
    source.close()


def error_of(source, quantized, text) -> float:
    """Mean squared error of a whole decoder's logits over a text."""
    errors = []
    for ids in text:
        both = [
            ReferenceDecoder(source.spec, read, dtype=np.float64).forward(
                ids, n_past=0, n_logits=len(ids)
            )
            for read in (
                lambda name: source.tensor(name).read(),
                lambda name: (
                    source.tensor(name).read()
                    if name not in quantized
                    else quantized[name].dequantize()
                ),
            )
        ]
        errors.append(np.square(both[0] - both[1]).mean())
    return float(np.mean(errors))


def test_each_method_beats_the_one_before_it_on_the_logits(source, tmp_path):
    plans = plan_source(source, INT4)
    text = np.random.default_rng(0).integers(0, 384, (12, 64)).tolist()
    found = {}
    searched = {
        plan.name: EncodedTensor.of_codes(plan.name, plan.encoding, made.codes, made.scales)
        for plan in plans
        if plan.name.startswith("layers.") and plan.encoding.is_quantized
        for made in [quantize_rows(source.tensor(plan.name).read(), plan.encoding, name=plan.name)]
    }
    found["search"] = error_of(source, searched, text[:3])
    for method in (Method.IMPORTANCE, Method.GPTQ):
        made = made_by(source, tmp_path, text=text, method=method)
        found[method.value] = error_of(source, made, text[:3])
    assert found["gptq"] < 0.7 * found["search"]
    assert found["gptq"] < found["importance"] < found["search"]


def test_auto_takes_the_smallest_output_error_for_each_matrix(source, tmp_path):
    plans = {plan.name: plan for plan in plan_source(source, INT4)}
    codes = quantize_layers(
        source, list(plans.values()), ChannelScales(), TEXT, tmp_path, method=Method.AUTO
    )
    assert set(codes.methods) == set(codes.files)
    assert set(codes.methods.values()) <= {Method.IMPORTANCE, Method.GPTQ}
    # The first matrices read the same inputs under every method: try both by hand.
    embedded = {"embed": quantized_embedding(source, INT4)}
    inputs = inputs_while_reading(source, embedded, TEXT[:7] + TEXT[8:])["layers.0.q"]
    held = inputs_while_reading(source, embedded, TEXT[7:8])["layers.0.q"]
    rows = source.tensor("layers.0.q").read()
    statistics = InputStatistics.of_moments(inputs.T @ inputs / len(inputs))
    errors = {}
    for method in (Method.IMPORTANCE, Method.GPTQ):
        made = quantize_rows(rows, plans["layers.0.q"].encoding, method, statistics, name="q")
        errors[method] = np.square((made.dequantize(4) - rows) @ held.T).sum()
    assert codes.methods["layers.0.q"] is min(errors, key=errors.__getitem__)


def test_codes_of_a_source_and_floats_are_part_of_what_is_read(tmp_path):
    folder, _ = write_compressed(
        tmp_path / "m", Grid(4, 32), is_coded=lambda name: "self_attn.v_proj" in name
    )
    source = open_model(folder)
    made = made_by(source, tmp_path / "layers")
    assert not any(name.endswith(".v") for name in made)
    assert len(made) == 6 * source.spec.n_layers
    plans = [
        replace(plan, encoding=Scheme.parse("fp16").encoding) if plan.name.endswith("o") else plan
        for plan in plan_source(source, INT4)
    ]
    codes = quantize_layers(source, plans, ChannelScales(), TEXT, tmp_path / "more")
    assert not any(name.endswith(".o") for name in codes.files)


def test_layers_without_anything_to_quantize_have_no_file(tmp_path):
    folder, _ = write_compressed(
        tmp_path / "m", Grid(4, 32), is_coded=lambda name: ".layers.0." in name
    )
    source = open_model(folder)
    made = made_by(source, tmp_path / "layers")
    assert set(made) == {f"layers.1.{part}" for part in ("q", "k", "v", "o", "gate", "up", "down")}
    assert [Path(name).name for name in stored_bytes(tmp_path / "layers")] == [
        "layer-0001.safetensors"
    ]
    folder, _ = write_compressed(tmp_path / "all", Grid(4, 32))
    assert made_by(open_model(folder), tmp_path / "none") == {}


def test_a_merged_adapter_has_a_folder_of_its_own(tmp_path):
    folder, adapter = write_tiny_adapter(tmp_path, "lora")
    plain = hashes(made_by(open_model(folder), tmp_path / "layers"))
    merged = hashes(made_by(open_model(folder, adapter=adapter), tmp_path / "layers"))
    assert merged != plain
    assert len(list((tmp_path / "layers").iterdir())) == 2


@pytest.mark.parametrize("is_tied", [True, False])
def test_an_output_matrix_of_4_bits_is_calibrated(tmp_path, is_tied):
    folder = write_tiny_checkpoint(tmp_path / "m", "llama", tie_word_embeddings=is_tied)
    source = open_model(folder)
    output = "embed" if is_tied else "lm_head"
    plans = [
        replace(plan, encoding=UINT4.encoding) if plan.name == output else plan
        for plan in plan_source(source, UINT4)
    ]
    codes = quantize_layers(source, plans, ChannelScales(), TEXT, tmp_path / "layers")
    made = {plan.name: codes.get(plan) for plan in plans if plan.name in codes.files}
    assert set(made) == {
        plan.name for plan in plans if plan.name.startswith("layers.") and len(plan.shape) == 2
    } | {output}
    assert codes.methods[output] is (Method.IMPORTANCE if is_tied else Method.GPTQ)
    read = {name: tensor for name, tensor in made.items() if name != output}
    read.setdefault("embed", quantized_embedding(source, UINT4))
    if is_tied:  # while the layers are quantized the embedding has its codes from the search
        rows = source.tensor("embed").read()
        searched = quantize_rows(rows, UINT4.encoding, name="embed")
        read["embed"] = EncodedTensor.of_codes(
            "embed", UINT4.encoding, searched.codes, searched.scales, searched.zero_points
        )
    inputs = inputs_while_reading(source, read, TEXT, n_logits=40)[output]
    rows = source.tensor(output).read()
    statistics = InputStatistics.of_moments(inputs.T @ inputs / len(inputs))
    alone = quantize_rows(rows, UINT4.encoding, codes.methods[output], statistics, name=output)
    assert np.mean(alone.codes != made[output].codes()) < 0.002
    path = codes.files[output]
    content = path.read_bytes()
    path.unlink()
    quantize_layers(source, plans, ChannelScales(), TEXT, tmp_path / "layers")
    assert path.read_bytes() == content


@pytest.mark.parametrize("text", [[], [[]], [[5]], [[5], [7]]])
def test_a_text_without_two_tokens_in_a_row_is_refused(source, tmp_path, text):
    with pytest.raises(QuantError, match="calibration text"):
        made_by(source, tmp_path, text=text)
    assert stored_bytes(tmp_path) == {}


def test_a_model_that_computes_no_numbers_is_refused(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "m", "llama")
    source = open_model(folder)
    huge = {"layers.0.attn_norm": np.full(128, np.float32(3e38))}
    with pytest.raises(QuantError, match="mean square of input channel"):
        made_by(source, tmp_path / "layers", moved=ChannelScales(floats=huge))
    assert stored_bytes(tmp_path / "layers") == {}


@pytest.mark.parametrize("method", CALIBRATED, ids=lambda m: m.value)
def test_a_store_holds_the_codes_of_the_run(source, tmp_path, method):
    calls: list[tuple[str, int, int]] = []
    one = quantize_model(
        source,
        UINT4,
        tmp_path / "one",
        method=method,
        text=TEXT,
        progress=lambda *call: calls.append(call),
    )
    n_layers = source.spec.n_layers
    done = [call for call in calls if call[0] == "calibrate and quantize"]
    assert done == [("calibrate and quantize", i + 1, n_layers) for i in range(n_layers)]
    moved = find_scales(source, plan_source(source, UINT4))
    alone = made_by(source, tmp_path / "layers", UINT4, method=method, moved=moved)
    for name, tensor in alone.items():
        assert one.get(name).sha256() == tensor.sha256()
    again = quantize_model(
        source,
        UINT4,
        tmp_path / "two",
        method=method,
        text=TEXT,
        layers_dir=tmp_path / "layers",
        n_threads=2,
    )
    for plan in one.plans:
        if plan.encoding.is_quantized:
            assert one.get(plan.name).sha256() == again.get(plan.name).sha256()


def test_importance_without_a_text_needs_no_second_run(source, tmp_path):
    calls: list[str] = []
    model = quantize_model(
        source,
        INT4,
        tmp_path,
        method=Method.IMPORTANCE,
        progress=lambda what, *_: calls.append(what),
    )
    assert "calibrate and quantize" not in calls
    plain = quantize_model(source, INT4, tmp_path / "plain")
    assert model.get("layers.0.q").sha256() != plain.get("layers.0.q").sha256()
    assert model.get("embed").sha256() == plain.get("embed").sha256()


def test_memory_does_not_grow_with_the_layers(tmp_path):
    peaks = []
    for n_layers in (2, 6):
        folder = write_tiny_checkpoint(
            tmp_path / str(n_layers), "llama", num_hidden_layers=n_layers
        )
        source = open_model(folder)
        tracemalloc.start()
        made_by(source, tmp_path / f"layers{n_layers}", text=TEXT[:4])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        source.close()
    assert peaks[1] < 1.1 * peaks[0]
