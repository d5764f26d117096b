from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import edgekit.families
from edgekit.checkpoint.reader import open_checkpoint
from edgekit.dtypes import DType
from edgekit.errors import CheckpointError, UnknownKeyError, UnsupportedArchError
from edgekit.families import FAMILIES, open_family, open_model
from edgekit.families.rope_spec import Llama3Scaling, RopeSpec
from edgekit.families.spec import DecoderSpec
from edgekit.lazy import load_object
from tests.builders import write_tiny_checkpoint
from tests.tiny_families import TINY_CONFIGS

LLAMA_FORM = ("llama", "mistral")
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def edit_config(folder, *remove, **change):
    path = folder / "config.json"
    config = {k: v for k, v in json.loads(path.read_text()).items() if k not in remove}
    path.write_text(json.dumps({**config, **change}))
    return folder


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path)
    return folder


def refusal(folder, kind=CheckpointError):
    with pytest.raises(kind) as caught:
        open_model(folder)
    return caught.value


def test_the_registry_is_the_folder():
    folder = Path(edgekit.families.__file__).parent
    with_family = {p.stem for p in folder.glob("*.py") if "\nFAMILY: " in p.read_text()}
    assert {ref.partition(":")[0].rpartition(".")[2] for ref in FAMILIES.values()} == with_family
    for model_type, reference in FAMILIES.items():
        assert load_object(reference).model_type == model_type


@pytest.mark.parametrize("model_type", LLAMA_FORM)
def test_a_tiny_config_becomes_the_spec_it_says(tmp_path, model_type):
    source = open_model(write_tiny_checkpoint(tmp_path / "m", model_type))
    assert source.spec == DecoderSpec(
        model_type=model_type,
        n_layers=2,
        hidden_width=128,
        n_heads=4,
        n_kv_heads=2,
        head_width=32,
        ffn_width=256,
        vocab_size=384,
        context_length=256,
        norm_eps=1e-5,
        rope=RopeSpec(10000.0),
        is_tied=True,
        bos_token_id=1,
        eos_token_ids=(2,),
        pad_token_id=3,
    )
    assert DecoderSpec.from_dict(json.loads(json.dumps(source.spec.as_dict()))) == source.spec


@pytest.mark.parametrize("model_type", LLAMA_FORM)
@pytest.mark.parametrize("is_tied", [True, False])
def test_every_weight_comes_under_its_canonical_name(tmp_path, model_type, is_tied):
    folder = write_tiny_checkpoint(tmp_path / "m", model_type, tie_word_embeddings=is_tied)
    raw = safetensors.numpy.load_file(folder / "model.safetensors")
    source = open_model(folder)
    assert list(source.tensors) == list(source.spec.weight_shapes())
    for name, shape in source.spec.weight_shapes().items():
        tensor = source.tensor(name)
        assert tensor.info.name == name
        assert tensor.read().shape == tensor.info.shape == shape
    # Spelled out by hand, not by the table under test.
    for name, theirs in {
        "embed": "model.embed_tokens.weight",
        "layers.1.attn_norm": "model.layers.1.input_layernorm.weight",
        "layers.0.q": "model.layers.0.self_attn.q_proj.weight",
        "layers.1.k": "model.layers.1.self_attn.k_proj.weight",
        "layers.0.v": "model.layers.0.self_attn.v_proj.weight",
        "layers.1.o": "model.layers.1.self_attn.o_proj.weight",
        "layers.0.ffn_norm": "model.layers.0.post_attention_layernorm.weight",
        "layers.1.gate": "model.layers.1.mlp.gate_proj.weight",
        "layers.0.up": "model.layers.0.mlp.up_proj.weight",
        "layers.1.down": "model.layers.1.mlp.down_proj.weight",
        "final_norm": "model.norm.weight",
        **({} if is_tied else {"lm_head": "lm_head.weight"}),
    }.items():
        values = raw[theirs].astype(np.float32)
        np.testing.assert_array_equal(source.tensor(name).read(), values)
        np.testing.assert_array_equal(source.tensor(name).read_rows(3, 7), values[3:7])
    assert source.n_parameters == sum(a.size for a in raw.values())


