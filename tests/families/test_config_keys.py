"""Config keys are judged by their value and by who reads them, in every family."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import transformers
from transformers import CONFIG_MAPPING

import edgekit
from edgekit.checkpoint.config import RawConfig
from edgekit.checkpoint.config_keys import is_never_read
from edgekit.errors import CheckpointError, UnknownKeyError, UnsupportedArchError, UsageError
from edgekit.families import FAMILIES, open_model
from edgekit.families.defaults import DEFAULTS
from edgekit.lazy import load_object
from tests.builders import write_tiny_checkpoint
from tests.tiny_families import TINY_CONFIGS

TRANSFORMERS = Path(transformers.__file__).parent
# Keys that published or fine-tuned models carry and that nothing reads which computes logits.
HARMLESS = {
    "SmolLM2, nanotron, transformers.js": {
        "is_llama_config": True, "rope_interleaved": False, "pretraining_tp": 1,
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    },
    "unsloth": {"unsloth_fixed": True, "unsloth_version": "2025.3.19"},
    "transformers 4.48": {"_attn_implementation_autoset": True, "_name_or_path": "x/y"},
    "another attention": {"attn_implementation": "flash_attention_2", "use_flash_attn": True},
    "remote code": {"auto_map": {"AutoConfig": "a.B"}, "trust_remote_code": True},
    "a dump of the base class": {
        "return_dict": True, "output_attentions": False, "output_hidden_states": True,
        "torchscript": False, "use_bfloat16": False, "tf_legacy_loss": False, "pruned_heads": {},
        "chunk_size_feed_forward": 0, "prefix": None, "problem_type": None, "is_decoder": False,
        "task_specific_params": None, "tokenizer_class": "LlamaTokenizer", "sep_token_id": None,
        "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1},
        "is_encoder_decoder": False, "add_cross_attention": False, "tie_encoder_decoder": False,
        "cross_attention_hidden_size": None, "finetuning_task": None, "dtype": "float16",
    },
    "defaults of generation": {
        "max_length": 4096, "min_length": 0, "do_sample": True, "early_stopping": False,
        "num_beams": 4, "num_beam_groups": 1, "num_return_sequences": 1, "temperature": 0.7,
        "top_k": 50, "top_p": 0.9, "typical_p": 1.0, "repetition_penalty": 1.1,
        "length_penalty": 1.0, "diversity_penalty": 0.0, "no_repeat_ngram_size": 3,
        "encoder_no_repeat_ngram_size": 0, "bad_words_ids": [[1]], "suppress_tokens": [5],
        "begin_suppress_tokens": None, "forced_bos_token_id": 1, "forced_eos_token_id": 2,
        "decoder_start_token_id": 1, "remove_invalid_values": False, "output_scores": False,
        "return_dict_in_generate": False, "exponential_decay_length_penalty": None,
    },
    "training": {
        "document_attention": True, "attention_dropout": 0.1, "resid_pdrop": 0.1,
        "hidden_dropout": 0.05, "initializer_range": 0.006, "gradient_checkpointing": True,
        "router_aux_loss_coef": 0.0, "lora_r": 16,
    },
    "lengths that no position depends on": {
        "max_sequence_length": 99, "model_max_length": 4096, "max_tokenizer_truncation": 6144,
        "seq_length": 2048,
    },
    "names and cards": {
        "model_name": "x", "license": "mit", "version": "1.2", "internal_version": 3,
        "created_by": "me",
    },
    "null, whatever it is": {"some_new_section": None, "attention_chunk_size": None},
    "off, whatever it is": {"qk_layernorm": False, "use_alibi": False, "parallel_attn": False},
    "empty, whatever it is": {"adapters": [], "extra": {}, "variant": ""},
    "a factor of one": {"emb_scale": 1, "logit_scale": 1.0, "depth_multiplier": 1},
    "none of them": {"n_routed_experts": 0, "n_shared_experts": 0, "router_softcap": 0.0},
    "on as usual": {"is_causal": True, "use_rope": True, "position_embedding_type": "rope"},
    "quantized by nothing": {"quantization_config": {}, "quantization": None},
    "settings of a training run": {"learning_rate": 2e-5, "per_device_batch_size": 4, "seed": 1},
    "token ids of a chat format": {"user_token_id": 195, "im_end_id": 7, "unk_token_id": 0},
}  # fmt: skip
HARMFUL = {
    "is_causal": (False, "is_causal = False (queries would see later tokens)"),
    "attention_chunk_size": (64, "attention_chunk_size = 64 (queries would see only keys of"),
    "pruned_heads": ({"0": [1]}, "pruned_heads = {'0': [1]} (heads were taken out)"),
    "is_encoder_decoder": (True, "is_encoder_decoder = True (an encoder stands before"),
    "add_cross_attention": (True, "add_cross_attention = True (layers attend to an encoder)"),
    "rope_interleaved": (True, "rope_interleaved = True (rope would rotate neighbours"),
    "logit_scale": (0.5, "logit_scale = 0.5"),
    "use_rope": (False, "use_rope = False"),
    "causal_mask": (False, "causal_mask = False"),
    "n_routed_experts": (8, "n_routed_experts = 8"),
    "qk_layernorm": (True, "qk_layernorm = True"),
    "position_embedding_type": ("alibi", "position_embedding_type = 'alibi'"),
    "linear_impl_type": ("QNN_w4a16", "linear_impl_type = 'QNN_w4a16'"),
    "layer_scales": ([1.0, 0.5], "layer_scales = [1.0, 0.5]"),
}


def edit(folder, drop=(), **keys):
    """Set keys of config.json, inside ``text_config`` where there is one."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    inner = config.get("text_config", config)
    inner.update(keys)
    for key in drop:
        del inner[key]
    path.write_text(json.dumps(config))
    return folder


