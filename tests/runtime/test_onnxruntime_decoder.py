"""Claims about the onnxruntime engine: right logits, any chunking, clean refusals, no noise."""

from __future__ import annotations

import inspect
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as state

from edgekit.artifact import Artifact, Format
from edgekit.errors import EngineCrashError, EngineLoadError, UsageError
from edgekit.exporters.base import ExportOptions
from edgekit.exporters.onnx.exporter import OnnxExporter
from edgekit.exporters.staging import write_artifact
from edgekit.families.rope_spec import Llama3Scaling, RopeSpec
from edgekit.runtime import open_decoder
from edgekit.runtime.onnx_session import OnnxruntimeOptions, foreign_errors
from edgekit.runtime.onnxruntime import OnnxruntimeDecoder
from edgekit.runtime.reference import ReferenceDecoder
from tests.exporters.memory_model import TINY_SPEC, memory_model, tiny_spec

# Largest logit error allowed against float64 numpy, in standard deviations of the logits.
# Seen: 4e-6 with float activations; 0.1 with int8 activations on random weights (4 and 8 bits).
FLOAT_TOLERANCE = 2e-4
INT8_ACTIVATION_TOLERANCE = 0.25
SCHEMES = ["fp32", "fp16", "int8", "int8-g64", "int4", "int4-g64"]
SPECS = {
    "tied": TINY_SPEC,
    "untied": tiny_spec(is_tied=False),
    "biases": tiny_spec(has_qkv_bias=True, has_o_bias=True, has_mlp_bias=True),
    "window": tiny_spec(sliding_window=7),
    "window of one": tiny_spec(sliding_window=1),
    "as many key heads": tiny_spec(n_kv_heads=4),
    "one key head": tiny_spec(n_kv_heads=1, head_width=32),
    "llama3 rope": tiny_spec(
        model_type="llama", rope=RopeSpec(theta=500000.0, scaling=Llama3Scaling(8.0, 1.0, 4.0, 32))
    ),
}
IDS = np.random.default_rng(7).integers(0, 96, 60).tolist()


def export(folder, spec=TINY_SPEC, scheme="int4", **schemes) -> Artifact:
    model = memory_model(spec, scheme, schemes=schemes)
    return write_artifact(OnnxExporter(), model, folder, ExportOptions())


def open_float(artifact, **options) -> OnnxruntimeDecoder:
    return OnnxruntimeDecoder.open(artifact, n_threads=1, options={"activation": "fp32", **options})


def reference_logits(spec, scheme, ids=IDS, schemes=None):
    model = memory_model(spec, scheme, schemes=schemes)
    return ReferenceDecoder.from_quantized(model, np.float64).forward(
        ids, n_past=0, n_logits=len(ids)
    )


def error_in_std(got, wanted) -> float:
    assert got.shape == wanted.shape
    return float(np.abs(got - wanted).max() / wanted.std())


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Artifact:
    return export(tmp_path_factory.mktemp("onnx") / "a")


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
@pytest.mark.parametrize("scheme", SCHEMES)
def test_logits_equal_plain_numpy_at_every_position(tmp_path, scheme, spec):
    decoder = open_float(export(tmp_path / "a", spec, scheme))
    got = decoder.forward(IDS, n_past=0, n_logits=len(IDS))
    assert got.dtype == np.float32
    assert error_in_std(got, reference_logits(spec, scheme)) < FLOAT_TOLERANCE


def test_one_model_of_many_schemes_equals_plain_numpy(tmp_path):
    schemes = {"embed": "int8", "layers.0.v": "int8", "layers.1.k": "fp16", "layers.1.o": "fp32"}
    decoder = open_float(export(tmp_path / "a", TINY_SPEC, "int4", **schemes))
    got = decoder.forward(IDS, n_past=0, n_logits=len(IDS))
    wanted = reference_logits(TINY_SPEC, "int4", schemes=schemes)
    assert error_in_std(got, wanted) < FLOAT_TOLERANCE


@pytest.mark.parametrize("scheme", ["int4", "int4-g64", "int8", "int8-g64"])
def test_int8_activations_stay_near_and_float_activations_are_really_float(tmp_path, scheme):
    artifact = export(tmp_path / "a", TINY_SPEC, scheme)
    wanted = reference_logits(TINY_SPEC, scheme)
    fast = OnnxruntimeDecoder.open(artifact, n_threads=1)
    error = error_in_std(fast.forward(IDS, n_past=0, n_logits=len(IDS)), wanted)
    # The lower bound proves that the default is not the float path in disguise.
    assert 10 * FLOAT_TOLERANCE < error < INT8_ACTIVATION_TOLERANCE
    assert fast.info.settings["activation"] == "int8"
    assert open_float(artifact).info.settings["activation"] == "fp32"