def test_names_go_there_and_back():
    names = load_object(FAMILIES["llama"]).name_tables[0]
    for canonical in [
        "embed",
        "lm_head",
        "layers.0.q",
        "layers.31.down.bias",
        "layers.120.ffn_norm",
    ]:
        assert names.to_canonical(names.to_checkpoint(canonical)) == canonical
    for foreign in ["model.layers.x.mlp.up_proj.weight", "model.layers.01.mlp.up_proj.weight", "a"]:
        assert names.to_canonical(foreign) is None


def test_llama_biases_are_found(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "m", "llama", attention_bias=True, mlp_bias=True)
    source = open_model(folder)
    spec = source.spec
    assert (spec.has_qkv_bias, spec.has_o_bias, spec.has_mlp_bias) == (True, True, True)
    raw = safetensors.numpy.load_file(folder / "model.safetensors")
    for name, theirs in [
        ("q", "self_attn.q_proj"),
        ("o", "self_attn.o_proj"),
        ("up", "mlp.up_proj"),
    ]:
        np.testing.assert_array_equal(
            source.tensor(f"layers.1.{name}.bias").read(),
            raw[f"model.layers.1.{theirs}.bias"].astype(np.float32),
        )


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({}, RopeSpec(10000.0)),
        ({"rope_theta": 1000000}, RopeSpec(1e6)),
        ({"rope_theta": None, "rope_parameters": {"rope_theta": 5e5}}, RopeSpec(5e5)),
        ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}, RopeSpec(1e4)),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, RopeSpec(1e4, linear_factor=2.0)),
        ({"rope_scaling": {"rope_type": "linear", "type": "linear", "factor": 4.0}},
         RopeSpec(1e4, linear_factor=4.0)),
        ({"rope_scaling": LLAMA3_SCALING}, RopeSpec(1e4, Llama3Scaling(8.0, 1.0, 4.0, 64))),
        ({"rope_parameters": {**LLAMA3_SCALING, "rope_theta": 5e5}, "rope_theta": None},
         RopeSpec(5e5, Llama3Scaling(8.0, 1.0, 4.0, 64))),
    ],
)  # fmt: skip
@pytest.mark.parametrize("model_type", LLAMA_FORM)
def test_rope_is_read_in_every_spelling(tmp_path, model_type, change, wanted):
    folder = write_tiny_checkpoint(tmp_path / "m", model_type, **change)
    assert open_model(folder).spec.rope == wanted


def test_absent_rope_theta_is_ten_thousand(tmp_path):
    folder = edit_config(write_tiny_checkpoint(tmp_path / "m"), "rope_theta")
    assert open_model(folder).spec.rope.theta == 10000.0


