"""Claims about the comparison documents: question, then the right answer, each within a length."""

from __future__ import annotations

from edgekit.quality.corpus import make_documents
from edgekit.quality.evaluate import SuitePlan

ITEMS = SuitePlan(("multi_step", "tool_calls"), n_items=6).make_items(None)


def letters(text: str) -> list[int]:
    return [ord(c) for c in text]


def chat(messages, tools) -> list[int]:
    return letters("".join(m["content"] for m in messages)) + [0] * len(tools)


def documents(max_tokens: int, n_per_suite: int) -> list[list[int]]:
    return make_documents(ITEMS, chat, letters, max_tokens=max_tokens, n_per_suite=n_per_suite)


def test_a_document_is_the_question_and_the_right_answer():
    found = documents(10**6, 1)
    firsts = [items[0] for items in ITEMS.values()]
    assert found == [chat(i.messages, i.tools) + letters(i.target) for i in firsts]


def test_long_documents_are_left_out_and_the_next_ones_taken():
    every = documents(10**6, 6)
    assert len(every) == 12
    limit = sorted(len(document) for document in every)[6]
    kept = documents(limit, 6)
    assert kept == [document for document in every if len(document) <= limit]
    assert documents(0, 6) == []
