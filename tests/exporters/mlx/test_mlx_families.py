"""Claims about every family in mlx-lm: the right logits, or a shorter artifact, or a reason."""

from __future__ import annotations

import json
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import load
from mlx_lm.utils import load_model

from edgekit.artifact import Artifact
from edgekit.decision import Accepted, Rejected
from edgekit.encoding import FP32
from edgekit.errors import ExportError, FormatError, UsageError
from edgekit.exporters.base import ExportOptions
from edgekit.exporters.mlx.exporter import MlxExporter
from edgekit.exporters.mlx.models import choose_file
from edgekit.exporters.staging import write_artifact
from edgekit.families import open_model
from edgekit.families.rope_spec import Llama3Scaling, LongRopeScaling, RopeSpec, YarnScaling
from edgekit.families.spec import Activation, DecoderSpec, QkNorm, QueryScaling
from edgekit.quantize.encoded_model import quantize_model
from edgekit.quantize.methods import Method
from edgekit.quantize.model import EncodedTensor
from edgekit.runtime.mlx import MlxDecoder
from edgekit.runtime.reference import ReferenceDecoder
from edgekit.scheme import Scheme
from tests.builders import write_tiny_checkpoint
from tests.exporters.memory_model import memory_model, stored_as, tiny_spec
from tests.golden.tokens import golden_ids
from tests.tiny_families import TINY_CONFIGS

# Both sides sum in float32 in another order; 2.1e-5 was the largest difference seen.
FLOAT32_SUMS = 2e-4
# gemma3_text.py rounds sqrt(128) to bf16, 1.1e-4 of it: measured 6.3e-4.
GEMMA_EMBED_SCALE = 11.3125
GEMMA_EMBED_ROUNDING = 1e-3
# Past the length that an artifact holds, stock mlx-lm is plainly wrong.
PLAINLY_WRONG = 0.1

# gemma.py has GELU with the error function, Gemma the form with tanh.
REFUSED = {"gemma"}
MEMBERS = [name for name in TINY_CONFIGS if name not in REFUSED]
# All layers slide, which no model file of mlx-lm 0.32 in this form can; LongRoPE's short factors;
# gemma2.py lets every layer see everything.
HELD_POSITIONS = {"mistral-v0.1": 24, "phi3-4k": 24, "phi3": 64, "gemma2": 24}
WRITTEN_AS = {
    "exaone": "llama",
    "mimo": "qwen2",
    "minicpm": "granite",
    "ministral": "llama",
    "mistral3": "ministral3",
    "qwen2-window": "llama",
    "qwen2_5_vl": "qwen2",
    "qwen2_vl": "qwen2",
    "qwen3_vl": "qwen3",
    "xverse": "llama",
}

TOKENS = golden_ids()
# The window of 24 is passed inside a chunk, between chunks, and turned over by single tokens.
CHUNKS = [50, 70] + [1] * 30
YARN = YarnScaling(4.0, 32.0, 1.0, 64, 1.3)
SHORT, LONG = (1.0, 1.1, 1.2, 1.3) * 4, (2.0, 3.0, 4.0, 5.0) * 4


@pytest.fixture(scope="module")
def specs(tmp_path_factory) -> dict[str, DecoderSpec]:
    folder = tmp_path_factory.mktemp("specs")
    return {
        name: open_model(write_tiny_checkpoint(folder / name, name)).spec for name in TINY_CONFIGS
    }


def logits(decoder, lengths):
    """Run the first tokens in pieces, as far as the decoder goes."""
    start, parts = 0, []
    for length in lengths:
        piece = TOKENS[start : min(start + length, decoder.context_length)]
        if piece:
            parts.append(decoder.forward(piece, n_past=start, n_logits=len(piece)))
        start += len(piece)
    return np.concatenate(parts)


def error(got, wanted) -> float:
    return float(np.abs(got - wanted).max() / wanted.std())