@pytest.mark.parametrize("kind", ["proportional", "axial"])
def test_a_rope_type_that_is_not_computed_is_refused_by_name(tmp_path, kind):
    folder = write_tiny_checkpoint(tmp_path / "m", rope_scaling={"rope_type": kind, "factor": 2.0})
    error = refusal(folder, UnsupportedArchError)
    assert (error.got, error.wanted) == (
        repr(kind),
        "default, linear, dynamic, llama3, yarn, longrope",
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rope_parameters": {"rope_theta": 2e4}}, "rope_theta is 20000.0 (rope_theta outside it"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor is missing"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor is 0.0"),
        ({"rope_scaling": {**LLAMA3_SCALING, "high_freq_factor": 1.0}}, "high_freq_factor is 1.0"),
        ({"rope_scaling": {"type": "linear", "factor": 2},
          "rope_parameters": {"type": "linear", "factor": 3}}, "contradict each other"),
        ({"rope_parameters": {"partial_rotary_factor": 1.5}}, "partial_rotary_factor is 1.5"),
        ({"partial_rotary_factor": 0.1}, "partial_rotary_factor is 0.1"),
        ({"rope_scaling": {"type": "yarn", "factor": -1}}, "factor is -1.0"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1] * 16,
                           "long_factor": [1] * 15}}, "long_factor has 15 numbers (wanted 16)"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [0] * 16,
                           "long_factor": [1] * 16}}, "short_factor must hold only positive"),
        ({"rope_theta": -1}, "rope_theta is -1.0"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu' (edgekit supports silu"),
        ({"quantization_config": {"quant_method": "aqlm"}}, "quant_method is 'aqlm'"),
        ({"num_key_value_heads": 3}, "4 is not a multiple of num_key_value_heads 3"),
        ({"head_dim": 31}, "head_dim is 31"),
        ({"head_dim": None, "hidden_size": 130}, "hidden_size 130 is not a multiple"),
        ({"vocab_size": "384"}, "vocab_size is '384' (wanted an integer)"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000 (wanted 1 .. 1024)"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0.0"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1 (wanted true or false)"),
        ({"sliding_window": 0}, "sliding_window is 0"),
        ({"eos_token_id": 384}, "token id 384 is outside vocab_size 384"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'"),
    ],
)  # fmt: skip
def test_a_config_that_cannot_be_run_exactly_is_refused_with_the_key(tmp_path, change, words):
    folder = edit_config(write_tiny_checkpoint(tmp_path / "m"), **change)
    (folder / "generation_config.json").unlink()
    error = refusal(folder)
    assert words in error.what
    assert str(folder / "config.json") in error.what


def test_all_faults_of_a_config_are_reported_together(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "m")
    edit_config(
        folder, hidden_size="big", rms_norm_eps=0, new_trick=1, vocab_size=0, other={"a": 1}
    )
    error = refusal(folder, UnknownKeyError)
    assert error.keys == ("new_trick", "other")
    assert error.got == "new_trick = 1, other = {'a': 1}"
    assert error.do.endswith(": --ignore-config-key new_trick --ignore-config-key other")
    for words in ("hidden_size is 'big' (wanted", "rms_norm_eps is 0.0", "vocab_size is 0"):
        assert words in error.what


@pytest.mark.parametrize("name", TINY_CONFIGS)
def test_no_key_of_the_tiny_config_can_be_renamed_unnoticed(tmp_path, name):
    folder = write_tiny_checkpoint(tmp_path / "m", name)
    text = (folder / "config.json").read_text()
    for key in [k for k in json.loads(text) if k not in ("model_type", "text_config")]:
        edit_config(folder, key, renamed=0)
        assert refusal(folder, UnknownKeyError).keys == ("renamed",)
        (folder / "config.json").write_text(text)


def test_a_key_of_another_family_is_unknown(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "m", "mistral", attention_bias=True)
    assert refusal(folder, UnknownKeyError).keys == ("attention_bias",)
    folder = write_tiny_checkpoint(tmp_path / "n", "llama", sliding_window=64)
    assert refusal(folder, UnknownKeyError).keys == ("sliding_window",)


@pytest.mark.parametrize(("given", "wanted"), [(None, None), (64, 64), (256, None), (4096, None)])
def test_a_window_counts_only_inside_the_context(tmp_path, given, wanted):
    folder = write_tiny_checkpoint(tmp_path / "m", sliding_window=given)
    assert open_model(folder).spec.sliding_window == wanted


def test_an_absent_window_is_the_default_of_transformers(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "m", max_position_embeddings=8192)
    assert open_model(edit_config(folder, "sliding_window")).spec.sliding_window == 4096


def test_llama_without_kv_heads_has_as_many_as_heads(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "m", "llama", num_key_value_heads=4)
    assert open_model(edit_config(folder, "num_key_value_heads")).spec.n_kv_heads == 4
    # Mistral's class in transformers says 8.
    folder = edit_config(write_tiny_checkpoint(tmp_path / "n"), "num_key_value_heads")
    assert "heads 4 is not a multiple of num_key_value_heads 8" in refusal(folder).what


def test_head_width_is_derived_when_absent_and_may_differ(tmp_path):
    folder = edit_config(write_tiny_checkpoint(tmp_path / "m"), "head_dim")
    assert open_model(folder).spec.head_width == 32
    spec = open_model(write_tiny_checkpoint(tmp_path / "n", head_dim=64)).spec
    assert (spec.head_width, spec.q_width, spec.kv_width) == (64, 256, 128)


def test_end_tokens_of_the_generation_config_come_first_and_the_others_stay(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "m", eos_token_id=[2, 9])
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 2], "temperature": 0.7}')
    assert open_model(folder).spec.eos_token_ids == (7, 2, 9)
    (folder / "generation_config.json").write_text('{"eos_token_id": "</s>"}')
    assert "eos_token_id is '</s>'" in refusal(folder).what


def test_llama_one_writes_minus_one_for_no_padding(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "m", "llama", pad_token_id=-1)
    assert open_model(folder).spec.pad_token_id is None


