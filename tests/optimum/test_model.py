"""Claims about what optimum is given: configs in the words of transformers 4.57, links, no code."""

from __future__ import annotations

import json

import pytest

from edgekit.checkpoint.reader import open_checkpoint
from edgekit.errors import UnsupportedArchError, UsageError
from edgekit.families.other_types import OPTIMUM_TYPES
from edgekit.optimum.model import (
    check_floats,
    check_model_type,
    trained_length,
    translate_config,
    write_input_folder,
)
from tests.builders import write_tiny_checkpoint

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("new", "old"),
    [
        ({"dtype": "bfloat16"}, {"torch_dtype": "bfloat16"}),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
            {"rope_theta": 1e6, "rope_scaling": None},
        ),
        ({"rope_parameters": {"rope_theta": 5e5}}, {"rope_theta": 5e5, "rope_scaling": None}),
        (
            {"rope_parameters": {**YARN, "rope_theta": 1e6}},
            {"rope_theta": 1e6, "rope_scaling": YARN},
        ),
        (
            {"rope_parameters": {"type": "linear", "factor": 2.0}},
            {"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 2.0}},
        ),
        (
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25}},
            {"rope_theta": 1e4, "partial_rotary_factor": 0.25, "rope_scaling": None},
        ),
        ({"rope_parameters": None}, {}),
        ({"rope_theta": 1e4, "rope_scaling": YARN}, {"rope_theta": 1e4, "rope_scaling": YARN}),
        ({"auto_map": {"AutoConfig": "x.Y"}, "quantization_config": {}}, {}),
        (
            {"text_config": {"dtype": "float16", "rope_parameters": {"rope_theta": 2.0}}},
            {"text_config": {"torch_dtype": "float16", "rope_theta": 2.0, "rope_scaling": None}},
        ),
    ],
)
def test_a_config_is_put_into_the_words_of_transformers_4(new, old):
    assert translate_config({"model_type": "llama", **new}, "c") == {"model_type": "llama", **old}


def test_the_two_encodings_of_gemma_3_have_words_and_others_do_not():
    by_kind = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    config = {"model_type": "gemma3_text", "rope_parameters": by_kind}
    assert translate_config(config, "c") == {
        "model_type": "gemma3_text",
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }
    with pytest.raises(UnsupportedArchError, match="by kind of layer") as caught:
        translate_config({**config, "model_type": "olmo3"}, "c")
    assert caught.value.got == "full_attention, sliding_attention"


def test_only_types_that_optimum_exports_are_taken():
    assert all(check_model_type({"model_type": kind}, "m") == kind for kind in OPTIMUM_TYPES)
    for kind in ("mixtral", "bert", None, 3, ["llama"]):
        with pytest.raises(UnsupportedArchError, match=r"optimum-onnx 0\.1\.0") as caught:
            check_model_type({"model_type": kind}, "m")
        assert caught.value.got == repr(kind)


def test_quantized_sources_are_refused_by_their_method():
    check_floats({}, "m")
    check_floats({"quantization_config": None}, "m")
    for method, got in (("gptq", "gptq"), (None, "quantization_config")):
        with pytest.raises(UsageError, match="quantized weights") as caught:
            check_floats({"quantization_config": {"quant_method": method}}, "m")
        assert caught.value.got == got


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"max_position_embeddings": 2048, "n_positions": 7}, 2048),
        ({"n_positions": 1024}, 1024),
        ({"max_seq_len": 512}, 512),
        ({"max_position_embeddings": True, "n_ctx": 9}, 9),
        ({"text_config": {"max_position_embeddings": 64}}, 64),
        ({"max_position_embeddings": "many"}, None),
        ({}, None),
    ],
)
def test_the_length_of_a_model_stands_under_several_names(config, wanted):
    assert trained_length(config) == (wanted, None)


@pytest.mark.parametrize("kind", ["longrope", "su"])
@pytest.mark.parametrize("is_beside", [True, False])
def test_a_graph_of_longrope_is_right_up_to_the_original_length_only(kind, is_beside):
    original = {"original_max_position_embeddings": 64}
    config = {"max_position_embeddings": 256, "rope_scaling": {"type": kind}}
    if is_beside:
        config |= original
    else:
        config["rope_scaling"] |= original
    length, note = trained_length(config)
    assert length == 64
    assert "up to 64 tokens only" in note
    assert trained_length({**config, "max_position_embeddings": 64}) == (64, None)


def test_the_input_folder_holds_config_and_links_and_nothing_else(tmp_path):
    model = write_tiny_checkpoint(tmp_path / "m", "llama-yarn", shards=2, auto_map={"A": "x.Y"})
    for name in ("modeling_x.py", "pytorch_model.bin"):
        (model / name).write_text("never")
    out = tmp_path / "given"
    out.mkdir()
    with open_checkpoint(model) as checkpoint:
        config = write_input_folder(checkpoint, out)
    index = "model.safetensors.index.json"
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert sorted(p.name for p in out.iterdir()) == ["config.json", *shards, index]
    assert all((out / name).readlink() == model / name for name in (*shards, index))
    assert json.loads((out / "config.json").read_text()) == config
    assert config["rope_theta"] == 1e6
    assert config["rope_scaling"]["rope_type"] == "yarn"
    assert "auto_map" not in config
    assert "rope_parameters" not in config
