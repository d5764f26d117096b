"""Calibration text: the token sequences that a model reads while its inputs are measured.

Built in, it is edgekit's own documents (calibration_documents.py) and answers that the model itself
samples (own_answers.py), in the model's own chat form. A user's file takes their place.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from edgekit.draw import Draw
from edgekit.errors import CheckpointError, UsageError
from edgekit.quantize.calibration_documents import (
    Document,
    Message,
    own_documents,
    read_documents,
)
from edgekit.text.tokenizer import spread_ids
from edgekit.text.view import TextView

DEFAULT_TOKENS: Final = 8192
MIN_TOKENS: Final = 256
MAX_TOKENS: Final = 1 << 20
SEQUENCE_TOKENS: Final = 512
"""Tokens of one sequence. Documents follow each other in it, as turns follow each other in use."""


@dataclass(frozen=True, slots=True)
class CalibrationText:
    """What a model reads while its inputs are measured.

    Attributes:
        sequences: Token ids; each sequence is read by itself, from position 0 on.
        content: What it is, in words.
        file: Name of the user's file; empty for the built-in text.
        file_sha256: Hash of that file.
    """

    sequences: tuple[tuple[int, ...], ...]
    content: str
    file: str = ""
    file_sha256: str = ""

    @property
    def n_tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(len(sequence) for sequence in self.sequences)

    def sha256(self) -> str:
        """Hash the token ids and where each sequence ends."""
        digest = hashlib.sha256()
        for sequence in self.sequences:
            digest.update(struct.pack(f"<I{len(sequence)}I", len(sequence), *sequence))
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Give what a manifest says of it."""
        described = {
            "content": self.content,
            "n_tokens": self.n_tokens,
            "n_sequences": len(self.sequences),
            "token_ids_sha256": self.sha256(),
        }
        if self.file:
            described |= {"file": self.file, "file_sha256": self.file_sha256}
        return described


def built_in_text(
    view: TextView,
    *,
    n_rows: int,
    context_length: int,
    n_tokens: int = DEFAULT_TOKENS,
    seed: int = 0,
    answers: Iterable[Sequence[int]] = (),
) -> CalibrationText:
    """Make the built-in text.

    Args:
        view: The model's text files.
        n_rows: Rows of the embedding; every id is below it.
        context_length: Most positions of the model.
        n_tokens: How many tokens to make; ``MIN_TOKENS`` to ``MAX_TOKENS``.
        seed: Another text for another seed.
        answers: The model's own answers with their questions, as token ids; half of the tokens at
            most come from them.

    Returns:
        The text; ids spread over the vocabulary where the model has no tokenizer.

    Raises:
        UsageError: ``n_tokens`` is out of range.
    """
    check_n_tokens(n_tokens)
    if view.tokenizer is None:
        ids = spread_ids(n_tokens, n_rows)
        return CalibrationText(_cut([ids], n_tokens, context_length), "ids evenly spread")
    sampled: list[Sequence[int]] = []
    n_sampled = 0
    for answer in answers:
        if n_sampled + len(answer) > n_tokens // 2:
            break
        sampled.append(answer)
        n_sampled += len(answer)
    n_own = n_tokens - n_sampled
    made = _take((own_ids(document, view) for document in own_documents(seed)), n_own, n_rows)
    sequences = _cut(_interleave(made, sampled), n_tokens, context_length)
    content = "edgekit's own text"
    if sampled:
        content += f", and {len(sampled)} answers that the model sampled ({n_sampled} tokens)"
    return CalibrationText(sequences, content)


def text_of_file(
    path: str | Path,
    view: TextView,
    *,
    n_rows: int,
    context_length: int,
    n_tokens: int = DEFAULT_TOKENS,
    seed: int = 0,
) -> CalibrationText:
    """Read a user's file; where it has more tokens than are wanted, documents are drawn from it.

    Args:
        path: Plain text, or JSON lines (``read_documents``).
        view: The model's text files.
        n_rows: Rows of the embedding.
        context_length: Most positions of the model.
        n_tokens: Most tokens to read; ``MIN_TOKENS`` to ``MAX_TOKENS``.
        seed: Which documents are drawn.

    Raises:
        UsageError: The file cannot be used: see ``read_documents``; or the model has no tokenizer,
            or its chat template refuses a chat; or the text is shorter than ``MIN_TOKENS``.
    """
    check_n_tokens(n_tokens)
    documents, data = read_documents(path)
    if view.tokenizer is None:
        raise UsageError(
            f"{path}: calibration text for a model without a tokenizer",
            wanted="a model folder with tokenizer files",
            do="Leave out --calibration.",
        )
    drawn = Draw("calibration", seed, "file").sample(documents, len(documents))
    made = _take((_ids_of(document, view) for document in drawn), n_tokens, n_rows)
    text = CalibrationText(
        _cut(made, n_tokens, context_length),
        f"{len(made)} of {len(documents)} documents of {Path(path).name}"
        if len(made) < len(documents)
        else f"all of {Path(path).name}",
        Path(path).name,
        hashlib.sha256(data).hexdigest(),
    )
    if text.n_tokens < MIN_TOKENS:
        raise UsageError(
            f"{path}: calibration text",
            got=f"{text.n_tokens} tokens",
            wanted=f"at least {MIN_TOKENS}, better {DEFAULT_TOKENS}",
            do="Add text such as the model will meet, or leave out --calibration.",
        )
    return text


