"""Claims: what a file system, a clock or a large number can do to a reader, it does not do here."""

from __future__ import annotations

import json
import os
import socket
import struct
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import edgekit
from edgekit.artifact import Artifact
from edgekit.checkpoint.reader import open_checkpoint
from edgekit.cli.output import Output
from edgekit.devices.profile import load_profile
from edgekit.errors import (
    ArtifactError,
    CheckpointError,
    EdgekitError,
    FormatError,
    ProfileError,
)
from edgekit.families import open_model
from edgekit.families.spec import DecoderSpec
from edgekit.files import open_plain
from edgekit.formats.gguf import GgufFile
from edgekit.formats.mil_blob import BlobReader
from edgekit.formats.safetensors import MAX_HEADER_BYTES, SafetensorsFile
from edgekit.model_files import TEXT_NAMES, is_weights
from edgekit.text import escaping
from edgekit.text.chat import ChatTemplate
from edgekit.text.tokenizer import Tokenizer
from tests.builders import tiny_config, write_tiny_checkpoint
from tests.fuzz.contract import check_message, cpu_limit
from tests.tiny_adapters import write_tiny_adapter
from tests.tiny_families import TINY_CONFIGS

FOLDER_READERS = {
    "config.json": lambda folder: open_checkpoint(folder),
    "generation_config.json": lambda folder: open_model(folder),
    "tokenizer.json": lambda folder: Tokenizer.open(folder),
    "tokenizer_config.json": lambda folder: Tokenizer.open(folder),
    "chat_template.jinja": lambda folder: ChatTemplate.open(folder),
    "model.safetensors": lambda folder: open_checkpoint(folder),
}
FILE_READERS = {
    "x.gguf": (GgufFile, FormatError),
    "x.safetensors": (SafetensorsFile, FormatError),
    "weight.bin": (BlobReader, FormatError),
    "x.toml": (load_profile, ProfileError),
}


@pytest.fixture
def folder(tmp_path):
    made = write_tiny_checkpoint(tmp_path / "m", "llama")
    (made / "chat_template.jinja").write_text("{{ messages }}")
    return made


@pytest.mark.parametrize("name", FOLDER_READERS)
def test_a_link_out_of_the_folder_is_never_followed(name, folder, tmp_path):
    secret = tmp_path / "secret"
    (folder / name).rename(secret)
    (folder / name).symlink_to(secret)
    with pytest.raises(EdgekitError, match="out of the folder") as caught:
        FOLDER_READERS[name](folder)
    check_message(caught.value)


@pytest.mark.parametrize("name", FOLDER_READERS)
def test_a_link_inside_the_folder_is_followed(name, folder):
    (folder / name).rename(folder / "elsewhere")
    (folder / name).symlink_to("elsewhere")
    FOLDER_READERS[name](folder)


def test_a_snapshot_of_the_cache_may_link_to_the_blobs_of_its_own_repository(folder, tmp_path):
    cache = tmp_path / "hub"
    snapshot = cache / "models--a--b" / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot)
    for place in (cache / "models--a--b" / "blobs", cache / "models--c--d" / "blobs"):
        place.mkdir(parents=True)
    blob = cache / "models--a--b" / "blobs" / "1"
    (snapshot / "config.json").rename(blob)
    (snapshot / "config.json").symlink_to("../../blobs/1")
    open_checkpoint(snapshot).close()
    (snapshot / "config.json").unlink()
    blob.rename(cache / "models--c--d" / "blobs" / "1")
    (snapshot / "config.json").symlink_to("../../../models--c--d/blobs/1")
    with pytest.raises(CheckpointError, match="out of the folder"):
        open_checkpoint(snapshot)


@pytest.mark.parametrize("name", FOLDER_READERS)
@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_plain_file_is_refused_without_waiting(name, kind, folder):
    (folder / name).unlink()
    os.mkfifo(folder / name) if kind == "pipe" else (folder / name).mkdir()
    with pytest.raises(CheckpointError, match=f"{name}: cannot be read; got a {kind}") as caught:
        FOLDER_READERS[name](folder)
    check_message(caught.value)


