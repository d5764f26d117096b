"""The fake engine: repeatable answers without a model, for tests.

It is public, for tests of edgekit and of programs that use it. Its logits are a pure function of
the token history, so chunking, rewinding and seeds behave as in a real engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Self, TypeAlias

import numpy as np

from edgekit.artifact import Artifact
from edgekit.dtypes import F32Array
from edgekit.errors import EngineCrashError, EngineLoadError
from edgekit.records import EngineInfo
from edgekit.runtime.base import check_forward
from edgekit.runtime.opening import chosen_length, chosen_options

Rule: TypeAlias = Callable[[Sequence[int]], F32Array]
"""Token history (T ids, T >= 1) to the logits that follow it, shape (V,)."""

_N_SEEN: Final = 4
_SURE: Final = 20.0


class FakeDecoder:
    """A ``Decoder`` that follows a rule instead of a network.

    Args:
        vocab_size: V.
        context_length: Positions of the pretended cache.
        rule: Logits from the history; by default noise that depends on the last four tokens.
        model: Name shown in records.
    """

    def __init__(
        self,
        vocab_size: int,
        context_length: int = 1024,
        *,
        rule: Rule | None = None,
        model: str = "fake",
    ) -> None:
        self._rule = rule or (lambda history: hashed_logits(history, vocab_size))
        self._vocab_size = vocab_size
        self._context_length = context_length
        self._model = model
        self._history: list[int] = []
        self._is_closed = False

    @classmethod
    def open(
        cls,
        artifact: Artifact,
        *,
        n_threads: int | None = None,
        context_length: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Self:
        """Pretend to run an artifact: its vocabulary and context, none of its weights.

        Raises:
            EngineLoadError: The manifest has no vocabulary size.
            UsageError: An unknown option, or more context than the artifact holds.
        """
        del n_threads  # nothing runs in parallel
        chosen_options("fake", options, {})
        length = chosen_length(artifact, context_length)
        vocab_size = artifact.manifest.decoder.get("vocab_size")
        if not isinstance(vocab_size, int) or vocab_size < 1:
            raise EngineLoadError(
                f"{artifact.path}: manifest decoder.vocab_size", got=vocab_size, wanted="a count"
            )
        return cls(vocab_size, length, model=artifact.name)

    @classmethod
    def saying(
        cls, token_ids: Sequence[int], *, vocab_size: int, context_length: int = 1024
    ) -> Self:
        """Make a decoder whose greedy answer to any prompt is ``token_ids``, over and over.

        End the list with the end-of-sequence token for an answer that ends.
        """
        script = tuple(token_ids)

        def rule(history: Sequence[int]) -> F32Array:
            n_said = _n_said(history, script)
            logits = np.zeros(vocab_size, dtype=np.float32)
            logits[script[n_said % len(script)]] = _SURE
            return logits

        return cls(vocab_size, context_length, rule=rule)

    @property
    def info(self) -> EngineInfo:
        """Facts for records; always marked as emulated."""
        return EngineInfo("fake", "1", self._model, n_threads=1, is_emulated=True)

    @property
    def vocab_size(self) -> int:
        """V."""
        return self._vocab_size

    @property
    def context_length(self) -> int:
        """Most positions the pretended cache holds."""
        return self._context_length

    def forward(self, token_ids: Sequence[int], *, n_past: int, n_logits: int = 1) -> F32Array:
        """Apply the rule at the last ``n_logits`` positions; see ``Decoder.forward``.

        Raises:
            UsageError: See ``Decoder.forward``.
            EngineCrashError: The decoder is closed.
        """
        if self._is_closed:
            raise EngineCrashError("fake engine: the model is closed", do="Open it again.")
        check_forward(
            token_ids,
            n_past,
            n_logits,
            n_cached=len(self._history),
            vocab_size=self._vocab_size,
            context_length=self._context_length,
        )
        self._history = [*self._history[:n_past], *token_ids]
        n_seen = len(self._history)
        return np.stack(
            [self._rule(self._history[:n]) for n in range(n_seen - n_logits + 1, n_seen + 1)]
        )

    def close(self) -> None:
        """Forget everything. Safe to call twice."""
        self._history = []
        self._is_closed = True


def hashed_logits(history: Sequence[int], vocab_size: int) -> F32Array:
    """Give normal noise of shape (V,) that depends on the last four tokens only."""
    seed = [int(token_id) for token_id in history[-_N_SEEN:]]
    return np.random.default_rng(seed).standard_normal(vocab_size, dtype=np.float32)


def _n_said(history: Sequence[int], script: tuple[int, ...]) -> int:
    """Count how many tokens of the script the history ends with."""
    for n in range(min(len(script), len(history)), 0, -1):
        if tuple(history[-n:]) == script[:n]:
            return n
    return 0
