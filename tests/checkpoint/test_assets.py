"""What an artifact carries beside its weights, and what it says about the end of an answer."""

from __future__ import annotations

import json

import pytest

from edgekit.checkpoint.assets import copy_assets, read_text, rewritten_assets
from edgekit.checkpoint.reader import open_checkpoint
from edgekit.errors import CheckpointError
from tests.builders import write_tiny_checkpoint


@pytest.fixture
def folder(tmp_path):
    return write_tiny_checkpoint(tmp_path / "m", "llama", eos_token_id=2)


def view_of(folder):
    with open_checkpoint(folder) as checkpoint:
        return read_text(checkpoint, 384)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_files_that_say_the_same_are_carried_byte_by_byte(folder, tmp_path):
    assert rewritten_assets(view_of(folder)) == {}
    target = tmp_path / "t"
    target.mkdir()
    names = copy_assets(view_of(folder), target)
    assert names == [
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"
    ]  # fmt: skip
    for name in names:
        assert (target / name).read_bytes() == (folder / name).read_bytes()


def test_end_tokens_come_from_both_files_each_once(folder):
    edit(folder / "config.json", eos_token_id=[2, 5])
    edit(folder / "generation_config.json", eos_token_id=7)
    assert view_of(folder).end_ids == (7, 2, 5)
    (folder / "generation_config.json").unlink()
    assert view_of(folder).end_ids == (2, 5)


def test_every_file_that_states_end_tokens_states_them_all(folder):
    edit(folder / "generation_config.json", eos_token_id=7, temperature=0.5)
    changed = rewritten_assets(view_of(folder))
    assert set(changed) == {"generation_config.json", "config.json"}
    content = json.loads(changed["generation_config.json"])
    assert (content["eos_token_id"], content["temperature"]) == ([7, 2], 0.5)
    assert json.loads(changed["config.json"])["eos_token_id"] == [7, 2]


def test_a_model_without_generation_config_gets_one(folder):
    (folder / "generation_config.json").unlink()
    assert json.loads(rewritten_assets(view_of(folder))["generation_config.json"]) == {
        "eos_token_id": [2]
    }


@pytest.mark.parametrize("value", ["</s>", [2, "x"], True, -1, 2.0, {"a": 1}])
def test_an_end_that_is_no_id_is_refused_with_its_file(folder, value):
    edit(folder / "generation_config.json", eos_token_id=value)
    with pytest.raises(CheckpointError, match=r"generation_config\.json: eos_token_id is"):
        view_of(folder)


def test_roles_of_older_files_are_in_the_config_of_the_artifact(folder):
    (folder / "special_tokens_map.json").write_text('{"eos_token": {"content": "<pad>"}}')
    changed = rewritten_assets(view_of(folder))
    assert json.loads(changed["tokenizer_config.json"])["eos_token"] == "<pad>"
    assert "special_tokens_map.json" not in changed
    listed = {"4": {"content": "[INST]"}}
    edit(folder / "tokenizer_config.json", added_tokens_decoder=listed)  # now the map is not read
    changed = rewritten_assets(view_of(folder))
    assert json.loads(changed["special_tokens_map.json"]) == {"eos_token": "</s>"}
    assert "tokenizer_config.json" not in changed
