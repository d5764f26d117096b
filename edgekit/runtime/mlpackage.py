"""``PackageDecoder``: a stateful Core ML program as a ``Decoder``, whoever executes it.

``past = causalMask.shape[-1] - inputIds.shape[-1]``: the length of the mask says where the new
tokens go. So a rewind is a shorter mask, and long inputs are passed in chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgekit.artifact import Artifact
from edgekit.dtypes import F32Array
from edgekit.errors import EngineCrashError, EngineLoadError
from edgekit.families.rope_spec import LongRopeScaling
from edgekit.families.spec import DecoderSpec
from edgekit.records import EngineInfo
from edgekit.runtime.base import check_forward

CHUNK_TOKENS: Final = 256
# Finite and exact in fp16; -inf would make a row of nothing but masked scores NaN.
_MASKED: Final = np.float32(-30000.0)

Step: TypeAlias = Callable[[NDArray[np.int32], F32Array], F32Array]
"""Ids (1, T) and mask (1, 1, T, past + T) to logits (T, V); keys and values go to the state."""


class PackageDecoder:
    """A ``Decoder`` made from a function that executes the program once.

    Args:
        step: Executes the program once.
        info: What goes into records.
        vocab_size: V.
        context_length: Most positions to use.
        switches: Lengths beyond which LongRoPE uses its long set; see ``long_rope_switches``.
    """

    def __init__(
        self,
        step: Step,
        info: EngineInfo,
        vocab_size: int,
        context_length: int,
        switches: Sequence[int] = (),
    ) -> None:
        self._step: Step | None = step
        self._info = info
        self._vocab_size = vocab_size
        self._context_length = context_length
        self._switches = tuple(switches)
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
        # If a chunk fails, the positions after n_past are no longer what was cached.
        self._n_cached = n_past
        blocks = []
        for start, end in self._chunks(n_past, len(ids)):
            part = ids[start:end]
            logits = self._step(part[None], causal_mask(len(part), n_past + start))
            blocks.append(logits[max(0, first_wanted - start) :])
        self._n_cached = n_past + len(ids)
        return np.concatenate(blocks)

    def close(self) -> None:
        """Free the model. Safe to call twice."""
        self._step = None

    def _chunks(self, n_past: int, n_tokens: int) -> Iterator[tuple[int, int]]:
        """Cut T tokens into chunks; the first reaches any switch that a later one would pass.

        LongRoPE uses the long set for all tokens of a call that goes beyond its switch, and the
        program sees no more of the call than the chunk it is given.
        """
        crossed = (s + 1 - n_past for s in self._switches if s < n_past + n_tokens)
        start, end = 0, max(CHUNK_TOKENS, *crossed, 0)
        while start < n_tokens:
            yield start, min(end, n_tokens)
            start, end = end, end + CHUNK_TOKENS


def long_rope_switches(artifact: Artifact) -> tuple[int, ...]:
    """Give the lengths beyond which the decoder's LongRoPE uses its long set.

    Raises:
        EngineLoadError: The manifest describes no decoder.
    """
    try:
        spec = DecoderSpec.from_dict(artifact.manifest.decoder)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EngineLoadError(
            f"{artifact.path}: manifest of the decoder", got=error, do="Export the model again."
        ) from error
    scalings = [rope.scaling for rope in spec.ropes]
    return tuple(s.original_context_length for s in scalings if isinstance(s, LongRopeScaling))


def causal_mask(n_tokens: int, n_past: int) -> F32Array:
    """Give the mask of T new tokens after ``n_past``, float32 (1, 1, T, n_past + T)."""
    queries = np.arange(n_past, n_past + n_tokens)[:, None]
    keys = np.arange(n_past + n_tokens)[None]
    return np.where(keys <= queries, np.float32(0), _MASKED)[None, None]
