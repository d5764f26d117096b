"""A GGUF file of every architecture computes what the folder that it was made from computes."""

from __future__ import annotations

import json
from typing import Any, Final

import gguf
import numpy as np
import pytest

from edgekit.checkpoint.gguf.architectures import ARCHITECTURES
from edgekit.errors import CheckpointError, UnsupportedArchError, UsageError
from edgekit.families import FAMILIES, open_model
from edgekit.families.rope_spec import Llama3Scaling, LongRopeScaling
from edgekit.runtime.reference import ReferenceDecoder
from tests.builders import write_tiny_checkpoint
from tests.checkpoint.gguf.convert import ARCHITECTURES as CONVERTED
from tests.checkpoint.gguf.convert import convert
from tests.tiny_families import TINY_CONFIGS

_LLAMA3: Final = TINY_CONFIGS["llama-3.2"]["rope_scaling"]
# What is changed of a tiny config so that a file can say it: llama.cpp knows Gemma's factor of the
# scores, which layers of Gemma 3 slide, and where Llama 3's scaling begins, by the architecture.
CHANGES: Final[dict[str, dict[str, Any]]] = {
    "gemma2": {"query_pre_attn_scalar": 32},
    "gemma3_text": {
        "query_pre_attn_scalar": 64, "num_hidden_layers": 7, "sliding_window_pattern": 6,
    },
    "exaone": {"rope_scaling": {**_LLAMA3, "original_max_position_embeddings": 8192}},
    "llama-3.2": {"rope_scaling": {**_LLAMA3, "original_max_position_embeddings": 8192}},
}  # fmt: skip
# llama.cpp's files do not say that these layers slide.
NO_WINDOW_IN_FILES: Final = ("ministral", "mistral-v0.1", "qwen2-window")
# llama.cpp has no architecture for the first; the second is refused, see below.
NO_FILES: Final = ("mimo", "granitemoehybrid-nope")
# The metadata hold float32; the largest difference seen was 2e-5 of the spread of the logits.
FLOAT32_SETTINGS: Final = 2e-4
ROUND_TRIPS: Final = [name for name in TINY_CONFIGS if name not in (*NO_WINDOW_IN_FILES, *NO_FILES)]


def logits_of(source) -> np.ndarray:
    ids = [int(i) for i in np.random.default_rng(7).integers(4, 300, 150)]
    return ReferenceDecoder.from_source(source).forward(ids, n_past=0, n_logits=len(ids))


def compare(folder, path) -> None:
    wanted, found = open_model(folder), open_model(path)
    for name, tensor in wanted.tensors.items():
        # Adding 1 to a norm and taking it away again rounds it once.
        np.testing.assert_allclose(found.tensor(name).read(), tensor.read(), rtol=0, atol=6e-8)
    left, right = logits_of(wanted), logits_of(found)
    assert np.abs(left - right).max() <= FLOAT32_SETTINGS * left.std()


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_logits_are_those_of_the_folder(tmp_path, name):
    folder = write_tiny_checkpoint(tmp_path / "hf", name, dtype="fp16", **CHANGES.get(name, {}))
    # EXAONE 4's class takes the length that Llama 3's scaling begins at from the config.
    length = 64 if name == "exaone4" else 8192
    compare(folder, convert(folder, tmp_path / "m.gguf", llama3_length=length))


def test_every_family_is_read_from_some_architecture():
    made = {architecture.model_type for architecture in ARCHITECTURES.values()}
    made |= {"mistral", "olmo3"}  # by what else the file says
    # Files of these are files of another architecture, with the same decoder; see convert.py.
    others = set(CONVERTED) | {"gemma3", "ministral", "mimo"}
    assert set(FAMILIES) <= made | others


def test_names_are_those_of_the_gguf_package():
    numbers = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    for name, architecture in ARCHITECTURES.items():
        known = {
            gguf.TENSOR_NAMES[tensor].format(bid=0).removeprefix("blk.0.")
            for tensor in gguf.MODEL_TENSORS[numbers[name]]
        }
        assert set(architecture.layer) <= known, name


def test_a_table_with_other_numbers_than_llama_3_is_kept_as_it_is(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "hf", "llama-3.2", dtype="fp16")
    path = convert(folder, tmp_path / "m.gguf", llama3_length=64)
    assert isinstance(open_model(path).spec.rope.scaling, LongRopeScaling)
    compare(folder, path)
    usual = convert(folder, tmp_path / "usual.gguf")
    assert isinstance(open_model(usual).spec.rope.scaling, Llama3Scaling)


def test_queries_and_keys_with_biases_move_their_rows_too(tmp_path):
    folder = write_tiny_checkpoint(
        tmp_path / "hf", "llama", dtype="fp16", attention_bias=True, mlp_bias=True
    )
    compare(folder, convert(folder, tmp_path / "m.gguf"))


def test_a_mistral_file_without_temperature_is_a_mistral(tmp_path):
    folder = write_tiny_checkpoint(
        tmp_path / "hf", "mistral", dtype="fp16", max_position_embeddings=32768
    )
    path = convert(folder, tmp_path / "m.gguf", architecture=gguf.MODEL_ARCH.MISTRAL3)
    assert open_model(path).spec.model_type == "mistral"
    assert open_model(path).spec.sliding_window is None  # absent would mean 4096
    compare(folder, path)


