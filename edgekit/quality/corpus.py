"""The token sequences on which a candidate is compared with the float model.

They are suite items as the model sees them in use: its own chat template around each question,
then the right answer. Generators make the text, so nothing is downloaded and every model can be
measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from edgekit.quality.suites import Item

EncodeChat: TypeAlias = Callable[
    [Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]], list[int]
]
EncodeText: TypeAlias = Callable[[str], list[int]]


def make_documents(
    items: Mapping[str, Sequence[Item]],
    encode_chat: EncodeChat,
    encode_text: EncodeText,
    *,
    max_tokens: int,
    n_per_suite: int,
) -> list[list[int]]:
    """Give token ids of up to ``n_per_suite`` items of every suite, question and answer.

    Args:
        items: Items by suite.
        encode_chat: Messages and tools to the ids of the prompt.
        encode_text: Answer text to ids, special tokens included.
        max_tokens: Longer documents are left out.
        n_per_suite: Documents wanted from each suite.
    """
    documents: list[list[int]] = []
    for suite_items in items.values():
        kept = 0
        for item in suite_items:
            ids = encode_chat(item.messages, item.tools) + encode_text(item.target)
            if len(ids) <= max_tokens and kept < n_per_suite:
                documents.append(ids)
                kept += 1
    return documents
