"""Small sentencepiece models for the tests, trained where they are needed."""

from __future__ import annotations

import io
from typing import Any

import sentencepiece

from tests.text.token_texts import TEXTS

# Kind and settings of Llama 2's model: byte-pair merges, bytes for what is unknown, no changes.
SETTINGS: dict[str, Any] = {
    "vocab_size": 700,
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "character_coverage": 0.98,
    "hard_vocab_limit": False,
    "minloglevel": 2,
}


def train(**changes: Any) -> bytes:
    """Train a model and give the content of its tokenizer.model."""
    written = io.BytesIO()
    texts = [*TEXTS.values(), *["the cat sat on the mat and the dog ran in the park"] * 20]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=written, **{**SETTINGS, **changes}
    )
    return written.getvalue()
