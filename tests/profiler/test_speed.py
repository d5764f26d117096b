"""Speed runs on a clock of our own, so every time is exact; and what they ask of the decoder."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from edgekit.errors import EngineCrashError, MeasureError
from edgekit.profiler.memory import MemoryPeak, MemoryUse
from edgekit.profiler.metrics import load_metrics, memory_metrics, metric_of, speed_metrics
from edgekit.profiler.speed import RunTimes, make_prompts, measure_speed
from edgekit.records import Kind, Workload
from edgekit.runtime.fake import FakeDecoder

V = 50


class SlowDecoder(FakeDecoder):
    """The fake engine, with a price in clock ticks for every call."""

    def __init__(self, prefill_s=(8.0,), token_s=0.5, context_length=64):
        super().__init__(V, context_length)
        self.now_s = 100.0
        self.calls = []
        self.collecting = []
        self._prefill_s = list(prefill_s)
        self._token_s = token_s

    def forward(self, token_ids, *, n_past, n_logits=1):
        logits = super().forward(token_ids, n_past=n_past, n_logits=n_logits)
        self.calls.append((list(token_ids), n_past, n_logits, int(logits[-1].argmax())))
        self.collecting.append(gc.isenabled())
        if n_past == 0:
            self.now_s += self._prefill_s.pop(0) if len(self._prefill_s) > 1 else self._prefill_s[0]
        else:
            self.now_s += self._token_s
        return logits


def measure(decoder, workload, **more):
    return measure_speed(decoder, workload, clock=lambda: decoder.now_s, **more)


def test_times_are_exact_on_a_known_clock():
    decoder = SlowDecoder(prefill_s=(8.0,), token_s=0.5)
    runs = measure(decoder, Workload(n_prompt_tokens=16, n_new_tokens=5, n_repeats=3, n_warmup=1))
    assert runs == (RunTimes(prefill_s=8.0, ttft_s=8.0, itl_s=(0.5,) * 4, e2e_s=10.0),) * 3
    by_name = {m.name: m for m in speed_metrics(runs, Workload(16, 5, 3, 1), Kind.MEASURED)}
    assert by_name["ttft_s"].value == 8.0
    assert by_name["prefill_tok_per_s"].value == 2.0  # 16 tokens in 8 s
    assert by_name["tpot_s"].value == 0.5
    assert by_name["decode_tok_per_s"].value == 2.0
    assert by_name["e2e_s"].value == 10.0
    assert by_name["itl_p50_s"].samples == (0.5,) * 12
    assert by_name["itl_p99_s"].value == 0.5
    assert by_name["tpot_s"].formula == "tpot-excl-first"


def test_warm_up_runs_are_run_and_dropped():
    decoder = SlowDecoder(prefill_s=(99.0, 77.0, 8.0, 8.0))
    seen = []
    runs = measure(
        decoder,
        Workload(n_prompt_tokens=4, n_new_tokens=2, n_repeats=2, n_warmup=2),
        on_run=lambda *step: seen.append(step),
    )
    assert [run.ttft_s for run in runs] == [8.0, 8.0]
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_the_decoder_sees_whole_prompts_then_its_own_greedy_ids():
    decoder = SlowDecoder()
    measure(decoder, Workload(n_prompt_tokens=6, n_new_tokens=4, n_repeats=1, n_warmup=0))
    (prompt, n_past, n_logits, token), *steps = decoder.calls
    assert (len(prompt), n_past, n_logits) == (6, 0, 1)
    # n_new_tokens = 4: one id from the prompt, three more from single-token steps.
    assert [n_past for _, n_past, _, _ in steps] == [6, 7, 8]
    for ids, _, _, next_token in steps:
        assert ids == [token]
        token = next_token


def test_no_two_prompts_share_a_first_id_and_all_are_valid():
    prompts = make_prompts(V, 12, 6)
    assert len({prompt[0] for prompt in prompts}) == 6
    assert all(len(prompt) == 12 and set(prompt) <= set(range(V)) for prompt in prompts)
    assert prompts == make_prompts(V, 12, 6)


def test_a_tiny_vocabulary_still_gives_prompts():
    assert np.array(make_prompts(2, 3, 5)).shape == (5, 3)


def test_the_garbage_collector_rests_while_the_clock_runs():
    decoder = SlowDecoder()
    assert gc.isenabled()
    measure(decoder, Workload(n_prompt_tokens=4, n_new_tokens=3, n_repeats=1, n_warmup=0))
    assert decoder.collecting == [False, False, False]
    assert gc.isenabled()


def test_a_crash_leaves_the_garbage_collector_on():
    decoder = SlowDecoder()
    decoder.close()
    with pytest.raises(EngineCrashError):
        measure(decoder, Workload(n_prompt_tokens=4, n_new_tokens=3, n_repeats=1, n_warmup=0))
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("workload", "text"),
    [
        (Workload(4, 1, 1, 0), "new tokens per run; got 1; wanted at least 2"),
        (Workload(0, 4, 1, 0), "a prompt and at least 1 repeat"),
        (Workload(4, 4, 0, 1), "a prompt and at least 1 repeat"),
        (Workload(60, 5, 1, 0), "got 65 tokens; wanted at most 64"),
    ],
)
def test_a_workload_without_meaning_is_refused(workload, text):
    with pytest.raises(MeasureError, match=text):
        measure(SlowDecoder(context_length=64), workload)


def test_a_clock_that_stands_still_is_refused():
    decoder = SlowDecoder(token_s=0.0)
    with pytest.raises(MeasureError, match="clock is too coarse"):
        measure(decoder, Workload(n_prompt_tokens=4, n_new_tokens=3, n_repeats=1, n_warmup=0))


def test_gaps_of_all_runs_are_pooled_for_the_quantiles():
    runs = [
        RunTimes(1.0, 1.0, (1.0, 2.0), 4.0),
        RunTimes(1.0, 1.0, (3.0, 5.0), 9.0),
    ]
    by_name = {m.name: m for m in speed_metrics(runs, Workload(4, 3, 2, 0), Kind.EMULATED)}
    assert by_name["itl_p50_s"].value == 2.5
    assert by_name["itl_p50_s"].samples == (1.0, 2.0, 3.0, 5.0)
    # Position 0.95 * 3 = 2.85 between 3 and 5.
    assert by_name["itl_p95_s"].value == pytest.approx(4.7, abs=1e-12)
    assert by_name["tpot_s"].samples == (1.5, 4.0)
    assert by_name["tpot_s"].value == 2.75
    assert {m.kind for m in by_name.values()} == {Kind.EMULATED}
    assert all(m.formula for m in by_name.values())


def test_a_metric_keeps_its_samples_in_order_and_needs_five_for_an_interval():
    few = metric_of("x_s", [3.0, 1.0, 2.0], Kind.MEASURED, "f")
    assert (few.value, few.samples, few.low, few.high) == (2.0, (3.0, 1.0, 2.0), None, None)
    enough = metric_of("x_s", [3.0, 1.0, 5.0, 2.0, 4.0], Kind.MEASURED, "f")
    assert (enough.low, enough.high) == (1.0, 5.0)


def test_a_load_that_may_not_be_cold_has_no_value():
    metrics = load_metrics([], [2.0], [1.0, 3.0, 2.0], Kind.MEASURED)
    cold, warm, opened = metrics
    assert (cold.name, cold.value, cold.note) == ("load_cold_s", None, "cache: unknown")
    assert (warm.name, warm.value) == ("load_warm_s", 2.0)
    assert (opened.name, opened.value) == ("open_s", 2.0)


def test_memory_metrics_keep_the_kinds_apart():
    metrics = memory_metrics(
        baseline=MemoryUse(10, 20, 30),
        loaded=MemoryUse(300, 40, 340),
        peak=MemoryPeak(anon_bytes=250, file_bytes=90, high_water_bytes=333, n_samples=4),
        kind=Kind.MEASURED,
        formula="rss-split",
    )
    values = {m.name: m.value for m in metrics}
    assert values == {
        "peak_anon_bytes": 300,  # what the child read of itself is part of its life
        "peak_file_bytes": 90,
        "peak_rss_bytes": 340,
        "loaded_anon_bytes": 300,
        "loaded_file_bytes": 40,
        "baseline_anon_bytes": 10,
        "baseline_file_bytes": 20,
    }