def reference_of(model, artifact: Artifact) -> ReferenceDecoder:
    """Compute what the artifact stands for, with the embedding's factor that mlx-lm has."""
    spec = model.spec
    if spec.model_type == "gemma3_text":
        spec = replace(spec, embed_scale=GEMMA_EMBED_SCALE)

    def read(name):
        tensor = model.get(name)
        return tensor.dequantize() if isinstance(tensor, EncodedTensor) else tensor.values

    return ReferenceDecoder(spec, read, context_length=artifact.manifest.context_length)


def config_of(artifact: Artifact) -> dict:
    return json.loads((artifact.path / "config.json").read_text())


def test_these_members_are_refused_or_held_shorter_and_no_others(specs):
    decisions = {
        name: MlxExporter().supports(spec, stored_as(spec, FP32)) for name, spec in specs.items()
    }
    assert {name for name, d in decisions.items() if isinstance(d, Rejected)} == REFUSED
    choices = {name: choose_file(specs[name]) for name in MEMBERS}
    shorter = {n: c.n_positions for n, c in choices.items() if c.n_positions < 256}
    assert shorter == HELD_POSITIONS
    for name in shorter:
        (note,) = decisions[name].notes
        assert f"holds {shorter[name]} of 256 positions" in note
    with_notes = {name for name in MEMBERS if decisions[name].notes}
    # Gemma's note is only for weights that are not bf16; see below.
    assert with_notes == {*HELD_POSITIONS, "qwen2-window"}


@pytest.mark.parametrize("name", ["exaone", "mimo", "minicpm"])
def test_models_that_transformers_lacks_are_what_mlx_lm_computes(tmp_path, name):
    # Their goldens restate them as models of transformers; mlx-lm has a file of its own for each.
    folder = write_tiny_checkpoint(
        tmp_path / "m", name, dtype="fp32", tie_word_embeddings=False
    )  # of a tied MiniCPM mlx-lm 0.32 makes a head that its model lacks
    wanted = ReferenceDecoder.from_source(open_model(folder)).forward(
        TOKENS[:200], n_past=0, n_logits=200
    )
    stock, _ = load_model(folder)
    got = np.array(stock(mx.array([TOKENS[:200]]))[0])
    assert error(got, wanted) < FLOAT32_SUMS


@pytest.mark.parametrize("name", MEMBERS)
def test_stock_mlx_lm_opens_every_member_and_gives_the_right_logits(tmp_path, name):
    source = open_model(write_tiny_checkpoint(tmp_path / "m", name, dtype="fp32"))
    store = quantize_model(source, Scheme.parse("fp32"), tmp_path / "q", method=Method.RTN)
    artifact = write_artifact(MlxExporter(), store, tmp_path / "a")
    length = artifact.manifest.context_length
    assert length == HELD_POSITIONS.get(name, 256)
    assert config_of(artifact)["model_type"] == WRITTEN_AS.get(
        name, TINY_CONFIGS[name]["model_type"]
    )
    n_tokens = min(200, length)
    wanted = logits(reference_of(store, artifact), [n_tokens])
    stock, _ = load(str(artifact.path))
    got = np.array(stock(mx.array([TOKENS[: n_tokens + 1]]))[0])
    assert error(got[:n_tokens], wanted) < FLOAT32_SUMS
    in_pieces = logits(MlxDecoder.open(artifact), CHUNKS)
    assert error(in_pieces, wanted[: len(in_pieces)]) < FLOAT32_SUMS
    if name in HELD_POSITIONS:
        beyond = logits(ReferenceDecoder.from_quantized(store), [n_tokens + 1])
        assert error(got[-1:], beyond[-1:]) > PLAINLY_WRONG
    store.close()


@pytest.mark.parametrize("name", MEMBERS)
def test_every_tensor_of_every_member_comes_back_bit_for_bit(tmp_path, specs, name):
    model = memory_model(specs[name], "int4", schemes={"embed": "int8", "lm_head": "int8"})
    artifact = write_artifact(MlxExporter(), model, tmp_path / "a")
    recovered = list(MlxExporter().recover(artifact))
    assert [tensor.name for tensor in recovered] == list(specs[name].weight_shapes())
    for tensor in recovered:
        wanted = model.tensors[tensor.name]
        if isinstance(wanted, EncodedTensor):
            assert tensor.sha256() == wanted.sha256()
        else:
            assert tensor.encoding == wanted.encoding
            np.testing.assert_array_equal(tensor.values, wanted.values)


