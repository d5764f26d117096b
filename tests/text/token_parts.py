"""The parts of a tokenizer.json, as functions."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.text.token_training import byte_alphabet, byte_merges, piece_merges

Json = dict[str, Any]


def write_json(path: Path, value: Json) -> None:
    """Write a JSON file the same way everywhere."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def added(
    token_id: int, content: str, *, special: bool = True, strip: str = "", normalized: bool = False
) -> Json:
    """Describe one added token; ``strip`` holds l, r or both."""
    return {
        "id": token_id, "content": content, "single_word": False, "lstrip": "l" in strip,
        "rstrip": "r" in strip, "normalized": normalized, "special": special,
    }  # fmt: skip


def tokenizer_json(
    model: Json,
    tokens: Iterable[Json],
    *,
    normalizer: Json | None = None,
    pre: Json | None = None,
    post: Json | None = None,
    decoder: Json,
) -> Json:
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": sorted(tokens, key=lambda token: token["id"]),
        "normalizer": normalizer, "pre_tokenizer": pre, "post_processor": post,
        "decoder": decoder, "model": model,
    }  # fmt: skip


def bpe(symbols: Iterable[str], merges: list[tuple[str, str]], **options: Any) -> Json:
    order = dict.fromkeys([*symbols, *("".join(merge) for merge in merges)])
    return {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
        "ignore_merges": False, "vocab": {symbol: i for i, symbol in enumerate(order)},
        "merges": [list(merge) for merge in merges],
    } | options  # fmt: skip


def put_around(begin: str, token_id: int) -> Json:
    """Put a begin token before a text."""
    one = {"SpecialToken": {"id": begin, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [one, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [one, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {begin: {"id": begin, "ids": [token_id], "tokens": [begin]}},
    }  # fmt: skip


def config_json(tokens: Iterable[Json], **values: Any) -> Json:
    """Write a tokenizer_config.json as published ones are: with every added token in it."""
    table = {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in tokens}
    return {
        "added_tokens_decoder": table, "clean_up_tokenization_spaces": False,
        "model_max_length": 1000000000000000019884624838656,
    } | values  # fmt: skip


def piece_model(first: Iterable[str], last: Iterable[str] = (), n_merges: int = 420) -> Json:
    """A model of sentencepiece's kind: control tokens, bytes, merged pieces, characters."""
    merges = piece_merges(n_merges)
    letters = sorted({letter for pair in merges for part in pair for letter in part})
    symbols = [*first, *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    model = bpe(symbols, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    for name in last:
        model["vocab"].setdefault(name, len(model["vocab"]))
    return model


def replace_space() -> Json:
    return {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}


def prepend_space() -> Json:
    return {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace_space()]}  # fmt: skip


def piece_decoder(*, strip: bool) -> Json:
    steps: list[Json] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if strip:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def byte_level(**options: Any) -> Json:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True} | options  # fmt: skip


def split_bytes(pattern: str) -> Json:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}  # fmt: skip
    return {"type": "Sequence", "pretokenizers": [split, byte_level(use_regex=False)]}


def byte_model(first: Iterable[str] = (), n_merges: int = 600, **options: Any) -> Json:
    return bpe([*first, *byte_alphabet().values()], byte_merges(n_merges), **options)
