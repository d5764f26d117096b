"""The tokenizer and chat template of an artifact as the metadata of a GGUF file.

A GGUF file only names how text is cut before it is merged (``tokenizer.ggml.pre``), so the name is
found by what the tokenizer does: the names that edgekit reads (checkpoint/gguf/splits.py) are
tried on texts that tell them apart. A tokenizer that does what no name means is refused, because
llama.cpp would give other token ids.

Source: https://github.com/ggml-org/llama.cpp, src/llama-vocab.cpp (what is read) and
conversion/base.py (what its converter writes); the same tables as checkpoint/gguf/tokenizer.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from edgekit.checkpoint.gguf.splits import SPLITS
from edgekit.checkpoint.gguf.tokenizer import (
    CONTROL_NAMES,
    END_KEYS,
    KEY,
    ROLES,
    TEMPLATE,
    TokenType,
    Vocabulary,
    end_ids,
)
from edgekit.errors import CheckpointError, ExportError
from edgekit.families.spec import DecoderSpec
from edgekit.formats.gguf_writer import Value
from edgekit.text.chat import PROBE, ChatTemplate
from edgekit.text.files import TextFiles
from edgekit.text.tokenizer import Tokenizer, cut_texts
from edgekit.text.tokenizer_file import has_tokenizer

# Of the names that mean the same split, the one whose text llama.cpp gives back unchanged.
_NAMES: Final = (
    "gpt-2", "smollm", "llama-bpe", "dbrx", "deepseek-r1-qwen", "qwen2", "qwen35", "tekken",
    "gpt-4o", "deepseek-v3", "deepseek-coder", "falcon",
)  # fmt: skip
_PROBES: Final = (
    "Hello world, it's 2026! WE'LL see: I'm, you're, they'VE 'tis.",
    "1 12 123 1234 12345 1,000.50 3.14159 x2 2x a1b22c333d4444 0000000 007 99999",
    "camelCase HTTPServer XMLHttpRequest McDonald iPhone ABCdef aBC 'S 'LL 'd'D ''s",
    "  two   spaces\tand\t\ttabs\n\nlines \n \r\n mixed\r\r\n  end  ",
    " leading\ntrailing \n\n  \n x\r\ny\r\n\r\nz\r\n",
    "def f(x):\n    return x**2 != -1  # comment\n\n\n\tpass;\r\n}",
    "path/to//file\\name http://a.b/c?d=e&f=g#h // comment\n/* x */\n/\n//\n#!/bin/sh\n/usr",
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ ... --- +++ ?!\n;;\n$$a ~~b `c` ^d |e <f> =g +h",
    "$x<+y=z>^w~v|u`t",
    # Cyrillic, Chinese, Japanese, Korean, Hindi, Thai, Arabic, Hebrew
    "\u041f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440 12 \u0401\u0436 \u0422\u0415",
    "\u4f60\u597d\u4e16\u754c123\u3053\u3093\u306b\u3061\u306f\u30ab\u30bf \ud55c\uad6d\uc5b4",
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u0e44\u0e17",
    "\u0627\u0644\u0639\u0631\u0628 \u05e9\u05b8\u05dc",
    # Letters with separate accents, ligatures, numbers of other kinds, letters of mixed case
    "caf\u00e9 cafe\u0301 A\u030angstro\u0308m \u00c5 \ufb01 \u2460 \u00bd \u0664\u0665 \u2167",
    "\u01c5 \u02b0 \u00aa\u00ba \u24d0 \u00df\u1e9e D\u017eA x\u0300y A\u0300\u0301b \u0301c",
    # Emoji, spaces of other kinds, typographic signs
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 e\u2028line\u2003em\u00a0nb\u3000wide",
    "a'b c'd's it\u2019s \u201cquoted\u201d \u2014 dash\u2026 \u00a7 \u20ac100 100%",
    "\n", " ", "   ", "\t", "a", "", "'", "0", "00",
)  # fmt: skip
"""Texts on which all these splits differ from each other."""
_SPACE: Final = "\N{LOWER ONE EIGHTH BLOCK}"
_SPACES: Final = ("a b", " a", "a  b\n c ", "x", "\u4f60 \u597d")
_UNMERGED: Final = -1e6  # score of tokens that no pair of pieces becomes
_NO_VOCAB: Final = "none"


@dataclass(frozen=True, slots=True)
class TextKeys:
    """What the metadata say about text.

    Attributes:
        metadata: The keys.
        notes: What a user should know, one sentence each.
    """

    metadata: Mapping[str, Value]
    notes: tuple[str, ...] = ()


def text_metadata(files: TextFiles, spec: DecoderSpec) -> TextKeys:
    """Give the metadata for the tokenizer and the chat templates of a model.

    Args:
        files: The text files of the artifact.
        spec: The decoder, whose embedding has a row for each token.

    Raises:
        ExportError: llama.cpp would read text as other tokens.
        CheckpointError: A file is damaged.
    """
    if not has_tokenizer(files):
        return TextKeys({f"{KEY}model": _NO_VOCAB})
    tokenizer, template = Tokenizer.open(files), ChatTemplate.open(files)
    parsed = json.loads(tokenizer.file_text)
    model = parsed.get("model") or {}
    if model.get("type") != "BPE":
        raise _refused(tokenizer, f"a model of type {model.get('type')}", "byte-pair merges")
    is_pieces = bool(model.get("byte_fallback"))
    vocabulary = _make_vocabulary(tokenizer, parsed, spec, is_pieces=is_pieces)
    own = _sentencepiece(tokenizer, parsed, template, vocabulary) if is_pieces else None
    own = own or _byte_level(tokenizer, parsed, spec)
    around = _around(tokenizer, template)
    templates = _templates(template)
    metadata: dict[str, Value] = {
        f"{KEY}tokens": list(vocabulary.texts),
        f"{KEY}token_type": [int(kind) for kind in vocabulary.types],
        **own.metadata,
        **{f"{KEY}{key}": token_id for key, token_id in vocabulary.roles.items()},
        **around.metadata,
        **templates,
    }
    return TextKeys(metadata, (*own.notes, *around.notes, *_end_notes(tokenizer, vocabulary, spec)))


def _refused(tokenizer: Tokenizer, got: str, wanted: str) -> ExportError:
    return ExportError(
        f"{tokenizer.path}: llama.cpp would give other token ids than this tokenizer",
        got=got,
        wanted=wanted,
        do="Leave GGUF out.",
    )


def _make_vocabulary(
    tokenizer: Tokenizer, parsed: Mapping[str, Any], spec: DecoderSpec, *, is_pieces: bool
) -> Vocabulary:
    """Give a token for each row of the embedding; rows without one get a name of their own."""
    by_id = {token_id: text for text, token_id in tokenizer.vocabulary.items()}
    unknown = tokenizer.token_id(str(parsed["model"].get("unk_token") or ""))
    byte_ids = tokenizer.byte_token_ids if is_pieces else frozenset()
    texts: list[str] = []
    types: list[int] = []
    for token_id in range(spec.vocab_size):
        text = by_id.get(token_id)
        kind = TokenType.NORMAL
        if text is None:
            text, kind = f"[PAD{token_id}]", TokenType.UNUSED
            while text in tokenizer.vocabulary:
                text = f"[{text}]"
        elif token_id == unknown and is_pieces:
            kind = TokenType.UNKNOWN
        elif text in tokenizer.special_tokens or text in CONTROL_NAMES:
            kind = TokenType.CONTROL
        elif text in tokenizer.added_tokens:
            kind = TokenType.USER_DEFINED
            if is_pieces and not text.strip(_SPACE):
                text = " " * len(text)  # matched before spaces are marked
        elif token_id in byte_ids:
            kind = TokenType.BYTE
        texts.append(text)
        types.append(int(kind))
    roles = _roles(tokenizer, spec)
    return Vocabulary(texts, types, {k: i for k, i in roles.items() if i < spec.vocab_size})


def _roles(tokenizer: Tokenizer, spec: DecoderSpec) -> dict[str, int]:
    """Give the tokens that begin and end a text or a turn, fill up, and stand for the unknown."""
    ends = list(spec.eos_token_ids)
    if tokenizer.eos_id in ends:
        ends.remove(tokenizer.eos_id)
        ends.insert(0, tokenizer.eos_id)
    roles = dict(zip(END_KEYS, ends, strict=False))
    for role, key in ROLES.items():
        token_id = tokenizer.token_id(tokenizer.named_tokens.get(role, ""))
        if token_id is not None:
            roles.setdefault(key, token_id)
    if spec.bos_token_id is not None:
        roles.setdefault("bos_token_id", spec.bos_token_id)
    if spec.pad_token_id is not None:
        roles.setdefault("padding_token_id", spec.pad_token_id)
    if "eos_token_id" in roles:
        # Without the key llama.cpp takes token 11, or 1.
        roles.setdefault("bos_token_id", roles["eos_token_id"])
    return roles


def _byte_level(tokenizer: Tokenizer, parsed: Mapping[str, Any], spec: DecoderSpec) -> TextKeys:
    """Give the keys of a byte-level BPE."""
    model = parsed["model"]
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(key):
            raise _refused(tokenizer, f"{key} {model[key]!r}", f"no {key}")
    wanted = cut_texts(parsed, _PROBES)
    name = next(
        (n for n in _NAMES if cut_texts(_sections(n), _PROBES) == wanted),
        None,
    )
    if name is None:
        raise _refused(
            tokenizer,
            "a way to cut text that has no name in llama.cpp",
            f"the same pieces as one of {', '.join(_NAMES)}",
        )
    ignores = bool(model.get("ignore_merges"))
    if ignores is not SPLITS[name].ignores_merges:
        name = next((n for n in _NAMES if _is_twin(n, name, ignores)), name)
    notes: tuple[str, ...] = ()
    if ignores is not SPLITS[name].ignores_merges:
        odd = tokenizer.unreachable_tokens()
        if odd:
            raise _refused(
                tokenizer,
                f"ignore_merges {ignores}, which matters for {len(odd)} tokens such as {odd[0]!r}",
                f"ignore_merges {not ignores}, which tokenizer.ggml.pre {name} means",
            )
    if SPLITS[name].is_composed:
        notes = (
            "llama.cpp does not compose Unicode (NFC) as the tokenizer does: text with separate "
            "accents may have other token ids there",
        )
    merges = [m if isinstance(m, str) else " ".join(m) for m in model.get("merges") or []]
    metadata: dict[str, Value] = {f"{KEY}model": "gpt2", f"{KEY}pre": name}
    if merges:
        metadata[f"{KEY}merges"] = merges
    else:
        raise _refused(tokenizer, "no merges", "the merges of a byte-level tokenizer")
    del spec
    return TextKeys(metadata, notes)


def _is_twin(name: str, other: str, ignores: bool) -> bool:
    """Tell whether a name cuts text as another and takes whole tokens first, or does not."""
    one, two = SPLITS[name], SPLITS[other]
    return one.ignores_merges is ignores and (
        one.pre_tokenizer() == two.pre_tokenizer() and one.is_composed is two.is_composed
    )


def _sections(name: str) -> dict[str, Any]:
    """Give the sections of tokenizer.json that a name stands for."""
    split = SPLITS[name]
    normalizer = {"type": "NFC"} if split.is_composed else None
    return {"normalizer": normalizer, "pre_tokenizer": split.pre_tokenizer()}


def _sentencepiece(
    tokenizer: Tokenizer,
    parsed: Mapping[str, Any],
    template: ChatTemplate,
    vocabulary: Vocabulary,
) -> TextKeys:
    """Give the keys of a SentencePiece BPE, whose merges become scores.

    llama.cpp merges the pair that gives the piece of the highest score, and knows no other pairs.
    """
    marked = [text.replace(" ", _SPACE) for text in _SPACES]
    joined = ["".join(pieces) for pieces in cut_texts(parsed, _SPACES)]
    has_prefix = joined == [_SPACE + text for text in marked]
    if not has_prefix and joined != marked:
        has_prefix = joined == [
            text if text.startswith(_SPACE) else _SPACE + text for text in marked
        ]
        if not has_prefix:
            raise _refused(
                tokenizer, f"text {_SPACES[0]!r} as {joined[0]!r}", "spaces as marks, no more"
            )
    rank: dict[str, int] = {}
    last = ""
    for i, merge in enumerate(parsed["model"].get("merges") or []):
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        text = left + right
        if text in rank and text != last:
            raise _refused(
                tokenizer, f"merges to {text!r} in several places", "merges in the order of scores"
            )
        rank.setdefault(text, i)
        last = text
    scores = [
        -float(rank[text]) if text in rank and kind == TokenType.NORMAL else _UNMERGED
        for text, kind in zip(vocabulary.texts, vocabulary.types, strict=True)
    ]
    adds = has_prefix
    notes: tuple[str, ...] = ()
    if has_prefix and _adds_space_once(parsed) and _begins_with_token(tokenizer, template):
        # llama.cpp would put a space after every control token too.
        adds = False
        notes = (
            "tokenizer.ggml.add_space_prefix is false, so that chat prompts have the same token "
            "ids; text without a template gets no space in front in llama.cpp",
        )
    return TextKeys(
        {f"{KEY}model": "llama", f"{KEY}pre": "default", f"{KEY}scores": scores,
         f"{KEY}add_space_prefix": adds}, notes
    )  # fmt: skip


def _adds_space_once(parsed: Mapping[str, Any]) -> bool:
    """Tell whether only the begin of a text gets a space, not what follows a special token."""
    section = parsed.get("pre_tokenizer") or {}
    return section.get("type") == "Metaspace" and section.get("prepend_scheme") == "first"


def _prompt_ids(tokenizer: Tokenizer, template: ChatTemplate) -> list[int]:
    """Give the ids of a short prompt; none where there is no template."""
    try:
        return template.encode(PROBE, tokenizer) if template.sources else []
    except CheckpointError:
        return []


def _begins_with_token(tokenizer: Tokenizer, template: ChatTemplate) -> bool:
    ids = _prompt_ids(tokenizer, template)
    return bool(ids) and ids[0] in tokenizer.added_tokens.values()


def _around(tokenizer: Tokenizer, template: ChatTemplate) -> TextKeys:
    """Say whether llama.cpp adds begin and end tokens, as it does to a prompt too.

    A prompt that a template wrote gets no second begin token there, and no first one either if the
    template writes none.
    """
    plain = tokenizer.encode("a", allow_special=True)
    whole = tokenizer.encode("a", allow_special=True, add_special=True)
    adds_bos = whole != plain and whole[:1] == [tokenizer.bos_id]
    adds_eos = whole != plain and whole[-1:] == [tokenizer.eos_id]
    prompt = _prompt_ids(tokenizer, template)
    notes = []
    if adds_bos and prompt and prompt[0] != tokenizer.bos_id:
        adds_bos = False
        notes.append(
            "tokenizer.ggml.add_bos_token is false, so that chat prompts, which have no begin "
            "token, have the same token ids; text without a template gets none in llama.cpp"
        )
    if adds_eos and prompt:
        adds_eos = False
    return TextKeys(
        {f"{KEY}add_bos_token": adds_bos, f"{KEY}add_eos_token": adds_eos}, tuple(notes)
    )


def _templates(template: ChatTemplate) -> dict[str, Value]:
    named = {
        f"{TEMPLATE}.{name}": text for name, text in template.sources.items() if name != "default"
    }
    single = template.single_text
    found: dict[str, Value] = {TEMPLATE: single} if single else {}
    if named:
        found |= {f"{TEMPLATE}s": [name.rpartition(".")[2] for name in named], **named}
    return found


def ends_in_llama_cpp(files: TextFiles, spec: DecoderSpec) -> tuple[int, ...]:
    """Give the tokens that end an answer in llama.cpp: the model's, and some known by name.

    Raises:
        CheckpointError: A file is damaged.
    """
    if not has_tokenizer(files):
        return ()
    tokenizer = Tokenizer.open(files)
    parsed = json.loads(tokenizer.file_text)
    is_pieces = bool((parsed.get("model") or {}).get("byte_fallback"))
    return end_ids(_make_vocabulary(tokenizer, parsed, spec, is_pieces=is_pieces))


def _end_notes(tokenizer: Tokenizer, vocabulary: Vocabulary, spec: DecoderSpec) -> Iterator[str]:
    """Name the tokens that end an answer in llama.cpp only, or in edgekit only."""
    theirs, ours = set(end_ids(vocabulary)), set(spec.eos_token_ids)
    if theirs - ours:
        yield f"llama.cpp also ends answers at {_shown(tokenizer, theirs - ours)}, by their names"
    if ours - theirs:
        yield f"llama.cpp does not end answers at {_shown(tokenizer, ours - theirs)}"


def _shown(tokenizer: Tokenizer, ids: set[int]) -> str:
    return ", ".join(f"{tokenizer.token_text(i)!r} ({i})" for i in sorted(ids))