@pytest.mark.parametrize("chunk", [1, 2, 7, 16, 59, 60, 128])
@pytest.mark.parametrize("n_logits", [1, 9, 60])
def test_any_chunking_gives_the_same_logits(tmp_path, chunk, n_logits):
    spec = tiny_spec(sliding_window=7)
    decoder = open_float(export(tmp_path / "a", spec), chunk=chunk)
    got = decoder.forward(IDS, n_past=0, n_logits=n_logits)
    wanted = reference_logits(spec, "int4")[-n_logits:]
    assert error_in_std(got, wanted) < FLOAT_TOLERANCE


def test_token_by_token_equals_one_shot(artifact):
    decoder = open_float(artifact)
    steps = [decoder.forward([token], n_past=i)[0] for i, token in enumerate(IDS)]
    assert error_in_std(np.stack(steps), reference_logits(TINY_SPEC, "int4")) < FLOAT_TOLERANCE


def test_rewinding_forgets_what_came_after(artifact):
    decoder = open_float(artifact)
    decoder.forward(IDS, n_past=0)
    other = IDS[:20] + IDS[40:50]
    got = decoder.forward(other[20:], n_past=20, n_logits=10)
    wanted = reference_logits(TINY_SPEC, "int4", other)[20:]
    assert error_in_std(got, wanted) < FLOAT_TOLERANCE
    with pytest.raises(UsageError, match="n_past is beyond the cache"):
        decoder.forward([1], n_past=31)


def test_a_new_sequence_starts_clean(artifact):
    decoder = open_float(artifact)
    first = decoder.forward(IDS[:30], n_past=0, n_logits=5)
    decoder.forward(IDS[30:], n_past=0)
    np.testing.assert_array_equal(decoder.forward(IDS[:30], n_past=0, n_logits=5), first)


@pytest.mark.parametrize("n_tokens", [1, 5])
def test_logits_belong_to_the_caller(artifact, n_tokens):
    decoder = open_float(artifact)
    first = decoder.forward(IDS[:n_tokens], n_past=0)
    kept = first.copy()
    decoder.forward(IDS[10 : 10 + n_tokens], n_past=0)
    np.testing.assert_array_equal(first, kept)
    first[:] = 0
    assert first.flags.owndata


def test_a_full_context_runs_and_one_more_token_is_refused(artifact):
    decoder = OnnxruntimeDecoder.open(artifact, n_threads=1, context_length=10)
    assert decoder.context_length == 10
    decoder.forward(IDS[:9], n_past=0)
    decoder.forward([3], n_past=9)
    with pytest.raises(UsageError, match="longer than the context"):
        decoder.forward([3], n_past=10)


@pytest.mark.parametrize(
    ("ids", "n_past", "n_logits"),
    [([], 0, 1), ([96], 0, 1), ([-1], 0, 1), ([1], 1, 1), ([1, 2], 0, 3), ([1], 0, 0)],
)
def test_a_bad_call_is_a_usage_error_and_harmless(artifact, ids, n_past, n_logits):
    decoder = open_float(artifact)
    with pytest.raises(UsageError):
        decoder.forward(ids, n_past=n_past, n_logits=n_logits)
    assert decoder.forward([1], n_past=0).shape == (1, 96)


def test_two_decoders_do_not_share_a_cache(artifact):
    one, two = open_float(artifact), open_float(artifact)
    one.forward(IDS[:10], n_past=0)
    two.forward(IDS[30:50], n_past=0)
    got = one.forward(IDS[10:20], n_past=10, n_logits=10)
    wanted = reference_logits(TINY_SPEC, "int4", IDS[:20])[10:]
    assert error_in_std(got, wanted) < FLOAT_TOLERANCE


def test_close_frees_the_model_and_may_be_called_twice(artifact):
    decoder = open_float(artifact)
    decoder.close()
    decoder.close()
    with pytest.raises(EngineCrashError, match="closed"):
        decoder.forward([1], n_past=0)


def test_info_says_what_runs(artifact):
    info = OnnxruntimeDecoder.open(artifact, n_threads=2, options={"chunk": 16}).info
    assert (info.engine, info.version) == ("onnxruntime", onnxruntime.__version__)
    assert (info.model, info.n_threads) == ("tiny onnx int4-g32", 2)
    assert info.settings == {
        "provider": "CPUExecutionProvider",
        "activation": "int8",
        "chunk": 16,
    }


