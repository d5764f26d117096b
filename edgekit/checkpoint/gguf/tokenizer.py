"""The tokenizer, chat templates and end tokens of a GGUF file, as the files of a model folder.

A GGUF file holds the vocabulary, with scores or merges, and names for how text is prepared.
``gpt2`` is byte-level BPE, with the split that ``tokenizer.ggml.pre`` names (splits.py). ``llama``
is SentencePiece's BPE, whose merges follow from the scores. Where transformers reads a file
differently from the encoder that the model was trained with, the encoder is followed (docs/gguf.md
lists these cases).

Source: https://github.com/ggml-org/llama.cpp, conversion/base.py (what is written) and
src/llama-vocab.cpp (defaults, token types, names of end tokens); transformers 5.23,
integrations/gguf/gguf_tokenizer_mapping.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import chain
from typing import Any, Final

from edgekit.checkpoint.gguf.splits import SPLITS, Split
from edgekit.errors import CheckpointError
from edgekit.formats.gguf import GgufFile

KEY: Final = "tokenizer.ggml."
_TOKENS: Final = f"{KEY}tokens"
_TYPES: Final = f"{KEY}token_type"
_SCORES: Final = f"{KEY}scores"
_MERGES: Final = f"{KEY}merges"
TEMPLATE: Final = "tokenizer.chat_template"
_NO_TOKENIZER: Final = ("none", "no_vocab")
MAX_TOKENS: Final = 1 << 20
MAX_TOKEN_BYTES: Final = 1 << 12
_MAX_SPLIT_WORK: Final = 1 << 28  # characters copied while merges are derived from scores
ROLES: Final[Mapping[str, str]] = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
END_KEYS: Final = ("eos_token_id", "eot_token_id", "eom_token_id")
# What llama.cpp assumes where a SentencePiece file does not say.
_LLAMA_IDS: Final[Mapping[str, int]] = {
    "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0,
}  # fmt: skip
# Names of tokens that llama.cpp accepts as the end of an answer. A file often names only the end of
# a document or only the end of a turn, and models write either.
_ENDS: Final = (
    "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<turn|>",
    "<end_of_utterance>", "<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "<|tool_response>",
    "<|endoftext|>", "<|end_of_text|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "</s>", "<eos>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>", "[e~[",
)  # fmt: skip
# Tokens that end a file which a code model fills in: padding, the next repository, the next file.
# Key of the metadata that states the token -> names that are used where the key is absent.
_FILL_ENDS: Final[Mapping[str, tuple[str, ...]]] = {
    "fim_pad_token_id": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep_token_id": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep_token_id": ("<|file_sep|>",),
}
_FILL_PARTS: Final = (
    "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<\uff5cfim\u2581begin\uff5c>", "<PRE>",
    "\u2581<PRE>", "<|code_prefix|>", "<|prefix|>", "<|fim_suffix|>", "<fim-suffix>",
    "<fim_suffix>", "<\uff5cfim\u2581hole\uff5c>", "<SUF>", "\u2581<SUF>", "<|code_suffix|>",
    "<|suffix|>", "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<\uff5cfim\u2581end\uff5c>",
    "<MID>", "\u2581<MID>", "<|code_middle|>", "<|middle|>",
)  # fmt: skip
# Names of control tokens; they are control tokens whatever type a converter gave them.
CONTROL_NAMES: Final = frozenset((*_ENDS, *chain(*_FILL_ENDS.values()), *_FILL_PARTS))
# A name that does not end an answer if the vocabulary also has all of these other tokens: "<|end|>"
# ends a part of an answer in gpt-oss and Solar, and "</s>" is text in Gemma 4.
_NO_ENDS_BESIDE: Final = (
    ("<|end|>", {"<|return|>", "<|call|>"}),
    ("<|end|>", {"<|return|>", "<|calls|>"}),
    ("<|end|>", {"<|call|>", "<|flush|>"}),
    ("<|end|>", {"<|calls|>", "<|flush|>"}),
    ("</s>", {"<|tool_response>"}),
)
_SPACE: Final = "\N{LOWER ONE EIGHTH BLOCK}"
# Phi-3's special tokens take the white space after them; these are the exceptions.
_PHI3_KEEPS_SPACE: Final = ("<unk>", "<s>", "<|endoftext|>")


class TokenType(IntEnum):
    """Types of tokens; the numbers are those of ``tokenizer.ggml.token_type``."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens of a file.

    Attributes:
        texts: Text of each token, by id; no two are the same.
        types: What each is.
        roles: Key of the metadata, such as ``eos_token_id``, to the id it names.
    """

    texts: Sequence[str]
    types: Sequence[int]
    roles: Mapping[str, int]

    def ids_of(self, *types: TokenType) -> list[int]:
        """Give the ids of all tokens of some types, in order."""
        return [i for i, kind in enumerate(self.types) if kind in types]

    def special_ids(self) -> set[int]:
        """Give the ids of tokens that are not text: control tokens, and tokens that have a role.

        A padding token that is a piece of text, as in some conversions, stays text.
        """
        special = set(self.ids_of(TokenType.CONTROL, TokenType.UNKNOWN))
        for key, token_id in self.roles.items():
            if key in (*END_KEYS, "bos_token_id") or self.types[token_id] != TokenType.NORMAL:
                special.add(token_id)
        return special


def has_tokenizer(file: GgufFile) -> bool:
    """Tell whether a file holds a vocabulary."""
    model = file.metadata.get(f"{KEY}model")
    return isinstance(model, str) and model not in _NO_TOKENIZER and _TOKENS in file.metadata


def why_unreadable(file: GgufFile) -> str | None:
    """Name the kind of a tokenizer that edgekit does not read; None if it reads this one."""
    model, pre = (file.metadata.get(f"{KEY}{key}") for key in ("model", "pre"))
    if model == "llama":
        return None
    if model != "gpt2":
        return f"{KEY}model {str(model)[:40]!r}"
    if pre is None or (isinstance(pre, str) and pre in SPLITS):
        return None
    return f"{KEY}pre {str(pre)[:40]!r}"


def text_contents(file: GgufFile) -> dict[str, str]:
    """Give the tokenizer files of a model folder: name to content.

    Returns:
        tokenizer.json, tokenizer_config.json and generation_config.json, and the chat templates
        where there are some.

    Raises:
        CheckpointError: The vocabulary is of a kind that edgekit does not read, or its parts do
            not fit together.
        FormatError: A text is not UTF-8, or the vocabulary is larger than models have it.
    """
    reason = why_unreadable(file)
    if reason is not None:
        raise CheckpointError(
            f"{file.path}: tokenizer",
            got=reason,
            wanted=f"{KEY}model llama, or gpt2 with {KEY}pre one of {', '.join(SPLITS)}",
            do="Copy the tokenizer files of the original model next to the file.",
        )
    vocabulary = _read_vocabulary(file)
    is_bpe = file.metadata[f"{KEY}model"] == "gpt2"
    tokenizer = _byte_level(file, vocabulary) if is_bpe else _sentencepiece(file, vocabulary)
    roles = {
        role: vocabulary.texts[vocabulary.roles[key]]
        for role, key in ROLES.items()
        if key in vocabulary.roles and vocabulary.roles[key] in vocabulary.special_ids()
    }
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **roles,
    }
    ends = end_ids(vocabulary)
    generation: dict[str, Any] = {
        "bos_token_id": vocabulary.roles.get("bos_token_id"),
        "eos_token_id": ends[0] if len(ends) == 1 else list(ends) or None,
        "pad_token_id": vocabulary.roles.get("padding_token_id"),
    }
    return {
        "tokenizer.json": _json(tokenizer),
        "tokenizer_config.json": _json(config),
        "generation_config.json": _json({k: v for k, v in generation.items() if v is not None}),
        **_templates(file),
    }


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def _templates(file: GgufFile) -> dict[str, str]:
    """Give the chat template and the named ones, by their file names in a model folder."""
    texts: dict[str, str] = {}
    for key, value in file.metadata.items():
        name = key.removeprefix(f"{TEMPLATE}.")
        if not isinstance(value, str) or not key.startswith(TEMPLATE):
            continue
        if key == TEMPLATE:
            texts["chat_template.jinja"] = value
        elif name.replace("_", "").replace("-", "").isalnum() and name != "default":
            texts[f"additional_chat_templates/{name}.jinja"] = value
    return texts


def end_ids(vocabulary: Vocabulary) -> tuple[int, ...]:
    """Give the ids that end an answer in llama.cpp: those with a role, and those known by name."""
    ids = [vocabulary.roles[key] for key in END_KEYS if key in vocabulary.roles]
    by_text = {vocabulary.texts[i]: i for i in vocabulary.special_ids()}
    parts = {name for name, others in _NO_ENDS_BESIDE if others <= by_text.keys()}
    ids += [by_text[name] for name in _ENDS if name in by_text and name not in parts]
    for key, names in _FILL_ENDS.items():
        named = [by_text[name] for name in names if name in by_text]
        ids += [vocabulary.roles[key]] if key in vocabulary.roles else named
    return tuple(dict.fromkeys(ids))


def _read_vocabulary(file: GgufFile) -> Vocabulary:
    texts = file.texts(_TOKENS)
    if not 0 < len(texts) <= MAX_TOKENS:
        raise _fault(file, _TOKENS, f"{len(texts)} tokens", f"1 to {MAX_TOKENS}")
    texts = [text or f"[EMPTY_{i}]" for i, text in enumerate(texts)]  # llama.cpp's name for them
    longest = max(range(len(texts)), key=lambda i: len(texts[i]))
    if len(texts[longest].encode()) > MAX_TOKEN_BYTES:
        raise _fault(file, _TOKENS, f"token {longest} is longer than that", f"{MAX_TOKEN_BYTES}")
    if len(set(texts)) < len(texts):
        first: dict[str, int] = {}
        again = next(i for i, text in enumerate(texts) if first.setdefault(text, i) != i)
        got = f"tokens {first[texts[again]]} and {again} are both {texts[again][:40]!r}"
        raise _fault(file, _TOKENS, got, "tokens that differ")
    types = [int(TokenType.NORMAL)] * len(texts)
    if _TYPES in file.metadata:
        types = [int(number) for number in file.numbers(_TYPES)]
        if len(types) != len(texts):
            raise _fault(file, _TYPES, f"{len(types)} items", f"{len(texts)}, one a token")
    types = [
        int(TokenType.CONTROL) if text in CONTROL_NAMES else kind
        for text, kind in zip(texts, types, strict=True)
    ]
    roles: dict[str, int] = {}
    is_llama = file.metadata[f"{KEY}model"] == "llama"
    for key in (*ROLES.values(), *END_KEYS, *_FILL_ENDS):
        value = file.metadata.get(f"{KEY}{key}", _LLAMA_IDS.get(key) if is_llama else None)
        # Some converters write -1 or the largest number for none.
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(texts):
            roles[key] = value
    return Vocabulary(texts, types, roles)


def _fault(file: GgufFile, key: str, got: str, wanted: str) -> CheckpointError:
    return CheckpointError(
        f"{file.path}: {key}", got=got, wanted=wanted, do="Download the file again."
    )


def _byte_level(file: GgufFile, vocabulary: Vocabulary) -> dict[str, Any]:
    """Give the tokenizer.json of a byte-level BPE."""
    pre = file.metadata.get(f"{KEY}pre", "default")
    split = SPLITS[str(pre)]
    n_model = _n_in_model(vocabulary)
    ids = {text: i for i, text in enumerate(vocabulary.texts[:n_model])}
    byte_level = Split(has_gpt2=True).pre_tokenizer()
    return _tokenizer(
        vocabulary,
        n_model,
        normalizer={"type": "NFC"} if split.is_composed else None,
        pre_tokenizer=split.pre_tokenizer(),
        post_processor=_around(file, vocabulary, adds_bos=split.adds_bos),
        decoder=byte_level,
        model={
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": split.ignores_merges,
            "vocab": ids,
            "merges": _read_merges(file, ids),
        },
    )


def _n_in_model(vocabulary: Vocabulary) -> int:
    """Give the number of tokens in the model's own vocabulary; added ones follow them by id.

    A published tokenizer lists its added tokens after the vocabulary, so that no piece of text can
    become one. If other tokens are between them, all stay in the vocabulary, to keep their ids.
    """
    is_added = [kind in (TokenType.CONTROL, TokenType.USER_DEFINED) for kind in vocabulary.types]
    n_all = len(is_added)
    while n_all and vocabulary.types[n_all - 1] == TokenType.UNUSED:
        n_all -= 1  # rows of the embedding that no token has
    n_model = n_all
    while n_model and is_added[n_model - 1]:
        n_model -= 1
    is_free = vocabulary.types[n_model - 1] if n_model else TokenType.NORMAL
    return n_all if is_free == TokenType.UNUSED else n_model


def _read_merges(file: GgufFile, ids: Mapping[str, int]) -> list[list[str]]:
    """Read the pairs that are merged, in the order of merging."""
    if _MERGES not in file.metadata:
        raise _fault(file, _MERGES, "no such key", "the merges of a byte-level tokenizer")
    merges: list[list[str]] = []
    for i, text in enumerate(file.texts(_MERGES)):
        left, space, right = text[:1], "", ""
        cut = text.find(" ", 1)
        if cut > 0:
            left, space, right = text[:cut], " ", text[cut + 1 :]
        if not space or left not in ids or right not in ids or left + right not in ids:
            got = f"merge {i} is {text[:60]!r}"
            raise _fault(file, _MERGES, got, "two tokens that give a third")
        merges.append([left, right])
    return merges


def _sentencepiece(file: GgufFile, vocabulary: Vocabulary) -> dict[str, Any]:
    """Give the tokenizer.json of a SentencePiece BPE, as transformers converts such models."""
    name = str(file.metadata.get("general.architecture", ""))
    is_gemma, is_phi3 = name.startswith("gemma"), name == "phi3"
    texts = list(vocabulary.texts)
    if is_gemma:
        # llama.cpp writes runs of spaces as spaces; pieces of text have the mark instead.
        texts = [_SPACE * len(t) if t.strip(" ") == "" else t for t in texts]
    vocabulary = Vocabulary(texts, _spaces_as_text(vocabulary, is_gemma), vocabulary.roles)
    adds_space = not is_gemma and file.metadata.get(f"{KEY}add_space_prefix", True) is True
    ids = {text: i for i, text in enumerate(texts)}
    merges = (
        _read_merges(file, ids)
        if _MERGES in file.metadata
        else _derive_merges(file, vocabulary, ids, by_id=is_gemma)
    )
    unknown = vocabulary.roles.get("unknown_token_id")
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if adds_space:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    mark: dict[str, Any] = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    if is_gemma or not adds_space:
        normalizer = mark
    elif is_phi3:
        normalizer = {
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": _SPACE}, mark],
        }
    else:
        pre_tokenizer = {
            "type": "Metaspace", "replacement": _SPACE, "prepend_scheme": "first", "split": False,
        }  # fmt: skip
    return _tokenizer(
        vocabulary,
        len(texts),
        normalizer=normalizer,
        pre_tokenizer=pre_tokenizer,
        post_processor=_around(file, vocabulary, adds_bos=True),
        decoder={"type": "Sequence", "decoders": decoders},
        model={
            "unk_token": None if unknown is None else texts[unknown],
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": ids,
            "merges": merges,
        },
        takes_space_after=is_phi3,
    )


def _spaces_as_text(vocabulary: Vocabulary, is_gemma: bool) -> list[int]:
    """Give the types of tokens; Gemma's runs of spaces are ordinary pieces of text."""
    if not is_gemma:
        return list(vocabulary.types)
    return [
        int(TokenType.NORMAL)
        if kind == TokenType.USER_DEFINED and not text.strip(f" {_SPACE}")
        else kind
        for text, kind in zip(vocabulary.texts, vocabulary.types, strict=True)
    ]