MODEL_NAMES = (
    *TEXT_NAMES, "additional_chat_templates/tool_use.jinja", "model.safetensors.index.json",
    "model-00001-of-00002.safetensors", "extra.safetensors", "quantize_config.json",
    "quant_config.json", "hf_quant_config.json",
)  # fmt: skip
ODD = {
    "a pipe": os.mkfifo,
    "a folder": lambda path: path.mkdir(),
    "a socket": lambda path: make_socket(path),
    "not there": lambda path: path.symlink_to("nowhere"),
    "leads out of the folder": lambda path: path.symlink_to("/etc/passwd"),
    "a link to a folder": lambda path: (path.with_name("d").mkdir(), path.symlink_to("d")),
    "links in a circle": lambda path: path.symlink_to(path.name),
}


def make_socket(path):
    with tempfile.TemporaryDirectory(dir="/tmp") as short, socket.socket(socket.AF_UNIX) as made:
        made.bind(f"{short}/s")
        Path(short, "s").rename(path)


@pytest.mark.parametrize("name", MODEL_NAMES)
@pytest.mark.parametrize("kind", ODD)
def test_no_name_that_an_export_reads_is_passed_over(name, kind, folder, tmp_path):
    """Whatever bears it: without that file the artifact would be another one."""
    path = folder / name
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    ODD[kind](path)
    if is_weights(name) and name != "model.safetensors" and kind == "leads out of the folder":
        edgekit.export(folder, "onnx", "int8", tmp_path / "out")  # model.safetensors is read
        return
    with cpu_limit(5.0), pytest.raises(CheckpointError) as caught:
        edgekit.export(folder, "onnx", "int8", tmp_path / "out")
    assert path.name in str(caught.value)
    check_message(caught.value)
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("kind", ODD)
def test_a_folder_of_templates_that_is_none_is_not_passed_over(kind, folder, tmp_path):
    if kind in ("a folder", "a link to a folder"):
        return
    ODD[kind](folder / "additional_chat_templates")
    with pytest.raises(CheckpointError, match="additional_chat_templates: cannot be read"):
        ChatTemplate.open(folder)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("kind", ODD)
def test_no_file_of_an_adapter_is_passed_over(name, kind, folder, tmp_path):
    _, adapter = write_tiny_adapter(tmp_path / "a", "lora")
    (adapter / name).unlink()
    ODD[kind](adapter / name)
    with pytest.raises(EdgekitError) as caught:
        open_model(folder, adapter=adapter)
    assert name in str(caught.value)
    check_message(caught.value)


@pytest.mark.parametrize("name", FILE_READERS)
def test_a_pipe_named_by_the_user_is_refused_without_waiting(name, tmp_path):
    read, wanted = FILE_READERS[name]
    os.mkfifo(tmp_path / name)
    with pytest.raises(wanted, match="not a plain file"):
        read(tmp_path / name)


def test_a_device_is_no_plain_file():
    with pytest.raises(OSError, match="not a plain file"):
        open_plain(Path("/dev/zero"))


def test_a_manifest_that_is_a_link_to_elsewhere_is_refused(tmp_path):
    (tmp_path / "secret").write_text("{}")
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "manifest.json").symlink_to(tmp_path / "secret")
    with pytest.raises(ArtifactError, match="out of the folder"):
        Artifact.open(tmp_path / "artifact")


def test_a_file_cut_while_open_is_an_error_and_not_the_end_of_the_process(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"w": np.ones((512, 512), np.float32)}, path)
    with SafetensorsFile(path) as file:
        os.truncate(path, 4096)
        with pytest.raises(FormatError, match="became shorter while it was read"):
            file.tensors["w"].read()
        with pytest.raises(FormatError, match="became shorter while it was read"):
            file.tensors["w"].read_rows(500, 501)


@pytest.mark.parametrize(
    "name",
    ["../x", "/x", "a/b", "a\\b", "C:x", "", ".", "..", "x\0y", "x\u202ey", "x\ny", "é" * 200],
)
def test_an_index_names_no_file_outside_and_none_that_cannot_be_shown(name, folder):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"w": f"{name}.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises((CheckpointError, FormatError)) as caught:
        open_checkpoint(folder)
    check_message(caught.value)


