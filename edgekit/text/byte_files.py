"""Conversion of vocab.json and merges.txt (a byte-level tokenizer) to a tokenizer.json.

The two files hold the tokens and the order of merging. They do not say how text is split first;
that follows from the tokenizer's class, so only classes whose split is known are read.

Source: transformers 5.23, models/gpt2 and models/qwen2 (their tokenizer classes); tokenizers 0.23
reads merges.txt line by line and skips lines that begin with ``#version``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgekit.errors import CheckpointError
from edgekit.text.tokenizer_class import GPT2, QWEN2

_QWEN_SPLIT: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SAVE_AS_FAST: Final = (
    "Save it as tokenizer.json with transformers: "
    "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)."
)


@dataclass(frozen=True, slots=True)
class Naming:
    """What the files next to a vocabulary say about its tokens.

    Attributes:
        class_name: The tokenizer's class, as ``tokenizer_class`` gives it.
        roles: Role to text, such as ``bos_token`` to ``<s>``.
        ids: Text to id of tokens that are not in the vocabulary.
    """

    class_name: str
    roles: Mapping[str, str]
    ids: Mapping[str, int]


def convert_vocab(
    vocab: str, merges: str, path: Path, naming: Naming, config: Mapping[str, Any]
) -> str:
    """Give the tokenizer.json of a vocab.json and its merges.txt.

    Args:
        vocab: Content of vocab.json: token to id.
        merges: Content of merges.txt: two tokens a line, the first merge first.
        path: Where vocab.json is, for messages.
        naming: The tokenizer's class and its tokens.
        config: Content of tokenizer_config.json.

    Raises:
        CheckpointError: The class is another one, or a file is damaged.
    """
    class_name = naming.class_name
    if class_name not in (GPT2, QWEN2):
        raise CheckpointError(
            f"{path}: a vocabulary without tokenizer.json",
            got=f"the class {class_name}, which does not say how it splits text",
            wanted=f"{GPT2} or {QWEN2}",
            do=SAVE_AS_FAST,
        )
    try:
        tokens = json.loads(vocab)
        ids = set(tokens.values())
        if not all(type(i) is int and 0 <= i < 1 << 31 for i in ids) or len(ids) < len(tokens):
            raise ValueError("an id that is not a number, or that stands twice")
        pairs = [_pair(line) for line in _lines(merges) if not line.startswith("#version")]
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: vocabulary",
            got=str(error)[:200],
            wanted="vocab.json with token to id, and merges.txt with two tokens a line",
            do="Download the model again.",
        ) from error
    space = config.get("add_prefix_space") is True
    split: dict[str, Any] = {
        "type": "ByteLevel", "add_prefix_space": space, "trim_offsets": True,
        "use_regex": class_name == GPT2,
    }  # fmt: skip
    if class_name == QWEN2:
        pattern = {
            "type": "Split", "pattern": {"Regex": _QWEN_SPLIT}, "behavior": "Isolated",
            "invert": False,
        }  # fmt: skip
        split = {"type": "Sequence", "pretokenizers": [pattern, split]}
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
        "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False,
        "ignore_merges": False, "vocab": tokens, "merges": pairs,
    }  # fmt: skip
    built: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "NFC"} if class_name == QWEN2 else None,
        "pre_tokenizer": split,
        "post_processor": put_around(config, naming.roles, {**tokens, **naming.ids}),
        "decoder": {
            "type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True,
        },
        "model": model,
    }  # fmt: skip
    return json.dumps(built, ensure_ascii=False)


def put_around(
    config: Mapping[str, Any], roles: Mapping[str, str], tokens: Mapping[str, int]
) -> dict[str, Any] | None:
    """Give the begin and end tokens that a tokenizer without tokenizer.json adds to a text.

    Args:
        config: Content of tokenizer_config.json, which says whether they are added.
        roles: ``bos_token`` and ``eos_token``, as far as there are any.
        tokens: Text of every token to its id.

    Returns:
        A ``TemplateProcessing``; None where nothing is put there.
    """
    around = {}
    for role, key in (("bos_token", "add_bos_token"), ("eos_token", "add_eos_token")):
        if config.get(key) is True and roles.get(role) in tokens:
            around[role] = roles[role]
    if not around:
        return None

    def written(sequence: str, type_id: int) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = [{"Sequence": {"id": sequence, "type_id": type_id}}]
        if "bos_token" in around:
            parts.insert(0, {"SpecialToken": {"id": around["bos_token"], "type_id": type_id}})
        if "eos_token" in around:
            parts.append({"SpecialToken": {"id": around["eos_token"], "type_id": type_id}})
        return parts

    return {
        "type": "TemplateProcessing",
        "single": written("A", 0),
        "pair": written("A", 0) + written("B", 1),
        "special_tokens": {
            text: {"id": text, "ids": [tokens[text]], "tokens": [text]} for text in around.values()
        },
    }


def _lines(text: str) -> list[str]:
    """Cut a text at line feeds alone: a token may hold any other character."""
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def _pair(line: str) -> list[str]:
    parts = line.split(" ")
    if len(parts) != 2:
        raise ValueError(f"a line of merges.txt that is not a pair: {line[:60]!r}")
    return parts
