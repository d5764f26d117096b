"""Conversion of a sentencepiece model (tokenizer.model) to a tokenizer.json.

The file is a protobuf message: the pieces with their scores, how it was trained, and how text is
normalized. edgekit reads models of the kind that Llama 2 and Gemma have: byte-pair merges, unknown
characters written as bytes, text not normalized. Others (unigram, a table of characters) are
refused, because the tokenizers library would give other ids for some texts.

Source: sentencepiece, src/sentencepiece_model.proto (fields, default values); transformers 5.23,
convert_slow_tokenizer.py (which merges follow from the pieces) and models/llama.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgekit.errors import CheckpointError
from edgekit.text.byte_files import SAVE_AS_FAST, Naming, put_around
from edgekit.text.tokenizer_class import CODE_LLAMA, LLAMA

SPACE: Final = "▁"
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
_BPE: Final = 2
_MAX_PIECES: Final = 1 << 20
_MAX_PIECE_CHARS: Final = 256
_MAX_SPLIT_WORK: Final = 1 << 28  # characters copied while merges are derived
# The message fields that are read; then the sizes of fields that are not varints or bytes.
_FIXED_BYTES: Final[Mapping[int, int]] = {1: 8, 5: 4}


def llama_parts(
    config: Mapping[str, Any], class_name: str, *, has_prefix: bool = True
) -> dict[str, Any]:
    """Give normalizer, pre-tokenizer and decoder of Llama 2's tokenizers, as transformers does.

    Args:
        config: Content of tokenizer_config.json.
        class_name: The tokenizer's class.
        has_prefix: Whether a text gets a space in front, where the config does not say.
    """
    stated = config.get("add_prefix_space")
    has_prefix = stated if isinstance(stated, bool) else has_prefix
    is_legacy = class_name == LLAMA and config.get("legacy", False) is True
    scheme = ("always" if is_legacy else "first") if has_prefix else "never"
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if has_prefix or class_name == CODE_LLAMA:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": SPACE,
            "prepend_scheme": scheme,
            "split": False,
        },
        "decoder": {"type": "Sequence", "decoders": decoders},
    }


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """The content of a tokenizer.model.

    Attributes:
        pieces: Text and type of each piece; the index is its id.
        is_bpe: Whether pieces are merged in pairs.
        has_bytes: Whether unknown characters are written as bytes.
        is_normalized: Whether characters are replaced or white space is removed.
        has_prefix: Whether a text gets a space in front.
    """

    pieces: tuple[tuple[str, int], ...]
    is_bpe: bool
    has_bytes: bool
    is_normalized: bool
    has_prefix: bool


def convert_sentencepiece(
    data: bytes, path: Path, naming: Naming, config: Mapping[str, Any]
) -> tuple[str, tuple[Mapping[str, Any], ...]]:
    """Give the tokenizer.json of a tokenizer.model.

    Args:
        data: Content of the file.
        path: Where the file is, for messages.
        naming: The tokenizer's class and its tokens. LlamaTokenizer puts a space in front of a
            text unless the config says otherwise; for other classes the file says it.
        config: Content of tokenizer_config.json.

    Returns:
        The tokenizer.json; and the tokens that are matched before text is split, as the
        tokenizers library takes them.

    Raises:
        CheckpointError: The file is damaged, or a model of another kind.
    """
    try:
        model = read_sentencepiece(data)
    except (ValueError, IndexError, struct.error) as error:
        raise CheckpointError(
            f"{path}: sentencepiece model",
            got=str(error)[:200],
            wanted="a tokenizer.model of sentencepiece",
            do="Download the model again.",
        ) from error
    faults = [
        what
        for is_there, what in (
            (not model.is_bpe, "unigram pieces"),
            (not model.has_bytes, "unknown characters without bytes"),
            (model.is_normalized, "text that is normalized first"),
        )
        if is_there
    ]
    if faults:
        raise CheckpointError(
            f"{path}: a kind of sentencepiece model that edgekit does not read",
            got=", ".join(faults),
            wanted="byte-pair merges, unknown characters as bytes, text that is not normalized",
            do=SAVE_AS_FAST,
        )
    vocab = {text: i for i, (text, _) in enumerate(model.pieces)}
    unknown = next((text for text, kind in model.pieces if kind == _UNKNOWN), None)
    built = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        **llama_parts(config, LLAMA, has_prefix=model.has_prefix or naming.class_name == LLAMA),
        "post_processor": put_around(config, naming.roles, {**vocab, **naming.ids}),
        "model": {
            "type": "BPE", "dropout": None, "unk_token": unknown,
            "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True,
            "byte_fallback": True, "ignore_merges": False, "vocab": vocab,
            "merges": make_merges(vocab),
        },
    }  # fmt: skip
    added = tuple(
        {"content": text, "normalized": False, "special": kind == _CONTROL}
        for text, kind in model.pieces
        if kind in (_CONTROL, _USER_DEFINED)
    )
    return json.dumps(built, ensure_ascii=False), added


def make_merges(vocab: Mapping[str, int]) -> list[list[str]]:
    """Derive the merges of a sentencepiece vocabulary: every way to cut a piece in two pieces.

    A piece of a lower id is merged first. Of one piece, the cut with the shorter left part comes
    first, as in transformers.
    """
    found: list[tuple[int, int, int, int, int, str, str]] = []
    for piece, piece_id in vocab.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocab and right in vocab:
                key = (piece_id, len(left), len(right), vocab[left], vocab[right])
                found.append((*key, left, right))
    return [[left, right] for *_, left, right in sorted(found)]


def read_sentencepiece(data: bytes) -> SentencePieceModel:
    """Read the message.

    Raises:
        ValueError: It is cut off, or its fields are not those of sentencepiece.
        IndexError: It is cut off.
        struct.error: It is cut off.
    """
    pieces: list[tuple[str, int]] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for number, value in _fields(data):
        if number == 1:
            pieces.append(_piece(value))
            if len(pieces) > _MAX_PIECES:
                raise ValueError(f"more than {_MAX_PIECES} pieces")
        elif number == 2:
            trainer = dict(_fields(_bytes(value)))
        elif number == 3:
            normalizer = dict(_fields(_bytes(value)))
    if sum(len(text) ** 2 for text, _ in pieces) > _MAX_SPLIT_WORK:
        raise ValueError("pieces that are too long")
    if not pieces or len({text for text, _ in pieces}) < len(pieces):
        raise ValueError("no pieces, or a piece that stands twice")
    return SentencePieceModel(
        pieces=tuple(pieces),
        is_bpe=trainer.get(3, 1) == _BPE,
        has_bytes=trainer.get(35, 0) == 1,
        is_normalized=bool(normalizer.get(2)) or normalizer.get(4, 1) == 1,
        has_prefix=normalizer.get(3, 1) == 1,
    )


def _piece(value: Any) -> tuple[str, int]:
    fields = dict(_fields(_bytes(value)))
    text, kind = _bytes(fields.get(1, b"")).decode("utf-8"), fields.get(3, _NORMAL)
    if not text or len(text) > _MAX_PIECE_CHARS or not isinstance(kind, int):
        raise ValueError("a piece without text, too long, or without a type")
    return text, kind


def _bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number where a message is expected")  # noqa: TRY004 - one kind of fault
    return value


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Give field number and value of a protobuf message: an int, or bytes."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire == 2:
            n_bytes, position = _varint(data, position)
        elif wire in _FIXED_BYTES:
            n_bytes = _FIXED_BYTES[wire]
        else:
            raise ValueError(f"a field of type {wire}")
        if position + n_bytes > len(data):
            raise ValueError("the file is cut off")
        yield number, data[position : position + n_bytes]
        position += n_bytes


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number that is too long")
