"""Timing of a loaded decoder: prefill, decode, and time to first token.

Prefill is limited by arithmetic and decode by the bytes that each token reads, so they are timed
separately. One run is a prompt of exactly ``n_prompt_tokens`` ids, then exactly ``n_new_tokens``
greedy ids; end tokens are ignored. Prompts are random valid ids, different for every run and with
different first ids, so that no cached prefix can help. Warm-up runs come first and are dropped.
``Decoder.forward`` is called directly: no text is tokenized or assembled, so times start and end at
token ids (formula ``ttft-ids``). Python's cyclic garbage collector is off while the clock runs.
Every raw time is kept.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np

from edgekit.errors import MeasureError
from edgekit.records import Workload
from edgekit.runtime.base import Decoder

Clock: TypeAlias = Callable[[], float]
OnRun: TypeAlias = Callable[[int, int], None]
"""Called as ``on_run(n_done, n_total)`` after every run, outside of timed code."""

PROMPT_SEED: Final = 20_240_607


@dataclass(frozen=True, slots=True)
class RunTimes:
    """Raw times of one run.

    Attributes:
        prefill_s: The forward call on the prompt.
        ttft_s: From passing the prompt ids to getting the first new id; prefill and sampling.
        itl_s: Inter-token latency, ``n_new_tokens - 1`` values.
        e2e_s: From passing the prompt ids to getting the last new id.
    """

    prefill_s: float
    ttft_s: float
    itl_s: tuple[float, ...]
    e2e_s: float


def measure_speed(
    decoder: Decoder,
    workload: Workload,
    *,
    clock: Clock = time.perf_counter,
    on_run: OnRun | None = None,
) -> tuple[RunTimes, ...]:
    """Time ``n_repeats`` runs after ``n_warmup`` dropped ones.

    Raises:
        MeasureError: The workload cannot be timed, or does not fit the context.
        EngineCrashError: The runtime failed.
    """
    check_workload(workload, decoder.context_length)
    prompts = make_prompts(
        decoder.vocab_size, workload.n_prompt_tokens, workload.n_warmup + workload.n_repeats
    )
    runs = []
    for i, prompt in enumerate(prompts):
        with _no_garbage_collection():
            times = _run_once(decoder, prompt, workload.n_new_tokens, clock)
        if i >= workload.n_warmup:
            runs.append(times)
        if on_run is not None:
            on_run(i + 1, len(prompts))
    return tuple(runs)


def check_workload(workload: Workload, context_length: int) -> None:
    """Refuse a workload whose numbers would mean nothing.

    Raises:
        MeasureError: Fewer than 2 new tokens, no prompt, no repeat, or more than the context.
    """
    if workload.n_new_tokens < 2:
        raise MeasureError("new tokens per run", got=workload.n_new_tokens, wanted="at least 2")
    if workload.n_prompt_tokens < 1 or workload.n_repeats < 1 or workload.n_warmup < 0:
        raise MeasureError(
            "the workload cannot be timed", got=workload, wanted="a prompt and at least 1 repeat"
        )
    n_tokens = workload.n_prompt_tokens + workload.n_new_tokens
    if n_tokens > context_length:
        raise MeasureError(
            "the workload is longer than the context",
            got=f"{n_tokens} tokens",
            wanted=f"at most {context_length}",
            do="Shorten the prompt or the answer.",
        )


def make_prompts(vocab_size: int, n_tokens: int, n_prompts: int) -> list[list[int]]:
    """Give random prompts with different first ids; the same ones on every machine."""
    rng = np.random.default_rng(PROMPT_SEED)
    prompts = rng.integers(0, vocab_size, (n_prompts, n_tokens))
    if n_prompts <= vocab_size:
        prompts[:, 0] = rng.permutation(vocab_size)[:n_prompts]
    return [[int(token) for token in prompt] for prompt in prompts]


def _run_once(decoder: Decoder, prompt: Sequence[int], n_new: int, clock: Clock) -> RunTimes:
    start_s = clock()
    logits = decoder.forward(prompt, n_past=0)
    prefilled_s = clock()
    token = int(logits[-1].argmax())
    times_s = [clock()]
    for n_past in range(len(prompt), len(prompt) + n_new - 1):
        token = int(decoder.forward([token], n_past=n_past)[-1].argmax())
        times_s.append(clock())
    itl_s = tuple(float(itl) for itl in np.diff(times_s))
    if prefilled_s <= start_s or min(itl_s) <= 0:
        raise MeasureError(
            "the clock is too coarse for this model", got="a step of 0 s", wanted="time that passes"
        )
    return RunTimes(prefilled_s - start_s, times_s[0] - start_s, itl_s, times_s[-1] - start_s)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