VARIANTS = {
    "some layers slide without a turning cache": (
        "smollm3", {"sliding_window": 24, "sliding_layers": (1, 3)}, "smollm3"),
    "biases of q, k, v": ("llama", {"has_qkv_bias": True}, "llama"),
    "bias of o": ("olmo2", {"has_o_bias": True}, "olmo2"),
    "all biases": (
        "granite", {"has_qkv_bias": True, "has_o_bias": True, "has_mlp_bias": True}, "granite"),
    "untied, logits divided": ("granite", {"is_tied": False}, "granite"),
    "untied, where absence means tied": ("gemma3_text", {"is_tied": False}, "gemma3_text"),
    "capped, scores scaled otherwise": (
        "gemma2", {"attention_scale": 0.2, "sliding_window": None}, "gemma2"),
    "no layer slides": ("gemma3_text", {"sliding_window": None}, "gemma3_text"),
    "fused and partly rotated": ("phi3", {"rope": RopeSpec(1e4, None, 2.0, 24)}, "phi3"),
    "fused no longer": ("phi3", {"rope": RopeSpec(1e4, YARN)}, "llama"),
    "longrope elsewhere": (
        "llama", {"rope": RopeSpec(1e4, LongRopeScaling(SHORT, LONG, 64, 1.0))}, "llama"),
    "yarn with a factor of its own": ("qwen3", {"rope": RopeSpec(1e4, YARN)}, "qwen3"),
    "one rope in all layers": (
        "olmo3", {"rope": RopeSpec(5e5), "local_rope": None}, "olmo3"),
    "sliding layers scaled as well, a window as long as the artifact": (
        "olmo3", {"local_rope": None, "sliding_window": 256}, "olmo2"),
    "all layers slide, so the rope of the others counts for nothing": (
        "olmo3", {"sliding_layers": (0, 1, 2, 3)}, "olmo2"),
    "no layer slides any more": (
        "olmo3", {"local_rope": None, "sliding_window": None}, "olmo2"),
    "granite without rope, with biases": (
        "granitemoehybrid-nope",
        {"has_qkv_bias": True, "has_o_bias": True, "has_mlp_bias": True}, "granitemoehybrid"),
    "granite 4 with scaled rope": (
        "granitemoehybrid", {"rope": RopeSpec(1e4, YARN)}, "granite"),
    "a window as long as the context, and layers without rope": (
        "exaone4-window", {"sliding_window": None, "sliding_layers": None}, "exaone4"),
    "heads normed after they rotate, with biases": (
        "hunyuan_v1_dense", {"has_qkv_bias": True, "has_o_bias": True, "is_tied": False},
        "hunyuan_v1_dense"),
    "queries grow": ("mistral", {"query_scaling": QueryScaling(0.1, 20)}, "ministral3"),
    "queries do not grow": (
        "ministral3", {"query_scaling": None, "sliding_window": 24, "sliding_layers": (1,)},
        "ministral3"),
    "a head width of its own": ("qwen2", {"head_width": 64}, "llama"),
    "scores scaled otherwise": ("llama", {"attention_scale": 0.1}, "granite"),
    "partly rotated": ("llama", {"rope": RopeSpec(1e4, rotary_width=16)}, "phi3"),
    "a layer without rope, with biases": (
        "smollm3", {"no_rope_layers": (0, 1), "has_qkv_bias": True}, "smollm3"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "change", "written_as"), VARIANTS.values(), ids=VARIANTS)
def test_every_feature_reaches_mlx_lm_in_codes(tmp_path, specs, name, change, written_as):
    model = memory_model(replace(specs[name], **change), "int8")
    artifact = write_artifact(MlxExporter(), model, tmp_path / "a")
    assert config_of(artifact)["model_type"] == written_as
    pieces = [40, 28, 1, 1, 1]
    wanted = logits(reference_of(model, artifact), pieces)
    assert error(logits(MlxDecoder.open(artifact), pieces), wanted) < FLOAT32_SUMS
    recovered = {tensor.name: tensor for tensor in MlxExporter().recover(artifact)}
    assert recovered.keys() == model.tensors.keys()


