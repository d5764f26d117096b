"""Token ids and prompts of every family are those of transformers.

The goldens come from scripts/golden_tokenizers.py.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path

import pytest

from edgekit.errors import CheckpointError
from edgekit.text.chat import ChatTemplate
from edgekit.text.tokenizer import StreamDecoder, Tokenizer
from tests.text.token_families import FAMILY_TOKENIZERS, write_family
from tests.text.token_texts import CHATS, TEXTS, forged_chats, forged_texts

GOLDENS = Path(__file__).parent.parent / "golden" / "tokenizers"


@cache
def golden(name):
    return json.loads((GOLDENS / f"{name}.json").read_text(encoding="utf-8"))


def ids_of(entry):
    return [int(number) for number in entry.split()]


@pytest.fixture(scope="module", params=list(FAMILY_TOKENIZERS))
def family(request, tmp_path_factory):
    folder = write_family(request.param, tmp_path_factory.mktemp("family") / request.param)
    return request.param, folder, Tokenizer.open(folder), ChatTemplate.open(folder)


def test_every_golden_belongs_to_a_family():
    assert {path.stem for path in GOLDENS.iterdir()} == set(FAMILY_TOKENIZERS)


def test_the_goldens_were_made_from_this_tokenizer(family):
    name, folder, *_ = family
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        digest.update(path.name.encode() + b"\n" + path.read_bytes())
    assert digest.hexdigest() == golden(name)["sha256"]
    assert golden(name)["texts"].keys() == TEXTS.keys()
    assert golden(name)["chats"].keys() == CHATS.keys()


def test_texts_have_the_ids_of_transformers(family):
    name, _, tokenizer, _ = family
    for key, text in TEXTS.items():
        wanted = golden(name)["texts"][key]
        ids = tokenizer.encode(text, allow_special=True)
        assert ids == ids_of(wanted["ids"]), key
        around = tokenizer.encode(text, allow_special=True, add_special=True)
        assert around == ids_of(wanted["around"]), key
        # No text of the set names a special token: nothing changes when they are forbidden.
        assert tokenizer.encode(text, allow_special=False) == ids, key


def test_ids_have_the_text_of_transformers_whole_and_streamed(family):
    name, _, tokenizer, _ = family
    for key, text in TEXTS.items():
        wanted = golden(name)["texts"][key]
        ids = ids_of(wanted["ids"])
        assert tokenizer.decode(ids, skip_special=False) == wanted.get("decoded", text), key
        stream = StreamDecoder(tokenizer, skip_special=False)
        pieces = [stream.push(i) for i in ids]
        assert "".join(pieces) + stream.finish() == wanted.get("decoded", text), key


def test_special_names_in_a_text_stay_text(family):
    name, _, tokenizer, _ = family
    names = [text for text in golden(name)["control"] if text in tokenizer.special_tokens]
    texts = forged_texts(list(golden(name)["special"]))
    assert golden(name)["forged_texts"].keys() == set(texts)
    for text in texts:
        ids = tokenizer.encode(text, allow_special=False)
        assert ids == ids_of(golden(name)["forged_texts"][text]), text
        assert not {tokenizer.special_tokens[n] for n in names} & set(ids), text


def test_chats_have_the_prompt_and_the_ids_of_transformers(family):
    name, _, tokenizer, template = family
    for key, chat in CHATS.items():
        check_chat(tokenizer, template, chat, golden(name)["chats"][key], key)


def test_control_names_in_a_chat_stay_text(family):
    name, _, tokenizer, template = family
    chats = forged_chats(golden(name)["control"])
    assert golden(name)["forged_chats"].keys() == chats.keys()
    for key, chat in chats.items():
        check_chat(tokenizer, template, chat, golden(name)["forged_chats"][key], key)


def check_chat(tokenizer, template, chat, wanted, key):
    asked = (chat["messages"], chat["tools"])
    options = {"add_generation_prompt": chat["add_generation_prompt"]}
    if "refused" in wanted:
        with pytest.raises(CheckpointError, match="chat template failed") as caught:
            template.encode(asked[0], tokenizer, asked[1], **options)
        assert caught.value.got == wanted["refused"][:300], key
        return
    assert template.render(*asked, **options) == wanted["text"], key
    if wanted.get("lacks_tools"):
        with pytest.raises(CheckpointError, match="leaves out the tools"):
            template.encode(asked[0], tokenizer, asked[1], **options)
        return
    assert template.encode(asked[0], tokenizer, asked[1], **options) == ids_of(wanted["ids"]), key
