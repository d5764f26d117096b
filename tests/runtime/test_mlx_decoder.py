"""Claims about the mlx engine: the right logits for every decoder that the exporter accepts."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgekit.artifact import Artifact
from edgekit.errors import EngineCrashError, EngineLoadError, UsageError
from edgekit.exporters.mlx.exporter import MlxExporter
from edgekit.exporters.staging import write_artifact
from edgekit.families.rope_spec import Llama3Scaling, RopeSpec
from edgekit.runtime.mlx import MlxDecoder
from edgekit.runtime.reference import ReferenceDecoder
from tests.exporters.memory_model import memory_model, tiny_spec

# fp32 sums in another order against float64, and fp32 RoPE angles of up to 1100 radians: 1.1e-5
# was the largest difference seen.
FP32_LOGIT_TOLERANCE = 5e-5
# Half precision activations (11 significant bits) over two layers, relative to the logits' spread.
FP16_LOGIT_TOLERANCE = 3e-2

TOKENS = [1, 5, 7, 9, 20, 33, 95, 5, 5, 2, 0, 44]


def open_mlx(folder, spec=None, scheme="int4", **options) -> tuple[MlxDecoder, ReferenceDecoder]:
    model = memory_model(spec or tiny_spec(), scheme)
    artifact = write_artifact(MlxExporter(), model, folder)
    return MlxDecoder.open(artifact, options=options), ReferenceDecoder.from_quantized(
        model, np.float64
    )


def logit_error(decoder, reference, token_ids=TOKENS) -> float:
    """Largest logit difference in units of the reference's standard deviation."""
    n = len(token_ids)
    got = decoder.forward(token_ids, n_past=0, n_logits=n)
    wanted = reference.forward(token_ids, n_past=0, n_logits=n)
    return float(np.abs(got - wanted).max() / wanted.std())


@pytest.mark.parametrize("scheme", ["fp32", "fp16", "int8", "int4", "int4-g64"])
def test_logits_are_those_of_the_reference(tmp_path, scheme):
    decoder, reference = open_mlx(tmp_path / "a", scheme=scheme)
    assert logit_error(decoder, reference) < FP32_LOGIT_TOLERANCE


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "llama"},
        {"is_tied": False},
        {"n_kv_heads": 4},
        {"n_kv_heads": 1},
        {"head_width": 32},
        {"head_width": 8},
        {"has_qkv_bias": True, "has_o_bias": True},
        {"has_mlp_bias": True},
        {"norm_eps": 1e-2},
        {"rope": RopeSpec(theta=1e6)},
        {"rope": RopeSpec(theta=1e4, linear_factor=4.0)},
        {"rope": RopeSpec(theta=1e4, scaling=Llama3Scaling(8.0, 1.0, 4.0, 16))},
    ],
    ids=str,
)
def test_every_field_of_the_spec_reaches_mlx_lm(tmp_path, change):
    decoder, reference = open_mlx(tmp_path / "a", tiny_spec(**change), "int8")
    assert logit_error(decoder, reference) < FP32_LOGIT_TOLERANCE


def test_native_activations_stay_near(tmp_path):
    decoder, reference = open_mlx(tmp_path / "a", scheme="fp16", activation="native")
    assert decoder.info.settings["activation"] == "native"
    assert FP32_LOGIT_TOLERANCE < logit_error(decoder, reference) < FP16_LOGIT_TOLERANCE


def test_long_prompts_run_in_chunks_and_long_logits_too(tmp_path):
    spec = tiny_spec(context_length=1200)
    decoder, reference = open_mlx(tmp_path / "a", spec, "int8")
    tokens = np.random.default_rng(0).integers(0, 96, 1100).tolist()
    assert logit_error(decoder, reference, tokens) < FP32_LOGIT_TOLERANCE
    last = decoder.forward(tokens, n_past=0, n_logits=1)
    wanted = reference.forward(tokens, n_past=0, n_logits=1)
    assert np.abs(last - wanted).max() / wanted.std() < FP32_LOGIT_TOLERANCE


def test_a_rewind_into_the_middle_of_a_cache_block_forgets_the_rest(tmp_path):
    spec = tiny_spec(context_length=600)
    decoder, reference = open_mlx(tmp_path / "a", spec, "int4")
    tokens = np.random.default_rng(1).integers(0, 96, 520).tolist()
    decoder.forward(tokens, n_past=0)
    for n_past in (519, 300, 256, 1):
        got = decoder.forward([3, 4], n_past=n_past)
        wanted = reference.forward([*tokens[:n_past], 3, 4], n_past=0)
        assert np.abs(got - wanted).max() / wanted.std() < FP32_LOGIT_TOLERANCE
        tokens = [*tokens[:n_past], 3, 4]


