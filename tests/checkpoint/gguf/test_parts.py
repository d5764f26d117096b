"""A model split over files is the model, whichever part is named; its text files come along."""

from __future__ import annotations

import json

import gguf
import numpy as np
import pytest

from edgekit.errors import CheckpointError, MissingFileError
from edgekit.families import open_model
from edgekit.families.inspect import inspect_model
from edgekit.pipeline.export import export
from edgekit.text.tokenizer import Tokenizer
from tests.builders import write_tiny_checkpoint
from tests.checkpoint.gguf.convert import convert
from tests.checkpoint.gguf.vocab import byte_level_vocabulary

TOKENS, MERGES = byte_level_vocabulary()
VOCABULARY = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(TOKENS) - 3),
    "tokenizer.ggml.merges": [" ".join(merge) for merge in MERGES],
    "tokenizer.chat_template": "{% for m in messages %}<|bos|>{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|bos|>{% endif %}",
}
IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


def write_model(folder, name="m.gguf", **keys):
    """Write a llama with a vocabulary in its file, alone in a folder; give its path."""
    source = write_tiny_checkpoint(folder / "source", "llama", dtype="fp16", **IDS)
    alone = folder / "alone"
    alone.mkdir(exist_ok=True)
    return convert(source, alone / name, **{**VOCABULARY, **keys})


def split(path, n=3, *, change=None):
    """Split a file as gguf-split does: the first part has all the keys."""
    reader = gguf.GGUFReader(path)
    groups = np.array_split(np.arange(len(reader.tensors)), n)
    paths = []
    for number, group in enumerate(groups):
        target = path.parent / f"{path.stem}-{number + 1:05d}-of-{n:05d}.gguf"
        writer = gguf.GGUFWriter(str(target), "llama")
        if number == 0:
            for key, field in reader.fields.items():
                if not key.startswith("GGUF.") and key != "general.architecture":
                    kind = field.types[0]
                    sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
                    writer.add_key_value(key, field.contents(), kind, sub)
        keys = {"split.no": number, "split.count": n, "split.tensors.count": len(reader.tensors)}
        for key, value in {**keys, **(change(number) if change else {})}.items():
            writer.add_uint16(key, value)
        for i in group:
            tensor = reader.tensors[i]
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        paths.append(target)
    path.unlink()
    return paths


def test_any_part_of_a_split_model_is_the_model(tmp_path):
    whole = open_model(write_model(tmp_path / "whole"))
    paths = split(write_model(tmp_path / "split"))
    sources = [open_model(path) for path in paths]
    for source in sources:
        assert source.checkpoint.name == "m"
        assert source.spec == whole.spec
        assert source.checkpoint.weights_bytes == whole.checkpoint.weights_bytes
        for name in ("embed", "layers.1.k", "final_norm"):
            np.testing.assert_array_equal(source.tensor(name).read(), whole.tensor(name).read())
        files = source.checkpoint.text_files
        assert files.sources.keys() == whole.checkpoint.text_files.sources.keys()
    assert len({source.checkpoint.sha256() for source in sources}) == 1


def test_missing_parts_are_named(tmp_path):
    paths = split(write_model(tmp_path))
    paths[1].unlink()
    with pytest.raises(MissingFileError, match=r"no m-00002-of-00003\.gguf"):
        open_model(paths[2])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda n: {"split.no": 0}, "split.no 0"),
        (lambda n: {"split.count": 4}, "split.count 4"),
        (lambda n: {"split.tensors.count": 99}, "wanted 99"),
    ],
)
def test_parts_that_are_not_what_their_names_say_are_refused(tmp_path, change, words):
    paths = split(write_model(tmp_path), change=change)
    with pytest.raises(CheckpointError, match=words):
        open_model(paths[0])


@pytest.mark.parametrize("name", ["m-00004-of-00003.gguf", "m-00000-of-00003.gguf"])
def test_a_part_number_without_sense_is_refused(tmp_path, name):
    with pytest.raises(CheckpointError, match="part"):
        open_model(write_model(tmp_path, name))


def test_one_part_of_one_is_a_file(tmp_path):
    path = write_model(tmp_path, "m-00001-of-00001.gguf", **{"split.count": 1, "split.no": 0})
    assert open_model(path).checkpoint.name == "m"


def test_a_file_alone_makes_an_artifact_that_knows_its_tokens(tmp_path):
    path = write_model(tmp_path)
    for artifact in export(path, "all", "int8", tmp_path / "out"):
        tokenizer = Tokenizer.open(artifact.path)
        assert tokenizer.named_tokens["eos_token"] == "<|im_end|>"
        assert tokenizer.encode("the 12", allow_special=False)
        config = json.loads((artifact.path / "generation_config.json").read_text())
        assert config["eos_token_id"] in (1, [1])


def test_the_files_beside_a_file_with_a_tokenizer_do_not_count(tmp_path):
    path = write_model(tmp_path)
    for name in ("tokenizer.json", "generation_config.json", "chat_template.jinja", "config.json"):
        (path.parent / name).write_text("{ of another model")
    source = open_model(path)
    assert source.spec.eos_token_ids == (1,)
    assert Tokenizer.open(source.checkpoint.text_files).token_id("<|im_end|>") == 1


def test_the_license_is_that_of_the_file(tmp_path):
    path = write_model(tmp_path, **{"general.license": "apache-2.0"})
    (path.parent / "README.md").write_text("---\nlicense: of-another-model\n---\n")
    assert inspect_model(path).license == "apache-2.0"
    assert inspect_model(write_model(tmp_path / "other")).license == ""


@pytest.mark.parametrize(
    "keys", [{"tokenizer.ggml.model": "none"}, {"tokenizer.ggml.pre": "surprise"}]
)
def test_the_files_beside_it_stand_in_where_its_own_cannot_be_read(tmp_path, keys):
    path = write_model(tmp_path, **keys)
    source = tmp_path / "source"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path.parent / name).write_bytes((source / name).read_bytes())
    model = open_model(path)
    assert Tokenizer.open(model.checkpoint.text_files).token_id("<s>") == 1
    assert any("taken from beside it: tokenizer.json" in n for n in model.checkpoint.notes)


def test_a_tokenizer_that_cannot_be_read_is_refused_with_a_way_out(tmp_path):
    path = write_model(tmp_path, **{"tokenizer.ggml.pre": "surprise"})
    with pytest.raises(CheckpointError, match="next to the file"):
        open_model(path)


def test_what_lies_beside_the_file_is_no_adapter_of_it(tmp_path):
    path = write_model(tmp_path)
    (path.parent / "adapter_model.safetensors").write_bytes(b"of another model")
    (path.parent / "adapter_config.json").write_text("{}")
    assert not any("adapter" in note for note in open_model(path).checkpoint.notes)
