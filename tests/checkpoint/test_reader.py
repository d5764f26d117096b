from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy

from edgekit.checkpoint.reader import open_checkpoint
from edgekit.errors import CheckpointError, FormatError, MissingFileError
from edgekit.families import open_model
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


def test_tensors_that_the_index_forgot_are_there(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "m", shards=2)
    wanted = set(open_checkpoint(folder).tensors)
    edit_index(folder, lambda m: m.pop("model.norm.weight"))
    assert set(open_checkpoint(folder).tensors) == wanted


def test_the_hash_is_that_of_what_is_stored_whatever_a_family_fills_in(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "m", "qwen3")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    with open_checkpoint(folder) as checkpoint:
        before = checkpoint.sha256()
    assert open_model(folder).checkpoint.sha256() == before
    # head_dim 128 is what qwen3 takes an absent one for: the same model, another file.
    del config["head_dim"]
    path.write_text(json.dumps(config))
    assert open_checkpoint(folder).sha256() != before


def split(folder, names):
    """Put the tensors into files of these names, and remove the usual one."""
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    path.unlink()
    for name, keys in zip(names, np.array_split(np.array(list(tensors)), len(names)), strict=True):
        safetensors.numpy.save_file({str(k): tensors[str(k)] for k in keys}, folder / name)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
            "read without model.safetensors.index.json: model-00001-of-00002.safetensors, "
            "model-00002-of-00002.safetensors",
        ),
        (
            ["pytorch_model-00001-of-00001.safetensors"],
            "read without model.safetensors.index.json: pytorch_model-00001-of-00001.safetensors",
        ),
        (
            ["pytorch_model.safetensors"],
            "read as the weights: pytorch_model.safetensors (no model.safetensors)",
        ),
        (
            ["weights.00.safetensors", "weights.01.safetensors"],
            "read as the weights: weights.00.safetensors, weights.01.safetensors "
            "(no model.safetensors)",
        ),
        (
            ["a.safetensors", "b.safetensors", "c.safetensors"],
            "read as the weights: a.safetensors, b.safetensors, c.safetensors "
            "(no model.safetensors)",
        ),
    ],
)
def test_weights_under_other_names_are_read_and_said(tmp_path, names, said):
    wanted = open_checkpoint(write_tiny_checkpoint(tmp_path / "usual"))
    folder = write_tiny_checkpoint(tmp_path / "m")
    split(folder, names)
    found = open_checkpoint(folder)
    assert found.sha256() == wanted.sha256()
    assert found.notes == [said]


def test_an_index_of_another_name_is_read(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "m", shards=2)
    (folder / INDEX).rename(folder / "pytorch_model.safetensors.index.json")
    assert open_checkpoint(folder).notes == []


def test_missing_shards_without_an_index_are_named(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "m", shards=3)
    (folder / INDEX).unlink()
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(MissingFileError, match="1 of 3 weight files are missing") as caught:
        open_checkpoint(folder)
    assert caught.value.got == "no model-00002-of-00003.safetensors"


