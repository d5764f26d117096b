"""Claims about artifacts: a manifest is untrusted input, and a changed file is found."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit import file_hashes
from edgekit.artifact import MANIFEST_NAME, Artifact, Manifest
from edgekit.errors import ArtifactError


@pytest.fixture
def copy(tiny_artifacts, tmp_path):
    return shutil.copytree(tiny_artifacts["mlx-int4"].path, tmp_path / "a")


def edit(folder, change) -> None:
    path = folder / MANIFEST_NAME
    data = json.loads(path.read_text())
    change(data)
    del data["manifest_sha256"]
    path.write_text(json.dumps(data))


def test_a_manifest_is_its_json_and_back(tiny_artifacts):
    for artifact in tiny_artifacts.values():
        text = (artifact.path / MANIFEST_NAME).read_text(encoding="utf-8")
        assert Manifest.from_json(text, where="m").to_json() == text
        assert artifact.manifest.to_json() == text


def test_an_artifact_says_what_it_is(tiny_artifacts):
    artifact = tiny_artifacts["onnx-int4"]
    assert artifact.name == "tiny onnx int4-g32"
    assert artifact.is_quantized
    floats = replace(
        artifact.manifest,
        tensors=tuple(replace(t, sha256=None) for t in artifact.manifest.tensors),
    )
    assert not Artifact(artifact.path, floats).is_quantized
    on_disk = [p for p in artifact.path.rglob("*") if p.is_file() and p.name != MANIFEST_NAME]
    assert artifact.n_bytes == sum(path.stat().st_size for path in on_disk)
    artifact.check_files()


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "null", '"x"', "[" * 100_000, "{}"])
def test_a_damaged_manifest_is_refused_with_its_place(copy, text):
    (copy / MANIFEST_NAME).write_text(text)
    with pytest.raises(ArtifactError, match=r"manifest\.json is not a manifest") as caught:
        Artifact.open(copy)
    assert caught.value.do == "Export the model again."


def test_a_manifest_that_is_no_text_is_refused(copy):
    (copy / MANIFEST_NAME).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArtifactError, match="is not an artifact"):
        Artifact.open(copy)


def test_a_folder_without_a_manifest_says_how_to_make_one(tmp_path):
    with pytest.raises(ArtifactError, match="edgekit export"):
        Artifact.open(tmp_path)
    with pytest.raises(ArtifactError, match="edgekit export"):
        Artifact.open(tmp_path / "nowhere")


def test_a_manifest_of_a_later_version_is_refused_by_number(copy):
    edit(copy, lambda data: data.update(schema_version=3))
    with pytest.raises(ArtifactError, match=r"manifest version; got 3; wanted 2"):
        Artifact.open(copy)


@pytest.mark.parametrize("path", ["../secret", "/etc/hostname", "a/../../secret", "link/secret"])
def test_a_file_outside_the_folder_is_refused(copy, path):
    (copy.parent / "secret").write_text("s")
    (copy / "a").mkdir()
    (copy / "link").symlink_to(copy.parent)
    edit(copy, lambda data: data["files"][0].update(path=path))
    with pytest.raises(ArtifactError, match="file outside the artifact"):
        Artifact.open(copy)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda d: d["files"][0].update(path=7), "files[0].path: got int 7, wanted text"),
        (lambda d: d["files"][0].update(path="a\0b"), "files entry"),
        (
            lambda d: d["files"][0].update(n_bytes="9"),
            "files[0].n_bytes: got str '9', wanted a whole number",
        ),
        (lambda d: d["files"][0].update(colour="red"), "files[0].colour: got an unknown key"),
        (lambda d: d.update(scheme="int4\x1b[2J"), "name 'int4"),
        (lambda d: d.update(scheme=4), "scheme: got int 4"),
        (lambda d: d.update(decoder=[]), "decoder: got list []"),
        (lambda d: d.update(context_length=-1), "a count of -1"),
        (lambda d: d.update(context_length=True), "context_length: got bool True"),
        (lambda d: d.update(source_sha256=None), "source_sha256: got null"),
        (lambda d: d["tensors"][0].update(shape=[1.5]), "tensors[0].shape[0]: got float 1.5"),
        (lambda d: d["tensors"][0].update(shape=7), "tensors[0].shape: got int 7, wanted a list"),
        (lambda d: d["tensors"][0].update(encoding="fp9"), "fp9"),
        (
            lambda d: d.update(format="tflite"),
            "format: got str 'tflite', wanted onnx | mlx | coreml | gguf",
        ),
        (lambda d: d.pop("files"), "files: got nothing"),
        (lambda d: d.update(extra=1), "extra: got an unknown key"),
    ],
)
def test_a_field_of_the_wrong_kind_is_refused(copy, change, named):
    edit(copy, change)
    with pytest.raises(ArtifactError, match="is not a manifest") as caught:
        Artifact.open(copy)
    assert named in caught.value.got


@given(
    key=st.sampled_from(["files", "tensors", "decoder", "scheme", "format", "n_parameters"]),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
        ),
        max_leaves=6,
    ),
)
def test_no_value_in_a_manifest_makes_another_error(tiny_artifacts, key, value):
    data = json.loads(tiny_artifacts["mlx-int4"].manifest.to_json())
    data[key] = value
    try:
        Manifest.from_json(json.dumps(data), where="m")
    except ArtifactError as error:
        assert error.do


def test_a_file_that_is_gone_or_has_another_size_is_named(copy):
    entry = Artifact.open(copy).manifest.files[0]
    os.truncate(copy / entry.path, entry.n_bytes - 1)
    with pytest.raises(ArtifactError, match=f"size; got {entry.n_bytes - 1}"):
        Artifact.open(copy)
    (copy / entry.path).unlink()
    with pytest.raises(ArtifactError, match="got no such file"):
        Artifact.open(copy)


def test_a_manifest_of_which_a_byte_changed_is_refused(copy):
    text = (copy / MANIFEST_NAME).read_text()
    changes = (("norm stays float", "norm stays fl0at"), ("\n  ", "\n\t "), (": [", ":  ["))
    for old, new in (*changes, ('"manifest_sha256": "', '"manifest_sha256": "0')):
        assert old in text
        (copy / MANIFEST_NAME).write_text(text.replace(old, new, 1))
        with pytest.raises(ArtifactError, match="was changed since the export") as caught:
            Artifact.open(copy)
        assert caught.value.do == "Export the model again."
    (copy / MANIFEST_NAME).write_text(text)
    Artifact.open(copy)


def test_a_manifest_of_an_earlier_version_has_no_seal(copy):
    edit(copy, lambda data: None)
    Artifact.open(copy).check_files()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda d: d.update(model_name="n" * 256), "of 256 characters"),
        (lambda d: d["tensors"][0].update(name="n" * 256), "of 256 characters"),
        (lambda d: d.update(notes=["n" * 4097]), "a text of 4097 characters, at most 4096"),
        (lambda d: d.update(notes=["n"] * 513), "513 notes"),
        (lambda d: d.update(source="n" * (8 << 20)), "a text of 8388608 characters"),
        (lambda d: d.update(settings={"n" * 5000: [{"a": 1}]}), "a text of 5000 characters"),
        (lambda d: d.update(settings={"a": [{"b": "n" * 5000}]}), "a text of 5000 characters"),
        (lambda d: d.update(source_sha256="0" * 63), "sha256 '000"),
        (lambda d: d["files"][0].update(sha256="A" * 64), "sha256 'AAA"),
    ],
)
def test_texts_that_edgekit_never_writes_are_refused(copy, change, named):
    edit(copy, change)
    with pytest.raises(ArtifactError, match="is not a manifest") as caught:
        Artifact.open(copy)
    assert named in caught.value.got
    assert len(str(caught.value)) < 1000


def pipe(path):
    os.mkfifo(path)


def link(path):
    path.symlink_to("/etc/passwd")


def lost_link(path):
    path.symlink_to("nowhere")


def file(path):
    path.write_text("x")


def folder(path):
    path.mkdir()


def folder_of_a_file(name):
    return lambda path: (path.mkdir(), file(path / name))


READ = [
    ("chat_template.jinja", file),
    ("CHAT_TEMPLATE.jinja", file),
    ("added_tokens.json", file),
    ("tokenizer.model", file),
    ("merges.txt", file),
    ("merges.txt", pipe),
    ("vocab.json", link),
    ("vocab.json", lost_link),
    ("vocab.txt", file),
    ("preprocessor_config.json", file),
    ("model-extra.safetensors", file),
    ("modeling_x.py", file),
    ("x.onnx", file),
    ("model.mlmodelc", folder),
    ("additional_chat_templates", folder),
    ("additional_chat_templates", folder_of_a_file("tool_use.jinja")),
    ("anything", pipe),
    (".DS_Store", pipe),
]
UNREAD = [
    ("README.md", file),
    ("LICENSE", file),
    ("notes.txt", file),
    ("report.json", file),
    ("demo.py", file),
    (".github", folder),
    ("README", link),
    (".gitignore", link),
]


@pytest.mark.parametrize(("name", "make"), READ)
def test_what_a_program_might_read_and_is_not_listed_is_refused_at_a_load(copy, name, make):
    make(copy / name)
    artifact = Artifact.open(copy)
    for check in (artifact.check_unchanged, artifact.check_files):
        with pytest.raises(ArtifactError, match="does not list") as caught:
            check()
        assert caught.value.got == name + ("/tool_use.jinja" if "/" in caught.value.got else "")


@pytest.mark.parametrize(("name", "make"), UNREAD)
def test_what_nothing_reads_is_found_by_verify_only(copy, name, make):
    make(copy / name)
    artifact = Artifact.open(copy)
    artifact.check_unchanged()
    with pytest.raises(ArtifactError, match="does not list") as caught:
        artifact.check_files()
    assert caught.value.got == name


def test_a_file_in_a_package_that_is_not_listed_is_refused_whatever_its_name(
    tiny_artifacts, tmp_path
):
    folder = shutil.copytree(tiny_artifacts["coreml-int4"].path, tmp_path / "c")
    inside = folder / "model.mlpackage" / "Data" / "com.apple.CoreML" / "weights"
    file(inside / "README")
    with pytest.raises(ArtifactError, match="does not list"):
        Artifact.open(folder).check_unchanged()


def test_what_systems_keep_for_themselves_is_nobodys_fault(tiny_artifacts, tmp_path):
    folder = shutil.copytree(tiny_artifacts["coreml-int4"].path, tmp_path / "c")
    for place in (folder, folder / "model.mlpackage", folder / "model.mlpackage" / "Data"):
        for name in (".DS_Store", "._config.json", "Thumbs.db", "desktop.ini", ".localized"):
            file(place / name)
    file(folder / ".gitattributes")
    for name in (".git", ".cache"):
        folder_of_a_file("config.json")(folder / name)
    artifact = Artifact.open(folder)
    artifact.check_unchanged()
    artifact.check_files()


@pytest.mark.parametrize("make", [pipe, link, lost_link, lambda p: p.mkdir()])
def test_a_listed_file_that_is_no_plain_file_is_refused_without_waiting(copy, make):
    artifact = Artifact.open(copy)
    (copy / "tokenizer.json").unlink()
    make(copy / "tokenizer.json")
    for check in (artifact.check_unchanged, artifact.check_files, lambda: Artifact.open(copy)):
        with pytest.raises(ArtifactError, match=r"tokenizer\.json"):
            check()


def test_a_changed_file_is_refused_at_a_load_also_after_its_hash_was_remembered(copy, monkeypatch):
    monkeypatch.setattr(file_hashes, "_SETTLED_NS", 0)
    artifact = Artifact.open(copy)
    artifact.check_unchanged()
    target = copy / "model.safetensors"
    status = target.stat()
    data = bytearray(target.read_bytes())
    data[-1] ^= 1
    target.write_bytes(data)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(ArtifactError, match="files changed since the export") as caught:
        artifact.check_unchanged()
    assert (caught.value.got, caught.value.exit_code) == ("model.safetensors", 1)


def test_a_changed_file_of_the_same_size_is_found_and_only_it(copy):
    artifact = Artifact.open(copy)
    target = copy / "model.safetensors"
    data = bytearray(target.read_bytes())
    data[-1] ^= 1
    target.write_bytes(data)
    with pytest.raises(ArtifactError) as caught:
        Artifact.open(copy).check_files()
    assert caught.value.got == "model.safetensors"
    target.unlink()
    with pytest.raises(ArtifactError, match="got no such file"):
        artifact.check_files()
