"""``TextView``: the tokenizer, chat template and end tokens of a model, from all its text files.

An answer ends with any of these tokens: the ids that generation_config.json and config.json state,
the tokenizer's end token, and the token that the chat template writes after the assistant's
message. The files may disagree (config.json says ``</s>``, the template writes ``<|im_end|>``): the
model was trained to write the latter, and without it would never stop.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from edgekit.artifact import EndToken
from edgekit.errors import CheckpointError
from edgekit.model_files import CONFIG_NAME, GENERATION_NAME
from edgekit.text.chat import PROBE, ChatTemplate
from edgekit.text.files import TextFiles
from edgekit.text.tokenizer import Tokenizer
from edgekit.text.tokenizer_file import describe_sources, has_tokenizer

_ANSWER: Final = "The quick answer is 42"
_MAX_NAMED: Final = 6
TEMPLATE_ORIGIN: Final = "chat template after an answer"
NO_TOKENIZER: Final = "no tokenizer"  # first words of the note about a missing tokenizer
TOKENIZER_ORIGIN: Final = "eos_token of the tokenizer"


@dataclass(frozen=True, slots=True)
class TextView:
    """The tokenizer, template and end tokens of a model, from all its text files.

    Attributes:
        files: The files.
        tokenizer: None where the model has none.
        template: Its chat template.
        ends: Tokens that end an answer; first those that the model's files state as ids.
        notes: What a user should know, one sentence each.
    """

    files: TextFiles
    tokenizer: Tokenizer | None
    template: ChatTemplate
    ends: tuple[EndToken, ...]
    notes: tuple[str, ...]

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that end an answer."""
        return tuple(end.id for end in self.ends)


def read_text_view(source: TextFiles, n_rows: int, stated: Mapping[str, Sequence[int]]) -> TextView:
    """Read the text files of a model and check them against its embedding.

    Args:
        source: The files.
        n_rows: Rows of the embedding: ids below this exist.
        stated: File name to the end ids that it states, the first file first.

    Raises:
        CheckpointError: A file is damaged; the named end token is not a token; or tokens that the
            prompt of every chat holds, or that text is split into, have no row.
    """
    template = ChatTemplate.open(source)
    if not has_tokenizer(source):
        told = _join((i, f"{name} eos_token_id") for name, ids in stated.items() for i in ids)
        note = (
            f"{NO_TOKENIZER}: {source.where} has none of {describe_sources()}; "
            "the artifact takes and gives token ids, not text"
        )
        return TextView(source, None, template, _named(told, None), (note,))
    tokenizer = Tokenizer.open(source)
    _check_vocabulary(source, tokenizer, n_rows)
    _check_prompt(source, tokenizer, template, n_rows)
    found = [(i, f"{name} eos_token_id") for name, ids in stated.items() for i in ids]
    found += [(i, TOKENIZER_ORIGIN) for i in _named_end(source, tokenizer, n_rows)]
    turn_end = find_turn_end(tokenizer, template)
    if turn_end is not None and turn_end < n_rows:
        found.append((turn_end, TEMPLATE_ORIGIN))
    ends = _named(_join(found), tokenizer)
    notes = (*_unused(tokenizer, n_rows), *_moved(tokenizer), *_said_ends(ends))
    return TextView(source, tokenizer, template, ends, notes)


def find_turn_end(tokenizer: Tokenizer, template: ChatTemplate) -> int | None:
    """Find the token that the chat template writes after the assistant's message.

    A token that only begins the next turn does not count, because the last answer must end with it
    too. White space and the token that begins a text never count.
    """
    if not template.sources:
        return None
    answer = {"role": "assistant", "content": _ANSWER}
    last = _token_after_answer(tokenizer, template, [*PROBE, answer])
    next_turn = [*PROBE, answer, {"role": "user", "content": "Thanks"}]
    between = _token_after_answer(tokenizer, template, next_turn)
    found = last if last is not None else between
    if found is None or (between is not None and between != found):
        return None
    if last is None and _opens_turn(tokenizer, template, found):
        return None
    only_begins = found == tokenizer.bos_id and found != tokenizer.eos_id
    return None if only_begins else found


def _token_after_answer(
    tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[Mapping[str, Any]]
) -> int | None:
    text = _render(template, messages)
    _, answer, tail = text.rpartition(_ANSWER)
    tail = tail.lstrip()
    names = [name for name in tokenizer.added_tokens if name.strip() and tail.startswith(name)]
    if not answer or not names:
        return None
    return tokenizer.added_tokens[max(names, key=len)]


def _opens_turn(tokenizer: Tokenizer, template: ChatTemplate, token_id: int) -> bool:
    """Tell whether a token also stands before the user's message."""
    before, _, _ = _render(template, PROBE).partition(PROBE[0]["content"])
    return any(name in before for name, i in tokenizer.added_tokens.items() if i == token_id)