def check_n_tokens(n_tokens: int) -> None:
    """Refuse a number of tokens that is out of range.

    Raises:
        UsageError: It is.
    """
    if not MIN_TOKENS <= n_tokens <= MAX_TOKENS:
        raise UsageError(
            "--calibration-tokens", got=n_tokens, wanted=f"{MIN_TOKENS} to {MAX_TOKENS}"
        )


def own_ids(document: Document, view: TextView) -> list[int]:
    """Give the ids of one of edgekit's own documents in whatever form the model takes it.

    A template may refuse tools, system messages or chats at all; then tools are described in the
    messages, the system message goes, and at last the chat becomes plain text.
    """
    for form in (document, _without_tools(document), _without_system(_without_tools(document))):
        try:
            return _ids_of(form, view)
        except UsageError:
            continue
    return _ids_of(Document(document.where, text=document.plain_text), view)


def _ids_of(document: Document, view: TextView) -> list[int]:
    tokenizer = view.tokenizer
    if tokenizer is None:
        raise UsageError(f"{document.where}: no tokenizer")
    if not document.messages:
        return tokenizer.encode(document.text, allow_special=False)
    try:
        return view.template.encode(
            document.messages, tokenizer, document.tools, add_generation_prompt=False
        )
    except CheckpointError as error:
        raise UsageError(
            f"{document.where}: the model's chat template does not take this chat",
            got=str(error),
            do='Change the chat, or give it as {"text": ...}.',
        ) from error


def _without_tools(document: Document) -> Document:
    """Describe tools, calls and results in the words of the messages."""
    if not document.tools:
        return document
    offered = json.dumps([tool["function"] for tool in document.tools])
    messages: list[Message] = []
    for message in document.messages:
        calls = message.get("tool_calls")
        if calls:
            content = json.dumps(calls[0]["function"])
            messages.append({"role": "assistant", "content": content})
        elif message["role"] == "tool":
            messages.append({"role": "user", "content": f"Result: {message['content']}"})
        elif not messages:
            content = f"You can call these tools by writing JSON: {offered}\n\n{message['content']}"
            messages.append({"role": message["role"], "content": content})
        else:
            messages.append(message)
    return Document(document.where, tuple(messages))


def _without_system(document: Document) -> Document:
    kept = tuple(message for message in document.messages if message["role"] != "system")
    return replace(document, messages=kept)


def _take(documents: Iterable[list[int]], n_tokens: int, n_rows: int) -> list[list[int]]:
    """Take documents until there are enough tokens; the last one is cut."""
    taken: list[list[int]] = []
    n_left = n_tokens
    for ids in documents:
        kept = [i for i in ids if i < n_rows][:n_left]
        if kept:
            taken.append(kept)
        n_left -= len(kept)
        if not n_left:
            break
    return taken


def _interleave(
    first: Sequence[Sequence[int]], second: Sequence[Sequence[int]]
) -> Iterator[Sequence[int]]:
    """Spread the documents of the second list evenly between those of the first."""
    n_given = 0
    for number, ids in enumerate(first, start=1):
        yield ids
        n_due = number * len(second) // len(first)
        yield from second[n_given:n_due]
        n_given = n_due


def _cut(
    documents: Iterable[Sequence[int]], n_tokens: int, context_length: int
) -> tuple[tuple[int, ...], ...]:
    """Lay documents one after the other and cut them into sequences."""
    ids = [i for document in documents for i in document][:n_tokens]
    length = min(SEQUENCE_TOKENS, context_length)
    return tuple(tuple(ids[at : at + length]) for at in range(0, len(ids), length))
