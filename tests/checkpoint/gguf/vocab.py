"""Vocabularies as llama.cpp's converter writes them, and the encoders that they come from.

The byte-level encoder here follows llama.cpp: its expressions (where it had to rewrite the original
one), cut after cut with the ``regex`` package, then merges by rank. It shares no code with edgekit
or with the tokenizers library.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import regex
import sentencepiece

_LETTERS = [chr(b) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174 else "" for b in range(256)]
_FREE = iter(range(256, 512))
LETTERS = [letter or chr(next(_FREE)) for letter in _LETTERS]

TRAINING_TEXT = (
    "the cat and the dog sat in the sun and then the rain came, so they're in the house; it isn't "
    "the 1st of 12 days or 2026, it's THE end? naïve café привет мир 中文 한국어 हिन्दी x == 10:\n"
    "    return   y  # don't\n\n\tnow 1 22 333 4444 they'll SAY \"we've\" (and so on) ... !!! \r\n"
) * 3

# From src/llama-vocab.cpp: what each name cuts by, in llama.cpp's own spelling.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_TAIL = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_CL100K = (
    _TAIL + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_SINGLE = _CL100K.replace("{1,3}", "")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + _TAIL + "?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + _TAIL + "?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN35 = (
    _TAIL + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")
_FALCON = (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")
CUTS: dict[str, tuple[str, ...]] = {
    "default": _DEFAULT,
    "gpt-2": (_GPT2,),
    "olmo": (_GPT2,),
    "exaone4": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "starcoder": (r"\p{N}", _GPT2),
    "refact": (r"\p{N}", _GPT2),
    "llama-bpe": (_CL100K,),
    "falcon3": (_CL100K,),
    "dbrx": (_CL100K,),
    "qwen2": (_SINGLE,),
    "deepseek-r1-qwen": (_SINGLE,),
    "qwen35": (_QWEN35,),
    "tekken": (_TEKKEN,),
    "gpt-4o": (_O200K,),
    "deepseek-v3": _DEEPSEEK3,
    "hunyuan-dense": _DEEPSEEK3,
    "deepseek-coder": _DEEPSEEK_CODER,
    "falcon": _FALCON,
}


def spell(text: str) -> str:
    """Write the bytes of a text with GPT-2's letters."""
    return "".join(LETTERS[byte] for byte in text.encode())


def cut(text: str, expressions: Iterable[str]) -> list[str]:
    """Cut by each expression in turn; matches and what lies between them are pieces."""
    pieces = [text]
    for expression in expressions:
        made = []
        for piece in pieces:
            at = 0
            for match in regex.finditer(expression, piece):
                made += [piece[at : match.start()], match[0]]
                at = match.end()
            made.append(piece[at:])
        pieces = [piece for piece in made if piece]
    return pieces


def encode_byte_level(
    text: str,
    tokens: list[str],
    merges: list[tuple[str, str]],
    pre: str,
    *,
    ignores_merges: bool = False,
) -> list[int]:
    """Give the ids as llama.cpp does: pieces, then the best pair first."""
    ids, ranks = {t: i for i, t in enumerate(tokens)}, {m: i for i, m in enumerate(merges)}
    out = []
    for piece in cut(text, CUTS[pre]):
        word = spell(piece)
        symbols = [word] if ignores_merges and word in ids else list(word)
        while len(symbols) > 1:
            pairs = [(ranks.get(p, 1 << 30), i) for i, p in enumerate(pairwise(symbols))]
            rank, at = min(pairs)
            if rank == 1 << 30:
                break
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        out += [ids[symbol] for symbol in symbols]
    return out


@cache
def byte_level_vocabulary(n_merges: int = 120) -> tuple[list[str], list[tuple[str, str]]]:
    """Train a small byte-level BPE: tokens and merges, three control tokens in front."""
    words = [list(spell(piece)) for piece in cut(TRAINING_TEXT, (_GPT2,))]
    tokens, merges = ["<|bos|>", "<|im_end|>", "<|pad|>", *LETTERS], []
    for _ in range(n_merges):
        counts: dict[tuple[str, str], int] = {}
        for word in words:
            for pair in pairwise(word):
                counts[pair] = counts.get(pair, 0) + 1
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        tokens.append("".join(best))
        for word in words:
            at = 0
            while at < len(word) - 1:
                if (word[at], word[at + 1]) == best:
                    word[at : at + 2] = ["".join(best)]
                at += 1
    return tokens, merges


@cache
def sentencepiece_model(**options: Any) -> sentencepiece.SentencePieceProcessor:
    """Train a small SentencePiece BPE with bytes for what it has not seen."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TRAINING_TEXT.splitlines() * 4),
        model_writer=model,
        **{
            "vocab_size": 460, "model_type": "bpe", "byte_fallback": True,
            "character_coverage": 0.99, "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False, "split_digits": True,
            "allow_whitespace_only_pieces": True, "minloglevel": 2, **options,
        },
    )  # fmt: skip
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(model.getvalue())
    return processor


def sentencepiece_arrays(
    processor: sentencepiece.SentencePieceProcessor,
) -> tuple[list[str], list[float], list[int]]:
    """Give pieces, scores and types as the converter's ``_create_vocab_sentencepiece`` does."""
    tokens, scores, types = [], [], []
    for i in range(processor.vocab_size()):
        kind = gguf.TokenType.NORMAL
        if processor.IsUnknown(i):
            kind = gguf.TokenType.UNKNOWN
        elif processor.IsControl(i):
            kind = gguf.TokenType.CONTROL
        elif processor.IsUnused(i):
            kind = gguf.TokenType.UNUSED
        elif processor.IsByte(i):
            kind = gguf.TokenType.BYTE
        tokens.append(processor.IdToPiece(i))
        scores.append(processor.GetScore(i))
        types.append(int(kind))
    return tokens, scores, types


def write_vocabulary(path: Path, architecture: str = "llama", **keys: Any) -> Path:
    """Write a file of metadata alone; ``keys`` are those after ``tokenizer.ggml.``."""
    writer = gguf.GGUFWriter(str(path), architecture)
    for key, value in keys.items():
        if value is None:
            continue
        name = f"tokenizer.{key}" if key.startswith("chat_template") else f"tokenizer.ggml.{key}"
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_array(name, list(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path