def _derive_merges(
    file: GgufFile, vocabulary: Vocabulary, ids: Mapping[str, int], *, by_id: bool
) -> list[list[str]]:
    """Give all ways to merge two pieces into one, the best piece first.

    SentencePiece merges the pair that gives the piece of the highest score. Gemma's scores do not
    follow that order, and its ids do (transformers, ``gemma_tokenizer``).
    """
    scores = file.numbers(_SCORES).tolist() if _SCORES in file.metadata else []
    if not by_id and len(scores) != len(ids):
        raise _fault(file, _SCORES, f"{len(scores)} items", f"{len(ids)}, one a token")
    pieces = vocabulary.ids_of(TokenType.NORMAL)
    work = sum(len(vocabulary.texts[i]) ** 2 for i in pieces)
    if work > _MAX_SPLIT_WORK:
        raise _fault(file, _TOKENS, "pieces too long to find their merges", "words of a language")
    pieces.sort(key=lambda i: i if by_id else -scores[i])
    can_be_part = {
        vocabulary.texts[i] for i in vocabulary.ids_of(TokenType.NORMAL, TokenType.USER_DEFINED)
    }
    merges: list[list[str]] = []
    for i in pieces:
        text = vocabulary.texts[i]
        pairs = [
            (text[:cut], text[cut:])
            for cut in range(1, len(text))
            if text[:cut] in can_be_part and text[cut:] in can_be_part
        ]
        merges += [list(pair) for pair in sorted(pairs, key=lambda p: (ids[p[0]], ids[p[1]]))]
    return merges


