"""Added tokens have the ids, flags and roles of transformers, whichever file names them."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass, field

import pytest
from transformers import AutoTokenizer

from edgekit.errors import CheckpointError
from edgekit.text.tokenizer import Tokenizer
from tests.text.token_families import FAMILY_TOKENIZERS, write_family
from tests.text.token_parts import write_json

FLAGS = ("special", "single_word", "lstrip", "rstrip", "normalized")
OFF = dict.fromkeys(FLAGS, False)
NEW = ("<|im_start|>", "<|im_end|>", "<new>", "two words", "<pad>", "<mask>")


@dataclass
class Case:
    """Files of a folder beside tokenizer.json: what changes in the config, and other files."""

    config: dict = field(default_factory=dict)
    files: dict = field(default_factory=dict)
    drops_list: bool = False


def numbered(start, *texts, **flags):
    return {str(start + i): {"content": text, **OFF, **flags} for i, text in enumerate(texts)}


CASES = {
    "listed in the config": lambda n: Case(
        {"added_tokens_decoder": numbered(n, "<|im_start|>", "<|im_end|>", special=True)}
    ),
    "listed with a gap": lambda n: Case(
        {"added_tokens_decoder": numbered(n + 7, "<|im_end|>", special=True)}
    ),
    "listed with flags": lambda n: Case(
        {"added_tokens_decoder": numbered(n, "two words", lstrip=True, rstrip=True)}
    ),
    "in added_tokens.json": lambda n: Case(
        files={"added_tokens.json": {"<|im_start|>": n, "<|im_end|>": n + 1}}, drops_list=True
    ),
    "in added_tokens.json, special by role": lambda n: Case(
        {"eos_token": "<|im_end|>"},
        {"added_tokens.json": {"<|im_start|>": n, "<|im_end|>": n + 1}},
        drops_list=True,
    ),
    "the map wins where the config lists nothing": lambda n: Case(
        {"eos_token": "<|im_start|>"},
        {"special_tokens_map.json": {"eos_token": {"content": "<|im_end|>", "lstrip": True}}},
        drops_list=True,
    ),
    "the map does not count where the config lists them": lambda n: Case(
        {"added_tokens_decoder": numbered(n, "<|im_end|>")},
        {"special_tokens_map.json": {"eos_token": "<|im_end|>"}},
    ),
    "in the map alone": lambda n: Case(
        files={
            "special_tokens_map.json": {
                "pad_token": "<pad>", "additional_special_tokens": ["<|im_start|>", "<new>"]
            }
        },
        drops_list=True,
    ),
    "named in the config alone": lambda n: Case(
        {"pad_token": "<pad>", "image_token": "<image>", "extra_special_tokens": ["<new>"]}
    ),
    "named by name": lambda n: Case({"extra_special_tokens": {"audio_token": "<audio>"}}),
    "no role": lambda n: Case({"pad_token": None, "eos_token": None}),
    "an object as a role": lambda n: Case(
        {"eos_token": {"__type": "AddedToken", "content": "<|im_end|>", **OFF}}
    ),
}  # fmt: skip


def write(folder, family, case):
    write_family(family, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    ids = [*tokenizer["model"]["vocab"].values(), *(t["id"] for t in tokenizer["added_tokens"])]
    case = case(max(ids) + 1)
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    if case.drops_list:
        config.pop("added_tokens_decoder", None)
    own = {
        str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in tokenizer["added_tokens"]
    }
    if "added_tokens_decoder" in case.config:
        case.config["added_tokens_decoder"] = own | case.config["added_tokens_decoder"]
    write_json(folder / "tokenizer_config.json", config | case.config)
    for name, content in case.files.items():
        write_json(folder / name, content)
    return folder


def compare(folder):
    reference, tokenizer = AutoTokenizer.from_pretrained(folder), Tokenizer.open(folder)
    assert tokenizer.named_tokens == reference.special_tokens_map
    wanted = [
        {"id": i, "content": t.content} | {flag: getattr(t, flag) for flag in FLAGS}
        for i, t in sorted(reference.added_tokens_decoder.items())
    ]
    assert json.loads(tokenizer.file_text)["added_tokens"] == wanted
    text = "a <|im_start|>  <|im_end|> two words\n<pad></s><new>"
    ids = reference.encode(text)
    assert tokenizer.encode(text, allow_special=True, add_special=True) == ids
    # The artifact's file alone gives the same.
    alone = folder.parent / f"{folder.name}-alone"
    alone.mkdir()
    (alone / "tokenizer.json").write_text(tokenizer.file_text, encoding="utf-8")
    there = Tokenizer.open(alone)
    assert there.encode(text, allow_special=True, add_special=True) == ids
    assert there.decode(ids, skip_special=False) == reference.decode(ids)
    assert there.file_text == tokenizer.file_text


@pytest.mark.parametrize("family", ["llama3", "llama2", "qwen3", "gemma3"])
@pytest.mark.parametrize("name", CASES)
def test_tokens_are_added_as_in_transformers(tmp_path, family, name):
    compare(write(tmp_path / "model", family, CASES[name]))


@pytest.mark.parametrize("seed", range(6))
def test_any_mixture_of_files_gives_what_transformers_gives(tmp_path, seed):
    chance = random.Random(seed)
    for family in FAMILY_TOKENIZERS:
        folder = tmp_path / family
        compare(write(folder, family, lambda n: mixture(n, chance)))
        shutil.rmtree(folder)


def mixture(n, chance):
    names = chance.sample(NEW, 3)
    flags = {flag: chance.random() < 0.4 for flag in FLAGS}
    role = chance.choice(["eos_token", "pad_token", "sep_token", "image_token"])
    case = Case(drops_list=chance.random() < 0.6)
    if not case.drops_list and chance.random() < 0.6:
        case.config["added_tokens_decoder"] = numbered(n, *names, **flags)
    if case.drops_list and chance.random() < 0.8:
        case.files["added_tokens.json"] = {text: n + i for i, text in enumerate(names)}
    if chance.random() < 0.5:
        case.config[role] = chance.choice([*NEW, None])
    if chance.random() < 0.4:
        case.config["extra_special_tokens"] = chance.sample(NEW, 2)
    if chance.random() < 0.5:
        special = {"content": chance.choice(NEW), **flags}
        case.files["special_tokens_map.json"] = {
            "pad_token": {k: v for k, v in special.items() if k != "special"},
            "additional_special_tokens": chance.sample(NEW, 2),
        }
    return case


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("added_tokens.json", {"<a>": "7"}),
        ("added_tokens.json", {"<a>": -1}),
        ("added_tokens.json", {"<a>": True}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "<a>"}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"-1": {"content": "<a>"}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"9" * 12: {"content": "<a>"}}}),
    ],
)
def test_an_id_that_is_none_is_refused_with_its_file(tmp_path, name, content):
    write_family("llama3", tmp_path)
    write_json(tmp_path / "tokenizer_config.json", {})
    write_json(tmp_path / name, content)
    with pytest.raises(CheckpointError, match=rf"{name}: added tokens"):
        Tokenizer.open(tmp_path)


def test_what_no_file_gives_an_id_is_known(tmp_path):
    folder = write(tmp_path, "llama3", CASES["named in the config alone"])
    assert Tokenizer.open(folder).invented_tokens == {"<pad>", "<image>", "<new>"}


def test_a_token_that_does_not_get_the_id_that_a_file_states_is_known(tmp_path):
    folder = write(tmp_path, "llama3", CASES["listed with a gap"])
    tokenizer = Tokenizer.open(folder)
    given = tokenizer.added_tokens["<|im_end|>"]
    assert tokenizer.moved_tokens == {"<|im_end|>": (given + 7, given)}
