"""Write the goldens that edgekit's tokenizers and chat templates are compared with.

    PYTHONPATH=. python scripts/golden_tokenizers.py            every family of the tests
    PYTHONPATH=. python scripts/golden_tokenizers.py qwen3      some of them

Needs the dev extra. transformers reads the small tokenizers of tests/text/token_families.py;
token ids and prompts go to tests/golden/tokenizers/NAME.json. edgekit itself is not used.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import transformers
from transformers.utils.chat_template_utils import mark_control_tokens

from tests.text.token_families import FAMILY_TOKENIZERS, write_family
from tests.text.token_texts import CHATS, TEXTS, forged_chats, forged_texts

OUT: Final = Path(__file__).resolve().parent.parent / "tests" / "golden" / "tokenizers"
# What transformers itself puts around names that stand in messages.
_MARKS: Final = re.compile("([\U000f0000\U000f0001])")


def main(names: list[str]) -> None:
    """Write the goldens of some families, or of all."""
    OUT.mkdir(parents=True, exist_ok=True)
    for name in names or FAMILY_TOKENIZERS:
        with tempfile.TemporaryDirectory() as folder:
            golden = make_golden(name, Path(folder))
        text = json.dumps(golden, ensure_ascii=False, indent=1) + "\n"
        (OUT / f"{name}.json").write_text(text, encoding="utf-8")
        print(f"{name}: {len(golden['texts'])} texts, {len(golden['chats'])} chats, {len(text)} B")


def make_golden(name: str, parent: Path) -> dict[str, Any]:
    """Ask transformers about every text and chat."""
    folder = write_family(name, parent / name)
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    control = list(reference._get_control_tokens(reference.chat_template))
    return {
        "transformers": transformers.__version__,
        "tokenizer_class": type(reference).__name__,
        "sha256": folder_sha256(folder),
        "control": control,
        "special": list(reference.all_special_tokens),
        "texts": {key: _text(reference, text) for key, text in TEXTS.items()},
        "forged_texts": {
            text: _ids(reference.encode(text, add_special_tokens=False, split_special_tokens=True))
            for text in forged_texts(list(reference.all_special_tokens))
        },
        "chats": {key: _chat(reference, chat) for key, chat in CHATS.items()},
        "forged_chats": {
            key: _forged(reference, _strict(folder, control), control, chat)
            for key, chat in forged_chats(control).items()
        },
    }


def folder_sha256(folder: Path) -> str:
    """Hash what the golden depends on."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        digest.update(path.name.encode() + b"\n" + path.read_bytes())
    return digest.hexdigest()


def _text(reference: Any, text: str) -> dict[str, Any]:
    ids = reference.encode(text, add_special_tokens=False)
    around = reference.encode(text)
    golden: dict[str, Any] = {"ids": _ids(ids), "around": _ids(around)}
    if reference.decode(ids) != text:
        golden["decoded"] = reference.decode(ids)
    return golden


def _chat(reference: Any, chat: dict[str, Any]) -> dict[str, Any]:
    arguments = _arguments(chat)
    try:
        text = reference.apply_chat_template(tokenize=False, **arguments)
    except Exception as error:  # noqa: BLE001 - whatever a template raises
        return {"refused": f"{type(error).__name__}: {error}"}
    ids = reference.apply_chat_template(tokenize=True, return_dict=False, **arguments)
    golden = {"text": text, "ids": _ids(ids)}
    names = [tool["function"]["name"] for tool in chat["tools"]]
    return golden | ({"lacks_tools": True} if any(n not in text for n in names) else {})


def _forged(
    reference: Any, strict: Any, control: list[str], chat: dict[str, Any]
) -> dict[str, Any]:
    """Give the ids of a chat whose messages hold names of control tokens.

    The text between two control tokens of the template is encoded in one piece with
    ``split_special_tokens=True`` by a tokenizer that calls all of them special.
    """
    golden = _chat(reference, chat)
    if "refused" in golden:
        return golden
    one = re.compile("|".join(map(re.escape, sorted(control, key=len, reverse=True))))
    marked = {**chat, "messages": [], "tools": mark_control_tokens(chat["tools"], one)}
    marked["messages"] = mark_control_tokens(chat["messages"], one)
    text = reference.apply_chat_template(tokenize=False, **_arguments(marked))
    ids: list[int] = []
    piece, is_first, strips = "", True, False
    # A template that writes Python's repr escapes the marks; transformers itself is lost then.
    is_escaped = r"\U000f0000" in text
    text = text.replace(r"\U000f0000", "\U000f0000").replace(r"\U000f0001", "\U000f0001")
    depth = 0
    for part in _MARKS.split(text):
        if _MARKS.fullmatch(part):
            depth = 1 - depth
            continue
        if depth:
            piece += part
            continue
        done = 0
        for match in one.finditer(part):
            piece += part[done : match.start()]
            ids += _plain(strict, piece, is_first=is_first, strips=strips)
            ids.append(reference.convert_tokens_to_ids(match[0]))
            piece, is_first, done = "", False, match.end()
            strips = reference.added_tokens_decoder[ids[-1]].rstrip
        piece += part[done:]
    ids += _plain(strict, piece, is_first=is_first, strips=strips)
    sanitized = reference.apply_chat_template(
        tokenize=True, return_dict=False, sanitize_control_tokens=True, **_arguments(chat)
    )
    table = {reference.convert_tokens_to_ids(name) for name in control}
    kept = [i for i in sanitized if i in table]
    if kept != [i for i in ids if i in table] and not is_escaped:
        raise AssertionError(f"sanitize_control_tokens keeps other control tokens: {golden}")
    return golden | {"ids": _ids(ids), "as_sanitized": sanitized == ids}


def _plain(strict: Any, piece: str, *, is_first: bool, strips: bool) -> list[int]:
    """Encode a piece of text in which nothing is a control token."""
    if strips:
        piece = piece.lstrip()
    options = {"add_special_tokens": False, "split_special_tokens": True}
    scheme = getattr(strict.backend_tokenizer.pre_tokenizer, "prepend_scheme", None)
    if is_first or scheme != "first" or not piece:
        return list(strict.encode(piece, **options))
    # Only the start of the whole text gets a space in front: encode behind a newline.
    newline = strict.encode("\n", **options)
    behind = strict.encode("\n" + piece, **options)
    if behind[: len(newline)] != newline:
        raise AssertionError("the newline was merged with the text behind it")
    return list(behind[len(newline) :])


def _strict(folder: Path, control: list[str]) -> Any:
    """Load the tokenizer with every control token called special."""
    other = folder.with_name(f"{folder.name}-strict")
    shutil.copytree(folder, other, dirs_exist_ok=True)
    tokenizer = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    config = json.loads((other / "tokenizer_config.json").read_text(encoding="utf-8"))
    for token in (*tokenizer["added_tokens"], *config["added_tokens_decoder"].values()):
        token["special"] |= token["content"] in control
    (other / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (other / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return transformers.AutoTokenizer.from_pretrained(other)


def _arguments(chat: dict[str, Any]) -> dict[str, Any]:
    return {
        "conversation": chat["messages"],
        "tools": chat["tools"] or None,
        "add_generation_prompt": chat["add_generation_prompt"],
    }


def _ids(ids: list[int]) -> str:
    return " ".join(map(str, ids))


if __name__ == "__main__":
    main(sys.argv[1:])