def _around(file: GgufFile, vocabulary: Vocabulary, *, adds_bos: bool) -> dict[str, Any] | None:
    """Give the section of tokenizer.json that adds begin and end tokens to a text."""
    around = []
    for role, default in (("bos", adds_bos), ("eos", False)):
        wanted = file.metadata.get(f"{KEY}add_{role}_token", default) is True
        around.append(vocabulary.roles.get(f"{role}_token_id") if wanted else None)
    if around == [None, None]:
        return None
    parts = [
        None if i is None else {"SpecialToken": {"id": vocabulary.texts[i], "type_id": 0}}
        for i in around
    ]
    first, second = ({"Sequence": {"id": side, "type_id": 0}} for side in "AB")
    named = {vocabulary.texts[i]: i for i in around if i is not None}
    return {
        "type": "TemplateProcessing",
        "single": [part for part in (parts[0], first, parts[1]) if part],
        "pair": [part for part in (parts[0], first, second, parts[1]) if part],
        "special_tokens": {
            text: {"id": text, "ids": [i], "tokens": [text]} for text, i in named.items()
        },
    }


def _tokenizer(
    vocabulary: Vocabulary,
    n_model: int,
    *,
    model: Mapping[str, Any],
    takes_space_after: bool = False,
    **sections: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Make a tokenizer.json; tokens beyond ``n_model`` are added in the order of ids."""
    special = vocabulary.special_ids()
    added = sorted({*special, *vocabulary.ids_of(TokenType.USER_DEFINED)})
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i,
                "content": vocabulary.texts[i],
                "single_word": False,
                "lstrip": False,
                "rstrip": (
                    takes_space_after
                    and i in special
                    and vocabulary.texts[i] not in _PHI3_KEEPS_SPACE
                ),
                "normalized": False,
                "special": i in special,
            }
            for i in added
        ],
        **sections,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            **model,
        },
    }