def test_gemma_is_off_by_the_rounding_of_one_factor_and_says_so(tmp_path):
    source = open_model(write_tiny_checkpoint(tmp_path / "m", "gemma3_text", dtype="fp32"))
    store = quantize_model(source, Scheme.parse("fp32"), tmp_path / "q", method=Method.RTN)
    artifact = write_artifact(MlxExporter(), store, tmp_path / "a")
    got = logits(MlxDecoder.open(artifact), [60])
    off = error(got, logits(ReferenceDecoder.from_quantized(store), [60]))
    assert FLOAT32_SUMS < off < GEMMA_EMBED_ROUNDING
    (note,) = artifact.manifest.notes
    assert "multiplies embeddings by 11.3125" in note
    store.close()


@pytest.mark.parametrize(
    ("width", "rounded"), [(640, 25.25), (1152, 34.0), (2304, 48.0), (2560, 50.5), (5376, 73.5)]
)
def test_the_embedding_factor_is_that_of_mlx(specs, width, rounded):
    spec = replace(specs["gemma3_text"], hidden_width=width, embed_scale=rounded)
    choice = choose_file(spec)
    assert choice.file.embed_scale(spec) == rounded
    assert float(mx.array(width**0.5, mx.bfloat16).astype(mx.float32)) == rounded
    assert choice.notes == ()
    unrounded = choose_file(replace(spec, embed_scale=width**0.5))
    assert len(unrounded.notes) == (width != 2304)


@pytest.mark.parametrize(
    ("scheme", "words"),
    [("int4", None), ("fp32", "by 59.8665, sqrt(3584) rounded to fp32, not by 59.75"),
     ("fp16", "by 59.875, sqrt(3584) rounded to fp16, not by 59.75")],
)  # fmt: skip
def test_gemma2_has_its_factor_in_the_type_of_the_artifact(specs, scheme, words):
    # Gemma 2 9B; sqrt(3584) is 59.75 in bf16, the type of its weights and of integer artifacts.
    spec = replace(specs["gemma2"], hidden_width=3584, embed_scale=59.75, sliding_window=None)
    notes = MlxExporter().supports(spec, stored_as(spec, scheme)).notes
    assert [words] == [note.partition("embeddings ")[2] for note in notes] if words else not notes


def test_gemma2_runs_in_float32_with_the_factor_that_it_has_in_bf16(tmp_path):
    config = {"hidden_size": 96, "sliding_window": None}
    source = open_model(write_tiny_checkpoint(tmp_path / "m", "gemma2", **config))
    # sqrt(96) is 9.79796; bf16 has steps of 1/16 there.
    assert source.spec.embed_scale == 9.8125
    store = quantize_model(source, Scheme.parse("int8"), tmp_path / "q", method=Method.RTN)
    artifact = write_artifact(MlxExporter(), store, tmp_path / "a")
    assert artifact.manifest.settings["float_dtype"] == "bfloat16"
    wanted = logits(ReferenceDecoder.from_quantized(store), [60])
    assert error(logits(MlxDecoder.open(artifact), [60]), wanted) < FLOAT32_SUMS
    store.close()


