"""Answer one question: is the tokenizer of a known model the one that its recipe means?

A recipe may hold token ids that another program gave for the real model. A wrong or broken
tokenizer shows no other sign than a model that answers badly.
"""

from __future__ import annotations

from pathlib import Path

from edgekit.checkpoint.chat import ChatTemplate
from edgekit.checkpoint.recipe import Recipe
from edgekit.checkpoint.tokenizer import Tokenizer
from edgekit.errors import CheckpointError


def check_golden(recipe: Recipe, folder: Path) -> None:
    """Compare a model's tokenizer and chat template with the ids that its recipe holds.

    Raises:
        CheckpointError: They differ, or tokenizer or template cannot be read.
    """
    golden = recipe.golden
    tokenizer = Tokenizer.open(folder) if golden.texts or golden.chat else None
    if tokenizer is None:
        return
    for text, ids in golden.texts:
        found = tokenizer.encode(text, allow_special=False)
        _compare(recipe, folder, repr(text), found, ids)
    if golden.chat is not None:
        messages, ids = golden.chat
        found = ChatTemplate.open(folder).encode(messages, tokenizer)
        _compare(recipe, folder, "the chat", found, ids)


def _compare(
    recipe: Recipe, folder: Path, what: str, found: list[int], wanted: tuple[int, ...]
) -> None:
    if found != list(wanted):
        raise CheckpointError(
            f"{recipe.name}: the tokenizer of {recipe.source} gives other ids for {what} than "
            f"{recipe.golden.source}",
            got=_shown(found),
            wanted=_shown(wanted),
            do="Download the model again. A folder is taken as it is: if you know that the "
            f"tokenizer is right, export {folder}.",
        )


def _shown(ids: list[int] | tuple[int, ...]) -> str:
    return " ".join(map(str, ids[:24])) + (" ..." if len(ids) > 24 else "")