def refusal(folder, kind=CheckpointError, **options):
    with pytest.raises(kind) as caught:
        open_model(folder, **options)
    return caught.value


@pytest.mark.parametrize("name", TINY_CONFIGS)
def test_harmless_keys_pass_and_change_nothing(tmp_path, name):
    folder = write_tiny_checkpoint(tmp_path / "m", name)
    plain = open_model(folder)
    text = (folder / "config.json").read_text()
    own = json.loads(text)
    own = own.get("text_config", own)
    for keys in HARMLESS.values():
        model = open_model(edit(folder, **{k: v for k, v in keys.items() if k not in own}))
        assert (model.spec, model.checkpoint.notes) == (plain.spec, plain.checkpoint.notes)
        (folder / "config.json").write_text(text)


@pytest.mark.parametrize("name", sorted({config["model_type"] for config in TINY_CONFIGS.values()}))
def test_keys_that_change_the_result_are_refused_with_value_and_way_out(tmp_path, name):
    folder = write_tiny_checkpoint(tmp_path / "m", name)
    text = (folder / "config.json").read_text()
    at = "text_config." if "text_config" in json.loads(text) else ""
    taken = ("position_embedding_type",) if name == "granitemoehybrid" else ()
    for key, (value, words) in HARMFUL.items():
        if key in taken:
            continue
        error = refusal(edit(folder, **{key: value}), UnknownKeyError)
        assert error.keys == (at + key,)
        assert at + words in error.got
        assert error.do.endswith(f" --ignore-config-key {at}{key}")
        model = open_model(folder, ignore_config_keys=[at + key])
        assert model.checkpoint.notes[0].startswith(f"config key {at}{key} = ")
        assert model.checkpoint.notes[0].endswith(": ignored as asked")
        (folder / "config.json").write_text(text)


def test_a_key_of_a_section_is_ignored_by_its_full_name(tmp_path):
    rope = {"rope_type": "linear", "factor": 2.0, "warp": 3}
    folder = write_tiny_checkpoint(tmp_path / "m", "llama", rope_scaling=rope)
    assert refusal(folder, UnknownKeyError).keys == ("rope_scaling.warp",)
    model = open_model(folder, ignore_config_keys=["rope_scaling.warp"])
    assert model.checkpoint.notes == ["config key rope_scaling.warp = 3: ignored as asked"]
    assert model.spec.rope.linear_factor == 2.0


