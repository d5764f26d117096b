"""Claims about the positions that artifacts hold: the same request means the same everywhere."""

from __future__ import annotations

import json
import platform

import pytest

import edgekit
from edgekit.artifact import Format
from edgekit.devices.probe import probe_host
from edgekit.errors import UsageError
from edgekit.exporters import open_exporter
from edgekit.exporters.base import ExportOptions
from edgekit.exporters.context import usual_length
from edgekit.exporters.staging import write_artifact
from edgekit.families import open_model
from edgekit.families.rope_config import effective_length
from edgekit.runtime import default_engine
from tests.builders import write_tiny_checkpoint
from tests.exporters.memory_model import memory_model, tiny_spec

FORMATS = [form.value for form in Format]
# 1.7B, 0.6B and 1B shapes: bytes of a position of the fp32 cache in KiB are 384, 224 and 64.
WIDE = {"n_layers": 24, "n_heads": 32, "n_kv_heads": 32, "head_width": 64}
QWEN = {"n_layers": 28, "n_heads": 16, "n_kv_heads": 8, "head_width": 128}
SLIM = {"n_layers": 16, "n_heads": 32, "n_kv_heads": 8, "head_width": 64}


@pytest.mark.parametrize(
    ("shape", "n_model", "wanted"),
    [
        (WIDE, 8192, 4096),
        (WIDE, 2048, 2048),
        (QWEN, 40960, 4096),
        (SLIM, 131072, 8192),
        (SLIM, 5000, 5000),
        ({}, 9000, 9000),
    ],
)
def test_the_default_is_4096_unless_the_cache_of_more_is_small(shape, n_model, wanted):
    assert usual_length(tiny_spec(context_length=n_model, **shape)) == wanted


def test_the_default_is_never_more_than_the_format_holds():
    coreml = open_exporter(Format.COREML).positions(tiny_spec(context_length=131072))
    assert (coreml.default, coreml.longest) == (16384, 16384)


@pytest.mark.parametrize("form", Format)
@pytest.mark.parametrize("asked", [-1, 0, 1, 257])
def test_a_length_that_cannot_be_is_refused_in_every_format_before_any_work(
    tiny_model, tmp_path, form, asked
):
    with pytest.raises(
        UsageError, match=rf"--context is not possible for \w.*; got {asked}; wanted 2 \.\. 256"
    ):
        edgekit.export(tiny_model, form, "int8", tmp_path / "out", context_length=asked)
    assert not (tmp_path / "out").exists()


def test_one_format_that_cannot_hold_the_length_stops_them_all_before_any_work(tmp_path):
    model = write_tiny_checkpoint(tmp_path / "m", max_position_embeddings=32768)
    with pytest.raises(UsageError, match=r"coreml; got 20000; wanted 2 \.\. 16384, packages of"):
        edgekit.export(model, "all", "int8", tmp_path / "out", context_length=20000)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", FORMATS)
def test_a_length_that_was_asked_for_is_held_and_not_told(tiny_model, tmp_path, form):
    (artifact,) = edgekit.export(tiny_model, form, "int8", tmp_path, context_length=100)
    assert artifact.manifest.context_length == 100
    assert not any("positions" in note for note in artifact.manifest.notes)
    if default_engine(artifact.format, platform.system()) in probe_host().engines:
        with edgekit.load(artifact) as session:
            assert session.context_length == 100


def test_a_cap_is_told_by_export_and_kept_in_the_manifest(edgekit_cli, tmp_path):
    shape = {"num_key_value_heads": 64, "num_attention_heads": 64, "head_dim": 64}
    model = write_tiny_checkpoint(
        tmp_path / "m", num_hidden_layers=4, max_position_embeddings=8192, **shape
    )
    said = edgekit_cli(
        "export", model, "--format", "onnx", "--scheme", "int8", "--out", tmp_path / "o"
    )
    told = "holds 4,096 of the model's 8,192 positions; --context asks for more, up to 8,192"
    assert (said.code, said.out.count(told) + said.err.count(told)) == (0, 1)
    manifest = json.loads((tmp_path / "o" / "m-onnx-int8-g32" / "manifest.json").read_text())
    assert manifest["context_length"] == 4096
    assert told in manifest["notes"]


