"""``Tokenizer``: text to token ids and token ids to text.

The only module that uses the ``tokenizers`` package. A user's text is encoded with
``allow_special=False``: the name of a special token in it stays ordinary text.
"""

from __future__ import annotations

import copy
import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from edgekit.errors import CheckpointError, UsageError
from edgekit.lazy import require
from edgekit.model_files import TOKENIZER_NAME
from edgekit.text.files import TextFiles
from edgekit.text.tokenizer_file import TOKEN_FLAGS, TokenizerFile, read_tokenizer_file
from edgekit.text.tokenizer_limits import find_excess, find_excess_before

_SPREAD: Final = 7919  # a prime
_BYTE_TOKEN: Final = re.compile("<0x[0-9A-F]{2}>")
# Unicode's White_Space, which the library uses; Python's isspace has four more characters.
_WHITE_SPACE: Final = frozenset(
    "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000\u2000\u2001\u2002\u2003\u2004\u2005"
    "\u2006\u2007\u2008\u2009\u200a"
)
_PLAIN: Final = {"content", "special"}  # the keys of a token that a file gives as text only
_REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"


class Tokenizer:
    """A tokenizer.json with the roles that tokenizer_config.json gives to its special tokens.

    Attributes:
        path: The tokenizer.json.
        special_tokens: Text of every special token to its id.
        named_tokens: Role to text, such as ``bos_token`` to ``<s>``.
        added_tokens: Text of every token that is matched before the text is split, to its id.
        invented_tokens: Tokens that a file or the tokenizer's class names without an id in any
            file: they get the next free ids, as in transformers.
    """

    def __init__(self, file: TokenizerFile) -> None:
        """Load a tokenizer; see ``open``."""
        self.path = file.path
        self.named_tokens = dict(file.named_tokens)
        self._file = file
        self._aware = self._read()
        listed = {token["content"] for token in file.listed.values()}
        names = [str(token["content"]) for token in file.named]
        self.invented_tokens = frozenset(
            name for name in names if name not in listed and self.token_id(name) is None
        )
        self._refuse_shared_ids([*listed, *names])
        with _mapped_errors(self.path):
            _add_tokens(self._aware, file)
        added = self._aware.get_added_tokens_decoder()
        self.added_tokens: Mapping[str, int] = {
            token.content: token_id for token_id, token in added.items()
        }
        self._strips = {token.content: (token.lstrip, token.rstrip) for token in added.values()}
        self.special_tokens: Mapping[str, int] = {
            token.content: token_id for token_id, token in added.items() if token.special
        }

    @classmethod
    def open(cls, source: str | Path | TextFiles) -> Tokenizer:
        """Load the tokenizer of a model.

        Args:
            source: A model folder, or its text files.

        Raises:
            MissingFileError: No tokenizer.json, and no tekken.json.
            CheckpointError: A tokenizer file is damaged.
        """
        return cls(read_tokenizer_file(source))

    def with_control(self, names: Iterable[str]) -> Tokenizer:
        """Give a copy of this tokenizer that also counts these added tokens as special.

        Templates write tokens such as ``<tool_call>`` that the tokenizer does not call special.
        """
        more = {name: self.added_tokens[name] for name in names if name in self.added_tokens}
        key = frozenset(more.keys() - self.special_tokens.keys())
        if not key:
            return self
        if key not in self._views:
            view = copy.copy(self)
            for name in ("special_pattern", "_control_ids", "_special_ids", "_plain", "_views"):
                view.__dict__.pop(name, None)
            view.special_tokens = {**self.special_tokens, **more}
            self._views[key] = view
        return self._views[key]

    @cached_property
    def file_text(self) -> str:
        """A tokenizer.json that alone describes this tokenizer, with every added token in it.

        It is the model's own file, unchanged, if that is already complete.
        """
        with _mapped_errors(self.path):
            parsed = json.loads(self._file.text)
        tokens = [
            {"id": token_id, "content": token.content}
            | {flag: getattr(token, flag) for flag in TOKEN_FLAGS}
            for token_id, token in sorted(_added(self._aware).items())
        ]
        stated = sorted(parsed.get("added_tokens") or [], key=lambda token: int(token["id"]))
        if stated == tokens:
            return self._file.text
        return json.dumps(parsed | {"added_tokens": tokens}, ensure_ascii=False)

    @property
    def is_changed(self) -> bool:
        """Whether ``file_text`` differs from the model's own tokenizer.json."""
        return self._file.is_changed or self.file_text is not self._file.text

    @property
    def stated_roles(self) -> frozenset[str]:
        """The roles of ``named_tokens`` that come from a file, not from the tokenizer's class."""
        return self._file.stated_roles

    @cached_property
    def vocabulary(self) -> Mapping[str, int]:
        """Text of every token to its id, added tokens included."""
        return dict(self._aware.get_vocab(with_added_tokens=True))

    @property
    def moved_tokens(self) -> Mapping[str, tuple[int, int]]:
        """Added tokens whose id is not the one that a file states: text to stated and given id."""
        return {
            token["content"]: (stated, self.added_tokens[token["content"]])
            for stated, token in self._file.listed.items()
            if self.added_tokens.get(token["content"], stated) != stated
        }

    def unreachable_tokens(self) -> list[str]:
        """Give the tokens of the vocabulary whose own text becomes other tokens by merging.

        Where there are none, it makes no difference whether a piece of text that is itself a token
        is merged from parts (``ignore_merges``).
        """
        model = self._aware.model
        with _mapped_errors(self.path):
            if getattr(model, "ignore_merges", False):
                model = self._without_ignored_merges()
            own = self._aware.get_vocab(with_added_tokens=False)
            return [
                text
                for text, token_id in own.items()
                if text not in self.added_tokens
                and [token.id for token in model.tokenize(text)] != [token_id]
            ]

    def _without_ignored_merges(self) -> Any:
        parsed = json.loads(self._file.text)
        parsed["model"]["ignore_merges"] = False
        return require("tokenizers").Tokenizer.from_str(json.dumps(parsed)).model

    @property
    def vocab_size(self) -> int:
        """Number of tokens, special ones included; a model may have more rows than that."""
        return int(self._aware.get_vocab_size(with_added_tokens=True))

    @property
    def bos_id(self) -> int | None:
        """Id of the token that begins a text, if there is one."""
        return self.token_id(self.named_tokens.get("bos_token", ""))

    @property
    def eos_id(self) -> int | None:
        """Id of the token that ends a text, if there is one."""
        return self.token_id(self.named_tokens.get("eos_token", ""))

    @property
    def pad_id(self) -> int | None:
        """Id of the token that fills up a batch, if there is one."""
        return self.token_id(self.named_tokens.get("pad_token", ""))

    def token_id(self, text: str) -> int | None:
        """Give the id of a token by its name, or None."""
        token_id: int | None = self._aware.token_to_id(text)
        return token_id

    def token_text(self, token_id: int) -> str:
        """Give the text of one token, special or not; parts of a character show as U+FFFD."""
        return self.decode([token_id], skip_special=False)

    def encode(
        self,
        text: str,
        *,
        allow_special: bool,
        add_special: bool = False,
        is_continued: bool = False,
    ) -> list[int]:
        """Give the token ids of a text.

        Args:
            text: Any text.
            allow_special: Read names of special tokens as those tokens; only for text that the
                chat template or edgekit made.
            add_special: Add what the model wants around a text of its own, such as the begin
                token; only with ``allow_special``.
            is_continued: The text follows a special token; it is not the start of the input
                (matters where a tokenizer puts a space in front of the first word).

        Raises:
            UsageError: The text is not valid Unicode (a lone surrogate).
            CheckpointError: The tokenizer failed, or has no way to write the name of a special
                token as text.
        """
        plain, sentinel = (None, "") if allow_special else self._plain
        with _mapped_errors(self.path):
            text.encode("utf-8")
            if plain is None:
                return list(self._aware.encode(text, add_special_tokens=add_special).ids)
            if is_continued:
                ids = list(plain.encode(sentinel + text, add_special_tokens=False).ids[1:])
            else:
                ids = list(plain.encode(text, add_special_tokens=False).ids)
        if not self._control_ids.isdisjoint(ids):
            raise CheckpointError(
                f"{self.path}: cannot write the name of a special token as ordinary text",
                got=repr(next(iter(self.special_pattern.findall(text)), text))[:80],
                do="Remove it from the text.",
            )
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Give the text of token ids; ids without a token add nothing.

        Raises:
            UsageError: A negative id.
        """
        ids = [int(token_id) for token_id in token_ids]
        if ids and min(ids) < 0:
            raise UsageError("a token id is negative", got=min(ids), wanted="0 or more")
        with _mapped_errors(self.path):
            return str(self._aware.decode(ids, skip_special_tokens=skip_special))

    def is_silent(self, token_id: int, *, skip_special: bool = True) -> bool:
        """Tell whether an id adds nothing to a decoded text."""
        if skip_special and token_id in self._special_ids:
            return True
        return self._aware.id_to_token(token_id) is None

    def swallowed_span(self, match: re.Match[str]) -> tuple[int, int]:
        """Give the characters that a special token covers: some also take white space around it."""
        start, stop = match.span()
        takes_left, takes_right = self._strips.get(match[0], (False, False))
        while takes_left and start and match.string[start - 1] in _WHITE_SPACE:
            start -= 1
        while takes_right and stop < len(match.string) and match.string[stop] in _WHITE_SPACE:
            stop += 1
        return start, stop

    @cached_property
    def special_pattern(self) -> re.Pattern[str]:
        """A pattern that finds the names of special tokens, the longest first."""
        names = sorted(self.special_tokens, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names)) if names else r"(?!)")

    @cached_property
    def byte_token_ids(self) -> frozenset[int]:
        """Ids of tokens that stand for single bytes (``<0x0A>``)."""
        vocabulary: dict[str, int] = self._aware.get_vocab(with_added_tokens=False)
        return frozenset(i for text, i in vocabulary.items() if _BYTE_TOKEN.fullmatch(text))

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        """Ids that ordinary text must never get; unknown characters may give ``<unk>``."""
        unknown = self.token_id(self.named_tokens.get("unk_token", ""))
        return self._special_ids - {unknown}

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(self.special_tokens.values())

    @cached_property
    def _plain(self) -> tuple[Any, str]:
        """A second tokenizer that reads no special token, except one with an unguessable name."""
        plain = self._load()
        _make_special(plain, self.special_tokens)
        sentinel = f"<{secrets.token_hex(16)}>"
        plain.add_tokens(
            [require("tokenizers").AddedToken(sentinel, normalized=False, special=False)]
        )
        plain.encode_special_tokens = True
        return plain, sentinel

    @cached_property
    def _views(self) -> dict[frozenset[str], Tokenizer]:
        return {}

    def _load(self) -> Any:
        tokenizer = self._read()
        with _mapped_errors(self.path):
            _add_tokens(tokenizer, self._file)
        return tokenizer

    def _read(self) -> Any:
        """Load the tokenizer.json; the tokens that other files name are not in it yet."""
        library = require("tokenizers")
        self._refuse(find_excess_before(self._file.text))
        with _mapped_errors(self.path):
            tokenizer = library.Tokenizer.from_str(self._file.text)
            # Truncation and padding are settings of a training run, not of the model.
            tokenizer.no_truncation()
            tokenizer.no_padding()
            excess = find_excess(tokenizer)
        self._refuse(excess)
        return tokenizer

    def _refuse_shared_ids(self, names: Iterable[str]) -> None:
        """Refuse two added tokens with one id: an artifact's files could not tell them apart."""
        name_of: dict[int, str] = {}
        for name in dict.fromkeys(names):
            token_id = self.token_id(name)
            if token_id is not None and name_of.setdefault(token_id, name) != name:
                raise CheckpointError(
                    f"{self.path}: two tokens have one id",
                    got=f"{name_of[token_id]!r} and {name!r} are {token_id}",
                    wanted="a different id for each token",
                    do="Use the tokenizer files of the original model.",
                )

    def _refuse(self, excess: str | None) -> None:
        if excess:
            raise CheckpointError(
                f"{self.path}: its rules can take unlimited time or memory on a text",
                got=excess,
                wanted="normalizers and regular expressions as models have them",
                do="Do not use this tokenizer.",
            )


