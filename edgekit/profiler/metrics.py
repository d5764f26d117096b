"""Conversion of raw times and memory readings to named metrics.

Every metric names its formula (docs/method.md), keeps the raw samples in the order in which they
were taken, and has a 95 % interval of the median where there are enough samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from edgekit.profiler.memory import MemoryPeak, MemoryUse
from edgekit.profiler.speed import RunTimes
from edgekit.records import Kind, Metric, Workload
from edgekit.statistics import bootstrap_interval, median, quantile

_ITL: Final = (("itl_p50_s", 0.50), ("itl_p95_s", 0.95), ("itl_p99_s", 0.99))


def metric_of(
    name: str, samples: Sequence[float], kind: Kind, formula: str, note: str = ""
) -> Metric:
    """Give the median of raw samples with its interval."""
    low, high = bootstrap_interval(samples) or (None, None)
    return Metric(
        name, median(samples), kind, formula, tuple(samples), low=low, high=high, note=note
    )


def speed_metrics(runs: Sequence[RunTimes], workload: Workload, kind: Kind) -> tuple[Metric, ...]:
    """Turn the runs into time to first token, rates, inter-token latency and end-to-end time."""
    tpot_s = [sum(run.itl_s) / len(run.itl_s) for run in runs]
    prefill = [workload.n_prompt_tokens / run.prefill_s for run in runs]
    itl_s = [itl for run in runs for itl in run.itl_s]
    pooled = f"all {len(itl_s)} latencies of {len(runs)} runs"
    return (
        metric_of("ttft_s", [run.ttft_s for run in runs], kind, "ttft-ids"),
        metric_of("prefill_tok_per_s", prefill, kind, "prefill-forward"),
        metric_of("decode_tok_per_s", [1 / t for t in tpot_s], kind, "decode-1-over-tpot"),
        metric_of("tpot_s", tpot_s, kind, "tpot-excl-first"),
        *(
            Metric(
                name,
                quantile(itl_s, fraction),
                kind,
                "itl-pooled",
                # One copy of the raw latencies is enough: they are the same for every quantile.
                samples=tuple(itl_s) if fraction == _ITL[0][1] else (),
                note=pooled,
            )
            for name, fraction in _ITL
        ),
        metric_of("e2e_s", [run.e2e_s for run in runs], kind, "e2e-ids"),
    )


def load_metrics(
    cold_s: Sequence[float], warm_s: Sequence[float], opens_s: Sequence[float], kind: Kind
) -> tuple[Metric, ...]:
    """Turn load times into metrics; no cold ones when the page cache could not be dropped."""
    cold = Metric("load_cold_s", None, kind, "load-spawn-ready", note="cache: unknown")
    if cold_s:
        note = "files of the artifact dropped from the page cache; libraries stay cached"
        cold = metric_of("load_cold_s", cold_s, kind, "load-spawn-ready", note)
    return (
        cold,
        metric_of("load_warm_s", warm_s, kind, "load-spawn-ready", "interpreter start included"),
        metric_of("open_s", opens_s, kind, "open-call", "reopened in one process, files cached"),
    )


def memory_metrics(
    *, baseline: MemoryUse, loaded: MemoryUse, peak: MemoryPeak, kind: Kind, formula: str
) -> tuple[Metric, ...]:
    """Turn memory readings into metrics: whole process, anonymous and file-backed separately.

    Args:
        baseline: After the interpreter and edgekit started, before the engine was imported.
        loaded: After the model was opened, before the first token.
        peak: Largest values that the parent saw over the child's life.
        kind: Kind of the engine's numbers.
        formula: How the two kinds of memory were told apart.
    """
    watched = f"{peak.n_samples} looks"
    # A peak that the child itself read between two samples of the parent counts too.
    anon = max(peak.anon_bytes, loaded.anon_bytes)
    file = max(peak.file_bytes, loaded.file_bytes)
    return (
        Metric("peak_anon_bytes", anon, kind, f"{formula}-peak", note=watched),
        Metric("peak_file_bytes", file, kind, f"{formula}-peak", note=watched),
        Metric(
            "peak_rss_bytes",
            max(peak.high_water_bytes, loaded.high_water_bytes),
            kind,
            "rss-high-water",
        ),
        Metric("loaded_anon_bytes", loaded.anon_bytes, kind, formula),
        Metric("loaded_file_bytes", loaded.file_bytes, kind, formula),
        Metric("baseline_anon_bytes", baseline.anon_bytes, kind, formula),
        Metric("baseline_file_bytes", baseline.file_bytes, kind, formula),
    )
