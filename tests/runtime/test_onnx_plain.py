"""Claims about the engine over plain key and value inputs that the contract tests do not make."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgekit.artifact import MANIFEST_NAME, Artifact
from edgekit.errors import EngineCrashError, EngineLoadError, UsageError
from edgekit.runtime import open_decoder
from edgekit.runtime.onnx_plain import PlainOnnxDecoder
from tests.foreign_models import VOCAB
from tests.relist import relist

IDS = [(37 * i + 5) % VOCAB for i in range(90)]
# Float sums in another order: kernels differ with the number of rows.
TOLERANCE = 2e-4


def run(artifact, calls, **options) -> list[np.ndarray]:
    """Run (start, stop) pieces of the ids one after another."""
    decoder = open_decoder(artifact, n_threads=1, options=options)
    try:
        return [
            decoder.forward(IDS[start:stop], n_past=start, n_logits=stop - start)
            for start, stop in calls
        ]
    finally:
        decoder.close()


def assert_near(got, wanted) -> None:
    assert np.abs(got - wanted).max() / wanted.std() < TOLERANCE


@pytest.mark.parametrize("chunk", [1, 7, 89, 1000])
def test_any_chunk_gives_the_same_logits(moe_artifact, chunk):
    (wanted,) = run(moe_artifact, [(0, 90)])
    (got,) = run(moe_artifact, [(0, 90)], chunk=chunk)
    assert_near(got, wanted)


def test_a_rewind_goes_back_to_any_position_and_again(moe_artifact):
    (wanted,) = run(moe_artifact, [(0, 90)])
    calls = [(0, 90), (50, 60), (20, 80), (80, 90), (0, 5), (5, 6)]
    for (start, stop), got in zip(calls, run(moe_artifact, calls, chunk=16), strict=True):
        assert_near(got, wanted[start:stop])


def test_the_engine_says_which_graph_it_runs(moe_artifact):
    decoder = open_decoder(moe_artifact, n_threads=1)
    assert isinstance(decoder, PlainOnnxDecoder)
    assert decoder.info.engine == "onnxruntime"
    assert decoder.info.settings["graph"] == "optimum, plain key and value inputs"
    assert decoder.info.settings["activation"] == "fp32"
    decoder.close()


def test_options_are_those_of_the_engine(moe_artifact):
    with pytest.raises(UsageError, match="chunk"):
        open_decoder(moe_artifact, options={"chunk": 0})
    with pytest.raises(UsageError, match="n_threads"):
        open_decoder(moe_artifact, n_threads=0)


def edit_graph(artifact: Artifact, folder: Path, change) -> Artifact:
    shutil.copytree(artifact.path, folder)
    model = onnx.load_model(folder / "model.onnx")
    change(model.graph)
    onnx.save_model(model, folder / "model.onnx")
    return relist(folder)


def rename_input(graph) -> None:
    for node in graph.node:
        node.input[:] = ["tokens" if name == "input_ids" else name for name in node.input]
    next(i for i in graph.input if i.name == "input_ids").name = "tokens"


def without_logits(graph) -> None:
    del graph.output[0]


def without_a_cache(graph) -> None:
    del graph.output[-1]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (rename_input, "attention_mask|input_ids"),
        (without_logits, "type of keys, values and logits"),
        (without_a_cache, r"present\.1\.value is not that"),
    ],
)
def test_a_graph_that_is_not_that_of_the_manifest_is_refused(moe_artifact, tmp_path, change, what):
    changed = edit_graph(moe_artifact, tmp_path / "a", change)
    with pytest.raises(EngineLoadError, match=what):
        open_decoder(changed)


@pytest.mark.parametrize(
    ("sizes", "what"),
    [
        ({"n_layers": 3}, "key and value inputs; got 4; wanted 6"),
        ({"n_kv_heads": 4}, r"past_key_values\.0\.key is not that"),
        ({"head_width": 8}, r"past_key_values\.0\.key is not that"),
        ({"vocab_size": 100}, "logits is not that"),
        ({"vocab_size": None}, "decoder in the manifest; got vocab_size None"),
        ({"n_layers": True}, "n_layers True"),
        ({"n_layers": -1}, "n_layers -1"),
        ({"head_width": "16"}, "head_width '16'"),
    ],
)
def test_a_manifest_that_says_something_else_is_refused(moe_artifact, sizes, what):
    manifest = moe_artifact.manifest
    decoder = {**manifest.decoder, **sizes}
    lying = Artifact(moe_artifact.path, replace(manifest, decoder=decoder))
    with pytest.raises(EngineLoadError, match=what):
        open_decoder(lying)


def test_a_graph_with_a_fixed_past_is_caught_where_it_shows(moe_artifact, tmp_path):
    """Keys that do not grow by the tokens of the call are no cache."""

    def freeze(graph) -> None:
        for node in graph.node:
            node.output[:] = [n + ".own" if n == "present.0.key" else n for n in node.output]
        for node in graph.node:
            node.input[:] = [n + ".own" if n == "present.0.key" else n for n in node.input]
        past = ["past_key_values.0.key"]
        graph.node.append(onnx.helper.make_node("Identity", past, ["present.0.key"]))

    changed = edit_graph(moe_artifact, tmp_path / "a", freeze)
    decoder = open_decoder(changed)
    with pytest.raises(EngineCrashError, match=r"present\.0\.key after 4 positions") as caught:
        decoder.forward([1, 2, 3, 4], n_past=0)
    assert caught.value.wanted == "(1, 2, 4, 16)"
    decoder.close()


def test_an_artifact_that_hides_its_graph_kind_is_refused(moe_artifact, tmp_path):
    folder = shutil.copytree(moe_artifact.path, tmp_path / "a")
    data = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    del data["settings"]["graph"], data["manifest_sha256"]
    (folder / MANIFEST_NAME).write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(EngineLoadError, match="decoder in the manifest"):
        open_decoder(Artifact.open(folder))
