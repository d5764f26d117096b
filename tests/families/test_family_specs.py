"""What each family's config means, field by field; the numbers are checked in test_golden.py."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import safetensors.numpy

from edgekit.errors import CheckpointError, UnknownKeyError, UnsupportedArchError
from edgekit.families import open_model
from edgekit.families.rope_spec import LongRopeScaling, RopeSpec, YarnScaling
from edgekit.families.spec import (
    Activation,
    DecoderSpec,
    LayerAttention,
    NormPlacement,
    QkNorm,
    QueryScaling,
)
from tests.builders import tiny_config, write_tiny_checkpoint
from tests.tiny_families import TINY_CONFIGS


def open_tiny(folder, name, **overrides):
    return open_model(write_tiny_checkpoint(folder / "m", name, **overrides))


def refusal(folder, name, kind=CheckpointError, **overrides):
    with pytest.raises(kind) as caught:
        open_tiny(folder, name, **overrides)
    return caught.value


@pytest.mark.parametrize("name", TINY_CONFIGS)
def test_a_spec_survives_the_manifest(tmp_path, name):
    spec = open_tiny(tmp_path, name).spec
    assert DecoderSpec.from_dict(json.loads(json.dumps(spec.as_dict()))) == spec


def windows(spec):
    return [spec.attention(i).window for i in range(spec.n_layers)]


def test_ministral_slides_where_layer_types_say_so(tmp_path):
    spec = open_tiny(tmp_path, "ministral").spec
    assert windows(spec) == [24, None, 24, None]
    assert spec.ropes == (RopeSpec(10000.0),)


def test_layer_types_are_checked(tmp_path):
    error = refusal(tmp_path, "ministral", layer_types=["full_attention"])
    assert "layer_types must have 4 entries, each full_attention or sliding_attention" in error.what
    error = refusal(tmp_path, "ministral", layer_types=["chunked_attention"] * 4)
    assert "layer_types must have 4 entries" in error.what


def test_ministral3_has_yarn_and_growing_queries(tmp_path):
    spec = open_tiny(tmp_path, "ministral3").spec
    # mscale equals mscale_all_dim: their factors cancel.
    assert spec.rope == RopeSpec(1e6, YarnScaling(4.0, 32.0, 1.0, 64, 1.0))
    assert spec.query_scaling == QueryScaling(0.1, 64)


def test_yarn_without_mscale_scales_by_the_logarithm_of_its_factor(tmp_path):
    scaling = open_tiny(tmp_path, "llama-yarn").spec.rope.scaling
    assert scaling.attention_factor == pytest.approx(0.1 * math.log(4) + 1)


@pytest.mark.parametrize("layout", ["published", "transformers 5"])
def test_the_text_decoder_of_a_multimodal_checkpoint_is_found(tmp_path, layout):
    folder = write_tiny_checkpoint(tmp_path / "m", "mistral3")
    path = folder / "model.safetensors"
    if layout == "transformers 5":
        tensors = safetensors.numpy.load_file(path)
        renamed = {
            f"model.{name.replace('language_model.model.', 'language_model.')}": values
            for name, values in tensors.items()
        }
        safetensors.numpy.save_file(renamed, path)
    source = open_model(folder)
    plain = open_tiny(tmp_path / "text", "ministral3")
    assert source.spec == plain.spec
    for name in ("embed", "layers.1.q", "final_norm"):
        np.testing.assert_array_equal(source.tensor(name).read(), plain.tensor(name).read())
    assert dict(source.left_out) == {"the vision tower; edgekit takes the text decoder": 2}


def test_gemma3_wraps_gemma3_text(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "m", "gemma3_text")
    inner = tiny_config("gemma3_text")
    outer = {"model_type": "gemma3", "text_config": inner, "boi_token_index": 3}
    (folder / "config.json").write_text(json.dumps(outer))
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    renamed = {f"language_model.{name}": values for name, values in tensors.items()}
    safetensors.numpy.save_file(renamed, folder / "model.safetensors")
    assert open_model(folder).spec == open_tiny(tmp_path / "text", "gemma3_text").spec


def test_a_wrapper_around_an_unknown_decoder_is_refused(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "m", "mistral3")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["model_type"] = "mamba"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedArchError) as caught:
        open_model(folder)
    error = caught.value
    assert (error.got, error.wanted) == ("'mamba'", "mistral, ministral3")


def test_an_unknown_key_inside_a_wrapper_is_named(tmp_path):
    assert refusal(tmp_path, "mistral3", UnknownKeyError, trick=1).keys == ("text_config.trick",)


def test_qwen2_has_biases_on_q_k_and_v_only(tmp_path):
    spec = open_tiny(tmp_path, "qwen2").spec
    assert (spec.has_qkv_bias, spec.has_o_bias, spec.has_mlp_bias) == (True, False, False)
    assert windows(spec) == [None, None]


def test_qwen2_slides_from_max_window_layers_on_when_told_to(tmp_path):
    assert windows(open_tiny(tmp_path, "qwen2-window").spec) == [None, 24]


def test_qwen3_norms_heads_whose_width_is_its_own(tmp_path):
    source = open_tiny(tmp_path, "qwen3")
    spec = source.spec
    assert (spec.head_width, spec.hidden_width // spec.n_heads) == (64, 32)
    assert spec.qk_norm is QkNorm.HEAD
    assert source.tensor("layers.1.q_norm").info.shape == (64,)


def test_gemma3_text(tmp_path):
    source = open_tiny(tmp_path, "gemma3_text")
    spec = source.spec
    assert spec.norm_placement is NormPlacement.BOTH
    assert spec.activation is Activation.GELU_TANH
    # sqrt(128) is 11.3137; bfloat16 has steps of 1/16 there.
    assert (spec.norm_offset, spec.embed_scale) == (1.0, 11.3125)
    exact = open_tiny(tmp_path / "fp32", "gemma3_text", dtype="fp32").spec.embed_scale
    assert exact == np.float32(128**0.5)
    assert spec.score_scale == 48**-0.5
    local = LayerAttention(RopeSpec(1e4), 24)
    whole = LayerAttention(RopeSpec(1e6, linear_factor=8.0), None)
    assert [spec.attention(i) for i in range(3)] == [local, local, whole]
    raw = safetensors.numpy.load_file(source.checkpoint.folder / "model.safetensors")
    for name, theirs in {
        "attn_norm": "input_layernorm",
        "attn_post_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "ffn_post_norm": "post_feedforward_layernorm",
    }.items():
        wanted = raw[f"model.layers.2.{theirs}.weight"].astype(np.float32)
        np.testing.assert_array_equal(source.tensor(f"layers.2.{name}").read(), wanted)


def test_gemma3_in_the_spelling_of_transformers_5_is_the_same(tmp_path):
    old = open_tiny(tmp_path, "gemma3_text").spec
    config = tiny_config("gemma3_text")
    for key in ("rope_theta", "rope_local_base_freq", "rope_scaling", "sliding_window_pattern"):
        del config[key]
    config["layer_types"] = ["sliding_attention", "sliding_attention", "full_attention"]
    config["rope_parameters"] = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    folder = write_tiny_checkpoint(tmp_path / "new", "gemma3_text")
    (folder / "config.json").write_text(json.dumps(config))
    assert open_model(folder).spec == old


def test_gemmas_local_layers_keep_their_rope_when_the_window_covers_the_context(tmp_path):
    spec = open_tiny(tmp_path, "gemma3_text", sliding_window=4096).spec
    assert spec.attention(0).rope == RopeSpec(1e4)
    assert spec.attention(2).rope == RopeSpec(1e6, linear_factor=8.0)


def test_gemma2(tmp_path):
    source = open_tiny(tmp_path, "gemma2")
    spec = source.spec
    assert (spec.norm_placement, spec.norm_offset) == (NormPlacement.BOTH, 1.0)
    assert (spec.qk_norm, spec.activation) == (QkNorm.NONE, Activation.GELU_TANH)
    assert (spec.scores_softcap, spec.logits_softcap) == (1.5, 4.0)
    assert (spec.score_scale, spec.embed_scale) == (48**-0.5, 8.0)
    assert windows(spec) == [24, None, 24]
    assert spec.is_tied  # tie_word_embeddings is absent


def test_gemma(tmp_path):
    spec = open_tiny(tmp_path, "gemma").spec
    assert (spec.norm_placement, spec.norm_offset) == (NormPlacement.BEFORE, 1.0)
    assert (spec.activation, spec.qk_norm) == (Activation.GELU_TANH, QkNorm.NONE)
    assert (spec.score_scale, spec.embed_scale, spec.head_width) == (1 / 8, 11.3125, 64)


@pytest.mark.parametrize(
    "said",
    [{"hidden_act": "gelu_pytorch_tanh"}, {"hidden_activation": "gelu_pytorch_tanh"},
     {"hidden_act": None}],
)  # fmt: skip
def test_every_way_to_say_gemmas_activation_means_the_same(tmp_path, said):
    assert open_tiny(tmp_path, "gemma", **said).spec.activation is Activation.GELU_TANH


@pytest.mark.parametrize("said", [{"hidden_act": "silu"}, {"hidden_activation": "gelu"}])
def test_another_activation_of_gemma_is_named(tmp_path, said):
    ((key, name),) = said.items()
    assert f"{key} is {name!r}" in refusal(tmp_path, "gemma", **said).what


def without(config, *keys):
    return {key: value for key, value in config.items() if key not in keys}


def test_gemma2_keys_that_are_absent_mean_what_transformers_means(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "m", "gemma2")
    caps = ("attn_logit_softcapping", "final_logit_softcapping")
    config = without(tiny_config("gemma2"), *caps, "sliding_window", "query_pre_attn_scalar")
    config["max_position_embeddings"] = 8192
    (folder / "config.json").write_text(json.dumps(config))
    spec = open_model(folder).spec
    assert (spec.scores_softcap, spec.logits_softcap, spec.score_scale) == (50.0, 30.0, 1 / 16)
    assert windows(spec) == [4096, None, 4096]
    config |= {**dict.fromkeys(caps), "sliding_window": None}
    (folder / "config.json").write_text(json.dumps(config))
    spec = open_model(folder).spec
    assert (spec.scores_softcap, spec.logits_softcap) == (None, None)
    assert windows(spec) == [None] * 3


def test_a_cap_that_is_not_positive_is_named(tmp_path):
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        assert f"{key} is -1.0" in refusal(tmp_path, "gemma2", **{key: -1.0}).what


def test_gemmas_embedding_factor_has_the_type_of_the_weights(tmp_path):
    found = {
        dtype: open_tiny(tmp_path / dtype, "gemma2", dtype=dtype, hidden_size=96).spec.embed_scale
        for dtype in ("fp32", "fp16", "bf16")
    }
    root = 96**0.5
    assert found == {"fp32": np.float32(root), "fp16": np.float16(root), "bf16": 9.8125}


@pytest.mark.parametrize("key", ["final_logit_softcapping", "attn_logit_softcapping"])
def test_gemma_with_softcapping_is_refused(tmp_path, key):
    assert f"{key} is 30.0" in refusal(tmp_path, "gemma3_text", **{key: 30.0}).what


def test_phi3_is_cut_out_of_its_fused_matrices(tmp_path):
    source = open_tiny(tmp_path, "phi3")
    raw = safetensors.numpy.load_file(source.checkpoint.folder / "model.safetensors")
    qkv = raw["model.layers.1.self_attn.qkv_proj.weight"].astype(np.float32)
    gate_up = raw["model.layers.0.mlp.gate_up_proj.weight"].astype(np.float32)
    assert (qkv.shape, gate_up.shape) == ((256, 128), (512, 128))
    for name, wanted in {
        "layers.1.q": qkv[:128],
        "layers.1.k": qkv[128:192],
        "layers.1.v": qkv[192:],
        "layers.0.gate": gate_up[:256],
        "layers.0.up": gate_up[256:],
    }.items():
        tensor = source.tensor(name)
        assert tensor.info.shape == wanted.shape
        np.testing.assert_array_equal(tensor.read(), wanted)
        np.testing.assert_array_equal(tensor.read_rows(3, 9), wanted[3:9])
    assert source.n_parameters == sum(a.size for a in raw.values())


def test_phi3_longrope(tmp_path):
    spec = open_tiny(tmp_path, "phi3").spec
    assert spec.rope.rotary_width == 24
    scaling = spec.rope.scaling
    assert isinstance(scaling, LongRopeScaling)
    assert (scaling.original_context_length, len(scaling.long_factors)) == (64, 12)
    # The context grew four times: sqrt(1 + ln 4 / ln 64).
    assert scaling.attention_factor == pytest.approx(math.sqrt(1 + 1 / 3))


def test_a_fused_matrix_of_another_height_is_refused(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "m", "phi3")
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    name = "model.layers.1.self_attn.qkv_proj.weight"
    tensors[name] = tensors[name][:255]
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(CheckpointError) as caught:
        open_model(folder)
    assert caught.value.got == f"{name} has shape [255, 128] (config.json wants [256, 128])"


def test_smollm3_leaves_every_fourth_layer_without_rope(tmp_path):
    spec = open_tiny(tmp_path, "smollm3").spec
    assert [spec.attention(i).rope is None for i in range(4)] == [False, False, False, True]
    folder = write_tiny_checkpoint(tmp_path / "n", "smollm3")
    config = json.loads((folder / "config.json").read_text())
    del config["no_rope_layers"]
    (folder / "config.json").write_text(json.dumps(config))
    assert open_model(folder).spec == spec
    error = refusal(tmp_path, "smollm3", no_rope_layers=[1, 2, 1, 0])
    assert "no_rope_layers must have 4 entries, each 0 or 1" in error.what


def test_granite_has_four_multipliers(tmp_path):
    spec = open_tiny(tmp_path, "granite").spec
    assert (spec.attention_scale, spec.embed_scale) == (0.25, 3.0)
    # logits_scaling divides.
    assert (spec.residual_scale, spec.logits_scale) == (0.5, 0.5)
    assert "logits_scaling is 0.0" in refusal(tmp_path, "granite", logits_scaling=0).what


def test_a_dense_granite_4_has_its_shared_expert_as_feed_forward_block(tmp_path):
    source = open_tiny(tmp_path, "granitemoehybrid")
    spec = source.spec
    assert (spec.ffn_width, spec.attention_scale, spec.logits_scale) == (192, 0.25, 0.5)
    assert [spec.attention(i).rope for i in range(2)] == [RopeSpec(1e4)] * 2
    raw = safetensors.numpy.load_file(source.checkpoint.folder / "model.safetensors")
    inner = raw["model.layers.1.shared_mlp.input_linear.weight"].astype(np.float32)
    np.testing.assert_array_equal(source.tensor("layers.1.gate").read(), inner[:192])
    np.testing.assert_array_equal(source.tensor("layers.1.up").read(), inner[192:])
    bare = open_tiny(tmp_path / "n", "granitemoehybrid-nope").spec
    assert (bare.ropes, bare.no_rope_layers) == ((), (0, 1))


def test_granite_layers_in_the_words_of_transformers_5_are_the_same(tmp_path):
    spec = open_tiny(tmp_path, "granitemoehybrid").spec
    kinds = ["full_attention"] * 2
    assert open_tiny(tmp_path / "a", "granitemoehybrid", layer_types=kinds).spec == spec
    other = {"layer_types": None, "layers_block_type": ["attention"] * 2}
    assert open_tiny(tmp_path / "b", "granitemoehybrid", **other).spec == spec
    absent = open_tiny(tmp_path / "c", "granitemoehybrid", position_embedding_type=None).spec
    assert absent.ropes == ()


@pytest.mark.parametrize(
    ("change", "got"),
    [
        ({"layer_types": ["mamba", "attention"]}, "1 of 2 layers without attention"),
        ({"layer_types": ["linear_attention"] * 2}, "2 of 2 layers without attention"),
        ({"num_local_experts": 64}, "64 experts"),
        (
            {"layer_types": ["mamba", "attention"], "num_local_experts": 64},
            "1 of 2 layers without attention and 64 experts",
        ),
    ],
)
def test_state_space_layers_and_experts_of_granite_are_refused_by_name(tmp_path, change, got):
    error = refusal(tmp_path, "granitemoehybrid", UnsupportedArchError, **change)
    assert error.got == got
    assert "--via optimum" in error.do


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layer_types": None}, "layer_types is missing"),
        ({"layer_types": ["attention"]}, "layer_types has 1 entries (wanted 2)"),
        ({"num_local_experts": None}, "num_local_experts is missing"),
        ({"position_embedding_type": "alibi"}, "position_embedding_type is 'alibi'"),
    ],
)
def test_a_granite_that_does_not_say_what_its_layers_are_is_refused(tmp_path, change, words):
    assert words in refusal(tmp_path, "granitemoehybrid", **change).what


def test_exaone4_rotates_the_layers_that_slide(tmp_path):
    source = open_tiny(tmp_path, "exaone4-window")
    spec = source.spec
    assert (spec.norm_placement, spec.qk_norm) == (NormPlacement.AFTER, QkNorm.HEAD)
    sliding, whole = LayerAttention(RopeSpec(1e4), 24), LayerAttention(None, None)
    assert [spec.attention(i) for i in range(4)] == [sliding] * 3 + [whole]
    assert "layers.0.attn_norm" not in source.tensors
    assert source.tensor("layers.0.k_norm").info.shape == (32,)
    small = open_tiny(tmp_path / "s", "exaone4").spec
    assert [small.attention(i).window for i in range(2)] == [None, None]
    assert None not in [small.attention(i).rope for i in range(2)]


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [("LLLG", [24, 24, 24, None]), (4, [24, 24, 24, None]), ("LG", [24, None, 24, None]),
     ("LLG", [24, 24, None, None]), (2, [24, None, 24, None]), (None, [None] * 4)],
)  # fmt: skip
def test_exaones_pattern_counts_without_layer_types(tmp_path, pattern, wanted):
    change = {"layer_types": None, "sliding_window_pattern": pattern}
    spec = open_tiny(tmp_path, "exaone4-window", **change).spec
    assert windows(spec) == wanted
    assert [spec.attention(i).rope is None for i in range(4)] == [w is None for w in wanted]


@pytest.mark.parametrize("pattern", ["LLX", "", -1, 1.5, True, ["L"]])
def test_a_pattern_that_says_nothing_is_named(tmp_path, pattern):
    error = refusal(tmp_path, "exaone4-window", sliding_window_pattern=pattern)
    assert "sliding_window_pattern is" in error.what


def test_an_exaone_window_as_long_as_the_context_leaves_the_global_layers_without_rope(tmp_path):
    spec = open_tiny(tmp_path, "exaone4-window", sliding_window=256).spec
    assert windows(spec) == [None] * 4
    assert spec.no_rope_layers == (3,)


def test_hunyuan_stretches_theta_once_and_norms_heads_that_rotated(tmp_path):
    source = open_tiny(tmp_path, "hunyuan_v1_dense")
    spec = source.spec
    assert spec.qk_norm is QkNorm.HEAD_AFTER_ROPE
    assert spec.rope == RopeSpec(pytest.approx(10000 * 50 ** (64 / 62)))
    assert source.tensor("layers.1.q_norm").info.shape == (64,)
    config = without(tiny_config("hunyuan_v1_dense"), "rope_theta", "rope_scaling")
    config["rope_parameters"] = {"rope_type": "dynamic", "alpha": 50.0, "rope_theta": 10000.0}
    (source.checkpoint.folder / "config.json").write_text(json.dumps(config))
    assert open_model(source.checkpoint.folder).spec == spec
    plain = open_tiny(tmp_path / "p", "hunyuan_v1_dense", rope_scaling=None).spec
    assert plain.rope == RopeSpec(1e4)


@pytest.mark.parametrize(
    "change",
    [{"use_qk_norm": False}, {"attention_head_dim": 32}, {"use_cla": True}, {"use_mla": True},
     {"num_experts": 64}, {"position_embedding_xdrope": True}, {"mlp_bias": True}],
)  # fmt: skip
def test_another_hunyuan_is_named(tmp_path, change):
    ((key, value),) = change.items()
    error = refusal(tmp_path, "hunyuan_v1_dense", **change)
    said = error.got if isinstance(error, UnknownKeyError) else error.what
    assert re.search(f"{key} (is|=) {value}", said)


def test_a_dense_hunyuan_has_one_expert(tmp_path):
    spec = open_tiny(tmp_path, "hunyuan_v1_dense").spec
    assert open_tiny(tmp_path / "1", "hunyuan_v1_dense", num_experts=1).spec == spec


def test_alpha_stretches_theta_in_hunyuan_alone(tmp_path):
    section = {"type": "dynamic", "alpha": 50.0, "factor": 2.0}
    error = refusal(tmp_path, "llama", UnknownKeyError, rope_scaling=section)
    assert error.keys == ("rope_scaling.alpha",)
    section = without(section, "alpha")
    spec = open_tiny(tmp_path / "h", "hunyuan_v1_dense", rope_scaling=section).spec
    assert spec.rope == RopeSpec(1e4)


@pytest.mark.parametrize("alpha", [-1.0, 0.5, 1e9])
def test_an_alpha_without_sense_is_named(tmp_path, alpha):
    section = {"type": "dynamic", "alpha": alpha}
    assert "alpha is" in refusal(tmp_path, "hunyuan_v1_dense", rope_scaling=section).what


def test_olmo3_scales_the_rope_of_the_layers_that_see_everything(tmp_path):
    source = open_tiny(tmp_path, "olmo3")
    spec = source.spec
    assert (spec.norm_placement, spec.qk_norm) == (NormPlacement.AFTER, QkNorm.FULL)
    local = LayerAttention(RopeSpec(5e5), 24)
    yarn = YarnScaling(4.0, 32.0, 1.0, 64, 1.1386294361119891)
    assert [spec.attention(i) for i in range(4)] == [local] * 3 + [
        LayerAttention(RopeSpec(5e5, yarn), None)
    ]
    config = without(tiny_config("olmo3"), "rope_theta", "rope_scaling", "layer_types")
    yarn_section = tiny_config("olmo3")["rope_scaling"]
    config["rope_parameters"] = {
        "full_attention": {**yarn_section, "rope_theta": 5e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
    }
    (source.checkpoint.folder / "config.json").write_text(json.dumps(config))
    assert open_model(source.checkpoint.folder).spec == spec


def test_olmo3_without_scaling_has_one_rope(tmp_path):
    spec = open_tiny(tmp_path, "olmo3", rope_scaling=None).spec
    assert (spec.ropes, spec.local_rope) == ((RopeSpec(5e5),), None)
    assert windows(spec) == [24, 24, 24, None]


def test_olmo2_norms_after_each_block(tmp_path):
    source = open_tiny(tmp_path, "olmo2")
    assert source.spec.norm_placement is NormPlacement.AFTER
    assert source.spec.qk_norm is QkNorm.FULL
    assert "layers.0.attn_norm" not in source.tensors
    assert source.tensor("layers.0.k_norm").info.shape == (64,)
