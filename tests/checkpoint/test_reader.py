from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.numpy

from edgekit.checkpoint.reader import open_checkpoint
from edgekit.errors import CheckpointError, FormatError, MissingFileError
from tests.builders import write_tiny_checkpoint

INDEX = "model.safetensors.index.json"


def edit_index(folder, change):
    path = folder / INDEX
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def test_every_tensor_reads_as_the_library_reads_it(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "m", dtype="bf16")
    wanted = safetensors.numpy.load_file(folder / "model.safetensors")
    with open_checkpoint(folder) as checkpoint:
        assert set(checkpoint.tensors) == set(wanted)
        for name, tensor in checkpoint.tensors.items():
            np.testing.assert_array_equal(tensor.read(), wanted[name].astype(np.float32))


def test_shards_hold_the_same_model_as_one_file(tmp_path):
    whole = open_checkpoint(write_tiny_checkpoint(tmp_path / "a"))
    shards = open_checkpoint(write_tiny_checkpoint(tmp_path / "b", shards=3))
    assert set(whole.tensors) == set(shards.tensors)
    assert whole.sha256() == shards.sha256()
    assert whole.weights_bytes == shards.weights_bytes


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"dtype": "fp16"}, {"rms_norm_eps": 1e-6}, {"model_type": "llama"}]
)
def test_the_hash_follows_weights_and_config(tmp_path, change):
    one = open_checkpoint(write_tiny_checkpoint(tmp_path / "a"))
    other = open_checkpoint(write_tiny_checkpoint(tmp_path / "b", **change))
    assert one.sha256() != other.sha256()


def test_a_checkpoint_says_where_it_came_from_and_which_files_go_along(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "my-model")
    (folder / "chat_template.jinja").write_text("{{ bos_token }}")
    checkpoint = open_checkpoint(str(folder))
    assert (checkpoint.name, checkpoint.origin) == ("my-model", str(folder))
    assert dict(checkpoint.assets) == {
        name: folder / name
        for name in (
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
        )
    }


def test_all_missing_shards_are_named(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "m", shards=3)
    (folder / "model-00001-of-00003.safetensors").unlink()
    (folder / "model-00003-of-00003.safetensors").unlink()
    with pytest.raises(MissingFileError) as caught:
        open_checkpoint(folder)
    assert (
        caught.value.got == "no model-00001-of-00003.safetensors, model-00003-of-00003.safetensors"
    )
    assert "2 of 3 weight files are missing" in caught.value.what


@pytest.mark.parametrize("n_kept", [4, 100, 50_000])
def test_a_truncated_shard_is_refused_by_name(tmp_path, n_kept):
    folder = write_tiny_checkpoint(tmp_path / "m", shards=2)
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:n_kept])
    with pytest.raises(FormatError, match=shard.name):
        open_checkpoint(folder)


def test_tensors_that_the_index_promises_and_no_shard_holds_are_named(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "m", shards=2)
    edit_index(folder, lambda m: m.update({"ghost.weight": "model-00001-of-00002.safetensors"}))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert caught.value.got == "ghost.weight (in model-00001-of-00002.safetensors)"


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "/etc/passwd",
        "/x.safetensors",
        "a/b.safetensors",
        "..\\x.safetensors",
        "C:x.safetensors",
        "..",
        "",
        "pytorch_model.bin",
        7,
    ],
)
def test_an_index_may_only_name_plain_files_beside_it(tmp_path, name):
    folder = write_tiny_checkpoint(tmp_path / "m", shards=2)
    (tmp_path / "secret.safetensors").write_bytes(b"")
    edit_index(folder, lambda m: m.update({"model.norm.weight": name}))
    with pytest.raises(CheckpointError, match=r"wanted a plain \.safetensors name"):
        open_checkpoint(folder)


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": [1]}])
def test_an_index_without_a_map_is_refused(tmp_path, index):
    folder = write_tiny_checkpoint(tmp_path / "m", shards=2)
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="weight_map"):
        open_checkpoint(folder)


def test_pickled_weights_are_named_and_never_read(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"not even a pickle")
    with pytest.raises(
        MissingFileError, match=r"pytorch_model.bin \(pickle files are never read\)"
    ):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(tmp_path, name):
    folder = write_tiny_checkpoint(tmp_path / "m")
    (folder / name).unlink()
    with pytest.raises(MissingFileError, match=name):
        open_checkpoint(folder)
