"""Claims about sources that change: what is written during an export is never mixed in."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

import edgekit
from edgekit.checkpoint import source_files
from edgekit.checkpoint.reader import open_checkpoint
from edgekit.errors import CheckpointError
from edgekit.families import open_model
from tests.builders import write_tiny_checkpoint
from tests.checkpoint.gguf.test_parts import write_model
from tests.tiny_adapters import write_tiny_adapter

WEIGHTS = "model.safetensors"
TEXTS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture(autouse=True)
def old(monkeypatch):
    """Files count as old at once; what young ones cost has a test of its own."""
    monkeypatch.setattr(source_files, "_SETTLED_NS", 0)


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_tiny_checkpoint(tmp_path / "m")


def export_while(folder: Path, change: Callable[[], None], out: Path, **options) -> None:
    """Export, and make the change after the first tensors were quantized."""
    is_done = False

    def progress(what, n_done, n_total):
        nonlocal is_done
        if what.startswith("quantize") and n_done == 3 and not is_done:
            is_done = True
            change()

    try:
        edgekit.export(folder, "mlx", "int8", out, progress=progress, **options)
    finally:
        assert is_done


def one_byte(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.seek(path.stat().st_size // 2)
        byte = stream.read(1)
        stream.seek(path.stat().st_size // 2)
        stream.write(bytes([byte[0] ^ 1]))


def one_byte_time_set_back(path: Path) -> None:
    status = path.stat()
    one_byte(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def same_bytes_again(path: Path) -> None:
    time.sleep(0.01)  # beyond the tick of the clock
    path.write_bytes(path.read_bytes())


def another_file(path: Path) -> None:
    other = path.with_name("other")
    shutil.copy2(path, other)
    other.replace(path)


@pytest.mark.parametrize("change", [one_byte, same_bytes_again, another_file, Path.unlink])
@pytest.mark.parametrize("name", [WEIGHTS, *TEXTS])
def test_a_file_written_during_an_export_is_named_and_nothing_is_left(
    folder, tmp_path, name, change
):
    with pytest.raises(CheckpointError, match="was changed while it was read") as caught:
        export_while(folder, lambda: change(folder / name), tmp_path / "out")
    assert caught.value.got == name
    assert list((tmp_path / "out").iterdir()) == []


def test_weights_whose_time_was_set_back_are_hashed_again(folder, tmp_path):
    with pytest.raises(CheckpointError, match="was changed while it was read") as caught:
        export_while(folder, lambda: one_byte_time_set_back(folder / WEIGHTS), tmp_path / "out")
    assert caught.value.got == "the weights"


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.chmod(0o600),
        lambda path: path.with_name("backup").hardlink_to(path),
        lambda path: path.read_bytes(),
        lambda path: path.with_name("notes.txt").write_text("x"),
        lambda path: path.with_name("model-extra.safetensors").write_text("x"),
    ],
)
def test_what_does_not_change_the_model_is_no_reason_to_stop(folder, tmp_path, change):
    export_while(folder, lambda: change(folder / WEIGHTS), tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_a_file_written_just_before_is_hashed_again(folder, tmp_path, monkeypatch):
    """Its clock may be so coarse that a second writing does not show."""
    monkeypatch.setattr(source_files, "_SETTLED_NS", 10**18)
    monkeypatch.setattr(source_files, "_differ", lambda then, now: False)
    export_while(folder, lambda: None, tmp_path / "good")
    with pytest.raises(CheckpointError, match="got the weights"):
        export_while(folder, lambda: one_byte(folder / WEIGHTS), tmp_path / "out")


def test_a_shard_a_gguf_file_and_an_adapter_are_watched_too(tmp_path):
    shards = write_tiny_checkpoint(tmp_path / "s", shards=2)
    shard = shards / "model-00002-of-00002.safetensors"
    with pytest.raises(CheckpointError, match=f"got {shard.name}"):
        export_while(shards, lambda: one_byte(shard), tmp_path / "out")
    base, adapter = write_tiny_adapter(tmp_path / "a", "lora")
    for path in (adapter / "adapter_model.safetensors", adapter / "adapter_config.json",
                 base / WEIGHTS):  # fmt: skip
        with pytest.raises(CheckpointError, match=f"got {path.name}"):
            export_while(base, lambda p=path: one_byte(p), tmp_path / "out", adapter=adapter)
        one_byte(path)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_gguf_file_is_watched_too(tmp_path):
    gguf = write_model(tmp_path)
    with pytest.raises(CheckpointError, match=r"got m\.gguf"):
        export_while(gguf, lambda: one_byte(gguf), tmp_path / "out")


def test_the_hash_is_that_of_the_stored_bytes(folder):
    """config.json as it is, then each tensor in the order of names, after a line of what it is."""
    with open_checkpoint(folder) as checkpoint:
        data = (folder / "config.json").read_bytes()
        for name in sorted(checkpoint.tensors):
            tensor = checkpoint.tensors[name]
            line = f"\n{name} {tensor.info.dtype.value} {list(tensor.info.shape)}\n"
            data += line.encode() + b"".join(bytes(piece.data) for piece in tensor.raw_pieces())
        assert checkpoint.sha256() == sha256(data).hexdigest()


def test_the_hash_is_the_same_for_other_shards_and_after_a_family_has_read_the_config(tmp_path):
    one = write_tiny_checkpoint(tmp_path / "one")
    three = write_tiny_checkpoint(tmp_path / "three", shards=3)
    with open_checkpoint(one) as checkpoint:
        before = checkpoint.sha256()
    for folder in (one, three):
        source = open_model(folder)
        assert source.checkpoint.sha256() == before
        source.close()


@pytest.mark.parametrize(
    ("old", "new"),
    [("\n", "\n "), ('"vocab_size"', '"x_note": null, "vocab_size"'), ("1e-05", "0.00001")],
)
def test_another_config_is_another_hash_also_where_it_means_the_same(folder, old, new):
    with open_checkpoint(folder) as checkpoint:
        before = checkpoint.sha256()
    path = folder / "config.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.sha256() != before