ROPE_64 = Llama3Scaling(8.0, 1.0, 4.0, 64)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("qwen3", {"has_qkv_bias": True}, "qwen3.py: there is no attention_bias"),
        ("gemma3_text", {"has_mlp_bias": True}, "gemma3_text.py: there is no mlp_bias"),
        ("gemma3_text", {"sliding_layers": (1, 2)}, "sliding_window_pattern"),
        ("gemma3_text", {"sliding_layers": (0, 1, 2)}, "sliding_window_pattern"),
        ("gemma3_text", {"local_rope": RopeSpec(1e4, linear_factor=2.0)}, "rope_local_base_freq"),
        ("gemma3_text", {"local_rope": None}, "rope_local_base_freq"),
        ("gemma3_text", {"embed_scale": 12.0}, "embed_scale is 11.3125, not 12"),
        ("gemma3_text", {"norm_offset": 0.0}, "RMSNorm adds 1.0"),
        ("gemma", {}, "gemma.py: the MLP's activation is gelu, not gelu_tanh"),
        ("gemma2", {"logits_softcap": None}, "gemma2.py: logits are always capped"),
        ("llama", {"scores_softcap": 20.0}, "llama.py: scores are never capped"),
        ("gemma2", {"is_tied": False}, "gemma2.py: the head is always the embedding"),
        ("gemma2", {"rope": RopeSpec(1e4, linear_factor=2.0)}, "rope_scaling is not read"),
        ("gemma2", {"embed_scale": 9.0}, "embed_scale is 8, not 9"),
        ("granite", {"head_width": 64}, "head_dim is not read"),
        ("granite", {"no_rope_layers": (1,)}, "no_rope_layers"),
        ("granitemoehybrid", {"no_rope_layers": (1,)}, "all layers have rope or none has"),
        ("granitemoehybrid", {"rope": RopeSpec(1e4, rotary_width=16)}, "partial_rotary_factor"),
        ("exaone4-window", {"no_rope_layers": ()}, "layers slide and have rope, or see everything"),
        ("exaone4-window", {"no_rope_layers": (2, 3)}, "layers slide and have rope, or see"),
        ("exaone4", {"no_rope_layers": (0, 1)}, "layers slide and have rope, or see everything"),
        ("hunyuan_v1_dense", {"rope": RopeSpec(1e4, YARN)}, "rope_scaling is not read"),
        ("gemma3_text", {"qk_norm": QkNorm.HEAD_AFTER_ROPE}, "are head, not head_after_rope"),
        ("olmo2", {"logits_scale": 0.5}, "logits_scale is 1, not 0.5"),
        ("llama", {"activation": Activation.GELU_TANH}, "activation is silu, not gelu_tanh"),
        ("olmo2", {"attention_scale": 0.5}, "score_scale is 0.176777, not 0.5"),
        ("olmo3", {"local_rope": RopeSpec(1e4)}, "olmo3.py: sliding layers have the theta of the"),
        ("qwen3", {"rope": RopeSpec(1e4, rotary_width=16)}, "partial_rotary_factor is not read"),
        ("llama", {"rope": RopeSpec(1e4, ROPE_64, 2.0)}, "not llama3 and linear together"),
        ("llama", {"rope": RopeSpec(1e4, replace(YARN, is_truncated=False))}, "YarnRoPE"),
        ("llama", {"rope": RopeSpec(1e4, replace(YARN, factor=1.0))}, "YarnRoPE"),
        ("llama", {"rope": RopeSpec(1e4, LongRopeScaling(SHORT, LONG, 64, 0.9))}, "SuScaledRoPE"),
        ("llama", {"rope": RopeSpec(1e4, LongRopeScaling(SHORT, LONG, 64, 1e9))}, "SuScaledRoPE"),
        ("phi3", {"rope": RopeSpec(1e4, YARN, rotary_width=24)}, "type yarn is not read"),
        ("ministral3", {"query_scaling": QueryScaling(0.1, 32)}, "share one original_max"),
        ("ministral3", {"has_mlp_bias": True}, "ministral3.py: there is no mlp_bias"),
    ],
)
def test_what_no_model_file_computes_is_refused_with_its_name(specs, name, change, words):
    spec = replace(specs[name], **change)
    decision = MlxExporter().supports(spec, stored_as(spec, FP32))
    assert isinstance(decision, Rejected)
    assert decision.reason.startswith("mlx-lm's ")
    assert words in decision.reason


def test_a_refused_decoder_is_not_written(tmp_path, specs):
    model = memory_model(replace(specs["qwen3"], has_qkv_bias=True))
    (tmp_path / "a").mkdir()
    with pytest.raises(ExportError, match="there is no attention_bias"):
        MlxExporter().open(model, tmp_path / "a", ExportOptions())
    assert list((tmp_path / "a").iterdir()) == []


def test_more_context_than_a_window_that_mlx_lm_ignores_is_refused(tmp_path):
    model = memory_model(tiny_spec(sliding_window=32))
    with pytest.raises(UsageError, match=r"wanted 2 \.\. 32") as caught:
        write_artifact(MlxExporter(), model, tmp_path / "a", ExportOptions(33))
    assert "no sliding_window that holds" in caught.value.wanted