def test_two_sets_of_shards_are_refused_by_name(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "m", shards=2)
    (folder / INDEX).unlink()
    (folder / "old-00001-of-00001.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="several sets") as caught:
        open_checkpoint(folder)
    assert caught.value.got == "model-*-of-00002.safetensors, old-*-of-00001.safetensors"


def test_two_files_with_the_same_tensor_are_refused_by_name(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    shutil.copy(folder / "model.fp16.safetensors", folder / "model.fp32.safetensors")
    with pytest.raises(CheckpointError, match="two weight files hold the same tensor") as caught:
        open_checkpoint(folder)
    assert "in model.fp16.safetensors and in model.fp32.safetensors" in caught.value.got


@pytest.mark.parametrize("name", ["other.safetensors", "model-00001-of-00002.safetensors"])
def test_files_that_are_not_read_are_named(tmp_path, name):
    folder = write_tiny_checkpoint(tmp_path / "m")
    (folder / name).write_bytes(b"")
    (folder / "consolidated.safetensors").write_bytes(b"")
    assert open_checkpoint(folder).notes == [
        f"not read: {name} (the weights are in model.safetensors)"
    ]


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapters.safetensors"])
def test_an_adapter_beside_the_weights_is_named_and_never_taken_for_them(tmp_path, name):
    folder = write_tiny_checkpoint(tmp_path / "m")
    shutil.copy(folder / "model.safetensors", folder / name)
    (note,) = open_model(folder).checkpoint.notes
    assert note.startswith(f"{name} is an adapter file next to the weights ")
    assert note.endswith(f"--adapter {folder}")
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    assert len(open_model(folder).checkpoint.notes) == 2
    (folder / "other.safetensors").unlink()
    with pytest.raises(MissingFileError) as caught:
        open_checkpoint(folder)
    assert caught.value.got == name


def test_a_cache_snapshot_opens_as_a_folder_and_so_does_a_link_into_its_blobs(tmp_path):
    made = write_tiny_checkpoint(tmp_path / "m")
    root = tmp_path / "hub" / "models--owner--name"
    snapshot = root / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (root / "blobs").mkdir()
    for number, path in enumerate(sorted(made.iterdir())):
        blob = root / "blobs" / f"{number:064x}"
        path.rename(blob)
        (snapshot / path.name).symlink_to(f"../../blobs/{blob.name}")
        path.symlink_to(blob)
    by_snapshot, by_links = open_checkpoint(snapshot), open_checkpoint(made)
    assert by_snapshot.sha256() == by_links.sha256()
    (tmp_path / "short").symlink_to(snapshot)
    assert open_checkpoint(tmp_path / "short").sha256() == by_links.sha256()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_link_to_a_file_that_is_gone_is_named(tmp_path, name):
    folder = write_tiny_checkpoint(tmp_path / "m")
    (folder / name).unlink()
    (folder / name).symlink_to("../../blobs/0123")
    with pytest.raises(MissingFileError, match=r"cp -rL") as caught:
        open_checkpoint(folder)
    assert caught.value.got == name
    assert caught.value.wanted == f"the files themselves; {name} leads to ../../blobs/0123"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_link_out_of_the_folder_says_what_to_do(tmp_path, name):
    folder = write_tiny_checkpoint(tmp_path / "m")
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises((CheckpointError, FormatError), match="in place of the link"):
        open_checkpoint(folder)


def test_a_pointer_of_git_says_what_to_do(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "m")
    (folder / "model.safetensors").write_text(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1\n"
    )
    with pytest.raises(FormatError, match="git lfs pull"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["consolidated.safetensors"], "consolidated.safetensors, Mistral's own layout"),
        (["pytorch_model.bin"], r"pytorch_model.bin \(pickle files are never read\).*save_pretr"),
        (["model.pt"], r"model.pt \(pickle files are never read\)"),
        (["m.Q4_K_M.gguf"], "Name the GGUF file instead of the folder: m.Q4_K_M.gguf"),
        ([], "Copy the weight files into the folder"),
    ],
)
def test_what_lies_there_in_place_of_weights_is_named(tmp_path, names, words):
    folder = write_tiny_checkpoint(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    for name in names:
        (folder / name).write_bytes(b"")
    with pytest.raises(MissingFileError, match=words):
        open_checkpoint(folder)


def test_a_folder_without_config_is_named_for_what_it_is(tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": "owner/base"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(
        CheckpointError, match=r"an adapter of PEFT \(LORA\), not a model"
    ) as caught:
        open_checkpoint(adapter)
    assert caught.value.got == "changes to owner/base"
    assert caught.value.do == f"Run: edgekit export owner/base --adapter {adapter}"
    inner = write_tiny_checkpoint(tmp_path / "models--a--b" / "snapshots" / "1")
    with pytest.raises(MissingFileError) as caught:
        open_checkpoint(tmp_path / "models--a--b")
    assert caught.value.do == f"Name the folder that holds it: {inner}"
    (adapter / "adapter_config.json").unlink()
    (adapter / "x.gguf").write_bytes(b"")
    with pytest.raises(MissingFileError) as caught:
        open_checkpoint(adapter)
    assert caught.value.do == f"Name the GGUF file: {adapter / 'x.gguf'}"


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