def test_float_weights_meet_float_activations_and_are_reported_so(tmp_path):
    decoder = OnnxruntimeDecoder.open(export(tmp_path / "a", TINY_SPEC, "fp16"), n_threads=1)
    assert decoder.info.settings["activation"] == "fp32"


def test_the_registry_opens_it(artifact):
    decoder = open_decoder(artifact, n_threads=1)
    assert isinstance(decoder, OnnxruntimeDecoder)
    assert decoder.vocab_size == 96


@pytest.mark.parametrize(
    "options",
    [{"activation": "int4"}, {"chunk": 0}, {"chunk": "8"}, {"chunk": True}, {"chunks": 8}],
)
def test_a_wrong_option_is_a_usage_error(options):
    with pytest.raises(UsageError):
        OnnxruntimeOptions.parse(options)


@pytest.mark.parametrize(
    "choice", [{"n_threads": 0}, {"context_length": 0}, {"context_length": 65}]
)
def test_an_impossible_choice_is_a_usage_error(artifact, choice):
    with pytest.raises(UsageError):
        OnnxruntimeDecoder.open(artifact, **choice)


def test_another_format_is_a_usage_error(artifact):
    other = replace(artifact, manifest=replace(artifact.manifest, format=Format.MLX))
    with pytest.raises(UsageError, match="mlx"):
        OnnxruntimeDecoder.open(other)


@pytest.mark.parametrize("activation", ["int8", "fp32"])
@pytest.mark.parametrize("file", ["model.onnx", "weights.safetensors"])
@pytest.mark.parametrize("n_kept", [None, 0, 4000])
def test_a_damaged_file_is_a_load_error_without_noise(tmp_path, capfd, activation, file, n_kept):
    artifact = export(tmp_path / "a")
    path = artifact.path / file
    kept = None if n_kept is None else path.read_bytes()[:n_kept]
    path.unlink()
    if kept is not None:
        path.write_bytes(kept)
    with pytest.raises(EngineLoadError) as caught:
        OnnxruntimeDecoder.open(artifact, options={"activation": activation})
    assert str(artifact.path) in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "change",
    [
        {"n_layers": 3},
        {"n_layers": 10**9},
        {"vocab_size": 95},
        {"n_kv_heads": 4},
        {"n_layers": "two"},
        {"head_width": None},
        {"surprise": 1},
    ],
)
def test_a_graph_that_is_not_the_decoder_of_the_manifest_is_a_load_error(artifact, change):
    decoder = {**artifact.manifest.decoder, **change}
    other = replace(artifact, manifest=replace(artifact.manifest, decoder=decoder))
    with pytest.raises(EngineLoadError):
        OnnxruntimeDecoder.open(other)


def test_a_context_beyond_the_position_tables_is_a_load_error(artifact):
    other = replace(artifact, manifest=replace(artifact.manifest, context_length=10**13))
    with pytest.raises(EngineLoadError, match="context length"):
        OnnxruntimeDecoder.open(other)


def test_a_failing_run_is_a_crash_error_without_noise_and_leaves_the_past_usable(tmp_path, capfd):
    artifact = export(tmp_path / "a")
    proto = onnx.load(artifact.path / "model.onnx", load_external_data=False)
    for table in proto.graph.initializer:
        if table.name in ("rope.cos", "rope.sin"):
            table.dims[0] = 32
            place = {entry.key: entry for entry in table.external_data}
            place["length"].value = str(32 * 8 * 4)
    (artifact.path / "model.onnx").write_bytes(proto.SerializeToString())
    decoder = OnnxruntimeDecoder.open(artifact, n_threads=1)
    before = decoder.forward(IDS[:20], n_past=0, n_logits=2)
    with pytest.raises(EngineCrashError, match="cos_cache"):
        decoder.forward(IDS[20:40], n_past=20, n_logits=3)
    assert capfd.readouterr().err == ""
    np.testing.assert_array_equal(decoder.forward(IDS[:20], n_past=0, n_logits=2), before)


def test_every_exception_of_onnxruntime_crosses_at_the_one_door():
    own = {e for _, e in inspect.getmembers(state, inspect.isclass) if issubclass(e, Exception)}
    assert {"Fail", "InvalidArgument", "NoSuchFile", "InvalidProtobuf", "InvalidGraph"} <= {
        e.__name__ for e in own
    }
    assert own <= set(foreign_errors())
    assert Exception not in foreign_errors()


def test_importing_the_engine_and_the_exporter_imports_neither_onnx_nor_onnxruntime():
    code = (
        "import sys, edgekit.runtime.onnxruntime, edgekit.exporters.onnx.exporter; "
        "sys.exit(bool({'onnx', 'onnxruntime'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