@pytest.mark.parametrize(
    "key",
    ["num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size", "head_dim",
     "intermediate_size", "num_key_value_heads"],
)  # fmt: skip
@pytest.mark.parametrize("value", [10**9 * 5, 10**18, 10**4000, -1, 0])
def test_a_config_without_sense_is_refused_at_once(key, value, folder):
    config = tiny_config("llama") | {key: value}
    (folder / "config.json").write_text(json.dumps(config))
    with cpu_limit(1.0), pytest.raises(CheckpointError):
        open_model(folder)


@pytest.mark.parametrize("name", TINY_CONFIGS)
def test_layers_without_end_are_refused_at_once_by_every_family(name, folder):
    config = tiny_config(name)
    config.get("text_config", config)["num_hidden_layers"] = 1 << 40
    (folder / "config.json").write_text(json.dumps(config))
    with cpu_limit(1.0), pytest.raises(CheckpointError, match="num_hidden_layers"):
        open_model(folder)


@pytest.mark.parametrize("key", ["n_layers", "vocab_size", "head_width"])
def test_a_stored_decoder_without_sense_is_refused_at_once(key, folder):
    with open_model(folder).checkpoint, cpu_limit(2.0):
        data = json.loads(json.dumps(open_model(folder).spec.as_dict()))
        with pytest.raises(ValueError, match=key):
            DecoderSpec.from_dict({**data, key: 10**12})


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ('{"w":{"dtype":"F32","shape":[4294967296,4294967297],"data_offsets":[0,4]}}', "shape"),
        ('{"w":{"dtype":"F32","shape":[9223372036854775807,2],"data_offsets":[0,4]}}', "shape"),
        ('{"w":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}', "shape"),
        ('{"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', "gap"),
        (
            '{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            '"v":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}',
            "overlaps",
        ),
    ],
)
def test_tensors_that_wrap_around_overlap_or_leave_gaps_are_refused(header, words, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(8))
    with pytest.raises(FormatError, match=words):
        SafetensorsFile(path)


@pytest.mark.parametrize("filler", [b"[],", b"{},", b'"\\u0061",', b"1e9,"])
def test_a_large_header_costs_a_bounded_multiple_of_its_size(filler, tmp_path):
    data = b'{"w":[' + filler * ((1 << 20) // len(filler)) + b"0]}"
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(data)) + data)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            SafetensorsFile(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # An empty list is 3 bytes of JSON and 56 bytes of Python, and stands in two lists of 8.
    assert peak <= 64 * len(data)


def test_a_header_beyond_the_cap_is_not_read(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", MAX_HEADER_BYTES + 1))
    os.truncate(path, MAX_HEADER_BYTES + 100)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="header length"):
            SafetensorsFile(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_message_of_every_character_that_could_mark_it_is_refused(folder):
    marks = (mark + step for mark in escaping._MARKS for step in (0, 1))
    text = "".join(map(chr, marks)) + "<s>"
    with pytest.raises(CheckpointError, match="told apart"):
        ChatTemplate.open(folder).encode(
            [{"role": "user", "content": text}], Tokenizer.open(folder)
        )


def test_text_of_a_model_does_not_steer_the_terminal(monkeypatch, capsys):
    text = "a\x1b]0;title\x07b\x9bc\td\n"
    output = Output()
    output.write(text)
    assert capsys.readouterr().out == text
    monkeypatch.setattr(output._stdout, "isatty", lambda: True)
    output.write(text)
    assert capsys.readouterr().out == "a\ufffd]0;title\ufffdb\ufffdc\td\n"


def test_messages_show_no_control_characters_and_are_cut():
    error = FormatError("a\x1b[31m\u202e\ud800", got="x" * 100_000, wanted="1\n2", do="\x07")
    check_message(error)
    assert error.what == r"a\x1b[31m\u202e\ud800"
    assert error.wanted == "1\n2"
    assert error.got is not None
    assert error.got.endswith("... and 92000 characters more")