def cut_texts(content: Mapping[str, Any], texts: Iterable[str]) -> list[list[str]]:
    """Cut texts as the normalizer and the pre-tokenizer of a tokenizer.json do.

    Args:
        content: A tokenizer.json, of which only these two sections count.
        texts: What to cut.

    Returns:
        The pieces of each text, in the letters that the pre-tokenizer writes.

    Raises:
        CheckpointError: The library cannot read the sections, or fails on a text.
    """
    sections = {key: content.get(key) for key in ("normalizer", "pre_tokenizer")}
    model = {"type": "BPE", "vocab": {}, "merges": []}
    with _mapped_errors(Path(TOKENIZER_NAME)):
        library = require("tokenizers").Tokenizer.from_str(
            json.dumps({"version": "1.0", "added_tokens": [], "model": model, **sections})
        )
        normalize, cut = library.normalizer, library.pre_tokenizer
        plain = [text if normalize is None else normalize.normalize_str(text) for text in texts]
        return [
            [text] if cut is None else [piece for piece, _ in cut.pre_tokenize_str(text)]
            for text in plain
        ]


class StreamDecoder:
    """Turns ids into text as they arrive, holding back what a later id may still change.

    The pieces together are exactly ``tokenizer.decode`` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._ids: list[int] = []
        # Decoding starts some tokens early, because a token's text depends on the one before.
        self._n_context = 0
        self._n_done = 0

    def push(self, token_id: int) -> str:
        """Add the next id and give the text that became final with it."""
        self._ids.append(int(token_id))
        is_silent = self._tokenizer.is_silent(token_id, skip_special=self._skip_special)
        if is_silent or token_id in self._tokenizer.byte_token_ids:
            return ""
        return self._emit(is_last=False)

    def finish(self) -> str:
        """Give the text that was held back; the decoder can go on after that."""
        return self._emit(is_last=True)

    def _emit(self, *, is_last: bool) -> str:
        done = self._decode(self._ids[self._n_context : self._n_done])
        text = self._decode(self._ids[self._n_context :])
        if len(text) <= len(done) or (text.endswith(_REPLACEMENT) and not is_last):
            return ""
        self._n_context, self._n_done = self._n_done, len(self._ids)
        return text[len(done) :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special=self._skip_special)


def _added(tokenizer: Any) -> dict[int, Any]:
    """Give id to token for the tokens that are matched before a text is split."""
    return dict(tokenizer.get_added_tokens_decoder())


def _add_tokens(tokenizer: Any, file: TokenizerFile) -> None:
    """Add the tokens that other files name, in transformers' order, which decides their ids.

    A token that the tokenizer has keeps its id and gets the flags. New ones get the next free id,
    whatever id the file states.
    """
    new_token = require("tokenizers").AddedToken
    stated = {token_id: new_token(**token) for token_id, token in file.listed.items()}
    if not file.is_list_whole:
        stated.update(_added(tokenizer))
    wanted = [stated[token_id] for token_id in sorted(stated)]
    own = {token.content for token in (*stated.values(), *_added(tokenizer).values())}
    # transformers treats a text and an object with flags as different tokens; here the object
    # gives the flags.
    once: dict[tuple[str, bool], Any] = {}
    for entry in file.named:
        if entry["content"] not in own:
            once.setdefault((entry["content"], entry.keys() == _PLAIN), new_token(**entry))
    wanted += once.values()
    roles = set(file.named_tokens.values())
    for token in wanted:
        token.special = token.special or token.content in roles
    wanted += [new_token(text, special=True) for text in file.reset]
    if wanted:
        tokenizer.add_tokens(wanted)


def _make_special(tokenizer: Any, names: Iterable[str]) -> None:
    """Make the library count tokens as special; texts that are not tokens are ignored."""
    added = {token.content: token for token in _added(tokenizer).values()}
    flags = {}
    for name in names:
        old = added.get(name)
        flags[name] = {flag: getattr(old, flag, False) for flag in TOKEN_FLAGS} | {"special": True}
    _set_flags(tokenizer, flags)


def _set_flags(tokenizer: Any, flags: Mapping[str, Mapping[str, bool]]) -> None:
    """Change how added tokens are matched; a text that is not a token is skipped: no new ids."""
    library = require("tokenizers")
    added = {token.content: token for token in _added(tokenizer).values()}
    for name, wanted in flags.items():
        old = added.get(name)
        has_them = old is not None and all(getattr(old, flag) == wanted[flag] for flag in wanted)
        if not has_them and tokenizer.token_to_id(name) is not None:
            tokenizer.add_tokens([library.AddedToken(name, **wanted)])


@contextmanager
def _mapped_errors(path: Path) -> Iterator[None]:
    """Convert errors of tokenizers: it raises bare ``Exception`` and panics of its Rust part."""
    try:
        yield
    except (UnicodeEncodeError, OverflowError) as error:
        raise UsageError("text or token id cannot be tokenized", got=str(error)) from error
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise CheckpointError(
            f"{path}: tokenizer",
            got=str(error)[:200],
            wanted="a tokenizer.json of the tokenizers library",
            do="Download the model again.",
        ) from error


def spread_ids(n_ids: int, n_rows: int, *, first: int = 0) -> list[int]:
    """Give ids spread over a vocabulary in no visible order, for models without a tokenizer.

    Args:
        n_ids: How many.
        n_rows: Rows of the embedding; each id is below it.
        first: Place in the endless sequence where they begin.
    """
    return [(_SPREAD * (first + i) + 13) % n_rows for i in range(n_ids)]