def test_minicpm_is_granite_under_other_names(tmp_path):
    factors = {
        "attention_multiplier": 32**-0.5, "embedding_multiplier": 12.0,
        "residual_multiplier": 1.4 / 2**0.5, "logits_scaling": 0.5,
    }  # fmt: skip
    folder = write_tiny_checkpoint(tmp_path / "hf", "granite", dtype="fp16", **factors)
    # As old files are: none of the factors is in it.
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "llama"
    (folder / "llama.json").write_text(json.dumps(config))
    path = convert(
        folder, tmp_path / "m.gguf", architecture=gguf.MODEL_ARCH.MINICPM, config_name="llama.json"
    )
    source = open_model(path)
    assert source.spec.model_type == "granite"
    compare(folder, path)


@pytest.mark.parametrize(
    ("kind", "moves"),
    [
        (gguf.MODEL_ARCH.EXAONE, False),
        (gguf.MODEL_ARCH.INTERNLM2, True),
        (gguf.MODEL_ARCH.XVERSE, True),
    ],
)
def test_a_llama_by_another_name_is_a_llama(tmp_path, kind, moves):
    folder = write_tiny_checkpoint(tmp_path / "hf", "llama", dtype="fp16")
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "llama" if moves else "in the order of Hugging Face"
    (folder / "other.json").write_text(json.dumps(config))
    path = convert(folder, tmp_path / "m.gguf", architecture=kind, config_name="other.json")
    compare(folder, path)


def test_a_key_is_ignored_as_asked(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "hf", "llama", dtype="fp16")
    path = convert(folder, tmp_path / "m.gguf", **{"{arch}.attention.clamp_kqv": 8.0})
    source = open_model(path, ignore_config_keys=["llama.attention.clamp_kqv"])
    assert any("llama.attention.clamp_kqv" in note for note in source.checkpoint.notes)
    for keys in (["llama.absent"], ["llama.attention.clamp_kqv", "llama.block_count"]):
        with pytest.raises(UsageError, match=keys[-1]):
            open_model(path, ignore_config_keys=keys)


def test_all_ids_that_end_an_answer_are_taken(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "hf", "llama", dtype="fp16")
    more = {
        "tokenizer.ggml.eot_token_id": 7, "tokenizer.ggml.eom_token_id": 2**32 - 1,
    }  # fmt: skip
    assert open_model(convert(folder, tmp_path / "m.gguf", **more)).spec.eos_token_ids == (2, 7)


def test_granite_without_positions_is_refused_by_the_key_that_says_so(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "hf", "granitemoehybrid-nope", dtype="fp16")
    with pytest.raises(CheckpointError, match=r"granite\.rope\.scaling\.finetuned is False"):
        open_model(convert(folder, tmp_path / "m.gguf"))


def test_counts_that_are_the_same_in_every_layer_are_one_count(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "hf", "llama", dtype="fp16")
    same = {"{arch}.attention.head_count_kv": [2, 2], "{arch}.feed_forward_length": [256, 256]}
    compare(folder, convert(folder, tmp_path / "m.gguf", **same))
    other = {"{arch}.attention.head_count_kv": [2, 1]}
    with pytest.raises(CheckpointError, match="head_count_kv"):
        open_model(convert(folder, tmp_path / "n.gguf", **other))


NEUTRAL: Final = {
    "{arch}.expert_count": 0,
    "{arch}.attention.causal": True,
    "{arch}.pooling_type": 0,
    "{arch}.tensor_data_layout": "Meta AI original pth",
    "{arch}.rope.scaling.finetuned": True,
    "{arch}.rope.scale_linear": 1.0,
    "general.quantization_version": 2,
}


def test_keys_that_ask_for_nothing_pass(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "hf", "llama", dtype="fp16")
    compare(folder, convert(folder, tmp_path / "m.gguf", **NEUTRAL))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("expert_count", 8), ("attention.causal", False), ("attention.clamp_kqv", 8.0),
        ("attention.sliding_window", 24), ("rope.scaling.type", "surprise"),
        ("attention.value_length", 16), ("logit_scale", 0.5),
    ],
)  # fmt: skip
def test_keys_that_change_the_result_are_named(tmp_path, key, value):
    folder = write_tiny_checkpoint(tmp_path / "hf", "llama", dtype="fp16", head_dim=None)
    path = convert(folder, tmp_path / "m.gguf", **{f"{{arch}}.{key}": value})
    with pytest.raises(CheckpointError, match=f"llama.{key}"):
        open_model(path)


@pytest.mark.parametrize("kind", ["adapter", "mmproj"])
def test_a_file_that_is_no_model_is_called_what_it_is(tmp_path, kind):
    folder = write_tiny_checkpoint(tmp_path / "hf", "llama", dtype="fp16")
    path = convert(folder, tmp_path / "m.gguf", **{"general.type": kind})
    with pytest.raises(UnsupportedArchError, match=kind):
        open_model(path)


def test_an_architecture_that_no_family_computes_is_named(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "hf", "llama", dtype="fp16")
    path = convert(folder, tmp_path / "m.gguf", architecture=gguf.MODEL_ARCH.STABLELM)
    with pytest.raises(UnsupportedArchError, match="stablelm"):
        open_model(path)
