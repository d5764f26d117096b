from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.errors import CheckpointError
from edgekit.text.files import TextFiles


def test_a_folder_gives_the_files_that_it_has_and_no_other(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"a": 1}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates/tool_use.jinja").write_bytes(b"a\r\nb")
    files = TextFiles.of_folder(tmp_path)
    assert files.names() == ("additional_chat_templates/tool_use.jinja", "tokenizer.json")
    assert files.read("additional_chat_templates/tool_use.jinja", 100) == b"a\r\nb"
    assert files.read_object("tokenizer.json") == {"a": 1}
    assert files.read("merges.txt", 10) is None
    assert files.read_object("tokenizer_config.json") == {}
    assert TextFiles.of(files) is files


def test_contents_are_read_as_files_are():
    files = TextFiles.of_contents("m.gguf", {"chat_template.jinja": "é\r\n", "vocab.json": b"{}"})
    assert files.where == Path("m.gguf")
    assert files.read_text("chat_template.jinja", 10) == "é\r\n"
    assert files.path("vocab.json") == Path("m.gguf/vocab.json")
    with pytest.raises(CheckpointError, match="a size above 1 bytes"):
        files.read("vocab.json", 1)


def test_the_files_of_another_source_win(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    adapter = TextFiles.of_folder(tmp_path)
    base = TextFiles.of_contents("base", {"tokenizer.json": b"[]", "vocab.json": b"{}"})
    both = base.overlaid(adapter)
    assert both.names() == ("tokenizer.json", "vocab.json")
    assert both.read("tokenizer.json", 10) == b"{}"
    assert both.path("tokenizer.json") == tmp_path / "tokenizer.json"
    assert both.where == Path("base")


def test_damage_names_the_file(tmp_path):
    (tmp_path / "vocab.json").write_bytes(b"\xff")
    files = TextFiles.of_folder(tmp_path)
    for read in (files.read_object, lambda name: files.read_text(name, 10)):
        with pytest.raises(CheckpointError, match=r"vocab\.json"):
            read("vocab.json")
    (tmp_path / "merges.txt").symlink_to("/etc/passwd")
    with pytest.raises(CheckpointError, match="leads out of the folder"):
        TextFiles.of_folder(tmp_path)
    with pytest.raises(CheckpointError, match="leads out of the folder"):
        replace(files, sources={"merges.txt": tmp_path / "merges.txt"}).read("merges.txt", 99)