_NEITHER = "Neither edgekit nor optimum-onnx 0.1.0 (--via optimum) has a graph for it."
_OPTIMUM = "Try optimum, which writes floats for ONNX: edgekit export MODEL --via optimum"


@pytest.mark.parametrize(
    ("model_type", "got", "do"),
    [
        ("mistrall", "'mistrall'", _NEITHER),
        ("mixtral", "'mixtral': a mixture of experts", _NEITHER),
        ("tiny_moe", "'tiny_moe': a mixture of experts", _NEITHER),
        ("qwen3_moe", "'qwen3_moe': a mixture of experts", _OPTIMUM),
        ("mllama", "'mllama': layers that attend to an image", _NEITHER),
        (None, "None", _NEITHER),
    ],
)
def test_an_unknown_model_type_says_why_and_names_the_other_route(tmp_path, model_type, got, do):
    folder = edit_config(write_tiny_checkpoint(tmp_path / "m"), model_type=model_type)
    error = refusal(folder, UnsupportedArchError)
    assert (error.got, error.wanted, error.do) == (got, ", ".join(FAMILIES), do)


def test_a_model_type_with_code_of_its_own_is_said_to_have_it(tmp_path):
    folder = edit_config(
        write_tiny_checkpoint(tmp_path / "m"), model_type="new", auto_map={"AutoConfig": "a.B"}
    )
    error = refusal(folder, UnsupportedArchError)
    assert error.got == "'new': its code comes with the checkpoint, which edgekit never runs"


def test_all_faults_of_the_tensors_are_reported_together(tmp_path):
    def change(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"] = np.zeros((256, 64), ml_dtypes.bfloat16)
        del tensors["model.norm.weight"]
        tensors["model.layers.2.mlp.up_proj.weight"] = np.zeros((256, 128), ml_dtypes.bfloat16)
        tensors["model.layers.0.mlp.down_proj.weight"] = np.zeros((128, 256), np.int8)

    error = refusal(edit_weights(write_tiny_checkpoint(tmp_path / "m"), change))
    assert "4 tensors are not what config.json says" in error.what
    assert error.got.split("; ") == [
        "model.layers.0.mlp.down_proj.weight holds I8 (wanted floats)",
        "model.layers.1.mlp.up_proj.weight has shape [256, 64] (config.json wants [256, 128])",
        "model.norm.weight is missing (wanted [128])",
        "model.layers.2.mlp.up_proj.weight is unexpected",
    ]


def test_many_faults_are_counted_not_all_written(tmp_path):
    folder = edit_config(write_tiny_checkpoint(tmp_path / "m"), num_hidden_layers=900)
    error = refusal(folder)
    assert error.what.endswith("8082 tensors are not what config.json says")
    assert error.got.endswith("and 8070 more")


@pytest.mark.parametrize("values", [[np.nan], [np.inf], [np.inf, -np.inf]])
def test_weights_that_are_not_finite_are_refused_when_read(tmp_path, values):
    def change(tensors):
        tensors["model.layers.1.self_attn.v_proj.weight"][5, : len(values)] = values

    source = open_model(edit_weights(write_tiny_checkpoint(tmp_path / "m"), change))
    tensor = source.tensor("layers.1.v")
    with pytest.raises(CheckpointError, match=r"layers\.1\.v .*not finite") as caught:
        tensor.read()
    assert caught.value.got == f"{len(values)} of 8192 values are NaN or infinite"
    with pytest.raises(CheckpointError, match="not finite"):
        tensor.read_rows(5, 6)
    assert tensor.read_rows(0, 5).shape == (5, 128)


def test_the_largest_finite_weights_are_not_mistaken(tmp_path):
    def change(tensors):
        tensors["model.norm.weight"][:] = np.finfo(np.float32).max

    folder = edit_weights(write_tiny_checkpoint(tmp_path / "m", dtype="fp32"), change)
    source = open_model(folder)
    assert source.tensor("final_norm").info.dtype is DType.FP32
    assert np.all(source.tensor("final_norm").read() == np.finfo(np.float32).max)


def test_an_unknown_weight_name_is_an_error(tmp_path):
    source = open_family(open_checkpoint(write_tiny_checkpoint(tmp_path / "m")))
    with pytest.raises(CheckpointError, match=r"no weight 'layers\.9\.q'"):
        source.tensor("layers.9.q")