def _render(template: ChatTemplate, messages: Sequence[Mapping[str, Any]]) -> str:
    try:
        return template.render(messages, add_generation_prompt=False)
    except CheckpointError:
        return ""  # a template may refuse such a conversation


def _named_end(files: TextFiles, tokenizer: Tokenizer, n_rows: int) -> list[int]:
    """Give the id of the tokenizer's end token.

    Raises:
        CheckpointError: A file names one that has no row, so the model can never write it.
    """
    name, end = tokenizer.named_tokens.get("eos_token"), tokenizer.eos_id
    if name is None or end is None:
        return []
    if end < n_rows and name not in tokenizer.invented_tokens:
        return [end]
    if "eos_token" not in tokenizer.stated_roles:
        return []  # only the class names it, no file of this model
    raise CheckpointError(
        f"{files.where}: the named end token is not a token of the model",
        got=f"eos_token {name!r}"
        + (", to which no file gives an id" if name in tokenizer.invented_tokens else f" ({end})"),
        wanted=f"a token of the vocabulary with an id below {n_rows}, the rows of the embedding",
        do=_OTHER_FILES,
    )


_OTHER_FILES: Final = (
    "Use the tokenizer files that the model was trained with, or name the end token that it has "
    "as eos_token in tokenizer_config.json."
)


def _check_vocabulary(files: TextFiles, tokenizer: Tokenizer, n_rows: int) -> None:
    """Refuse a tokenizer of another model: text may be split into tokens that have no row."""
    added = set(tokenizer.added_tokens)
    without = {i: t for t, i in tokenizer.vocabulary.items() if i >= n_rows and t not in added}
    if without:
        raise CheckpointError(
            f"{files.where}: the tokenizer has tokens without a row in the embedding",
            got=f"{len(without)} tokens of its vocabulary, such as {_shown(without)}",
            wanted=f"ids below {n_rows}, the rows of the embedding",
            do="Use the tokenizer files that belong to these weights.",
        )


def _check_prompt(
    files: TextFiles, tokenizer: Tokenizer, template: ChatTemplate, n_rows: int
) -> None:
    """Refuse a chat template whose prompts hold ids without a row."""
    if not template.sources:
        return
    ids = set(template.encode(PROBE, tokenizer))
    ids |= set(tokenizer.encode("", allow_special=True, add_special=True))
    without = {i: tokenizer.token_text(i) for i in sorted(ids) if i >= n_rows}
    if without:
        raise CheckpointError(
            f"{files.where}: the chat template writes tokens without a row in the embedding",
            got=_shown(without),
            wanted=f"ids below {n_rows}, the rows of the embedding",
            do="Use the tokenizer and template files that belong to these weights; if tokens were "
            "added for training, use the weights whose embedding was resized with them.",
        )


def _unused(tokenizer: Tokenizer, n_rows: int) -> Iterable[str]:
    without = {i: t for t, i in tokenizer.added_tokens.items() if i >= n_rows}
    if without:
        yield (
            f"{len(without)} added tokens have no row in the embedding ({n_rows} rows) and cannot "
            f"be used: {_shown(without)}"
        )


def _moved(tokenizer: Tokenizer) -> Iterable[str]:
    for text, (stated, given) in list(tokenizer.moved_tokens.items())[:_MAX_NAMED]:
        yield f"added token {text!r} is id {given} as in transformers; a file states {stated}"


def _said_ends(ends: Sequence[EndToken]) -> Iterable[str]:
    """Name the end tokens that config.json and generation_config.json do not list."""
    for end in ends:
        if not any(origin.endswith("eos_token_id") for origin in end.origins):
            yield (
                f"answers also end with {end.text!r} (id {end.id}), which {CONFIG_NAME} and "
                f"{GENERATION_NAME} do not state: {' and '.join(end.origins)}"
            )


def _join(found: Iterable[tuple[int, str]]) -> dict[int, tuple[str, ...]]:
    joined: dict[int, tuple[str, ...]] = {}
    for token_id, origin in found:
        joined[token_id] = tuple(dict.fromkeys((*joined.get(token_id, ()), origin)))
    return joined


def _named(
    ends: Mapping[int, tuple[str, ...]], tokenizer: Tokenizer | None
) -> tuple[EndToken, ...]:
    return tuple(
        EndToken(token_id, tokenizer.token_text(token_id) if tokenizer else "", origins)
        for token_id, origins in ends.items()
    )


def _shown(tokens: Mapping[int, str]) -> str:
    some = [f"{text!r} ({token_id})" for token_id, text in sorted(tokens.items())[:_MAX_NAMED]]
    more = len(tokens) - len(some)
    return ", ".join(some) + (f" and {more} more" if more else "")
