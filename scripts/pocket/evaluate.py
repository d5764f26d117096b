"""Evaluation of the model while it is trained: rates of exactly right answers, with intervals.

Answers are greedy, from weights rounded to bfloat16 (computed in float32), on the held-out split.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch

from edgekit.quality.suites.base import Answer, Item, Split, Suite
from edgekit.quality.suites.long_context import LongContext
from edgekit.quality.suites.multi_step import MultiStep
from edgekit.quality.suites.structured_output import StructuredOutput
from edgekit.quality.suites.tool_calls import ToolCalls
from pocket.chat import Chat
from pocket.model import Config, Pocket, generate

__all__ = ["SUITES", "TARGET_SLICES", "Tally", "evaluate", "rounded_copy", "wilson"]

SUITES: tuple[Suite, ...] = (ToolCalls(), StructuredOutput(), LongContext(), MultiStep())
_SLICES = {"long_context": "n_context_tokens", "multi_step": "n_steps"}
# The slices that carry a target, with the number of slices that a suite goes round by index.
TARGET_SLICES: Mapping[str, tuple[str, int, int]] = {
    "long_context": ("n_context_tokens", 512, 4),
    "multi_step": ("n_steps", 2, 5),
}
_Z_95 = 1.959964


@dataclass
class Tally:
    """Right answers out of all, with failure classes and a few wrong examples."""

    n_right: int = 0
    n: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    wrong: list[tuple[str, str, str]] = field(default_factory=list)


def wilson(n_right: int, n: int) -> tuple[float, float]:
    """Give the 95 % Wilson interval of a share, 0..1."""
    share, z2 = n_right / n, _Z_95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z_95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def rounded_copy(weights: Mapping[str, torch.Tensor], config: Config) -> Pocket:
    """Give a float32 model whose weights are rounded to bfloat16, as they are shipped."""
    model = Pocket(config)
    model.load_state_dict({k: v.bfloat16().float() for k, v in weights.items()})
    model.eval()
    return model


def evaluate(
    model: Pocket, chat: Chat, n: int, seed: int, suites: Iterable[Suite] = SUITES
) -> dict[str, Tally]:
    """Answer `n` held-out items per suite; slices get keys such as `multi_step/n_steps=2`.

    A slice that carries a target is answered `n` times too: the suite's items go on by index and
    those of the other slices are left out.
    """
    tallies: dict[str, Tally] = defaultdict(Tally)
    for suite in suites:
        key, wanted, n_slices = TARGET_SLICES.get(suite.name, ("", 0, 1))
        items = suite.items(n * n_slices, seed=seed, split=Split.HELD_OUT, count_tokens=chat.count)
        for index, item in enumerate(items):
            is_whole = index < n
            if not is_whole and item.meta[key] != wanted:
                continue
            ids = generate(model, chat.prompt_ids(item), item.max_tokens, chat.eos_id)
            text = chat.tokenizer.decode(ids, skip_special_tokens=False)
            score = suite.score(item, Answer(text))
            for name in _keys(item)[0 if is_whole else 1 :]:
                tally = tallies[name]
                tally.n += 1
                tally.n_right += score.is_correct
                if not score.is_correct:
                    tally.reasons[score.reason] += 1
                    tally.wrong.append((item.messages[0]["content"], item.target, text))
    return dict(tallies)


def _keys(item: Item) -> list[str]:
    slice_by = _SLICES.get(item.suite, "kind")
    return [item.suite, f"{item.suite}/{slice_by}={item.meta[slice_by]}"]