@pytest.mark.parametrize("sliding_layers", [(0,), (1,)])
def test_a_rewind_behind_a_full_window_brings_the_dropped_keys_back(tmp_path, sliding_layers):
    spec = tiny_spec(context_length=200, sliding_window=24, sliding_layers=sliding_layers)
    decoder, reference = open_mlx(tmp_path / "a", spec, "int4")
    tokens = np.random.default_rng(2).integers(0, 96, 120).tolist()
    done: list[int] = []
    # Fill in chunks longer than the window and one by one, and go back from each state.
    for n_past, n_new in ((0, 10), (6, 3), (9, 50), (59, 40), (90, 1), (80, 30), (20, 2), (21, 1)):
        new = tokens[n_past : n_past + n_new]
        done = [*done[:n_past], *new]
        got = decoder.forward(new, n_past=n_past, n_logits=n_new)
        wanted = reference.forward(done, n_past=0, n_logits=n_new)
        assert np.abs(got - wanted).max() / wanted.std() < FP32_LOGIT_TOLERANCE
        tokens = tokens[::-1]


def test_the_record_names_backend_versions_and_number_type(tmp_path):
    decoder, _ = open_mlx(tmp_path / "a")
    assert decoder.info.engine == "mlx"
    assert set(decoder.info.settings) == {"backend", "activation"}
    assert decoder.info.n_threads is None
    assert not decoder.info.is_emulated


def test_a_context_shorter_than_the_artifact_is_kept(tmp_path):
    artifact = write_artifact(MlxExporter(), memory_model(), tmp_path / "a")
    decoder = MlxDecoder.open(artifact, context_length=4)
    with pytest.raises(UsageError, match="longer than the context"):
        decoder.forward([1] * 5, n_past=0)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"n_threads": 2}, "n_threads; got 2"),
        ({"context_length": 65}, "context length; got 65"),
        ({"context_length": 0}, "context length; got 0"),
        ({"options": {"activation": "int8"}}, "activation; got int8"),
        ({"options": {"speed": 9}}, "unknown options; got speed"),
    ],
)
def test_a_wrong_argument_is_refused_by_name(tmp_path, arguments, match):
    artifact = write_artifact(MlxExporter(), memory_model(), tmp_path / "a")
    with pytest.raises(UsageError, match=match):
        MlxDecoder.open(artifact, **arguments)


def test_a_closed_decoder_says_so(tmp_path):
    decoder, _ = open_mlx(tmp_path / "a")
    decoder.close()
    decoder.close()
    with pytest.raises(EngineCrashError, match="closed"):
        decoder.forward([1], n_past=0)


class TestDamage:
    """Every fault of the files is an EngineLoadError with the cause behind it."""

    @pytest.fixture
    def artifact(self, tmp_path) -> Artifact:
        return write_artifact(MlxExporter(), memory_model(), tmp_path / "a")

    def change_config(self, artifact, **changes) -> None:
        path = artifact.path / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    def refuse(self, artifact, match) -> None:
        with pytest.raises(EngineLoadError, match=match) as caught:
            MlxDecoder.open(artifact)
        assert caught.value.__cause__ is not None

    def test_weights_cut_off(self, artifact):
        path = artifact.path / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
        self.refuse(artifact, "data is cut off")

    def test_weights_absent(self, artifact):
        (artifact.path / "model.safetensors").unlink()
        self.refuse(artifact, "No safetensors")

    def test_config_absent(self, artifact):
        (artifact.path / "config.json").unlink()
        self.refuse(artifact, "mlx cannot load")

    def test_config_no_json(self, artifact):
        (artifact.path / "config.json").write_text("{")
        self.refuse(artifact, "mlx cannot load")

    def test_config_of_another_shape(self, artifact):
        self.change_config(artifact, intermediate_size=256)
        self.refuse(artifact, "mlx cannot load")

    def test_config_without_a_size(self, artifact):
        self.change_config(artifact, hidden_size=None)
        self.refuse(artifact, "mlx cannot load")

    def test_config_of_an_unknown_model(self, artifact):
        self.change_config(artifact, model_type="nothing")
        self.refuse(artifact, "not supported")

    def test_config_that_asks_to_run_code(self, artifact):
        (artifact.path / "evil.py").write_text("raise SystemExit")
        self.change_config(artifact, model_file="evil.py")
        self.refuse(artifact, "custom module")
