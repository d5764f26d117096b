"""Conversion of Mistral's tekken.json to a tokenizer.json.

The file holds byte strings in order of rank and a split pattern, as tiktoken does, and control
tokens whose ids come first. The text between control tokens is merged by rank. The merges are
derived here so that the tokenizers library gives the same ids.

Source: mistral-common 1.13.1, tokens/tokenizers/tekken.py (layout, ids, old files without a list
of control tokens); the ids are compared with its own in scripts/golden_tokenizers.py.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from edgekit.errors import CheckpointError

TEKKEN_ROLES: Final[Mapping[str, str]] = {
    "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>",
}  # fmt: skip
# Files up to version 7 may omit the list; then it is this one.
_OLD_NAMES: Final = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]",
    "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
)  # fmt: skip
_MAX_TOKENS: Final = 1 << 20
_MAX_TOKEN_BYTES: Final = 1 << 10
_MAX_BYTES: Final = 8 << 20
_MAX_PATTERN: Final = 1 << 12


def convert_tekken(text: str, path: Path) -> str:
    """Give the tokenizer.json of a tekken.json.

    Args:
        text: What the file holds.
        path: Where the file is, for messages.

    Raises:
        CheckpointError: The file is damaged.
    """
    try:
        parsed = json.loads(text)
        pattern = parsed["config"]["pattern"]
        if not isinstance(pattern, str) or len(pattern) > _MAX_PATTERN:
            raise ValueError("config.pattern is not a short text")
        names = _control_names(parsed)
        ranked = _ranked_bytes(parsed, len(names))
        built = json.dumps(_tokenizer(pattern, names, ranked), ensure_ascii=False)
    except (AttributeError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: tekken tokenizer",
            got=f"{type(error).__name__}: {error}"[:200],
            wanted="a tekken.json of mistral-common",
            do="Download the model again.",
        ) from error
    return built


def _control_names(parsed: Mapping[str, Any]) -> list[str]:
    """Give the control tokens in the order of their ids, with unused ids filled."""
    listed = parsed.get("special_tokens")
    if listed is None:
        names = list(_OLD_NAMES)
    else:
        by_rank = {entry["rank"]: entry["token_str"] for entry in listed}
        if sorted(by_rank) != list(range(len(listed))):
            raise ValueError("the ranks of special_tokens are not 0, 1, 2, ...")
        names = [by_rank[rank] for rank in range(len(listed))]
    n_wanted = parsed["config"].get("default_num_special_tokens", len(names))
    if type(n_wanted) is not int or not len(names) <= n_wanted <= _MAX_TOKENS:
        raise ValueError(f"default_num_special_tokens is {n_wanted!r}")
    names += [f"<SPECIAL_{i}>" for i in range(len(names), n_wanted)]
    if not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
        raise ValueError("special_tokens are not different texts")
    return names


def _ranked_bytes(parsed: Mapping[str, Any], n_control: int) -> list[bytes]:
    """Give the byte strings in the order of their ranks; single bytes come first."""
    vocab = parsed["vocab"]
    size = parsed["config"].get("default_vocab_size", n_control + len(vocab))
    if type(size) is not int or not 256 <= size - n_control <= min(len(vocab), _MAX_TOKENS):
        raise ValueError(f"default_vocab_size is {size!r} for {len(vocab)} tokens")
    ranked = []
    for rank, entry in enumerate(vocab[: size - n_control]):
        piece = base64.b64decode(entry["token_bytes"], validate=True)
        if entry["rank"] != rank or not 0 < len(piece) <= _MAX_TOKEN_BYTES:
            raise ValueError(f"entry {rank} of vocab")
        ranked.append(piece)
    if sum(map(len, ranked)) > _MAX_BYTES:
        raise ValueError(f"vocab has more than {_MAX_BYTES} bytes")
    if len(set(ranked)) < len(ranked) or {bytes([b]) for b in range(256)} - set(ranked[:256]):
        raise ValueError("vocab does not begin with the 256 bytes, or repeats itself")
    return ranked


def _tokenizer(pattern: str, names: list[str], ranked: list[bytes]) -> dict[str, Any]:
    written = _byte_letters()
    pieces = ["".join(written[byte] for byte in piece) for piece in ranked]
    vocab = {name: i for i, name in enumerate(names)}
    for rank, piece in enumerate(pieces):
        if vocab.setdefault(piece, len(names) + rank) < len(names):
            raise ValueError(f"a control token and a token of text are both {piece!r}")
    byte_level = {
        "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False,
    }  # fmt: skip
    split = {
        "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False,
    }  # fmt: skip
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i, "content": name, "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False, "special": True,
            }
            for i, name in enumerate(names)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": _begin_before_text(vocab["<s>"]) if "<s>" in names else None,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            # A piece that is itself a token is not merged further, as in tiktoken.
            "ignore_merges": True, "vocab": vocab, "merges": _merges(ranked, pieces),
        },
    }  # fmt: skip


def _begin_before_text(token_id: int) -> dict[str, Any]:
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    first, second = ({"Sequence": {"id": side, "type_id": 0}} for side in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [begin, first],
        "pair": [begin, first, second],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [token_id], "tokens": ["<s>"]}},
    }


def _merges(ranked: list[bytes], pieces: list[str]) -> list[list[str]]:
    """Give all ways to merge two tokens into one, in the order of the new token's rank."""
    rank_of = {piece: rank for rank, piece in enumerate(ranked)}
    merges: list[list[str]] = []
    for piece in ranked:
        pairs = [
            (rank_of[piece[:cut]], rank_of[piece[cut:]])
            for cut in range(1, len(piece))
            if piece[:cut] in rank_of and piece[cut:] in rank_of
        ]
        merges += [[pieces[left], pieces[right]] for left, right in sorted(pairs)]
    return merges


def _byte_letters() -> list[str]:
    """Give the letter for each byte in a byte-level vocabulary (GPT-2's table)."""
    letters, n_others = [], 0
    for byte in range(256):
        if 0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or byte >= 0xAE:
            letters.append(chr(byte))
        else:
            letters.append(chr(256 + n_others))
            n_others += 1
    return letters