@pytest.mark.parametrize("key", ["hidden_size", "rope_scaling", "eos_token_id", "attention_bias"])
def test_a_key_that_the_family_computes_with_cannot_be_ignored(tmp_path, key):
    rope = {"rope_type": "linear", "factor": 2.0}
    folder = write_tiny_checkpoint(tmp_path / "m", "llama", rope_scaling=rope)
    error = refusal(folder, UsageError, ignore_config_keys=[key])
    assert "keys that edgekit computes with" in error.what
    assert error.got == key


def test_a_key_that_is_not_there_cannot_be_ignored(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "m", "llama", trick=1)
    error = refusal(folder, UsageError, ignore_config_keys=["trick", "trik", "rope_scaling.x"])
    assert "names keys that are not there" in error.what
    assert error.got == "trik, rope_scaling.x"


def test_a_key_of_one_supported_value_can_be_ignored(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "m", "gemma3_text", final_logit_softcapping=30.0)
    assert "final_logit_softcapping is 30.0" in refusal(folder).what
    model = open_model(folder, ignore_config_keys=["final_logit_softcapping"])
    assert model.checkpoint.notes == ["config key final_logit_softcapping = 30.0: ignored as asked"]


def test_ignored_keys_are_written_into_the_manifest(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "m", "llama", trick=1)
    (artifact,) = edgekit.export(
        folder, "onnx", "int8", tmp_path / "out", ignore_config_keys=["trick"]
    )
    assert "config key trick = 1: ignored as asked" in artifact.manifest.notes
    assert artifact.manifest.ignored_config_keys == ("trick",)


@pytest.mark.parametrize(
    "name",
    [
        "LlamaForSequenceClassification", "Qwen2ForTokenClassification", "Qwen2ForRewardModel",
        "MistralForQuestionAnswering", "Gemma2ForSequenceClassification",
    ],
)  # fmt: skip
def test_a_classification_head_is_refused_in_those_words(tmp_path, name):
    folder = write_tiny_checkpoint(tmp_path / "m", "llama", architectures=[name])
    error = refusal(folder, UnsupportedArchError)
    assert error.got.startswith(f"{name}: a classification head")
    assert open_model(folder, ignore_config_keys=["architectures"]).checkpoint.notes == [
        f"config key architectures = ['{name}']: ignored as asked"
    ]


def test_one_language_model_among_the_architectures_is_enough(tmp_path):
    names = ["LlamaForSequenceClassification", "LlamaForCausalLM"]
    open_model(write_tiny_checkpoint(tmp_path / "m", "llama", architectures=names))


@pytest.mark.parametrize("part", ["_loss", "drop_", "a_", "_scale", "n_"])
@pytest.mark.parametrize("value", [1, False, "x"])
def test_a_name_without_end_is_refused_at_once(tmp_path, part, value):
    key = part * 100_000 + "-"
    folder = write_tiny_checkpoint(tmp_path / "m", "llama", **{key: value})
    assert refusal(folder, UnknownKeyError).keys == (key,)


def test_layers_that_all_see_everything_need_no_mention(tmp_path):
    kinds = ["full_attention"] * 2
    open_model(write_tiny_checkpoint(tmp_path / "m", "llama", layer_types=kinds))
    folder = write_tiny_checkpoint(
        tmp_path / "n", "llama", layer_types=["full_attention", "sliding_attention"]
    )
    assert refusal(folder, UnknownKeyError).keys == ("layer_types",)


@pytest.mark.parametrize(
    "section",
    [
        {},
        {"type": "default"},
        {"rope_type": "default", "factor": 1.0},
        {"type": "linear", "factor": 1},
        {"type": "mrope", "mrope_section": [4, 6, 6]},
        {"rope_type": "default", "mrope_section": [4, 6, 6], "mrope_interleaved": True},
    ],
)
def test_a_rope_section_that_asks_for_nothing_is_none(tmp_path, section):
    plain = open_model(write_tiny_checkpoint(tmp_path / "m", "llama")).spec
    model = open_model(write_tiny_checkpoint(tmp_path / "n", "llama", rope_scaling=section))
    assert (model.spec, model.checkpoint.notes) == (plain, [])


