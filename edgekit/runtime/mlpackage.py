"""Answer one question: how is a Core ML decoder with state driven, whoever executes it?

``past = causalMask.shape[-1] - inputIds.shape[-1]``: the length of the mask says where the new
tokens go, so rewinding is passing a shorter mask, and long inputs go in chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgekit.dtypes import F32Array
from edgekit.errors import EngineCrashError
from edgekit.records import EngineInfo
from edgekit.runtime.base import check_forward

CHUNK_TOKENS: Final = 256
# Finite and exact in fp16; -inf would make a row of nothing but masked scores NaN.
_MASKED: Final = np.float32(-30000.0)

Step: TypeAlias = Callable[[NDArray[np.int32], F32Array], F32Array]
"""Ids (1, T) and mask (1, 1, T, past + T) to logits (T, V); keys and values go to the state."""


class PackageDecoder:
    """A ``Decoder`` over one stateful call.

    Args:
        step: Executes the program once.
        info: What goes into records.
        vocab_size: V.
        context_length: Most positions to use.
    """

    def __init__(self, step: Step, info: EngineInfo, vocab_size: int, context_length: int) -> None:
        self._step: Step | None = step
        self._info = info
        self._vocab_size = vocab_size
        self._context_length = context_length
        self._n_cached = 0

    @property
    def info(self) -> EngineInfo:
        """Engine name, version and settings."""
        return self._info

    @property
    def vocab_size(self) -> int:
        """V."""
        return self._vocab_size

    @property
    def context_length(self) -> int:
        """Most positions the cache holds."""
        return self._context_length

    def forward(self, token_ids: Sequence[int], *, n_past: int, n_logits: int = 1) -> F32Array:
        """Run the tokens; see ``Decoder.forward``.

        Raises:
            UsageError: See ``Decoder.forward``.
            EngineCrashError: The program failed, or the decoder is closed.
        """
        if self._step is None:
            raise EngineCrashError(f"{self._info.engine}: the model is closed", do="Open it again.")
        check_forward(
            token_ids,
            n_past,
            n_logits,
            n_cached=self._n_cached,
            vocab_size=self._vocab_size,
            context_length=self._context_length,
        )
        ids = np.asarray(token_ids, np.int32)
        first_wanted = len(ids) - n_logits
        # If a chunk fails, what lies behind n_past is no longer what was cached.
        self._n_cached = n_past
        blocks = []
        for start in range(0, len(ids), CHUNK_TOKENS):
            part = ids[start : start + CHUNK_TOKENS]
            logits = self._step(part[None], causal_mask(len(part), n_past + start))
            blocks.append(logits[max(0, first_wanted - start) :])
        self._n_cached = n_past + len(ids)
        return np.concatenate(blocks)

    def close(self) -> None:
        """Free the model. Safe to call twice."""
        self._step = None


def causal_mask(n_tokens: int, n_past: int) -> F32Array:
    """Give the mask of T new tokens after ``n_past``, float32 (1, 1, T, n_past + T)."""
    queries = np.arange(n_past, n_past + n_tokens)[:, None]
    keys = np.arange(n_past + n_tokens)[None]
    return np.where(keys <= queries, np.float32(0), _MASKED)[None, None]
