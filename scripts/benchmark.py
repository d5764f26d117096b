"""Measure this machine: start-up, export and speed of the bundled model.

    python scripts/benchmark.py [--repeats N] [--out FILE.json]

Whole-process figures (start-up, export) run as child processes, interleaved, after one
discarded run each; medians with minimum and maximum, every sample in the JSON. Decode and
prefill come from `edgekit profile`, interleaved with stock onnxruntime-genai at equal threads.
Nothing here asserts a speed: it is a report, not a test.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

N_PROMPT, N_NEW = 64, 128
START_LIMIT_S = 0.200


def time_process(command: list[str]) -> dict[str, float]:
    """Run a command; give wall seconds and its peak resident bytes."""
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"failed with {child.returncode}: {' '.join(command)}")
    scale = 1 if sys.platform == "darwin" else 1024
    return {"wall_s": time.perf_counter() - start, "peak_bytes": float(usage.ru_maxrss * scale)}


def measure_processes(folder: Path, n_repeats: int) -> dict[str, list[dict[str, float]]]:
    """Time start-up and export, one of each in turn, first round discarded."""
    python = [sys.executable]
    edgekit = [*python, "-m", "edgekit"]
    commands = {
        "python, nothing": [*python, "-c", "pass"],
        "import edgekit": [*python, "-c", "import edgekit"],
        "edgekit --help": [*edgekit, "--help"],
    }
    for fmt in ("onnx", "mlx", "coreml", "all"):
        for scheme in ("int4", "int8"):
            out = str(folder / f"{fmt}-{scheme}")
            options = ["--format", fmt, "--scheme", scheme, "--out", out]
            commands[f"export {fmt} {scheme}"] = [*edgekit, "export", "pocket", *options]
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    for round_index in range(n_repeats + 1):
        for name, command in commands.items():
            sample = time_process(command)
            if round_index:
                samples[name].append(sample)
    return samples


def decode_edgekit(folder: str, n_threads: int) -> tuple[float, float]:
    """Give prefill and decode tokens per second of our engine, one fresh session."""
    from edgekit.artifact import Artifact
    from edgekit.runtime import open_decoder

    decoder = open_decoder(Artifact.open(folder), n_threads=n_threads)
    prompt = [5 + i % 97 for i in range(N_PROMPT)]
    start = time.perf_counter()
    token = int(decoder.forward(prompt, n_past=0)[-1].argmax())
    first = time.perf_counter()
    for n_past in range(N_PROMPT, N_PROMPT + N_NEW - 1):
        token = int(decoder.forward([token], n_past=n_past)[-1].argmax())
    last = time.perf_counter()
    decoder.close()
    return N_PROMPT / (first - start), (N_NEW - 1) / (last - first)


def decode_genai(folder: str, n_threads: int) -> tuple[float, float]:
    """Give prefill and decode tokens per second of stock onnxruntime-genai on the same files."""
    import onnxruntime_genai as og

    config = og.Config(folder)
    config.overlay(
        json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": n_threads}}}})
    )
    model = og.Model(config)
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=N_PROMPT + N_NEW, min_length=N_PROMPT + N_NEW)
    generator = og.Generator(model, params)
    start = time.perf_counter()
    generator.append_tokens([5 + i % 97 for i in range(N_PROMPT)])
    generator.generate_next_token()
    first = time.perf_counter()
    for _ in range(N_NEW - 1):
        generator.generate_next_token()
    last = time.perf_counter()
    return N_PROMPT / (first - start), (N_NEW - 1) / (last - first)


def measure_decode(folder: Path, n_repeats: int) -> dict[str, list[tuple[float, float]]]:
    """Run both engines in turn on one thread each, first round discarded."""
    samples: dict[str, list[tuple[float, float]]] = {}
    engines = {"edgekit": decode_edgekit, "onnxruntime-genai": decode_genai}
    for scheme in ("int4", "int8"):
        artifact = str(folder / f"onnx-{scheme}" / f"pocket-onnx-{scheme}-g32")
        for round_index in range(2 * n_repeats + 1):
            for name, run in engines.items():
                sample = run(artifact, 1)
                if round_index:
                    samples.setdefault(f"{name} {scheme}", []).append(sample)
    return samples


def describe(values: list[float], unit: float = 1.0, digits: int = 0) -> str:
    """Write median (minimum to maximum)."""
    low, mid, high = (v / unit for v in (min(values), median(values), max(values)))
    return f"{mid:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def print_tables(
    processes: dict[str, list[dict[str, float]]], decode: dict[str, list[tuple[float, float]]]
) -> None:
    """Print the figures as Markdown."""
    print("| process | ms, median (min to max) | peak memory, MiB |")
    print("| --- | --- | --- |")
    for name, samples in processes.items():
        wall = describe([s["wall_s"] for s in samples], 1e-3)
        peak = describe([s["peak_bytes"] for s in samples], 1024**2)
        print(f"| {name} | {wall} | {peak} |")
    print("\n| engine, 1 thread | prefill tok/s | decode tok/s |")
    print("| --- | --- | --- |")
    for name, runs in decode.items():
        print(f"| {name} | {describe([r[0] for r in runs])} | {describe([r[1] for r in runs])} |")
    for scheme in ("int4", "int8"):
        pairs = zip(decode[f"edgekit {scheme}"], decode[f"onnxruntime-genai {scheme}"], strict=True)
        ratios = [ours[1] / theirs[1] for ours, theirs in pairs]
        print(f"\ndecode, edgekit / onnxruntime-genai, {scheme}: {describe(ratios, digits=2)}")
    slow = median(s["wall_s"] for s in processes["edgekit --help"])
    word = "within" if slow < START_LIMIT_S else "MISSED:"
    print(f"\n`edgekit --help` goal of {1e3 * START_LIMIT_S:.0f} ms: {word} {1e3 * slow:.0f} ms")


def main() -> None:
    """Measure everything and print it; keep the samples in a JSON file if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=5, help="counted rounds, at least 5")
    parser.add_argument("--out", type=Path, help="keep every sample in this JSON file")
    args = parser.parse_args()
    n_repeats = max(5, args.repeats)
    with tempfile.TemporaryDirectory(prefix="edgekit-benchmark-") as name:
        folder = Path(name)
        processes = measure_processes(folder, n_repeats)
        decode = measure_decode(folder, n_repeats)
    print_tables(processes, decode)
    if args.out is not None:
        data: dict[str, Any] = {"processes": processes, "decode": decode}
        args.out.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
