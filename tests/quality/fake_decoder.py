"""Decoders whose logits are a table: row ``i`` follows token ``i``, whatever came before."""

from __future__ import annotations

import numpy as np

from edgekit.records import EngineInfo


class TableDecoder:
    """A ``Decoder`` that looks up logits by the last token; ``calls`` has (n_past, n tokens)."""

    context_length = 1 << 20

    def __init__(self, rows) -> None:
        self.rows = rows
        self.calls: list[tuple[int, int]] = []

    @property
    def info(self) -> EngineInfo:
        return EngineInfo("table", "1", "table")

    @property
    def vocab_size(self) -> int:
        return self.rows.shape[-1]

    def forward(self, token_ids, *, n_past: int, n_logits: int = 1):
        self.calls.append((n_past, len(token_ids)))
        return self.rows[np.array(token_ids)][-n_logits:]

    def close(self) -> None:
        self.rows = None
