"""A report that shows every table and chart."""

from __future__ import annotations

from edgekit.records import (
    Choice,
    ComparisonRecord,
    Criterion,
    Divergence,
    EngineInfo,
    HostFacts,
    ItemOutcome,
    Kind,
    LogitsCheck,
    Metric,
    PairedRecord,
    ProfileRecord,
    QualityRecord,
    ReportData,
    RunCheck,
    StockCheck,
    SuiteRecord,
    Verdict,
    VerifyRecord,
    WeightsCheck,
    Workload,
)

HOST = HostFacts(
    "linux", "6.1", "x86_64", "Test CPU", 2, 1, 8 << 30, None, "3.11.7", ("avx2",),
    {"onnxruntime": "1.24", "mil": "9.0"},
)  # fmt: skip


def example_divergence(kl: float, top1: float = 0.9876, top_k: int | None = 256) -> Divergence:
    """Make a distance whose interval is a fifth to each side."""
    return Divergence(
        n_documents=3,
        n_tokens=321,
        kl_mean=kl,
        kl_low=0.8 * kl,
        kl_high=1.2 * kl,
        kl_median=0.6 * kl,
        kl_p99=0.2,
        kl_max=1.5,
        kl_bound=0.9 * kl,
        top1_agreement=top1,
        top1_low=top1 - 0.01,
        top1_high=top1 + 0.01,
        perplexity=4.321,
        perplexity_low=4.3,
        perplexity_high=4.4,
        reference_perplexity=4.2,
        top_k=top_k,
    )


def example_report(text: str = "pocket") -> ReportData:
    """Make a report in which every foreign text holds ``text``."""
    measured = _profile(f"{text} onnx", Kind.MEASURED, 1.0)
    emulated = _profile(f"{text} coreml", Kind.EMULATED, 0.25)
    failed = ProfileRecord(
        f"{text} mlx", "mlx", "int4-g32", 4_000_000, "host", EngineInfo("mlx", "0.30", text),
        HOST, Workload(64, 32, 5, 1), (), failure=f"crashed: {text}",
    )  # fmt: skip
    device = QualityRecord(
        f"{text} onnx",
        measured.engine,
        example_divergence(0.01234, 0.9876),
        (_suite("tool_calls", "++-+", text), _suite("multi_step", "+--+", text)),
    )
    server = QualityRecord(
        f"server {text}", _engine("server", text), None,
        (_suite("tool_calls", "++++", text), _suite("multi_step", "++-+", text)),
    )  # fmt: skip
    return ReportData(
        title=f"{text}: on the device or on a server?",
        model=text,
        created="2026-11-22T20:00:00+00:00",
        edgekit_version="0.1.0",
        host=HOST,
        profiles=(measured, emulated, failed),
        qualities=(device, server),
        comparisons=(_comparison(text),),
        verifications=(
            VerifyRecord(
                f"{text} onnx", "onnx", "int4-g32",
                WeightsCheck("onnx 1.23", "ab" * 32, 20, 123456, 0, 0),
                LogitsCheck("onnxruntime", "fp32", 96, 1.5e-5, 3e-4, "float32-sums",
                            "sums in another order", 1.0, "the plain numpy forward"),
                RunCheck("onnxruntime (1.32)", "int8", 96, 12, 0.0123, 0.4, 0.01,
                         "int8-activations", "activations are rounded", 0.95),
                StockCheck("onnxruntime-genai", failure=f"crashed: {text}"),
            ),
            VerifyRecord(
                f"{text} mlx", "mlx", "int4-g32",
                WeightsCheck("mlx 0.32", "cd" * 32, 20, 123456, 7, 1, f"{text} onnx"),
                stock=StockCheck("mlx-lm", not_run="not installed"),
            ),
        ),
        notes=(f"A note on {text}.",),
    )  # fmt: skip


def empty_report() -> ReportData:
    """Make a report in which nothing was measured."""
    return ReportData("Nothing yet", "none", "2026-11-22T20:00:00+00:00", "0.1.0", HOST)


def _engine(name: str, text: str) -> EngineInfo:
    return EngineInfo(name, "1.24", text, 2, settings={"seen": text})


def _profile(name: str, kind: Kind, speed: float) -> ProfileRecord:
    values = {
        "load_cold_s": 0.123, "load_warm_s": 0.045, "ttft_s": 0.0321, "tpot_s": 0.008,
        "prefill_tok_per_s": 1987.5 * speed, "decode_tok_per_s": 123.25 * speed,
        "itl_p50_s": 0.0081, "itl_p95_s": 0.0092, "itl_p99_s": 0.0133,
        "peak_anon_bytes": 34_567_890.0, "peak_file_bytes": 2_345_678.0,
    }  # fmt: skip
    metrics = tuple(
        Metric(key, value, kind, f"formula-{key}", (value, value * 1.1), value * 0.9, value * 1.2)
        for key, value in values.items()
    )
    return ProfileRecord(
        candidate=name,
        format="onnx",
        scheme="int4-g32",
        artifact_bytes=3_456_789,
        device="host",
        engine=_engine("onnxruntime", name),
        host=HOST,
        workload=Workload(64, 32, 5, 1),
        metrics=metrics,
        notes=(f"spread of {name}",),
    )


def _suite(name: str, marks: str, text: str) -> SuiteRecord:
    outcomes = tuple(
        ItemOutcome(
            f"{name}/{i}", mark == "+", "" if mark == "+" else f"wrong {text}", text,
            {"n_steps": 1 + i % 2, "kind": text}, 0.1, 0.5, 12,
        )
        for i, mark in enumerate(marks)
    )  # fmt: skip
    n_correct = marks.count("+")
    return SuiteRecord(name, len(marks), n_correct, n_correct / len(marks), 0.2, 0.95, outcomes)


def _comparison(text: str) -> ComparisonRecord:
    criteria = (
        Criterion("memory", "33.0 MiB", "not there", "at most 4.00 GiB", True, Kind.MEASURED),
        Criterion("tool calls", "75.0 %", "99.0 %", "5 points", None, Kind.MEASURED, f"of {text}"),
        Criterion("decode speed", "9.0 tok/s", "88.0 tok/s", "10.0 tok/s", False, Kind.PROJECTED),
    )  # fmt: skip
    verdict = Verdict(
        Choice.SERVER, text, f"Ship {text} on the server.", f"rule of {text}", criteria
    )
    return ComparisonRecord(
        candidate=f"{text} onnx",
        server=_engine("server", text),
        pairs=(PairedRecord("tool_calls", 4, 0.75, 1.0, -0.25, -0.6, 0.2, 0, 1, 1.0),),
        metrics=(
            Metric("ttft_s", 0.2, Kind.MEASURED, "ttft-first-text", (0.2, 0.21)),
            Metric("e2e_s", None, Kind.MEASURED, note=f"no answer of {text} carried it"),
            Metric("memory_limit_bytes", 64.0 * 1024**2, Kind.PUBLISHED, source=text),
        ),
        verdict=verdict,
        notes=(f"times of {text}",),
    )