def test_dynamic_scaling_is_none_inside_the_context_length(tmp_path):
    plain = open_model(write_tiny_checkpoint(tmp_path / "m", "llama")).spec
    rope = {"type": "dynamic", "factor": 2.0}
    model = open_model(write_tiny_checkpoint(tmp_path / "n", "llama", rope_scaling=rope))
    assert model.spec == plain
    [note] = model.checkpoint.notes
    assert note.startswith("dynamic rope scaling starts beyond max_position_embeddings")


def test_the_first_yarn_writers_key_passes(tmp_path):
    rope = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    plain = open_model(write_tiny_checkpoint(tmp_path / "m", "llama", rope_scaling=rope)).spec
    rope = {**rope, "finetuned": True}
    folder = write_tiny_checkpoint(tmp_path / "n", "llama", rope_scaling=rope)
    assert open_model(folder).spec == plain


def test_an_original_length_beside_the_section_counts_first(tmp_path):
    rope = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    folder = write_tiny_checkpoint(
        tmp_path / "m", "llama", rope_scaling=rope, original_max_position_embeddings=64
    )
    assert open_model(folder).spec.rope.scaling.original_context_length == 64


@pytest.mark.parametrize(
    ("keys", "length", "words"),
    [
        ({}, 2048, "transformers' default for llama"),
        ({"max_sequence_length": 512}, 512, "its max_sequence_length"),
    ],
)
def test_a_context_length_that_is_not_said_is_transformers_and_said_aloud(
    tmp_path, keys, length, words
):
    folder = write_tiny_checkpoint(tmp_path / "m", "llama")
    model = open_model(edit(folder, drop=["max_position_embeddings"], **keys))
    assert model.spec.context_length == length
    [note] = model.checkpoint.notes
    assert note == (
        f"config.json has no max_position_embeddings: the context length is {length:,}, {words}"
    )


# MiniCPM's code comes with its checkpoints.
IN_TRANSFORMERS = [name for name in DEFAULTS if name != "minicpm"]


@pytest.mark.parametrize("model_type", IN_TRANSFORMERS)
def test_absent_keys_mean_what_transformers_means(model_type):
    theirs = {f.name: f.default for f in dataclasses.fields(CONFIG_MAPPING[model_type])}
    # Gemma 3 keeps this one out of its fields, and null is no default in EXAONE 4.
    ours = {k: v for k, v in DEFAULTS[model_type].items() if k != "sliding_window_pattern"}
    assert ours == {key: theirs[key] for key in ours}
    # And nothing is left out that a class has and some table here tells.
    told = {key for table in DEFAULTS.values() for key in table} - {"sliding_window_pattern"}
    assert {k: theirs[k] for k in theirs if k in told and theirs[k] != ours.get(k)} == {}


@pytest.mark.parametrize(
    "model_type", [n for n in IN_TRANSFORMERS if n in FAMILIES and n != "granitemoehybrid"]
)
def test_a_config_of_nothing_but_its_model_type_is_the_default_model(model_type):
    spec = load_object(FAMILIES[model_type]).read_spec(RawConfig({"model_type": model_type}, "c"))
    theirs = CONFIG_MAPPING[model_type]()
    assert (spec.hidden_width, spec.n_layers, spec.n_heads, spec.n_kv_heads, spec.vocab_size) == (
        theirs.hidden_size,
        theirs.num_hidden_layers,
        theirs.num_attention_heads,
        theirs.num_key_value_heads,
        theirs.vocab_size,
    )
    assert (spec.context_length, spec.norm_eps) == (
        theirs.max_position_embeddings,
        theirs.rms_norm_eps,
    )
    width = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    assert spec.head_width == width


