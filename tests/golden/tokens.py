"""The tokens on which families are compared with Hugging Face transformers.

The tiny checkpoints have windows of 24 keys and original context lengths of 64; 200 tokens go
past both. In pieces, the second crosses 64 and the rest are single tokens.
"""

from __future__ import annotations

from typing import Final

import numpy as np

N_TOKENS: Final = 200
N_SHORT: Final = 64
"""As many tokens as the original context length: LongRoPE's short factors hold."""
CHUNKS: Final = [50, 70] + [1] * 80
ROWS: Final = (*range(0, N_TOKENS, 14), N_TOKENS - 1)
"""Positions whose logits are stored."""


def golden_ids() -> list[int]:
    """Give the tokens; special ones do not occur."""
    ids: list[int] = np.random.default_rng(5).integers(13, 384, N_TOKENS).tolist()
    return ids
