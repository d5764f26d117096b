"""The model's own answers: sampled, with their questions, as text to calibrate on.

What a model says itself is the text that it will read back while it is used. Several answers are
sampled in lockstep, so that each weight is read once for a token of each. Float64: which token is
drawn must not depend on the order in which a processor adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from edgekit.draw import Draw
from edgekit.dtypes import F32Array, F64Array
from edgekit.errors import CheckpointError
from edgekit.families.base import SourceModel
from edgekit.progress import Progress, ignore_progress
from edgekit.quantize.calibration_documents import own_prompts
from edgekit.reference.lockstep import Lockstep
from edgekit.text.view import TextView

N_ANSWERS: Final = 32
N_ANSWER_TOKENS: Final = 96
_KEPT_BYTES: Final = 2 << 30  # weights that are kept in memory as float64 and not read at each step
_FLOAT64_BYTES: Final = 8
_UNIT: Final = 1 << 53  # steps of a float64 between 0 and 1


def sample_answers(
    source: SourceModel,
    *,
    n_answers: int = N_ANSWERS,
    n_tokens: int = N_ANSWER_TOKENS,
    seed: int = 0,
    progress: Progress = ignore_progress,
) -> list[list[int]]:
    """Sample answers to edgekit's questions at temperature 1.

    Args:
        source: The float model.
        n_answers: How many questions are asked, at most as many as there are.
        n_tokens: Most tokens of an answer.
        seed: Other questions and other draws for another seed.
        progress: Called as ``progress("sample answers", n_done, n_total)`` after each token.

    Returns:
        Question and answer as the model reads them, with the end token if it was drawn; in the
        order of the questions. Empty where the model has no tokenizer, or no place for an answer.
    """
    spec, view = source.spec, source.text
    most = spec.context_length - n_tokens
    prompts = [_prompt_ids(view, text) for text in own_prompts(seed)[:n_answers]]
    texts = [ids for ids in prompts if 0 < len(ids) <= most and max(ids) < spec.vocab_size]
    if not texts:
        return []
    capacity = max(map(len, texts)) + n_tokens
    keeps = source.n_parameters * _FLOAT64_BYTES <= _KEPT_BYTES

    def read(name: str) -> F32Array:
        return source.tensor(name).read()

    forward = Lockstep(spec, read, np.float64, keeps_weights=keeps, capacity=capacity)
    draws = [Draw("calibration", seed, "answer", number) for number in range(len(texts))]
    ends = frozenset(view.end_ids)
    logits = forward.start(texts)
    going = list(range(len(texts)))
    for n_done in range(1, n_tokens + 1):
        drawn = [_draw(row, draws[text]) for row, text in zip(logits, going, strict=True)]
        for text, token in zip(going, drawn, strict=True):
            texts[text].append(token)
        kept = [place for place, token in enumerate(drawn) if token not in ends]
        going = [going[place] for place in kept]
        progress("sample answers", n_done, n_tokens)
        if not going or n_done == n_tokens:
            break
        logits = forward.step(going, [drawn[place] for place in kept])
    forward.close()
    return texts


def _prompt_ids(view: TextView, question: str) -> list[int]:
    """Give the ids of a question; plain text where the model has no chat template."""
    if view.tokenizer is None:
        return []
    messages = [{"role": "user", "content": question}]
    try:
        return view.template.encode(messages, view.tokenizer)
    except CheckpointError:
        return view.tokenizer.encode(question, allow_special=False)


def _draw(logits: Sequence[float] | F64Array, draw: Draw) -> int:
    """Draw a token with the probability that the logits give it."""
    values = np.asarray(logits, dtype=np.float64)
    sums = np.cumsum(np.exp(values - values.max()))
    threshold = draw.below(_UNIT) / _UNIT * sums[-1]
    return int(np.searchsorted(sums, threshold, side="right"))
