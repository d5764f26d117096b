"""Answer one question: which token ids does a text have, and which text do ids have?

The only owner of the ``tokenizers`` package. Text of a user is encoded with
``allow_special=False``: a special token's name in it stays ordinary text.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from edgekit.checkpoint.config import read_object
from edgekit.checkpoint.tokenizer_limits import find_excess, find_excess_before
from edgekit.errors import CheckpointError, MissingFileError, UsageError
from edgekit.files import read_inside
from edgekit.lazy import require

TOKENIZER_NAME: Final = "tokenizer.json"
TOKENIZER_CONFIG_NAME: Final = "tokenizer_config.json"
SPECIAL_MAP_NAME: Final = "special_tokens_map.json"
MAX_TOKENIZER_BYTES: Final = 64 << 20
_BYTE_TOKEN: Final = re.compile("<0x[0-9A-F]{2}>")
_REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"


class Tokenizer:
    """A tokenizer.json with the roles that tokenizer_config.json gives to its special tokens.

    Attributes:
        path: The tokenizer.json.
        special_tokens: Text of every special token to its id.
        named_tokens: Role to text, such as ``bos_token`` to ``<s>``.
    """

    def __init__(self, path: Path, named_tokens: Mapping[str, str]) -> None:
        """Load a tokenizer; see ``open``."""
        self.path = path
        self.named_tokens = dict(named_tokens)
        self._json = _read_text(path)
        self._aware = self._load()
        added = self._aware.get_added_tokens_decoder()
        self.special_tokens: Mapping[str, int] = {
            token.content: token_id for token_id, token in added.items() if token.special
        }

    @classmethod
    def open(cls, folder: str | Path) -> Tokenizer:
        """Load the tokenizer of a model folder.

        Raises:
            MissingFileError: No tokenizer.json.
            CheckpointError: A tokenizer file is damaged.
        """
        folder = Path(folder)
        return cls(folder / TOKENIZER_NAME, read_named_tokens(folder))

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
        plain, guard = (None, "") if allow_special else self._plain
        with _mapped_errors(self.path):
            text.encode("utf-8")
            if plain is None:
                return list(self._aware.encode(text, add_special_tokens=add_special).ids)
            if is_continued:
                ids = list(plain.encode(guard + text, add_special_tokens=False).ids[1:])
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
            raise UsageError("token id", got=min(ids), wanted="0 or more")
        with _mapped_errors(self.path):
            return str(self._aware.decode(ids, skip_special_tokens=skip_special))

    def is_silent(self, token_id: int, *, skip_special: bool = True) -> bool:
        """Tell whether an id adds nothing to a decoded text."""
        if skip_special and token_id in self._special_ids:
            return True
        return self._aware.id_to_token(token_id) is None

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
        """A second tokenizer that reads no special token but a guard nobody can guess."""
        plain = self._load()
        guard = f"<{secrets.token_hex(16)}>"
        plain.add_tokens([require("tokenizers").AddedToken(guard, normalized=False, special=False)])
        plain.encode_special_tokens = True
        return plain, guard

    def _load(self) -> Any:
        library = require("tokenizers")
        self._refuse(find_excess_before(self._json))
        with _mapped_errors(self.path):
            tokenizer = library.Tokenizer.from_str(self._json)
            # Truncation and padding are settings of somebody's training run.
            tokenizer.no_truncation()
            tokenizer.no_padding()
            excess = find_excess(tokenizer)
        self._refuse(excess)
        return tokenizer

    def _refuse(self, excess: str | None) -> None:
        if excess:
            raise CheckpointError(
                f"{self.path}: what it does to a text has no bound",
                got=excess,
                wanted="normalizers and regular expressions as models have them",
                do="Do not use this tokenizer.",
            )


class StreamDecoder:
    """Turns ids into text as they come, holding back what a later id may still change.

    The pieces together are exactly ``tokenizer.decode`` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._ids: list[int] = []
        # Decoding starts some tokens early, as a token's text depends on the one before.
        self._n_context = 0
        self._n_done = 0

    def push(self, token_id: int) -> str:
        """Take the next id and give the text that became final with it."""
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


def read_named_tokens(folder: Path) -> dict[str, str]:
    """Read which texts are the begin, end, pad and unknown token.

    Raises:
        CheckpointError: A file is damaged.
    """
    named: dict[str, str] = {}
    for name in (SPECIAL_MAP_NAME, TOKENIZER_CONFIG_NAME):
        path = folder / name
        if not path.is_file():
            continue
        for role, value in read_object(path).items():
            text = value.get("content") if isinstance(value, dict) else value
            if role.endswith("_token") and isinstance(text, str):
                named[role] = text
    return named


def _read_text(path: Path) -> str:
    try:
        return read_inside(path, MAX_TOKENIZER_BYTES).decode("utf-8")
    except FileNotFoundError as error:
        raise MissingFileError(
            f"{path}: no such file", do="edgekit reads fast tokenizers; save one as tokenizer.json."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read", got=str(error)) from error


@contextmanager
def _mapped_errors(path: Path) -> Iterator[None]:
    """Pass on what tokenizers raises: bare ``Exception``, and panics of its Rust part."""
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