# What model code reads although no logit depends on it: how it is computed, training, padding,
# where an image goes, and a loss.
READ_IN_VAIN = {
    "_attn_implementation", "_attn_implementation_internal", "attention_dropout", "resid_pdrop",
    "pad_token_id", "use_cache", "initializer_range", "image_token_id", "video_token_id",
    "output_router_logits", "router_aux_loss_coef",
}  # fmt: skip
# Of parts that a decoder which edgekit takes does not have.
READ_ELSEWHERE = {
    "qwen2_vl": {"vision_config"},
    "granitemoehybrid": {
        "mamba_n_heads", "mamba_n_groups", "mamba_d_state", "mamba_d_head", "mamba_d_conv",
        "mamba_expand", "mamba_chunk_size", "mamba_conv_bias", "mamba_proj_bias",
        "time_step_limit", "time_step_min", "time_step_max", "num_experts_per_tok",
        "intermediate_size",
        "layers_block_type",  # another name of layer_types, which counts first
    },
}  # fmt: skip
SHARED_CODE = ("masking_utils.py", "cache_utils.py", "modeling_rope_utils.py")
MODULE_OF = {"gemma3_text": "gemma3"}


def keys_that_code_reads(*files):
    text = "\n".join((TRANSFORMERS / file).read_text(encoding="utf-8") for file in files)
    by_name = re.findall(r"config\.([a-z_]\w*)", text)
    return {*by_name, *re.findall(r"(?:get|has)attr\(\s*(?:self\.)?config,\s*[\"'](\w+)", text)}


def code_of(model_type):
    module = MODULE_OF.get(model_type, model_type)
    return TRANSFORMERS / f"models/{module}/modeling_{module}.py"


IN_CODE = [name for name in TINY_CONFIGS if code_of(TINY_CONFIGS[name]["model_type"]).is_file()]


@pytest.mark.parametrize("model_type", sorted({TINY_CONFIGS[n]["model_type"] for n in IN_CODE}))
def test_no_key_that_model_code_reads_passes_by_its_name(model_type):
    keys = keys_that_code_reads(code_of(model_type), *SHARED_CODE)
    assert len(keys) > 20
    assert {key for key in keys if is_never_read(key)} <= READ_IN_VAIN


@pytest.mark.parametrize("name", IN_CODE)
def test_no_key_that_model_code_reads_passes_with_any_value(tmp_path, name):
    folder = write_tiny_checkpoint(tmp_path / "m", name)
    text = (folder / "config.json").read_text()
    passed = set()
    model_type = TINY_CONFIGS[name]["model_type"]
    for key in keys_that_code_reads(code_of(model_type), *SHARED_CODE):
        try:
            open_model(edit(folder, **{key: "unheard of"})).close()
        except (CheckpointError, UsageError):
            pass
        else:
            passed.add(key)
        (folder / "config.json").write_text(text)
    assert passed <= READ_IN_VAIN | READ_ELSEWHERE.get(model_type, set())


def test_text_keys_that_a_saver_repeats_beside_the_text_config_do_not_count(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "m", "qwen2_5_vl")
    plain = open_model(folder).spec
    config = json.loads((folder / "config.json").read_text())
    repeated = {key: value for key, value in config["text_config"].items() if key != "model_type"}
    config = {**repeated, "hidden_size": 999, **config, "video_token_id": 8}
    (folder / "config.json").write_text(json.dumps(config))
    assert open_model(folder).spec == plain


@pytest.mark.parametrize("kind", ["yarn", "linear"])
def test_a_scaled_rope_of_an_images_three_positions_is_scaled_for_a_text(tmp_path, kind):
    rope = {"type": kind, "factor": 4.0, "original_max_position_embeddings": 64}
    if kind == "linear":
        del rope["original_max_position_embeddings"]
    theirs = {**rope, "mrope_section": [4, 6, 6]}
    spec = open_model(write_tiny_checkpoint(tmp_path / "m", "qwen2_vl", rope_scaling=theirs)).spec
    plain = write_tiny_checkpoint(tmp_path / "n", "qwen2", rope_scaling=rope, rope_theta=1e6)
    assert spec.rope == open_model(plain).spec.rope