@pytest.mark.parametrize(
    "change",
    [{}, {"model_type": "llama"}, {"sliding_window": 64}, {"has_mlp_bias": True}],
)
def test_a_plain_decoder_needs_no_words(change):
    assert (
        MlxExporter().supports(tiny_spec(**change), stored_as(tiny_spec(**change), FP32))
        == Accepted()
    )


def test_a_plain_config_says_nothing_of_windows_and_other_families(tmp_path):
    config = config_of(write_artifact(MlxExporter(), memory_model(), tmp_path / "a"))
    assert set(config) == {
        "architectures", "attention_bias", "bos_token_id", "eos_token_id", "head_dim",
        "hidden_act", "hidden_size", "intermediate_size", "max_position_embeddings", "mlp_bias",
        "model_type", "num_attention_heads", "num_hidden_layers", "num_key_value_heads",
        "pad_token_id", "quantization", "rms_norm_eps", "rope_scaling", "rope_theta",
        "sliding_window", "tie_word_embeddings", "torch_dtype", "vocab_size",
    }  # fmt: skip
    assert config["model_type"] == "mistral"


def test_the_rows_of_a_fused_matrix_are_those_of_its_parts(tmp_path, specs):
    model = memory_model(specs["phi3"], "int4")
    artifact = write_artifact(MlxExporter(), model, tmp_path / "a")
    arrays = mx.load(str(artifact.path / "model.safetensors"))
    module = "model.layers.1.self_attn.qkv_proj"
    parts = [arrays[f"{module}.{kind}"] for kind in ("weight", "scales", "biases")]
    values = np.array(mx.dequantize(*parts, group_size=32, bits=4))
    rows = [model.tensors[f"layers.1.{part}"].dequantize() for part in "qkv"]
    np.testing.assert_array_equal(values, np.concatenate(rows))
    assert not any("q_proj" in name for name in arrays)


def test_parts_of_a_fused_matrix_in_two_schemes_are_refused_and_nothing_stays(tmp_path, specs):
    for schemes in ({"layers.0.v": "int8"}, {"layers.0.up": "fp16"}):
        model = memory_model(specs["phi3"], "int4", schemes=schemes)
        with pytest.raises((ExportError, FormatError), match=r"layers\.0"):
            write_artifact(MlxExporter(), model, tmp_path / "out" / "a")
        assert list((tmp_path / "out").iterdir()) == []


class TestDamage:
    """What recover reads is checked against what an export of that model file writes."""

    @pytest.fixture
    def artifact(self, tmp_path, specs) -> Artifact:
        return write_artifact(MlxExporter(), memory_model(specs["qwen2-window"]), tmp_path / "a")

    def recover(self, artifact, match) -> None:
        with pytest.raises(FormatError, match=match):
            list(MlxExporter().recover(artifact))

    def test_a_zero_bias_that_is_not_zero(self, artifact):
        path = artifact.path / "model.safetensors"
        arrays = {name: mx.array(np.array(array)) for name, array in mx.load(str(path)).items()}
        name = "model.layers.1.self_attn.o_proj.bias"
        assert not np.array(arrays[name]).any()
        mx.save_safetensors(str(path), arrays | {name: arrays[name] + 1}, {"format": "mlx"})
        self.recover(artifact, r"o_proj\.bias; wanted zeros")

    @pytest.mark.parametrize(
        ("model_type", "match"),
        [
            ("nothing", "model_type; got nothing"),
            (None, "model_type"),
            (["llama"], "model_type"),
            ("phi3", r"qkv_proj\.weight: array|array model\.layers\.0\.self_attn\.qkv_proj"),
            ("olmo2", r"olmo2\.py has no weight; got layers\.0\.attn_norm"),
        ],
    )
    def test_a_config_that_names_another_model_file(self, artifact, model_type, match):
        (artifact.path / "config.json").write_text(
            json.dumps({**config_of(artifact), "model_type": model_type})
        )
        self.recover(artifact, match)