def test_a_limit_of_core_ml_is_told(tmp_path):
    model = memory_model(tiny_spec(context_length=40960))
    artifact = write_artifact(open_exporter(Format.COREML), model, tmp_path / "a", ExportOptions())
    (note,) = (note for note in artifact.manifest.notes if "positions" in note)
    assert note.startswith("holds at most 16,384 of the model's 40,960 positions")


@pytest.mark.parametrize(("via", "asked"), [("edgekit", 0), ("optimum", 0), ("optimum", 257)])
def test_the_command_line_refuses_it_as_a_wrong_request(
    edgekit_cli, tiny_model, tmp_path, via, asked
):
    said = edgekit_cli(
        "export", tiny_model, "--via", via, "--context", asked, "--out", tmp_path / "out"
    )
    assert said.code == 2
    assert said.parts()["got"] == str(asked)
    assert said.parts()["wanted"].startswith("2 .. 256, ")
    assert not (tmp_path / "out").exists()


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("scaling", "n_positions", "wanted"),
    [
        (None, 80, 80),
        (YARN, 80, 256),  # added as the model's card says
        (YARN, 256, 256),  # max_position_embeddings raised as well
        (YARN, 512, 512),
        ({"type": "yarn", "factor": 4.0}, 64, 256),
        ({**YARN, "factor": 2.5}, 64, 160),
        ({"rope_type": "linear", "factor": 4.0}, 64, 256),
        ({"rope_type": "linear", "factor": 4.0, "original_max_position_embeddings": 64}, 256, 256),
        ({"rope_type": "dynamic", "factor": 4.0}, 64, 64),  # other angles beyond
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}, 80, 80),
        ({"rope_type": "longrope", "original_max_position_embeddings": 64}, 256, 256),
        ({**YARN, "factor": 1e30}, 64, 64),
        ({**YARN, "factor": "4"}, 64, 64),
        ({"full_attention": YARN}, 64, 256),
    ],
)
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_the_effective_length_follows_the_rope_scaling(scaling, n_positions, wanted, key):
    assert effective_length({key: scaling}, n_positions) == wanted


def test_a_length_beside_the_section_counts_first_as_in_transformers():
    beside = {"rope_scaling": YARN, "original_max_position_embeddings": 100}
    assert effective_length(beside, 80) == 400


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_yarn_by_the_model_card_is_the_model_that_says_the_longer_context(tmp_path, family):
    """The goldens of llama-yarn are those of the raised key; the decoder is the same one."""
    specs = []
    for at, length in (("card", 80), ("raised", 256)):
        folder = write_tiny_checkpoint(
            tmp_path / at, family, rope_scaling=YARN, max_position_embeddings=length
        )
        source = open_model(folder)
        specs.append(source.spec)
        source.close()
    assert specs[0] == specs[1]
    assert specs[0].context_length == 256


def test_a_family_with_a_rope_for_each_kind_of_layer_publishes_the_raised_length(tmp_path):
    """Gemma 3 says linear scaling by 8 and 131,072 positions, which are all of them."""
    linear = {"rope_type": "linear", "factor": 8.0}
    folder = write_tiny_checkpoint(tmp_path / "m", "gemma3_text", rope_scaling=linear)
    source = open_model(folder)
    assert (source.spec.context_length, source.spec.rope.linear_factor) == (256, 8.0)
    source.close()


def test_a_window_is_judged_by_the_effective_length(tmp_path):
    """100 keys hide something from 256 positions, although nothing from 80."""
    folder = write_tiny_checkpoint(
        tmp_path / "m", "mistral", rope_scaling=YARN, max_position_embeddings=80, sliding_window=100
    )
    source = open_model(folder)
    assert source.spec.sliding_window == 100
    source.close()


def test_ntk_scaling_is_the_plain_rope_up_to_its_length(tmp_path):
    folder = write_tiny_checkpoint(
        tmp_path / "m", "llama", rope_scaling={"type": "dynamic", "factor": 2.0}
    )
    scaled, plain = open_model(folder), open_model(write_tiny_checkpoint(tmp_path / "p", "llama"))
    assert scaled.spec == plain.spec
    assert any("starts beyond max_position_embeddings" in n for n in scaled.checkpoint.config.notes)
    scaled.close()
    plain.close()
