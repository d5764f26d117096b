"""A folder whose only tokenizer is Mistral's tekken.json gives the ids of mistral-common.

The goldens come from scripts/golden_real_tokenizers.py, which compares the real vocabularies too.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.integrations.mistral.tokenizer import MistralConverter

import edgekit
from edgekit.errors import CheckpointError
from edgekit.hub.download import download
from edgekit.text.chat import ChatTemplate
from edgekit.text.tekken import convert_tekken
from edgekit.text.tokenizer import Tokenizer
from tests.builders import write_tiny_checkpoint
from tests.hub.hub_case import OWNER
from tests.text.tekken_file import write_tekken
from tests.text.token_families import MINISTRAL_NAMES, TEMPLATES
from tests.text.token_texts import CHATS, TEXTS, forged_chats

GOLDEN = json.loads(
    (Path(__file__).parent.parent / "golden" / "tekken.json").read_text(encoding="utf-8")
)
CASES = {"v13": (True, "ministral3"), "v3": (False, "mistral-nemo")}
# Where mistral-common changes the chat before it writes it, and templates do not.
OWN_WAYS = {
    "white space": "it strips what the assistant said",
    "parts": "it joins parts with an empty line",
    "reasoning": "it writes reasoning as [THINK]; the template takes it as a part alone",
    "wrong order": "it puts an empty question first (v3)",
    "call with text arguments": "it parses arguments given as text (v3)",
    "forged result": "it parses and writes a result anew (v3)",
}
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.fixture(scope="module", params=list(CASES))
def case(request, tmp_path_factory):
    has_list, template = CASES[request.param]
    folder = write_tekken(tmp_path_factory.mktemp("tekken"), has_list=has_list)
    text = (TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8")
    (folder / "chat_template.jinja").write_text(text, encoding="utf-8")
    return request.param, folder, Tokenizer.open(folder)


def test_the_goldens_were_made_from_this_file(case):
    name, folder, _ = case
    digest = hashlib.sha256((folder / "tekken.json").read_bytes()).hexdigest()
    assert digest == GOLDEN[name]["sha256"]


def test_texts_have_the_ids_of_mistral_common(case):
    name, _, tokenizer = case
    assert GOLDEN[name]["texts"].keys() == TEXTS.keys()
    for key, text in TEXTS.items():
        wanted = list(map(int, GOLDEN[name]["texts"][key].split()))
        assert tokenizer.encode(text, allow_special=False) == wanted, key
        assert tokenizer.decode(wanted) == text, key
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 11)


def test_chats_have_the_ids_of_mistral_common(case):
    name, folder, tokenizer = case
    template, n_compared, differing = ChatTemplate.open(folder), 0, set()
    for key, chat in {**CHATS, **forged_chats(list(MINISTRAL_NAMES[:20]))}.items():
        wanted = GOLDEN[name]["chats"][key]
        if "refused" in wanted or (name == "v3" and key == "parts"):
            continue
        messages = chat["messages"]
        if name == "v13" and messages[0]["role"] != "system":
            messages = [SYSTEM, *messages]
        n_compared += 1
        if template.encode(messages, tokenizer, chat["tools"]) != list(
            map(int, wanted["ids"].split())
        ):
            differing.add(key)
    assert n_compared >= 27
    assert differing < OWN_WAYS.keys()
    assert not {key for key in differing if key.startswith("forged") and name == "v13"}


def test_the_conversion_of_transformers_gives_the_same_ids(tmp_path):
    folder = write_tekken(tmp_path)
    theirs, ours = MistralConverter(str(folder / "tekken.json")).converted(), Tokenizer.open(folder)
    for key, text in TEXTS.items():
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, allow_special=True) == ids, key
    text = "<s>[INST]a[/INST]b</s>[THINK]<SPECIAL_38>"
    assert ours.encode(text, allow_special=True) == theirs.encode(text).ids


def test_an_artifact_carries_a_tokenizer_json(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "model", vocab_size=889)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    write_tekken(folder)
    text = (TEMPLATES / "ministral3.jinja").read_text(encoding="utf-8")
    (folder / "chat_template.jinja").write_text(text, encoding="utf-8")
    (artifact,) = edgekit.export(folder, "onnx", "int8", tmp_path / "out")
    names = {path.name for path in artifact.path.iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json"} <= names
    assert "tekken.json" not in names
    chat = forged_chats(["</s>", "[INST]"])["forged 2"]["messages"]
    wanted = ChatTemplate.open(folder).encode(chat, Tokenizer.open(folder))
    with edgekit.load(artifact) as session:
        assert session.encode_chat(chat) == wanted
        assert session.encode("a</s>") == [
            1,
            *session.tokenizer.encode("a</s>", allow_special=False),
        ]


def test_the_hub_is_asked_for_a_stand_in_only_where_the_usual_file_is_absent(hub):
    write_tekken(hub.folder)
    (hub.folder / "chat_template.json").write_text("{}")
    names = {path.name for path in download(OWNER).iterdir()}
    assert "tekken.json" not in names
    assert "chat_template.json" in names
    (hub.folder / "tokenizer.json").unlink()
    assert "tekken.json" in {path.name for path in download(OWNER).iterdir()}


SMALL = {
    "config": {"pattern": "a+", "default_vocab_size": 260, "default_num_special_tokens": 3},
    "vocab": [
        {"rank": i, "token_bytes": base64.b64encode(piece).decode()}
        for i, piece in enumerate([*(bytes([b]) for b in range(256)), b"aa"])
    ],
    "special_tokens": [{"rank": 0, "token_str": "<s>"}, {"rank": 1, "token_str": "</s>"}],
}


def test_a_worked_file():
    tokenizer = json.loads(convert_tekken(json.dumps(SMALL), Path("x")))
    assert [token["content"] for token in tokenizer["added_tokens"]] == [
        "<s>", "</s>", "<SPECIAL_2>",
    ]  # fmt: skip
    assert tokenizer["model"]["vocab"]["aa"] == 3 + 256
    assert tokenizer["model"]["merges"] == [["a", "a"]]


def changed(**keys):
    return json.dumps({**SMALL, **{k: v for k, v in keys.items() if k in SMALL}})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "[" * 100_000,
        "null",
        "{}",
        changed(config=None),
        changed(config={"pattern": 7}),
        changed(config={"pattern": "a" * 5000}),
        changed(config={"pattern": "a", "default_vocab_size": 10**9}),
        changed(config={"pattern": "a", "default_vocab_size": True}),
        changed(config={"pattern": "a", "default_num_special_tokens": 10**9}),
        changed(config={"pattern": "a", "default_num_special_tokens": 1}),
        changed(config={"pattern": "a", "default_num_special_tokens": "3"}),
        changed(vocab={}),
        changed(vocab=SMALL["vocab"][1:]),
        changed(vocab=[*SMALL["vocab"][:-1], SMALL["vocab"][0]]),
        changed(vocab=[*SMALL["vocab"][:-1], {"rank": 256, "token_bytes": "YQ=="}]),
        changed(vocab=[*SMALL["vocab"][:-1], {"rank": 256, "token_bytes": ""}]),
        changed(vocab=[*SMALL["vocab"][:-1], {"rank": 256, "token_bytes": "é"}]),
        changed(vocab=[*SMALL["vocab"][:-1], {"rank": 256, "token_bytes": 7}]),
        changed(special_tokens=[{"rank": 1, "token_str": "<s>"}]),
        changed(special_tokens=[{"rank": 0, "token_str": ""}]),
        changed(special_tokens=[{"rank": 0, "token_str": "a"}, {"rank": 1, "token_str": "a"}]),
        changed(special_tokens=[{"rank": 0, "token_str": "a"}]),
        changed(special_tokens=[{"rank": 0}]),
        changed(special_tokens=7),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, text):
    (tmp_path / "tekken.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"tekken\.json"):
        Tokenizer.open(tmp_path)


def test_a_pattern_that_is_none_is_refused(tmp_path):
    broken = {**SMALL, "config": {**SMALL["config"], "pattern": "("}}
    (tmp_path / "tekken.json").write_text(json.dumps(broken), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"tekken\.json: tokenizer"):
        Tokenizer.open(tmp_path)


@given(st.data())
def test_a_file_with_another_value_somewhere_is_read_or_refused(data):
    parsed = json.loads(json.dumps(SMALL))
    place = parsed
    while isinstance(place, dict | list) and place:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], dict | list) or data.draw(st.booleans()):
            place[key] = data.draw(st.sampled_from([None, -1, 2, 10**30, "", "a", [], {}, 1.5]))
            break
        place = place[key]
    try:
        convert_tekken(json.dumps(parsed), Path("tekken.json"))
    except CheckpointError as error:
        assert "tekken.json" in error.what
